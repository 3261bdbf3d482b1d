"""What oracles with a model in a folder or on the hub have in common: a name, weights, and a GPU that holds them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sppo.oracle import OracleError, OracleSection
from sppo.policy import load as policies


class ModelOracle(OracleSection):
    """An oracle that computes with a model of its own, found by `model`, a folder or a hub name."""

    model: str

    @property
    def folder(self) -> Path:
        """The folder that `model` names, where it names one."""
        return Path(self.model)

    def identity(self) -> dict[str, Any]:
        """The settings, and a digest of the weights where they lie in a folder."""
        folder = self.folder
        return super().identity() | {"weights": policies.digest(folder) if folder.is_dir() else None}

    @property
    def label(self) -> str:
        """The model's folder or name."""
        return self.model

    @property
    def holds_a_model(self) -> bool:
        """True: the model is its own."""
        return True


def oracle_folder(model: str, revision: str | None, trust_remote_code: bool = False) -> Any:
    """The folder of an oracle's model.

    Raises:
        OracleError: there is none, or it has no safetensors.
    """
    try:
        return policies.folder(model, revision=revision, trust_remote_code=trust_remote_code)
    except policies.PolicyError as error:
        raise OracleError(str(error).replace("policy.model: ", "oracle.model: ", 1)) from error


def refuse_missing(name: str, missing: Sequence[Any]) -> None:
    """Refuse a model with weights that its files do not hold.

    Raises:
        OracleError: there are some.
    """
    if missing:
        shown = ", ".join(sorted(map(str, missing))[:4])
        raise OracleError(
            f"{name}: {len(missing)} weights are missing or of a wrong shape: {shown}; they would be random."
            " Is it a model of this type?"
        )
