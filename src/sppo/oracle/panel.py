r"""A panel of oracles: a weighted mixture of their probabilities.

:math:`P(y \succ y') = \sum_a w_a P_a(y \succ y')`: the probability that a member drawn with its weight
prefers y. Members that each rank the responses can together prefer in a circle (Condorcet).
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from jaxtyping import Float
from pydantic import Field, model_validator

from sppo.oracle import (
    CheckedOracle,
    Comparison,
    Composite,
    Oracle,
    OracleError,
    Pairs,
    Preferences,
    Prompts,
    Responses,
    with_components,
)
from sppo.oracle.function import Function, source_digest
from sppo.recipe.comparisons import PairsOracleSection
from sppo.recipe.oracle import OracleConfig, Text, refuse_inner_ensemble
from sppo.tinyworld.annotators import ANNOTATORS
from sppo.winrates import Array, ensemble_win_rates, win_rates

_ANNOTATORS = "sppo.tinyworld.annotators"


class PanelOracle(PairsOracleSection):
    """A weighted mixture of oracles; without members, the three annotators of tinyworld."""

    settings_without_effect: ClassVar[frozenset[str]] = frozenset({"comparisons", "ensemble", "spread"})

    type: Literal["panel"] = "panel"
    members: list[OracleConfig] | None = Field(None, min_length=1)
    """The oracles; None takes tinyworld's three annotators."""
    weights: list[float] | None = None
    """One weight per member; None weighs them equally."""
    text: Text = "prompt"
    """The form in which all members see prompts: plain or templated."""
    ensemble: Literal["mean", "pessimistic", "optimistic"] = "mean"
    """How the members' win rates become P^: by their mean, or nearer to the lowest or the highest where members disagree."""
    spread: float = Field(0.1, gt=0)
    """beta, the difference of win rates, for pessimistic and optimistic, beyond which the lowest or the highest decides."""

    @model_validator(mode="after")
    def _members_fit(self) -> "PanelOracle":
        for member in self.members or []:
            if member.prompt_form() != self.text:
                raise ValueError(
                    f"a member has text: {member.prompt_form()}, the panel {self.text}; make them the same"
                )
            refuse_inner_ensemble(member)
        if self.ensemble != "mean" and self.comparisons.type != "all":
            raise ValueError(
                f"ensemble: {self.ensemble} needs the comparisons of all pairs by every member, but comparisons.type is"
                f" {self.comparisons.type}; set it to all, or the ensemble to mean"
            )
        if self.weights is None:
            return self
        count = len(ANNOTATORS) if self.members is None else len(self.members)
        if len(self.weights) != count:
            raise ValueError(f"weights: {len(self.weights)} for {count} members; give one for each")
        if min(self.weights) < 0 or sum(self.weights) <= 0:
            raise ValueError(f"weights: {self.weights}; none may be negative and their sum must be positive")
        return self

    def load(self) -> "Panel":
        """The panel with its members loaded."""
        loaded: list[Oracle] = (
            [Function(f"{_ANNOTATORS}:{name}") for name in ANNOTATORS]
            if self.members is None
            else [member.load() for member in self.members]
        )
        return Panel([CheckedOracle(member) for member in loaded], self.weights, self.names)

    @property
    def names(self) -> list[str]:
        """The members' names, all different."""
        return (
            list(ANNOTATORS) if self.members is None else distinct([member.label for member in self.members])
        )

    @property
    def annotators(self) -> tuple[str, ...]:
        """The members that have a weight."""
        weights = self.weights or [1.0] * len(self.names)
        return tuple(name for name, weight in zip(self.names, weights, strict=True) if weight > 0)

    def win_rates(
        self, matrix: Array, components: Mapping[str, Array], settled: Sequence[bool] | None = None
    ) -> Float[Array, " K"]:
        """P^ by the mean matrix, or by the members' own win rates (:func:`sppo.winrates.ensemble_win_rates`)."""
        if self.ensemble == "mean":
            return win_rates(matrix, settled)
        weights = np.array([weight for weight in self.weights or [1.0] * len(self.names) if weight > 0])
        rates = win_rates(np.stack([components[name] for name in self.annotators]))
        return ensemble_win_rates(
            rates, weights / weights.sum(), beta=self.spread, optimistic=self.ensemble == "optimistic"
        )

    @property
    def win_rate_settings(self) -> dict[str, Any]:
        """The ensemble and its spread, unless it is the mean."""
        return {} if self.ensemble == "mean" else {"ensemble": self.ensemble, "spread": self.spread}

    def identity(self) -> dict[str, Any]:
        """The settings, with each member's identity."""
        members = (
            [source_digest(f"{_ANNOTATORS}:{name}") for name in ANNOTATORS]
            if self.members is None
            else [member.identity() for member in self.members]
        )
        return super().identity() | {"members": members}

    def parameters(self) -> float:
        """Those of all members."""
        return sum(member.parameters() for member in self.members or [])

    def response_parameters(self) -> float:
        """Those of all members."""
        return sum(member.response_parameters() for member in self.members or [])

    @property
    def holds_a_model(self) -> bool:
        """Whether a member holds a model."""
        return any(member.holds_a_model for member in self.members or [])

    @property
    def answers_any_prompt(self) -> bool:
        """Whether all members do."""
        return all(member.answers_any_prompt for member in self.members or [])


class Panel(Composite):
    """A mixture of oracles.

    Args:
        members: at least one oracle.
        weights: one for each member, not negative, scaled to sum to 1; None: equal weights.
        names: the members' names, all different; None: their numbers, from 0.
    """

    def __init__(
        self,
        members: Sequence[Oracle],
        weights: Sequence[float] | None = None,
        names: Sequence[str] | None = None,
    ) -> None:
        self.members = list(members)
        self.names = [str(number) for number in range(len(self.members))] if names is None else list(names)
        raw = np.ones(len(self.members)) if weights is None else np.asarray(weights, dtype=np.float64)
        self.weights = raw / raw.sum()

    def compare_with_components(self, prompts: Prompts, responses: Responses) -> Comparison:
        """Like :meth:`compare`, but also returns each member's matrix; a member's components are named `member/component`.

        Raises:
            OracleError: a member fails; the message says which, counted from 0.
        """
        matrices, components = [], {}
        for number, (name, member) in enumerate(zip(self.names, self.members, strict=True)):
            try:
                answer = with_components(member, prompts, responses)
            except OracleError as error:
                raise OracleError(f"panel member {number}: {name}: {error}", error.prompt_index) from error
            matrices.append(answer.matrix)
            components[name] = answer.matrix
            components |= {f"{name}/{part}": matrix for part, matrix in answer.components.items()}
        return Comparison(self._mixture(matrices), components)

    def compare_pairs(self, prompts: Prompts, responses: Responses, wanted: Pairs) -> Preferences:
        """Like :meth:`compare` for some pairs only; members that can be asked about some pairs are asked about no others."""
        return self._mixture(
            [CheckedOracle(member).compare_pairs(prompts, responses, wanted) for member in self.members]
        )

    def _mixture(self, matrices: Sequence[Preferences]) -> Preferences:
        return np.asarray(np.einsum("a,a...->...", self.weights, np.stack(matrices)))

    @property
    def inner_oracles(self) -> Sequence[Oracle]:
        """The members."""
        return self.members


def distinct(names: Sequence[str]) -> list[str]:
    """The names, each repeated one with its number behind it."""
    seen: dict[str, int] = {}
    numbered = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        numbered.append(name if seen[name] == 1 else f"{name} #{seen[name]}")
    return numbered
