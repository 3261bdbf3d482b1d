r"""A fixed opponent in place of self-play, or beside it.

With w_i = mean over the opponent's responses o of P(y_i > o | x), the oracle answers
:math:`P'_{ij} = (1 - a) P_{ij} + a (\frac12 + \frac12 (w_i - w_j))`. With a = 1, the win rate of a response among the K is half of what
it wins against the opponent beyond the K's mean: the loop climbs the win rate against the opponent, whatever its policy has
become, with half of the step size. With a < 1 the opponent's responses are anchors: what the current policy, as the judge of its
own responses, prefers among them counts 1 - a, and what is better than the anchors counts a.

The opponent's responses stand in a file, or are drawn from a policy, such as the run's first.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from pydantic import Field, model_validator

from sppo.oracle import (
    CheckedOracle,
    Comparison,
    Composite,
    Oracle,
    OracleError,
    Prompts,
    Responses,
    excerpt,
    own_policy,
)
from sppo.oracle.wrappers import WrapperOracle
from sppo.reading import parse, regular
from sppo.recipe import parse_sampling
from sppo.recipe.comparisons import Comparisons
from sppo.recipe.run_policies import OraclePolicy
from sppo.recipe.sampling import SamplingConfig
from sppo.rundir.shards import file_digest


class FixedOpponentOracle(WrapperOracle):
    """P'_ij = (1 - weight) P_ij + weight (1/2 + (w_i - w_j)/2), w_i how often y_i is preferred to an opponent's responses."""

    type: Literal["fixed_opponent"] = "fixed_opponent"
    responses: str | None = Field(None, min_length=1)
    """A .jsonl file of the opponent's responses: {"prompt": "...", "responses": ["...", "..."]} in each line, with the
    prompts as the inner oracle sees them and the same number of responses to each."""
    policy: OraclePolicy | None = None
    """The policy that the opponent's responses are drawn from, in place of a file: `base`, which is pi_1, or another policy."""
    draw: int = Field(2, ge=1, le=1024)
    """policy: the number of responses that are drawn for each prompt."""
    sampling: SamplingConfig | None = None
    """policy: how they are drawn, with the keys of the recipe's `sampling:`; None: as the run draws, and outside of runs the defaults."""
    weight: float = Field(1.0, gt=0, le=1)
    """How much the opponent counts; the comparisons of the K responses with each other count the rest."""

    @model_validator(mode="after")
    def _has_one_opponent(self) -> "FixedOpponentOracle":
        if (self.responses is None) == (self.policy is None):
            raise ValueError(
                "responses: an opponent is either a file of responses or a policy; name one of them"
            )
        if self.policy == "current":
            raise ValueError(
                "policy: current is the policy that plays, against which self-play compares already; name base or another policy"
            )
        if self.policy is not None and self.oracle.prompt_form() != "prompt":
            raise ValueError(
                "policy: its responses are drawn to plain prompts, but the oracle inside has text: chat; set its text to prompt"
            )
        return self

    def load(self) -> Oracle:  # type: ignore[override]
        """The oracle with the opponent's responses."""
        opponent: Opponent
        if self.policy is None:
            opponent = Recorded(read_responses(Path(self.responses or "")))
        else:
            settings = parse_sampling({}) if self.sampling is None else self.sampling
            from sppo.oracle.policy_answers import PolicyResponses

            opponent = PolicyResponses.of_policy(self.policy, settings, self.draw)
        return FixedOpponent(CheckedOracle(self.oracle.load()), opponent, self.weight, self.oracle.label)

    def identity(self) -> dict[str, Any]:
        """The identity of the inner oracle, and the digest of the opponent's responses or of its policy."""
        identity = super().identity()
        if self.policy is not None:
            return identity | {"policy": own_policy.identity(self.policy)}
        drawn = {"policy", "draw", "sampling", *(["weight"] if self.weight == 1 else [])}
        kept = {key: value for key, value in identity.items() if key not in drawn}
        return kept | {"responses": file_digest(regular(Path(self.responses or "")))}

    def check(self) -> None:
        """Refuse a policy that is not there or has no chat template."""
        if self.policy is not None:
            own_policy.find(self.policy)

    def chosen_comparisons(self) -> Comparisons | None:
        """None: every response is compared with those of the opponent."""
        return None

    @property
    def holds_a_model(self) -> bool:
        """Whether the opponent is a policy in this process, or the inner oracle holds a model."""
        return self.policy is not None or super().holds_a_model

    @property
    def answers_any_prompt(self) -> bool:
        """Only if a policy is asked: a file has the prompts that the opponent has responded to."""
        return self.policy is not None and super().answers_any_prompt

    @property
    def is_transitive(self) -> bool:
        """Whether a response has one score, its win rate against the opponent."""
        return self.weight == 1

    def further_pairs(self, k: int) -> int:
        """Those of each response with each of a policy's; how many a file has is not known."""
        return 0 if self.policy is None else k * self.draw

    def response_parameters(self) -> float:
        """Those of the inner oracle, and of the policy that draws, as if it drew as many responses as it opposes."""
        own = 0.0 if self.policy is None else own_policy.parameters(self.policy)
        return own + super().response_parameters()


class Opponent(Protocol):
    """Gives responses to prompts."""

    def responses(self, prompts: Prompts) -> list[list[str]]:
        """As many responses to each prompt.

        Raises:
            OracleError: a prompt has none.
        """
        ...


class Recorded:
    """Responses that were written down.

    Args:
        by_prompt: the responses to each prompt.
    """

    def __init__(self, by_prompt: Mapping[str, list[str]]) -> None:
        self.by_prompt = by_prompt

    def responses(self, prompts: Prompts) -> list[list[str]]:
        """See :meth:`Opponent.responses`."""
        for number, prompt in enumerate(prompts):
            if prompt not in self.by_prompt:
                raise OracleError(f"the opponent has no responses to the prompt {excerpt(prompt)}", number)
        return [self.by_prompt[prompt] for prompt in prompts]


class FixedOpponent(Composite):
    """The oracle, loaded.

    Args:
        inner: the oracle that compares responses with those of the opponent.
        opponent: gives the opponent's responses.
        weight: how much the opponent counts, more than 0 and at most 1.
        name: the name of the inner oracle's answer among the components.
    """

    def __init__(
        self, inner: CheckedOracle, opponent: Opponent, weight: float = 1.0, name: str = "oracle"
    ) -> None:
        self.inner = inner
        self.opponent = opponent
        self.weight = weight
        self.name = name

    def compare_with_components(self, prompts: Prompts, responses: Responses) -> Comparison:
        """P' for all pairs, and P of the inner oracle if that counts.

        Raises:
            OracleError: the opponent has not responded to a prompt.
        """
        k = len(responses[0])
        answers = self.opponent.responses(prompts)
        together = [[*own, *others] for own, others in zip(responses, answers, strict=True)]
        m = len(together[0]) - k
        wanted = np.zeros((len(prompts), k + m, k + m), dtype=bool)
        wanted[:, :k, k:] = wanted[:, k:, :k] = True
        wanted[:, :k, :k] = self.weight < 1
        compared = self.inner.compare_pairs(prompts, together, wanted)
        against = compared[:, :k, k:].mean(-1)
        anchored = 0.5 + (against[:, :, None] - against[:, None, :]) / 2
        if self.weight == 1:
            return Comparison(np.asarray(anchored), {})
        own = compared[:, :k, :k]
        return Comparison(np.asarray((1 - self.weight) * own + self.weight * anchored), {self.name: own})

    def close(self) -> None:
        """Free the memory of the policy that is the opponent, if it is one."""
        getattr(self.opponent, "close", lambda: None)()

    @property
    def inner_oracles(self) -> Sequence[Oracle]:
        """The inner oracle."""
        return [self.inner]


def read_responses(path: Path) -> dict[str, list[str]]:
    """The responses of a file to each prompt.

    Raises:
        OracleError: the file cannot be read, or a line has another form or another number of responses.
    """
    found: dict[str, list[str]] = {}
    try:
        for number, line in enumerate(regular(path).read_text(encoding="utf-8").splitlines(), 1):
            row = parse(line)
            texts = row.get("responses") if isinstance(row, dict) else None
            if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
                raise ValueError(f"line {number} has no list of responses")
            if not isinstance(row.get("prompt"), str):
                raise ValueError(f"line {number} has no prompt")
            if found and len(texts) != len(next(iter(found.values()))):
                raise ValueError(f"line {number} has another number of responses than line 1")
            found[row["prompt"]] = texts
    except (OSError, ValueError) as error:
        raise OracleError(f"oracle.responses: {path}: {error}") from error
    if not found:
        raise OracleError(f"oracle.responses: {path} is empty")
    return found
