"""What a process works with: the tokenizer, the oracle, and a policy as sampler or as scorer.

Each is loaded when first needed, in whichever process that is: the only one there is, a worker, or one of a cluster.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from sppo import oracle as oracles
from sppo import randomness
from sppo.oracle.opponents import opponents
from sppo.policy import chat_format
from sppo.policy import load as policies
from sppo.recipe import Recipe
from sppo.rundir import storage
from sppo.sampling import Sampler
from sppo.winrates import Array

Row = Mapping[str, Any]
Scorer = Callable[[Sequence[Row]], list[list[float]]]
"""log pi(y|x) in nats of the responses of each row."""


class Models:
    """The models of a recipe.

    Args:
        recipe: what the run is made from.
        threads: of torch where the recipe does not say; None: its own choice.
    """

    def __init__(self, recipe: Recipe, threads: int | None = None) -> None:
        self.recipe = recipe
        self._threads = recipe.cpu_threads or threads
        self._policy: tuple[str, Path | None, Any] | None = None
        if recipe.cpu_threads is not None:  # at once: training in this process goes by it as well
            self._limit_threads()

    @cached_property
    def base(self) -> Path:
        """The folder of pi_1, on this machine."""
        of = self.recipe.policy
        return policies.folder(of.model, revision=of.revision, trust_remote_code=of.trust_remote_code)

    @cached_property
    def chat(self) -> chat_format.ChatFormat:
        """The tokenizer and template, which all policies of the run share."""
        of = self.recipe.policy
        return chat_format.load(
            str(policies.tokenizer_folder(self.base, trust_remote_code=of.trust_remote_code)),
            config=str(policies.config_folder(self.base, trust_remote_code=of.trust_remote_code)),
            chat_template=of.chat_template,
            trust_remote_code=of.trust_remote_code,
            system=self.recipe.prompts.system,
        )

    @cached_property
    def context(self) -> int:
        """The most tokens that the policy holds."""
        return policies.context_length(self.base, self.recipe.policy.trust_remote_code)

    @cached_property
    def sampling_limit(self) -> int:
        """The most tokens of prompt and response that the sampler holds."""
        return min(self.context, self.recipe.sampling.engine_context or self.context)

    @cached_property
    def training_limit(self) -> int:
        """The most tokens of prompt and response that are trained on."""
        return min(self.context, self.recipe.training.max_tokens or self.context)

    # A policy's weights: one at a time, as a sampler or as a scorer.

    def sampler(self, policy: Path | None) -> Sampler:
        """The recipe's sampler with a policy's weights; None: the base."""
        found: Sampler = self._held("sampler", policy, self._load_sampler)
        return found

    def scorer(self, policy: Path | None) -> Scorer:
        """log pi(y|x) by the trainer's own code with a policy's weights; None: the base."""
        found: Scorer = self._held("scorer", policy, self._load_scorer)
        return found

    def scorers_at_hand(self, policies: Sequence[Path | None]) -> list[Path | None]:
        """The policies, without repeats, in an order that loads as few of them as scorers as can be."""
        return sorted(dict.fromkeys(policies), key=lambda policy: self._holds("scorer", policy), reverse=True)

    def release(self) -> None:
        """Let go of the policy's weights, and of the memory that they took."""
        if self._policy is not None and self._policy[0] == "sampler":
            self._policy[2].close()
        self._policy = None

    def _held(self, use: str, policy: Path | None, load: Callable[[Path], Any]) -> Any:
        if not self._holds(use, policy):
            self.release()
            self._limit_threads()
            if policy is not None:
                storage.fetch(policy)
            self._policy = (use, policy, load(policy or self.base))
        assert self._policy is not None
        return self._policy[2]

    def _holds(self, use: str, policy: Path | None) -> bool:
        return self._policy is not None and self._policy[:2] == (use, policy)

    def _limit_threads(self) -> None:
        if self._threads is not None:
            import torch

            torch.set_num_threads(self._threads)

    def _load_sampler(self, policy: Path) -> Sampler:
        from sppo import sampling

        of = self.recipe.policy
        return sampling.load(
            self.recipe.sampling,
            policy,
            stop_ids=self.chat.stop_ids,
            decode=self.chat.decode,
            dtype=of.dtype,
            attn_implementation=of.attn_implementation,
            trust_remote_code=of.trust_remote_code,
            quantization=of.quantization,
        )

    def _load_scorer(self, policy: Path) -> Scorer:
        from sppo.training.log_probs import Tree, capabilities, log_probs

        of, training = self.recipe.policy, self.recipe.training
        model = policies.load(
            policy,
            dtype=of.dtype,
            attn_implementation=of.attn_implementation,
            trust_remote_code=of.trust_remote_code,
            quantization=of.quantization,
        )
        found = capabilities(model)  # measured once, not for every shard

        def score(rows: Sequence[Row]) -> list[list[float]]:
            trees = [
                Tree(row["prompt_token_ids"], [response["token_ids"] for response in row["responses"]])
                for row in rows
            ]
            return log_probs(
                model,
                trees,
                pack_tokens=training.pack_tokens,
                mixed_precision=training.mixed_precision,
                found=found,
            )

        return score

    # The oracle.

    @cached_property
    def oracle(self) -> oracles.CheckedOracle:
        """P(y > y' | x).

        Raises:
            RecipeError: the recipe has none.
        """
        found = oracles.load(self.recipe.needed_oracle("comparing responses").model_dump())
        if "torch" in sys.modules:  # an oracle with a model has loaded it
            self._limit_threads()
        return found

    @cached_property
    def judge(self) -> oracles.CheckedOracle | None:
        """The held-out oracle, whose win rates say how good a policy is; None: there is none."""
        config = self.recipe.evaluation.judge
        return None if config is None else oracles.load(config.model_dump())

    def compare(
        self,
        rows: Sequence[Row],
        texts: Sequence[Sequence[str]],
        wanted: Bool[np.ndarray[Any, Any], "prompts K K"] | None = None,
        *,
        by_judge: bool = False,
    ) -> Array:
        """The oracle's matrices for texts that answer the rows' prompts; an error names the prompt.

        Args:
            rows: of the prompts.
            texts: K for each.
            wanted: the pairs that are compared, the others being NaN; None: all.
            by_judge: ask the held-out oracle.
        """
        return self.explain(rows, texts, wanted, by_judge=by_judge).matrix

    def explain(
        self,
        rows: Sequence[Row],
        texts: Sequence[Sequence[str]],
        wanted: Bool[np.ndarray[Any, Any], "prompts K K"] | None = None,
        *,
        by_judge: bool = False,
    ) -> oracles.Comparison:
        """As `compare`, with the answers that the oracle's was made of where all pairs are compared."""
        oracle = (self.judge if by_judge else None) or self.oracle
        prompts = self.prompt_texts(rows, by_judge=by_judge)
        try:
            if wanted is None:
                return oracle.explain(prompts, texts)
            return oracles.Comparison(oracle.compare_pairs(prompts, texts, wanted), {})
        except oracles.OracleError as error:
            if error.prompt_index is None:
                raise
            raise oracles.OracleError(f"prompt {rows[error.prompt_index]['prompt_id']!r}: {error}") from error

    def opponents(self, rows: Sequence[Row]) -> Bool[np.ndarray[Any, Any], "prompts K K"] | None:
        """Which pairs of the K responses to each prompt the recipe has compared; None: all."""
        m, k = getattr(self.recipe.oracle, "opponents", None), self.recipe.sampling.k
        if m is None or m >= k - 1:
            return None
        keys = (("opponents", self.recipe.seed, row["prompt_id"]) for row in rows)
        return np.stack([opponents(k, m, randomness.generator(*key)) for key in keys])

    def prompt_texts(self, rows: Sequence[Row], *, by_judge: bool = False) -> list[str]:
        """The rows' prompts as the oracle is to see them, or the held-out one."""
        needed = self.recipe.needed_judge if by_judge else self.recipe.needed_oracle
        if needed("comparing responses").text == "chat":
            return [self.chat.text(row["messages"]) for row in rows]
        return [chat_format.plain_text(row["messages"]) for row in rows]
