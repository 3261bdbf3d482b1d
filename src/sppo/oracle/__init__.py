"""P(y > y' | x): one protocol for everything that can say which of two responses is preferred.

An oracle answers with a whole K x K matrix per prompt, never with a scalar per response: a scalar loses
the cycles that self-play exists for. Each oracle stands in a file of its own, with its section of the recipe
(:class:`sppo.recipe.oracle.OracleSection`) and its work. Names are found through :mod:`sppo.recipe.registry`.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from sppo.progress import shortened
from sppo.recipe import parse_oracle
from sppo.recipe.oracle import Oracle, OracleSection, Pairs, Preferences, Prompts, Responses
from sppo.winrates import Array

if TYPE_CHECKING:
    from sppo.oracle.rewards import RewardFunction

TOLERANCE = 1e-4
"""How far P_ij + P_ji may be from 1, and the diagonal from 1/2, before an answer is refused."""
ROUNDING = 1e-6
"""How far outside [0, 1] an entry may be: what float32 and the weights of a panel add up to."""


class Comparison(NamedTuple):
    """An oracle's answer, and the answers of the oracles that it is made of.

    Attributes:
        matrix: the preferences, as :meth:`Oracle.compare` returns them.
        components: the preferences by a panel's members, or by the oracle inside a wrapper, by name.
    """

    matrix: Preferences
    components: dict[str, Preferences]


@runtime_checkable
class Composite(Protocol):
    """An oracle made of others, whose answers are worth keeping."""

    def compare(self, prompts: Prompts, responses: Responses) -> Preferences:
        """Like :meth:`Oracle.compare`; raises what :meth:`compare_with_components` raises."""
        return self.compare_with_components(prompts, responses).matrix

    def compare_with_components(self, prompts: Prompts, responses: Responses) -> Comparison:
        """Like :meth:`compare`, but also returns each component oracle's matrix."""
        ...

    @property
    def inner_oracles(self) -> Sequence[Oracle]:
        """The oracles that it is made of."""
        ...


@runtime_checkable
class BothOrders(Protocol):
    """An oracle that sees two responses in an order, and is asked in both."""

    def compare(self, prompts: Prompts, responses: Responses) -> Preferences:
        """Like :meth:`Oracle.compare`; raises what :meth:`logits` raises."""
        return self.probabilities(self.logits(prompts, responses))

    def logits(self, prompts: Prompts, responses: Responses) -> Preferences:
        """M, in nats: entry [n, i, j] is the log-odds of y_i when it stands first; zero diagonal.

        An oracle whose answers can be certain has infinite ones.
        """
        ...

    def probabilities(self, logits: Preferences) -> Preferences:
        """P, made from the log-odds in both orders."""
        ...


@runtime_checkable
class Counting(Protocol):
    """An oracle that counts what it did: truncated texts, tokens, requests, verdicts that could not be read."""

    @property
    def counts(self) -> Mapping[str, int]:
        """Everything that the oracle has counted since it was loaded, by name."""
        ...


@runtime_checkable
class ComparesPairs(Protocol):
    """An oracle whose cost is that of the pairs, and which can be asked about some of them only."""

    def compare_pairs(self, prompts: Prompts, responses: Responses, wanted: Pairs) -> Preferences:
        """Like :meth:`Oracle.compare` for the wanted pairs; the other entries can be anything."""
        ...


__all__ = [
    "BothOrders",
    "CheckedOracle",
    "ComparesPairs",
    "Comparison",
    "Composite",
    "Counting",
    "Oracle",
    "OracleError",
    "OracleSection",
    "Pairs",
    "Preferences",
    "Prompts",
    "Responses",
    "checked",
    "excerpt",
    "identity",
    "load",
    "parts_of",
    "reward_function",
    "rubric",
]


class OracleError(ValueError):
    """An oracle that fails, or an answer that is not a preference matrix.

    Attributes:
        prompt_index: which of the prompts of the call it came from; None where it is not known.
    """

    def __init__(self, message: str, prompt_index: int | None = None) -> None:
        super().__init__(message)
        self.prompt_index = prompt_index


class CheckedOracle(Composite):
    """An oracle whose every answer is checked and made exactly antisymmetric around 1/2.

    Args:
        inner: the oracle. If it has a true attribute `leaves_gaps`, it may leave pairs out: NaN in both entries.
        allow_gaps: whether the caller can work with pairs that are left out.
    """

    def __init__(self, inner: Oracle, *, allow_gaps: bool = True) -> None:
        self.inner = inner
        self.allow_gaps = allow_gaps

    def compare_with_components(self, prompts: Prompts, responses: Responses) -> Comparison:
        """Like :meth:`compare`, but also returns each component oracle's matrix.

        Raises:
            OracleError: the answer has another shape, is not finite, not in [0, 1], or not antisymmetric
                around 1/2 within :data:`TOLERANCE`; or the oracle itself fails.
            ValueError: there is not one list of responses for each prompt, or the lists differ in length.
        """
        k = _common_length(prompts, responses)
        if not prompts:
            return Comparison(np.zeros((0, 0, 0)), {})
        matrix, components = with_components(self.inner, prompts, responses)
        return Comparison(self._checked(matrix, prompts, k), components)

    def compare_pairs(self, prompts: Prompts, responses: Responses, wanted: Pairs) -> Preferences:
        """Like :meth:`compare` for the wanted pairs and on the diagonal; NaN where a pair was not compared.

        Args:
            prompts: N prompts as text.
            responses: K for each.
            wanted: which pairs; a pair is wanted in both orders if it is wanted in one.

        Raises:
            OracleError: as :meth:`compare_with_components` does.
            ValueError: as :meth:`compare_with_components` does.
        """
        k = _common_length(prompts, responses)
        if not prompts:
            return np.zeros((0, 0, 0))
        wanted = wanted | np.swapaxes(wanted, -1, -2) | np.eye(k, dtype=bool)
        if isinstance(self.inner, ComparesPairs):
            answer = np.where(wanted, self.inner.compare_pairs(prompts, responses, wanted), 0.5)
            matrix = self._checked(answer, prompts, k)
        else:
            matrix = self.compare(prompts, responses)
        return np.where(wanted, matrix, np.nan)

    def _checked(self, answer: Any, prompts: Prompts, k: int) -> Preferences:
        leaves_gaps = any(getattr(oracle, "leaves_gaps", False) for oracle in parts_of(self.inner))
        matrix = checked(answer, prompts, k, leaves_gaps=leaves_gaps)
        if not self.allow_gaps and np.isnan(matrix).any():
            number = int(np.argmax(np.isnan(matrix).any(axis=(1, 2))))
            raise OracleError(
                "the oracle left out pairs of responses that it cannot compare, and every pair is needed here;"
                f" set oracle.unread: error or other_order. The prompt was {excerpt(prompts[number])}",
                number,
            )
        return matrix

    @property
    def inner_oracles(self) -> Sequence[Oracle]:
        """The oracle itself."""
        return [self.inner]

    @property
    def counts(self) -> dict[str, int]:
        """The counts of the oracle and its component oracles since they were loaded, added up by name."""
        total: dict[str, int] = {}
        for oracle in parts_of(self.inner):
            for name, count in oracle.counts.items() if isinstance(oracle, Counting) else ():
                total[name] = total.get(name, 0) + count
        return total


def parts_of(oracle: Oracle) -> list[Oracle]:
    """An oracle and all that it is made of, the outermost first; checks around them are left out."""
    if isinstance(oracle, CheckedOracle):
        return parts_of(oracle.inner)
    inner = oracle.inner_oracles if isinstance(oracle, Composite) else ()
    return [oracle, *(part for component in inner for part in parts_of(component))]


def with_components(oracle: Oracle, prompts: Prompts, responses: Responses) -> Comparison:
    """An oracle's answer with those of its components, where it has some."""
    if isinstance(oracle, Composite):
        return oracle.compare_with_components(prompts, responses)
    return Comparison(oracle.compare(prompts, responses), {})


def _common_length(prompts: Prompts, responses: Responses) -> int:
    """K; 0 where there is no prompt."""
    if len(prompts) != len(responses):
        raise ValueError(f"responses: {len(responses)} lists for {len(prompts)} prompts; give one for each")
    counts = {len(of_prompt) for of_prompt in responses}
    if len(counts) > 1:
        raise ValueError(
            f"responses: prompts with {sorted(counts)} responses in one call; K must be the same"
        )
    if counts and min(counts) < 2:
        raise ValueError(f"responses: K = {min(counts)}; at least 2 responses are needed to compare")
    return counts.pop() if counts else 0


def checked(answer: Any, prompts: Prompts, k: int, *, leaves_gaps: bool = False) -> Preferences:
    """The answer of an oracle as an exact preference matrix.

    Args:
        answer: what the oracle returned.
        prompts: what it was asked about.
        k: the number of responses to each prompt.
        leaves_gaps: whether it may leave a pair out: NaN in both of its entries.

    Raises:
        OracleError: it is no preference matrix; the message names the entry and the prompt.
    """
    matrix = as_numbers(answer)
    expected = (len(prompts), k, k)
    if matrix.shape != expected:
        raise OracleError(
            f"the oracle's answer has the shape {list(matrix.shape)} instead of {list(expected)}:"
            " one K x K matrix of probabilities for each prompt"
        )
    opposite = np.swapaxes(matrix, -1, -2)
    on_diagonal = np.eye(k, dtype=bool)
    gaps = np.isnan(matrix) & np.isnan(opposite) & ~on_diagonal & leaves_gaps
    problems = {
        "is not finite": ~np.isfinite(matrix) & ~gaps,
        "is not a probability in [0, 1]": (matrix < -ROUNDING) | (matrix > 1 + ROUNDING),
        "is on the diagonal, where 1/2 belongs": on_diagonal & (np.abs(matrix - 0.5) > TOLERANCE),
        "and the entry on the other side of the diagonal do not sum to 1": np.abs(matrix + opposite - 1)
        > TOLERANCE,
    }
    for problem, entries in problems.items():
        if entries.any():
            n, i, j = (int(index) for index in np.argwhere(entries)[0])
            raise OracleError(
                f"the oracle's answer P[{i}, {j}] = {matrix[n, i, j]:g} {problem};"
                f" the prompt was {excerpt(prompts[n])}",
                n,
            )
    # the loser's is 1 - the winner's, so that P + P^T is 1 to the last bit, whatever the responses' order
    margin = matrix - opposite
    winner: Array = np.minimum(0.5 + np.abs(margin) / 2, 1)
    return np.where(margin >= 0, winner, 1 - winner)


def as_numbers(answer: Any) -> Array:
    """The answer of an oracle as an array of float64, of whatever shape.

    Raises:
        OracleError: it is not an array of numbers.
    """
    try:
        if np.ma.isMaskedArray(answer):
            answer = np.ma.filled(answer.astype(np.float64), np.nan)
        raw = np.asarray(answer)
        if raw.dtype.kind not in "biufO":
            raise TypeError(f"its entries are {raw.dtype}")
        return raw.astype(np.float64)
    except Exception as error:  # whatever stands in for an array may raise anything
        text = shortened(str(error))
        raise OracleError(f"the oracle's answer is not an array of numbers: {text}") from error


def excerpt(text: str, length: int = 120) -> str:
    """The head of a text in quotes, control characters escaped, for an error message."""
    return repr(text if len(text) <= length else text[: length - 3] + "...")


def load(config: Mapping[str, Any], *, allow_gaps: bool = False) -> CheckedOracle:
    """The oracle that a recipe's `oracle:` mapping describes; every answer of it is checked.

    Args:
        config: the mapping.
        allow_gaps: whether the caller can work with pairs that the oracle leaves out.

    Raises:
        sppo.recipe.RecipeError: the mapping is wrong.
        OracleError: the oracle cannot be loaded.
    """
    return CheckedOracle(parse_oracle(config).load(), allow_gaps=allow_gaps)


def reward_function(oracle: Mapping[str, Any] | Oracle, *, group_size: int | None = None) -> "RewardFunction":
    r"""An oracle as a reward function: ``GRPOTrainer(reward_funcs=sppo.oracle.reward_function({...}), ...)``.

    A reward is the response's win rate over the group that it was drawn with, :math:`\frac1K \sum_j P(y_i \succ y_j | x)`,
    the response itself counted as 1/2; a group's mean reward is 1/2. A judge's answers are kept as anywhere else, in its
    `endpoint.cache` or else the user's file, and are not paid for twice, whether a run, a server or a training asked.

    Args:
        oracle: the same mapping as under a recipe's `oracle:`, or an oracle. Prompts are shown to it as the trainer has
            them; those of several messages as plain text with roles.
        group_size: TRL's `num_generations`. If it is given, a prompt that occurs several times in a batch makes as
            many groups, and a group that is not whole is an error. None: all responses to a prompt are one group.

    Raises:
        sppo.recipe.RecipeError: the mapping is wrong.
        OracleError: the oracle cannot be loaded, or `group_size` is below 2.
    """
    from sppo.oracle.rewards import RewardFunction

    return RewardFunction(
        load(oracle, allow_gaps=True) if isinstance(oracle, Mapping) else oracle, group_size
    )


def rubric(oracle: Mapping[str, Any] | Oracle, *, weight: float = 1.0) -> Any:
    """An oracle as a `verifiers.Rubric`, whose reward is the win rate over the rollouts of an example.

    verifiers turns an exception in a reward function into a reward of 0, with a line in its log. An oracle that fails stops
    the scoring of this rubric instead.

    Args:
        oracle: as for :func:`reward_function`.
        weight: the weight of the win rate beside the rewards of other rubrics.

    Raises:
        sppo.recipe.RecipeError: the mapping is wrong.
        OracleError: the oracle cannot be loaded, or verifiers is not installed or has no rubrics, as since its version 0.4.
    """
    from sppo.oracle.rewards import rubric_of

    return rubric_of(reward_function(oracle), weight)


def identity(config: OracleSection) -> dict[str, Any]:
    """The settings, and the source or weights behind them, that the oracle's answers depend on."""
    return config.identity()
