"""The policy that an oracle computes with: its files, its identity, and how it is opened."""

from pathlib import Path
from typing import Any

from sppo.oracle import OracleError
from sppo.policy import load as policies
from sppo.policy.adapter import AdapterError
from sppo.policy.chat_format import ChatError, ChatFormat, model_path
from sppo.policy.load import PolicyError
from sppo.policy.opening import load_chat
from sppo.recipe import Policy
from sppo.recipe.run_policies import RunPolicy
from sppo.rundir.shards import file_digest


def identity(policy: RunPolicy | Policy) -> Any:
    """The identity of a policy: its name within the run, whose stages read its fingerprint; or its settings and digests."""
    if isinstance(policy, str):
        return policy
    folder = Path(model_path(policy.model))
    template = policy.chat_template
    return {
        **policy.model_dump(exclude={"parameters"}),
        "weights": policies.digest(folder) if folder.is_dir() else None,
        **({} if template is None else {"chat_template": file_digest(Path(template))}),
    }


def parameters(policy: RunPolicy | Policy) -> float:
    """The number of a policy's parameters; 0 where it is not known without a download, or only within a run."""
    if isinstance(policy, str):
        return 0.0
    try:
        folder = policies.base_folder(Path(model_path(policy.model)))
        return policies.count_parameters(folder) or policy.parameters or 0.0
    except (OSError, ValueError, KeyError):
        return policy.parameters or 0.0


def find(policy: RunPolicy | Policy) -> tuple[Path, ChatFormat]:
    """The folder of a policy, with its tokenizer and chat template.

    Raises:
        OracleError: there is no such policy, it has no chat template, or only a run knows which policy is meant.
    """
    if isinstance(policy, str):
        raise OracleError(
            f"oracle.policy: {policy}, but only a run knows which policy that is; name a policy's folder, or give a run"
        )
    try:
        folder = policies.folder(
            policy.model, revision=policy.revision, trust_remote_code=policy.trust_remote_code
        )
        return folder, load_chat(folder, policy, "template")
    except (PolicyError, AdapterError, ChatError) as error:
        raise refusal(error) from error


def load_weights(policy: Policy, folder: Path) -> Any:
    """The policy's model, in evaluation mode.

    Raises:
        OracleError: it does not load, or has weights that are not finite.
    """
    options = policy.model_dump(include={"dtype", "attn_implementation", "trust_remote_code", "quantization"})
    try:
        return policies.load(folder, **options)
    except (PolicyError, AdapterError) as error:
        raise refusal(error) from error


def refusal(error: Exception) -> OracleError:
    """The error of a policy that cannot be opened, with the oracle's key in the place of the run's."""
    return OracleError(f"oracle.policy: {str(error).removeprefix('policy.model: ')}")
