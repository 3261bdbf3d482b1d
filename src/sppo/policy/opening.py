"""Opening of a policy, the same for every command: by the recipe of its run, or by settings on the command line.

A policy of a run needs what the run's recipe says: a chat template of its own, Python that comes with the model, a
system message that is merged into the user's. :func:`open_policy` finds that recipe. For other policies the same keys can
be given to a command with ``--set``.
"""

import contextlib
import hashlib
import json
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
from sppo.policy.adapter import AdapterError
from sppo.policy.chat_format import ChatError, ChatFormat
from sppo.policy.load import PolicyError
from sppo.policy.locate import policy_of
from sppo.policy.saving import save_merged
from sppo.recipe import Policy
from sppo.rundir.folder import RunError
from sppo.rundir.reader import is_run, run_and_iteration
from sppo.rundir.shards import file_digest

KEYS = (
    "policy.trust_remote_code",
    "policy.chat_template",
    "policy.template_arguments",
    "policy.template_date",
    "policy.thought",
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
        settings: the recipe's section on the policy; its `model` and `dtype` are not used.
        system: `merge` puts system messages at the head of the first user message.
        run_dtype: the data type in which the policy's run saves whole policies; None: it belongs to no run.
    """

    folder: Path
    settings: Policy
    system: Literal["template", "merge"] = "template"
    run_dtype: str | None = None

    @cached_property
    def chat(self) -> ChatFormat:
        """The tokenizer and chat template; an adapter without its own has those of its base."""
        with _errors_of_a_command():
            return load_chat(self.folder, self.settings, self.system)

    @property
    def context_length(self) -> int:
        """The longest prompt and response together that the policy takes, in tokens."""
        assert self.chat  # a policy that cannot be opened is refused here, in words
        return policies.context_length(self.folder, self.settings.trust_remote_code)

    @property
    def loading(self) -> dict[str, Any]:
        """The arguments of :func:`sppo.sampling.load` that depend on the policy."""
        return self.settings.model_dump(include={"attn_implementation", "trust_remote_code", "quantization"})

    @property
    def not_in_folder(self) -> dict[str, Any]:
        """The settings that prompts are written and responses read with and that no file of the policy holds."""
        system = {"prompts.system": self.system} if self.system != "template" else {}
        return {
            f"policy.{name}": value for name, value in self.settings.changed_template_settings.items()
        } | system

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all that the policy's responses depend on: its files, and a template or system setting of its own."""
        files, template = policies.digest(self.folder), self.settings.chat_template
        others = self.settings.changed_template_settings
        if template is None and self.system == "template" and not others:
            return files
        own = "" if template is None else file_digest(Path(template))
        written = json.dumps(others, sort_keys=True) if others else ""
        return hashlib.sha256(f"{files}\0{own}\0{self.system}{written}".encode()).hexdigest()

    def write(self, folder: Path, dtype: str, **options: Any) -> None:
        """Write the policy as one ordinary folder, as :func:`sppo.policy.saving.save_merged` does."""
        with _errors_of_a_command():
            save_merged(
                self.folder,
                folder,
                dtype=dtype,
                trust_remote_code=self.settings.trust_remote_code,
                chat_template=self.settings.chat_template,
                **options,
            )

    @contextlib.contextmanager
    def ordinary_folder(self, dtype: str) -> Iterator[Path]:
        """A folder of whole weights, for programs that know no adapters.

        An adapter is merged into its base in a temporary folder, which is removed at the end.
        """
        if not adapters.is_adapter(self.folder):
            yield self.folder
            return
        with tempfile.TemporaryDirectory(prefix="sppo-merged-") as temporary:
            self.write(Path(temporary), dtype)
            yield Path(temporary)


def open_policy(
    policy: str | Path, overrides: Mapping[str, Any] | None = None, *, run: Path | None = None
) -> OpenPolicy:
    """Open a policy with the settings of its run.

    Args:
        policy: a run folder (its last accepted policy), the folder of one of its iterations, of a policy or of an
            adapter, or a hub name.
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
    place = run_and_iteration(path.absolute())
    if run is None and (path.is_dir() or (place is not None and is_run(place[0]))):
        run = path if place is None else place[0]
        path = policy_of(path)
    if run is None or not is_run(run):
        # a recipe around the policy: its values are checked as in a run, and the errors are the same
        anything = {"prompts": {"train": "tinyworld/train"}, "oracle": {"type": "panel"}}
        recipe = recipes.parse({"policy": {"model": str(policy)}, **anything}, overrides, name="--set")
        run_dtype = None
    else:
        recipe = recipes.load(run / "recipe.yaml", overrides)
        run_dtype = recipe.training.save_dtype or recipe.policy.dtype
    with _errors_of_a_command():
        folder = policies.folder(
            str(path),
            revision=recipe.policy.revision,
            trust_remote_code=recipe.policy.trust_remote_code,
        )
    return OpenPolicy(folder, recipe.policy, recipe.prompts.system, run_dtype)


def load_chat(folder: Path, policy: Policy, system: Literal["template", "merge"]) -> ChatFormat:
    """The tokenizer and chat template of a policy's folder.

    Args:
        folder: the folder of the policy or of its adapter; an adapter without a tokenizer has that of its base.
        policy: the recipe's section on the policy.
        system: the recipe's `prompts.system`.
    """
    trust = policy.trust_remote_code
    return chat_format.load(
        str(policies.tokenizer_folder(folder, trust_remote_code=trust)),
        config=str(policies.config_folder(folder, trust_remote_code=trust)),
        trust_remote_code=trust,
        system=system,
        **policy.template_settings,
    )


@contextlib.contextmanager
def _errors_of_a_command() -> Iterator[None]:
    """Say in errors that name keys of a recipe how a command without one sets them."""
    try:
        yield
    except (PolicyError, AdapterError, ChatError) as error:
        text = str(error).removeprefix("policy.model: ")
        named = [key for key in KEYS if key in text or f"set {key.partition('.')[2]}:" in text]
        if not named or "--set" in text:
            raise type(error)(text) from error
        raise type(error)(f"{text} (on the command line: --set {named[0]}=VALUE)") from error
