"""P(y > y' | x): one protocol for everything that can say which of two responses is preferred.

An oracle answers with a whole K x K matrix per prompt, never with a scalar per response: a scalar loses
the cycles that self-play exists for. Each implementation stands in a file of its own.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float

from sppo.recipe import (
    FunctionOracle,
    GeneralPreferenceOracle,
    JudgeOracle,
    LengthControlledOracle,
    LengthMatchedOracle,
    NearTieOracle,
    OracleConfig,
    PairRMOracle,
    PanelOracle,
    RewardModelOracle,
    parse_oracle,
)
from sppo.tinyworld import PAIRRM as TINYWORLD_PAIRRM
from sppo.winrates import Array

TOLERANCE = 1e-4
"""How far P_ij + P_ji may be from 1, and the diagonal from 1/2, before an answer is refused."""
ROUNDING = 1e-6
"""How far outside [0, 1] an entry may be: what float32 and the weights of a panel add up to."""


class Oracle(Protocol):
    """Anything that compares the responses to a prompt with one another."""

    def compare(
        self, prompts: Sequence[str], responses: Sequence[Sequence[str]]
    ) -> Float[Array, "prompts K K"]:
        """Probabilities that responses are preferred to each other.

        Args:
            prompts: N prompts as text.
            responses: for each prompt its K responses as text; K is the same for all N.

        Returns:
            [N, K, K]: entry [n, i, j] is P(y_i > y_j | x_n); P + P^T = 1, diagonal 1/2.
        """
        ...


class Comparison(NamedTuple):
    """An oracle's answer with the answers that it was made of.

    Attributes:
        matrix: [N, K, K], as :meth:`Oracle.compare` answers.
        parts: by name, the answers of the same shape behind it: a panel's members', or a wrapper's inner oracle's.
    """

    matrix: Float[Array, "prompts K K"]
    parts: dict[str, Float[Array, "prompts K K"]]


@runtime_checkable
class Composite(Protocol):
    """An oracle made of others, whose answers are worth keeping."""

    def explain(self, prompts: Sequence[str], responses: Sequence[Sequence[str]]) -> Comparison:
        """The answer and its parts."""
        ...

    @property
    def inner_oracles(self) -> Sequence[Oracle]:
        """What it is made of."""
        ...


@runtime_checkable
class BothOrders(Protocol):
    """An oracle that sees two responses in an order and is asked in both."""

    def logits(
        self, prompts: Sequence[str], responses: Sequence[Sequence[str]]
    ) -> Float[Array, "prompts K K"]:
        """M, in nats: entry [n, i, j] is the log-odds of y_i when it stands first; zero diagonal.

        An oracle whose answers can be certain has infinite ones.
        """
        ...

    def probabilities(self, logits: Float[Array, "prompts K K"]) -> Float[Array, "prompts K K"]:
        """P made from both orders: what `compare` answers."""
        ...


@runtime_checkable
class Counting(Protocol):
    """An oracle that counts what it did: texts cut, tokens, requests, verdicts that could not be read."""

    @property
    def counts(self) -> Mapping[str, int]:
        """Since it was loaded."""
        ...


@runtime_checkable
class ComparesPairs(Protocol):
    """An oracle whose cost is that of the pairs, and which can be asked about some of them only."""

    def compare_pairs(
        self,
        prompts: Sequence[str],
        responses: Sequence[Sequence[str]],
        wanted: Bool[np.ndarray[Any, Any], "prompts K K"],
    ) -> Float[Array, "prompts K K"]:
        """As :meth:`Oracle.compare` where `wanted`, which is symmetric; anything elsewhere."""
        ...


class OracleError(ValueError):
    """An oracle that fails, or an answer that is not a preference matrix.

    Attributes:
        prompt_index: which of the prompts of the call it came from; None where it is not known.
    """

    def __init__(self, message: str, prompt_index: int | None = None) -> None:
        super().__init__(message)
        self.prompt_index = prompt_index


class CheckedOracle:
    """An oracle whose every answer is checked and made exactly antisymmetric around 1/2."""

    def __init__(self, inner: Oracle) -> None:
        self.inner = inner

    def compare(
        self, prompts: Sequence[str], responses: Sequence[Sequence[str]]
    ) -> Float[Array, "prompts K K"]:
        """As :meth:`Oracle.compare`; raises as :meth:`explain`."""
        return self.explain(prompts, responses).matrix

    def explain(self, prompts: Sequence[str], responses: Sequence[Sequence[str]]) -> Comparison:
        """The answer, and the answers that it was made of.

        Raises:
            OracleError: the answer has another shape, is not finite, not in [0, 1], or not antisymmetric
                around 1/2 within :data:`TOLERANCE`; or the oracle itself fails.
            ValueError: not one list of responses for each prompt, or lists of different lengths.
        """
        k = _responses_each(prompts, responses)
        if not prompts:
            return Comparison(np.zeros((0, 0, 0)), {})
        if isinstance(self.inner, Composite):
            matrix, parts = self.inner.explain(prompts, responses)
        else:
            matrix, parts = self.inner.compare(prompts, responses), {}
        return Comparison(checked(matrix, prompts, k), parts)

    def compare_pairs(
        self,
        prompts: Sequence[str],
        responses: Sequence[Sequence[str]],
        wanted: Bool[np.ndarray[Any, Any], "prompts K K"],
    ) -> Float[Array, "prompts K K"]:
        """As :meth:`compare` for the wanted pairs and on the diagonal; NaN says that a pair was not compared.

        Args:
            prompts: N prompts as text.
            responses: K for each.
            wanted: which pairs; a pair is wanted in both orders if it is in one.

        Raises:
            OracleError: as :meth:`explain`.
            ValueError: as :meth:`explain`.
        """
        k = _responses_each(prompts, responses)
        if not prompts:
            return np.zeros((0, 0, 0))
        wanted = wanted | np.swapaxes(wanted, -1, -2) | np.eye(k, dtype=bool)
        if isinstance(self.inner, ComparesPairs):
            answer = np.where(wanted, self.inner.compare_pairs(prompts, responses, wanted), 0.5)
            matrix = checked(answer, prompts, k)
        else:
            matrix = self.compare(prompts, responses)
        return np.where(wanted, matrix, np.nan)

    @property
    def inner_oracles(self) -> Sequence[Oracle]:
        """The oracle itself."""
        return [self.inner]

    @property
    def counts(self) -> dict[str, int]:
        """What it and the oracles that it is made of counted since they were loaded, added up by name."""
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
    return [oracle, *(part for one in inner for part in parts_of(one))]


def _responses_each(prompts: Sequence[str], responses: Sequence[Sequence[str]]) -> int:
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


def checked(answer: Any, prompts: Sequence[str], k: int) -> Float[Array, "prompts K K"]:
    """The answer of an oracle as an exact preference matrix.

    Raises:
        OracleError: it is none; the message names the entry and the prompt.
    """
    try:
        if np.ma.isMaskedArray(answer):
            answer = np.ma.filled(answer.astype(np.float64), np.nan)
        raw = np.asarray(answer)
        if raw.dtype.kind not in "biufO":
            raise TypeError(f"its entries are {raw.dtype}")
        matrix = raw.astype(np.float64)
    except Exception as error:  # whatever stands in for an array may raise anything
        raise OracleError(f"the oracle's answer is not an array of numbers: {error}") from error
    expected = (len(prompts), k, k)
    if matrix.shape != expected:
        raise OracleError(
            f"the oracle's answer has the shape {list(matrix.shape)} instead of {list(expected)}:"
            " one K x K matrix of probabilities for each prompt"
        )
    _refuse(~np.isfinite(matrix), matrix, prompts, "is not finite")
    outside = (matrix < -ROUNDING) | (matrix > 1 + ROUNDING)
    _refuse(outside, matrix, prompts, "is not a probability in [0, 1]")
    opposite = np.swapaxes(matrix, -1, -2)
    diagonal = np.abs(np.diagonal(matrix, axis1=-2, axis2=-1) - 0.5) > TOLERANCE
    _refuse(
        diagonal[..., None] & np.eye(k, dtype=bool), matrix, prompts, "is on the diagonal, where 1/2 belongs"
    )
    _refuse(
        np.abs(matrix + opposite - 1) > TOLERANCE,
        matrix,
        prompts,
        "and the entry on the other side of the diagonal do not sum to 1",
    )
    # the loser's is 1 - the winner's, so that P + P^T is 1 to the last bit, whatever the responses' order
    margin = matrix - opposite
    winner = np.minimum(0.5 + np.abs(margin) / 2, 1)
    return np.where(margin >= 0, winner, 1 - winner)


def _refuse(wrong: np.ndarray[Any, Any], matrix: Array, prompts: Sequence[str], what: str) -> None:
    if wrong.any():
        n, i, j = (int(index) for index in np.argwhere(wrong)[0])
        raise OracleError(
            f"the oracle's answer P[{i}, {j}] = {matrix[n, i, j]:g} {what};"
            f" the prompt was {excerpt(prompts[n])}",
            n,
        )


def excerpt(text: str, length: int = 120) -> str:
    """The head of a text in quotes, control characters escaped, for an error message."""
    return repr(text if len(text) <= length else text[: length - 3] + "...")


def load(config: Mapping[str, Any]) -> CheckedOracle:
    """The oracle that a recipe's `oracle:` mapping describes; every answer of it is checked.

    Raises:
        sppo.recipe.RecipeError: the mapping is wrong.
        OracleError: the oracle cannot be loaded.
    """
    return CheckedOracle(_load(parse_oracle(config)))


def _load(config: OracleConfig) -> Oracle:
    # imported here, so that an oracle's libraries load only where it is used
    match config:
        case FunctionOracle():
            from sppo.oracle.function import Function

            return Function(config.function, config.timeout_seconds)
        case PanelOracle():
            from sppo.oracle.panel import Panel, tinyworld_members

            if config.members is None:
                named = tinyworld_members()
            else:
                names = distinct([label(one) for one in config.members])
                named = {name: _load(one) for name, one in zip(names, config.members, strict=True)}
            return Panel([CheckedOracle(member) for member in named.values()], config.weights, list(named))
        case PairRMOracle():
            from sppo.oracle.pairrm import PairRM

            return PairRM.from_pretrained(
                pairrm_path(config.model),
                revision=config.revision,
                probability=config.probability,
                dtype=config.dtype,
                batch_pairs=config.batch_pairs,
            )
        case RewardModelOracle():
            from sppo.oracle.reward_model import RewardModel

            return RewardModel.from_pretrained(**config.model_dump(exclude={"type", "text"}))
        case GeneralPreferenceOracle():
            from sppo.oracle.general_preference import GeneralPreference

            return GeneralPreference.from_pretrained(**config.model_dump(exclude={"type", "text"}))
        case JudgeOracle():
            from sppo.oracle.judge import Judge

            return Judge(config)
        case LengthControlledOracle() | LengthMatchedOracle() | NearTieOracle():
            from sppo.oracle.wrappers import wrap

            return wrap(CheckedOracle(_load(config.oracle)), label(config.oracle), config)


def pairrm_path(model: str) -> str:
    """The folder or hub name that a PairRM's `model` stands for: `tinyworld` is the embedded one."""
    return str(TINYWORLD_PAIRRM) if model == "tinyworld" else model


def label(config: OracleConfig) -> str:
    """What an oracle is called among others: its function or model, or its type."""
    match config:
        case FunctionOracle():
            return config.function
        case PairRMOracle() | RewardModelOracle() | GeneralPreferenceOracle():
            return config.model
        case JudgeOracle():
            return config.endpoint.model
    return config.type


def is_transitive(config: OracleConfig) -> bool:
    """Whether its preferences come from one score per response, so that no cycle is possible."""
    if isinstance(config, PairRMOracle):
        return config.probability == "averaged"
    return isinstance(config, RewardModelOracle)


def distinct(names: Sequence[str]) -> list[str]:
    """The names, with a number behind those that stood before."""
    seen: dict[str, int] = {}
    found = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        found.append(name if seen[name] == 1 else f"{name} #{seen[name]}")
    return found


def identity(config: OracleConfig) -> dict[str, Any]:
    """What the oracle's answers depend on: its settings, and the source or weights behind them."""
    # opponents is of the annotation alone
    values = config.model_dump(exclude={"timeout_seconds", "batch_pairs", "batch_tokens", "opponents"})
    match config:
        case FunctionOracle():
            from sppo.oracle.function import source_digest

            values["source"] = source_digest(config.function)
        case PanelOracle() if config.members is not None:
            values["members"] = [identity(member) for member in config.members]
        case PanelOracle():
            from sppo.oracle.function import source_digest
            from sppo.tinyworld.annotators import ANNOTATORS

            values["members"] = [source_digest(f"sppo.tinyworld.annotators:{name}") for name in ANNOTATORS]
        case PairRMOracle() | RewardModelOracle() | GeneralPreferenceOracle():
            from sppo.policy import load as policy

            folder = Path(pairrm_path(config.model) if isinstance(config, PairRMOracle) else config.model)
            values["weights"] = policy.digest(folder) if folder.is_dir() else None
        case JudgeOracle():
            from sppo.oracle.judge_template import source

            values["endpoint"] = config.endpoint.model_dump(include={"model", "revision", "extra_body"})
            values["template"] = source(config.template, config.verdict)
            del values["parse_retries"]
        case LengthControlledOracle() | LengthMatchedOracle() | NearTieOracle():
            values["oracle"] = identity(config.oracle)
    return values
