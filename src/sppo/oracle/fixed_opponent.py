r"""A fixed opponent in place of self-play, so that the loop trains a best response.

With w_i = mean over the opponent's responses o of P(y_i > o | x), the oracle answers P'_ij = 1/2 + (w_i - w_j)/2. The win
rate of a response among the K is then half of what it wins against the opponent beyond the K's mean: the loop climbs the
win rate against the opponent, whatever its policy has become, with half of the step size.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sppo.oracle import CheckedOracle, Oracle, OracleError, Preferences, Prompts, Responses, excerpt
from sppo.oracle.wrappers import WrapperOracle
from sppo.reading import parse, regular
from sppo.recipe.comparisons import Comparisons
from sppo.rundir.shards import file_digest


class FixedOpponentOracle(WrapperOracle):
    """P'_ij = 1/2 + (w_i - w_j)/2, where w_i is how often y_i is preferred to an opponent's responses to the prompt."""

    type: Literal["fixed_opponent"] = "fixed_opponent"
    responses: str
    """A .jsonl file of the opponent's responses: {"prompt": "...", "responses": ["...", "..."]} in each line, with the
    prompts as the inner oracle sees them and the same number of responses to each."""

    def load(self) -> Oracle:  # type: ignore[override]
        """The oracle with the opponent's responses."""
        return FixedOpponent(CheckedOracle(self.oracle.load()), read_responses(Path(self.responses)))

    def identity(self) -> dict[str, Any]:
        """The identity of the inner oracle, and the digest of the opponent's responses."""
        return super().identity() | {"responses": file_digest(regular(Path(self.responses)))}

    def chosen_comparisons(self) -> Comparisons | None:
        """None: every response is compared with those of the opponent."""
        return None

    @property
    def answers_any_prompt(self) -> bool:
        """No: it knows the prompts that the opponent has responded to."""
        return False

    @property
    def is_transitive(self) -> bool:
        """Yes: a response has one score, its win rate against the opponent."""
        return True


class FixedOpponent:
    """The oracle, loaded.

    Args:
        inner: the oracle that compares responses with those of the opponent.
        opponent: the opponent's responses to each prompt.
    """

    def __init__(self, inner: CheckedOracle, opponent: Mapping[str, list[str]]) -> None:
        self.inner = inner
        self.opponent = opponent

    def compare(self, prompts: Prompts, responses: Responses) -> Preferences:
        """P' for all pairs.

        Raises:
            OracleError: the opponent has not responded to a prompt.
        """
        unknown = next((n for n, prompt in enumerate(prompts) if prompt not in self.opponent), None)
        if unknown is not None:
            raise OracleError(
                f"the opponent has no responses to the prompt {excerpt(prompts[unknown])}", unknown
            )
        k = len(responses[0])
        together = [[*own, *self.opponent[prompt]] for prompt, own in zip(prompts, responses, strict=True)]
        m = len(together[0]) - k
        wanted = np.zeros((len(prompts), k + m, k + m), dtype=bool)
        wanted[:, :k, k:] = wanted[:, k:, :k] = True
        against = self.inner.compare_pairs(prompts, together, wanted)[:, :k, k:].mean(-1)
        return np.asarray(0.5 + (against[:, :, None] - against[:, None, :]) / 2)


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
