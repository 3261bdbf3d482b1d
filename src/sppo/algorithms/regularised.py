"""The two settings that all algorithms with a pull towards a reference policy share."""

from pydantic import Field, model_validator

from sppo.recipe.algorithm import Algorithm


class Regularised(Algorithm):
    """An algorithm whose updates are pulled towards a reference policy."""

    eta: float = Field(1e3, gt=0)
    """Step size of the game, as in SPPO."""
    tau: float = Field(3e-4, gt=0)
    """Pull towards the reference policy, in win rate per nat; eta tau, at most 1, is its share of pi_{t+1}."""

    @model_validator(mode="after")
    def _share_of_the_reference_is_at_most_one(self) -> "Regularised":
        if self.eta * self.tau > 1:
            raise ValueError(
                f"tau: {self.tau:g}, but eta tau = {self.eta * self.tau:g} is the reference policy's share of pi_{{t+1}},"
                f" which is at most 1; lower tau to {1 / self.eta:g} or less"
            )
        return self
