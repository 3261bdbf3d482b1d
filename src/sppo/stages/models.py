"""The models that a process holds: the tokenizer, the oracles, and one policy as a sampler or as a scorer.

Each is loaded when it is first needed, in the process that needs it: the run's own, a worker, or one on a cluster.
"""

import sys
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import Bool

from sppo import oracle as oracles
from sppo.policy import chat_format
from sppo.policy import load as policies
from sppo.policy.chat_format import Message
from sppo.policy.opening import load_chat
from sppo.recipe import OracleSection, Recipe
from sppo.recipe.run_policies import RunPolicy, in_run, policy_of_run, run_policies
from sppo.rundir import storage
from sppo.rundir.tables import PromptRow
from sppo.sampling import Sampler
from sppo.winrates import Array


class Scorer(Protocol):
    """Computes log-probabilities with the trainer's own code."""

    def __call__(
        self, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[Sequence[int]]]
    ) -> list[list[float]]:
        """log pi(y|x) in nats of the responses to each prompt, all given as token ids."""
        ...


class Models:
    """The models of a recipe.

    Args:
        recipe: the run's recipe.
        threads: the number of torch's threads if the recipe does not say; None: torch's own choice.
    """

    def __init__(self, recipe: Recipe, threads: int | None = None) -> None:
        self.recipe = recipe
        self._threads = recipe.cpu_threads or threads
        self._policy: tuple[str, Path | None, Any] | None = None
        self._current: Path | None = None

    @cached_property
    def base(self) -> Path:
        """The folder of pi_1, on this machine."""
        policy = self.recipe.policy
        return policies.folder(
            policy.model, revision=policy.revision, trust_remote_code=policy.trust_remote_code
        )

    @cached_property
    def chat(self) -> chat_format.ChatFormat:
        """The tokenizer and template, which all policies of the run share."""
        return load_chat(self.base, self.recipe.policy, self.recipe.prompts.system)

    @cached_property
    def context(self) -> int:
        """The longest sequence that the policy accepts, in tokens."""
        return policies.context_length(self.base, self.recipe.policy.trust_remote_code)

    @cached_property
    def sampling_limit(self) -> int:
        """The longest prompt and response together that the sampler accepts, in tokens."""
        return min(self.context, self.recipe.sampling.engine_context or self.context)

    @cached_property
    def training_limit(self) -> int:
        """The longest prompt and response together that are trained on, in tokens."""
        return min(self.context, self.recipe.training.max_tokens or self.context)

    # One policy's weights are in memory at a time, as a sampler or as a scorer.

    def sampler(self, policy: Path | None) -> Sampler:
        """The recipe's sampler with a policy's weights; None: the base."""
        sampler: Sampler = self._held("sampler", policy, self._load_sampler)
        return sampler

    def scorer(self, policy: Path | None) -> Scorer:
        """A function that computes log pi(y|x) by the trainer's own code with a policy's weights; None: the base."""
        scorer: Scorer = self._held("scorer", policy, self._load_scorer)
        return scorer

    def examinee(self, policy: Path | None) -> Any:
        """A policy as a model that lm-eval's tasks can ask; None: the base."""
        return self._held("examinee", policy, self._load_examinee)

    def in_loading_order(self, policies: Sequence[Path | None]) -> list[Path | None]:
        """The distinct policies, beginning with the one that is loaded as a scorer, so that it is not loaded again."""
        return sorted(dict.fromkeys(policies), key=lambda policy: self._holds("scorer", policy), reverse=True)

    def release(self) -> None:
        """Unload the policy, and oracles that compute with one, and free the memory of their weights."""
        if self._policy is not None and self._policy[0] == "sampler":
            self._policy[2].close()
        self._policy = None
        self._release_oracles({"current", "base"})

    def play(self, policy: Path | None) -> None:
        """Let a policy be pi_t, which oracles with `policy: current` compute with; None: the base."""
        if policy != self._current:
            self._release_oracles({"current"})
        self._current = policy

    def _release_oracles(self, policies: set[RunPolicy]) -> None:
        """Unload the oracles that compute with one of the given policies of the run."""
        sections = {"oracle": self.recipe.oracle, "held_out_oracle": self.recipe.evaluation.oracle}
        for name, section in sections.items():
            if name in self.__dict__ and run_policies(section) & policies:
                for part in oracles.parts_of(self.__dict__.pop(name)):
                    getattr(part, "close", lambda: None)()
                if name == "oracle" and self.recipe.evaluation.oracle is None:
                    self.__dict__.pop("held_out_oracle", None)

    def _held(self, use: str, policy: Path | None, load: Callable[[Path], Any]) -> Any:
        if not self._holds(use, policy):
            self.release()
            self.limit_threads()
            if policy is not None:
                storage.fetch(policy)
            self._policy = (use, policy, load(policy or self.base))
        assert self._policy is not None
        return self._policy[2]

    def _holds(self, use: str, policy: Path | None) -> bool:
        return self._policy is not None and self._policy[:2] == (use, policy)

    def limit_threads(self) -> None:
        """Set the number of torch's threads in this process to the recipe's, or else to the caller's."""
        if self._threads is not None:
            import torch

            torch.set_num_threads(self._threads)

    def _load_sampler(self, policy: Path) -> Sampler:
        from sppo import sampling

        settings = self.recipe.sampling
        if self.recipe.training.opponent_log_probs == "sampler" and settings.dtype is None:
            settings = settings.model_copy(update={"dtype": self.recipe.policy.dtype})  # these are trained on
        return sampling.load(
            settings,
            policy,
            stop_ids=self.chat.stop_ids,
            decode=self.chat.decode,
            **self._loading,
        )

    @property
    def _loading(self) -> dict[str, Any]:
        """The settings that the weights of every policy of the run are loaded with."""
        return self.recipe.policy.model_dump(
            include={"dtype", "attn_implementation", "trust_remote_code", "quantization"}
        )

    def _load_examinee(self, policy: Path) -> Any:
        from sppo.benchmarks.open_llm.lm_eval_tasks import as_lm_eval_model

        return as_lm_eval_model(policies.load(policy, **self._loading), self.chat.tokenizer)

    def _load_scorer(self, policy: Path) -> Scorer:
        from sppo.training import mixed_precision
        from sppo.training.log_probs import Tree, log_probs, measure_capabilities

        training = self.recipe.training
        model = policies.load(policy, **self._loading)
        precision = mixed_precision(training)
        capabilities = measure_capabilities(model)  # measured once, not for every shard

        def score(
            prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[Sequence[int]]]
        ) -> list[list[float]]:
            trees = [
                Tree(list(prompt), [list(token_ids) for token_ids in prompt_responses])
                for prompt, prompt_responses in zip(prompts, responses, strict=True)
            ]
            return log_probs(
                model,
                trees,
                pack_tokens=training.largest_pack,
                mixed_precision=precision,
                capabilities=capabilities,
            )

        return score

    @cached_property
    def oracle(self) -> oracles.CheckedOracle:
        """The oracle that the policy learns from, P(y > y' | x).

        Raises:
            RecipeError: the recipe has no oracle.
        """
        loaded = self._loaded(self.recipe.needed_oracle("comparing responses"))
        if "torch" in sys.modules:  # an oracle with a model has imported torch
            self.limit_threads()
        return loaded

    @cached_property
    def held_out_oracle(self) -> oracles.CheckedOracle:
        """The oracle that policies are compared by: `evaluation.oracle`, or else the one that they learn from."""
        config = self.recipe.evaluation.oracle
        return self.oracle if config is None else self._loaded(config)

    def _loaded(self, config: OracleSection) -> oracles.CheckedOracle:
        return oracles.load(self.in_run(config).model_dump(), allow_gaps=True)

    def in_run(self, config: OracleSection) -> OracleSection:
        """An oracle, with the policies of the run that it computes with."""
        folders: dict[RunPolicy, Path | None] = {"current": self._current, "base": None}
        policies = {}
        for name in run_policies(config):
            folder = folders[name]
            if folder is not None:
                storage.fetch(folder)
            policies[name] = policy_of_run(self.recipe.policy, folder or self.base)
        return in_run(config, policies, self.recipe.sampling)

    def compare(
        self,
        rows: Sequence[PromptRow],
        texts: Sequence[Sequence[str]],
        wanted: Bool[np.ndarray[Any, Any], "prompts K K"] | None = None,
        *,
        held_out: bool = False,
    ) -> Array:
        """The oracle's preference matrices for responses to the rows' prompts.

        Args:
            rows: the prompts.
            texts: K responses for each prompt.
            wanted: the pairs that are compared, while the others are NaN; None: all pairs.
            held_out: ask the held-out oracle.

        Raises:
            OracleError: the oracle fails, or its answer is no preference matrix; the message names the prompt.
        """
        return self.compare_with_components(rows, texts, wanted, held_out=held_out).matrix

    def compare_with_components(
        self,
        rows: Sequence[PromptRow],
        texts: Sequence[Sequence[str]],
        wanted: Bool[np.ndarray[Any, Any], "prompts K K"] | None = None,
        *,
        held_out: bool = False,
    ) -> oracles.Comparison:
        """Like `compare`, but also returns each component oracle's matrices if all pairs are compared."""
        oracle = self.held_out_oracle if held_out else self.oracle
        prompts = self.prompt_texts([row.messages for row in rows], held_out=held_out)
        try:
            if wanted is None:
                return oracle.compare_with_components(prompts, texts)
            return oracles.Comparison(oracle.compare_pairs(prompts, texts, wanted), {})
        except oracles.OracleError as error:
            if error.prompt_index is None:
                raise
            raise oracles.OracleError(f"prompt {rows[error.prompt_index].prompt_id!r}: {error}") from error

    def prompt_texts(
        self, conversations: Sequence[Sequence[Message]], *, held_out: bool = False
    ) -> list[str]:
        """The prompts as text in the form that the recipe chooses for the oracle, or for the held-out oracle."""
        needed = self.recipe.needed_held_out_oracle if held_out else self.recipe.needed_oracle
        if needed("comparing responses").prompt_form() == "chat":
            return [self.chat.text(messages) for messages in conversations]
        return [chat_format.plain_text(messages) for messages in conversations]
