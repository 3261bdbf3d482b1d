"""How every command opens a policy: by the recipe of the run that it belongs to, or by settings on the command line.

A policy of a run needs what the run's recipe says: a chat template of its own, Python that comes with the model, a
system message that is merged into the user's. :func:`open_policy` finds that recipe. For other policies the same keys can
be given to a command with ``--set``.
"""

import contextlib
import hashlib
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from sppo import recipe as recipes
from sppo.policy import adapter as adapters
from sppo.policy import chat_format
from sppo.policy import load as policies
from sppo.policy.locate import policy_of
from sppo.policy.tokenizer_files import copy_tokenizer
from sppo.rundir.folder import RunError
from sppo.rundir.reader import is_run, run_and_iteration
from sppo.rundir.shards import file_digest

KEYS = (
    "policy.trust_remote_code",
    "policy.chat_template",
    "policy.attn_implementation",
    "policy.revision",
    "prompts.system",
)
"""The recipe's keys that say how a policy is opened."""


@dataclass(frozen=True)
class OpenPolicy:
    """A policy's folder with the settings by which its tokenizer and weights are loaded.

    Attributes:
        folder: the folder of the policy or of its adapter.
        trust_remote_code: whether Python that comes with the model is run.
        chat_template: a jinja file used instead of the tokenizer's own template.
        system: `merge` puts system messages at the head of the first user message.
        attn_implementation: as in transformers.
        quantization: what the weights are rounded to; None: nothing, or what the adapter's folder says.
    """

    folder: Path
    trust_remote_code: bool = False
    chat_template: str | None = None
    system: Literal["template", "merge"] = "template"
    attn_implementation: str | None = None
    quantization: str | None = None

    @cached_property
    def chat(self) -> chat_format.ChatFormat:
        """The tokenizer and chat template; an adapter without its own has those of its base."""
        trust = self.trust_remote_code
        return chat_format.load(
            str(policies.tokenizer_folder(self.folder, trust_remote_code=trust)),
            config=str(policies.config_folder(self.folder, trust_remote_code=trust)),
            chat_template=self.chat_template,
            trust_remote_code=trust,
            system=self.system,
        )

    @property
    def context_length(self) -> int:
        """The longest prompt and response together that the policy takes, in tokens."""
        return policies.context_length(self.folder, self.trust_remote_code)

    @property
    def loading(self) -> dict[str, Any]:
        """The arguments of :func:`sppo.sampling.load` that depend on the policy."""
        return {
            "attn_implementation": self.attn_implementation,
            "trust_remote_code": self.trust_remote_code,
            "quantization": self.quantization,
        }

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all that the policy's responses depend on: its files, and a template or system setting of its own."""
        files = policies.digest(self.folder)
        if self.chat_template is None and self.system == "template":
            return files
        template = "" if self.chat_template is None else file_digest(Path(self.chat_template))
        return hashlib.sha256(f"{files}\0{template}\0{self.system}".encode()).hexdigest()

    @contextlib.contextmanager
    def ordinary_folder(self, dtype: str) -> Iterator[Path]:
        """A folder of whole weights, for programs that know no adapters.

        An adapter is merged into its base in a temporary folder, which is removed at the end.
        """
        if not adapters.is_adapter(self.folder):
            yield self.folder
            return
        with tempfile.TemporaryDirectory(prefix="sppo-merged-") as temporary:
            model = policies.load_merged(self.folder, dtype=dtype, trust_remote_code=self.trust_remote_code)
            model.save_pretrained(temporary)
            del model
            copy_tokenizer(self.folder, Path(temporary), self.chat_template)
            yield Path(temporary)


def open_policy(
    policy: str | Path, overrides: Mapping[str, Any] | None = None, *, run: Path | None = None
) -> OpenPolicy:
    """Open a policy with the settings of its run.

    Args:
        policy: a run folder (its last accepted policy), the folder of a policy or an adapter, or a hub name.
        overrides: values of :data:`KEYS`, which replace those of the run's recipe.
        run: the run that the policy belongs to; None: the run folder that it lies in, if it lies in one.

    Raises:
        RunError: a run has no finished iteration, or a key of `overrides` does not say how policies are opened.
        RecipeError: the run's recipe or a value of `overrides` cannot be used.
        PolicyError, AdapterError: there is no such policy.
    """
    strange = [key for key in overrides or {} if key not in KEYS]
    if strange:
        raise RunError(
            f"--set {strange[0]}: it does not say how a policy is opened; the keys that do are {', '.join(KEYS)}"
        )
    path = Path(policy)
    if run is None and is_run(path):
        run, path = path, policy_of(path)
    elif run is None:
        place = run_and_iteration(path.absolute())
        run = place[0] if place is not None and is_run(place[0]) else None
    if run is None:
        # a recipe around the policy: its values are checked as in a run, and the errors are the same
        anything = {"prompts": {"train": "tinyworld/train"}, "oracle": {"type": "panel"}}
        recipe = recipes.parse({"policy": {"model": str(policy)}, **anything}, overrides, name="--set")
    else:
        recipe = recipes.load(run / "recipe.yaml", overrides)
    section = recipe.policy
    folder = policies.folder(
        str(path), revision=section.revision, trust_remote_code=section.trust_remote_code
    )
    return OpenPolicy(
        folder,
        section.trust_remote_code,
        section.chat_template,
        recipe.prompts.system,
        section.attn_implementation,
        section.quantization,
    )
