"""The `comparisons:` of an oracle whose cost is that of the pairs: which pairs of the K responses it is asked about."""

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field, model_validator

from sppo.comparisons import SETTLING, Choice, Type, pairs_of_opponents
from sppo.recipe.oracle import OracleSection
from sppo.recipe.renamed import with_comparisons
from sppo.recipe.section import Section


class Comparisons(Section):
    """Which pairs of a prompt's responses annotation compares."""

    type: Type = "all"
    """How pairs are chosen; see docs/oracles.md."""
    budget: int | None = Field(None, ge=1)
    """The most pairs that are compared for a prompt; None: as many as the type needs. `random` compares exactly as many."""
    opponents: int | None = Field(None, ge=1)
    """random: the number of other responses that each response is compared with, in place of a budget."""

    @model_validator(mode="after")
    def _settings_belong_to_the_type(self) -> "Comparisons":
        if self.opponents is not None and self.type != "random":
            raise ValueError(f"opponents: only for type: random, not for {self.type}; set a budget instead")
        if self.budget is not None and self.type == "all":
            raise ValueError(
                "budget: type: all compares every pair; leave the budget out, or choose another type"
            )
        if self.type == "random" and (self.budget is None) == (self.opponents is None):
            raise ValueError("budget: type: random needs either a budget or opponents")
        return self

    def of(self, k: int) -> Choice:
        """The choice of pairs for K responses."""
        budget = self.budget if self.opponents is None else pairs_of_opponents(k, self.opponents)
        return Choice(self.type, k, budget)

    @property
    def settles(self) -> bool:
        """Whether only the best and the worst response are compared with all others."""
        return self.type in SETTLING

    def check_budget(self, k: int) -> None:
        """Refuse a budget that is too small for K responses.

        Raises:
            ValueError: it is; the message says which would do.
        """
        least = self.of(k).least_budget
        if self.budget is not None and self.budget < least:
            need = (
                "the best and the worst could not be found and compared with all others"
                if self.settles
                else "some responses would be compared with none"
            )
            raise ValueError(
                f"oracle.comparisons.budget: {self.budget} pairs, but with sampling.k: {k} and type: {self.type} {need};"
                f" set it to {least} or more (all pairs are {self.of(k).every_pair})"
            )


class PairsOracleSection(OracleSection):
    """An oracle whose cost is that of the pairs, so that annotation can compare some of them only."""

    settings_without_effect: ClassVar[frozenset[str]] = frozenset({"comparisons"})

    comparisons: Comparisons = Comparisons.model_validate({})

    @model_validator(mode="before")
    @classmethod
    def _earlier_names(cls, value: Any) -> Any:
        return with_comparisons(value) if isinstance(value, Mapping) else value
