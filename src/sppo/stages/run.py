"""The state that the stages of a run share: its recipe and folder, this process's models, the identities of its inputs.

The identity of an input is what fingerprints hold of it. Each identity is computed once for a run, without torch or
transformers, so that a finished run is recognised at once.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sppo import oracle as oracles
from sppo import prompts as prompt_sources
from sppo.executors import Executor
from sppo.policy import chat_format
from sppo.policy import load as policies
from sppo.progress import Terminal
from sppo.recipe import ANSWERS, OracleConfig, PromptSource, Recipe, keep_answers_in
from sppo.recipe.run_policies import RunPolicy, run_policies
from sppo.rundir.folder import RunFolder
from sppo.rundir.shards import file_digest
from sppo.rundir.tables import ItemRow
from sppo.stages import watched_tasks
from sppo.stages.models import Models

HELD_OUT = 0
"""The iteration number of what belongs to the base policy and to the held-out prompts."""


@dataclass(frozen=True)
class PolicyState:
    """A policy of the run.

    Attributes:
        folder: the folder of its weights, which may not exist yet.
        fingerprint: what everything that is computed with the policy depends on.
    """

    folder: Path
    fingerprint: str


class Run:
    """One run.

    Args:
        recipe: the run's recipe.
        folder: the run's folder.
        terminal: where progress is shown.
        executor: where shards and policies are computed.
    """

    def __init__(self, recipe: Recipe, folder: RunFolder, terminal: Terminal, executor: Executor) -> None:
        self.recipe = recipe
        self.folder = folder
        self.terminal = terminal
        self.executor = executor
        self.models = Models(keep_answers_in(recipe, (folder.path / ANSWERS).resolve()))

    @cached_property
    def base(self) -> PolicyState:
        """pi_1."""
        return PolicyState(self.models.base, policies.digest(self.models.base))

    def weights(self, policy: PolicyState) -> Path | None:
        """The folder of a policy for a worker; None for the base policy, which each machine finds by itself."""
        return None if policy.folder == self.base.folder else policy.folder.resolve()

    @property
    def policy_settings(self) -> dict[str, Any]:
        """The recipe's values that log-probabilities depend on beside the weights."""
        return self.recipe.policy.model_dump(include={"dtype", "attn_implementation", "quantization"})

    @cached_property
    def sampling_settings(self) -> dict[str, Any]:
        """The recipe's values that responses depend on."""
        recipe = self.recipe
        return {
            "sampling": recipe.sampling.model_dump(),
            "policy": {**self.policy_settings, **recipe.policy.changed_template_settings},
            "seed": recipe.seed,
        }

    @cached_property
    def oracle_identity(self) -> dict[str, Any] | None:
        """The identity of the recipe's oracle; None if there is no oracle."""
        return self._identity(self.recipe.oracle)

    @cached_property
    def held_out_oracle_identity(self) -> dict[str, Any] | None:
        """The identity of `evaluation.oracle`; None if there is none."""
        return self._identity(self.recipe.evaluation.oracle)

    def _identity(self, oracle: OracleConfig | None) -> dict[str, Any] | None:
        return None if oracle is None else oracles.identity(oracle)

    def policies_of(self, oracle: OracleConfig | None, current: PolicyState) -> list[str]:
        """The fingerprints of the run's policies that an oracle computes with, where `current` is pi_t."""
        policies: dict[RunPolicy, PolicyState] = {"base": self.base, "current": current}
        return [policies[name].fingerprint for name in sorted(run_policies(oracle))]

    @cached_property
    def tokenizer_identity(self) -> str:
        """The digests of the files that turn messages into tokens."""
        names = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "chat_template.jinja")
        folder = policies.tokenizer_folder(self.base.folder)
        files = [folder / name for name in names if (folder / name).is_file()]
        if self.recipe.policy.chat_template is not None:
            files.append(Path(self.recipe.policy.chat_template))
        settings = self.recipe.policy.changed_template_settings
        changed = {name: value for name, value in settings.items() if name != "thought"}
        digests = [file_digest(path) for path in files]
        return ",".join([*digests, json.dumps(changed, sort_keys=True)] if changed else digests)

    @cached_property
    def length_limits(self) -> dict[str, Any]:
        """The values that the longest prompt and the longest response depend on.

        They take the place of the limits themselves, which are known only once transformers has read the policy's
        configuration.
        """
        recipe = self.recipe
        config = policies.config_folder(self.base.folder) / "config.json"
        return {
            "config": file_digest(config),
            "max_new_tokens": recipe.sampling.max_new_tokens,
            "engine": recipe.sampling.engine_context,
        }

    @cached_property
    def prompt_limit(self) -> int:
        """The longest prompt that leaves room for one response of full length, in tokens.

        Raises:
            ChatError: not even an empty prompt leaves room for a response.
        """
        recipe, limit = self.recipe, self.models.sampling_limit
        room = limit - recipe.sampling.max_new_tokens
        if room < 1:
            limited_by_engine = limit < self.models.context
            name = "sampling.engine_args.max_model_len" if limited_by_engine else repr(recipe.policy.model)
            raise chat_format.ChatError(
                f"sampling.max_new_tokens: {recipe.sampling.max_new_tokens}, but {name} takes {limit} tokens in all;"
                " lower it, so that a prompt fits as well"
            )
        return min(room, recipe.prompts.max_tokens or room)

    @cached_property
    def watched_items(self) -> list[list[ItemRow]]:
        """The items of each watched task that the seed draws; reading the tasks checks that they load.

        Raises:
            WatchedTaskError: a task cannot be used.
        """
        drawn = []
        for config in self.recipe.evaluation.tasks:
            with watched_tasks.opened(config) as task:
                items = task.draw(self.recipe.seed)
            drawn.append([ItemRow(config.name, member, number) for member, number in items])
        return drawn

    @cached_property
    def split_prompts(self) -> prompt_sources.Split:
        """All prompts, checked, tokenised and dealt out over the iterations."""
        recipe, prompts = self.recipe, self.recipe.prompts
        for note in self.models.chat.notes:
            self.terminal.note(note)
        with self.terminal.bar("prompts", None, "prompts") as advance:
            split = prompt_sources.split(
                prompts.train,
                prompts.held_out,
                iterations=recipe.iterations,
                per_iteration=prompts.per_iteration,
                parts=prompts.parts,
                chat=self.models.chat,
                max_tokens=self.prompt_limit,
                skip_invalid=prompts.invalid == "skip",
                seed=recipe.seed,
                on_prompt=advance,
            )
        for note in split.counts.notes():
            self.terminal.note(note)
        return split


def source_identity(source: PromptSource) -> dict[str, Any]:
    """The identity of a source of prompts: the content of files, or the name and revision of a hub data set."""
    unset = {name for name in ("demonstration", "config") if getattr(source, name) is None}
    values = source.model_dump(exclude={"rows"} | unset)
    files = prompt_sources.local_files(source)
    if len(files) == 1:
        return {**values, "source": file_digest(files[0])}
    files = files or sorted(file for file in Path(source.source).expanduser().rglob("*") if file.is_file())
    return {**values, "files": [[file.name, file_digest(file)] for file in files]} if files else values
