"""The two settings that every algorithm with a pull to a reference policy has in common."""

from pydantic import Field, model_validator

from sppo.recipe.algorithm import Algorithm


class Regularised(Algorithm):
    """A step of the game that is pulled to a reference policy."""

    eta: float = Field(1e3, gt=0, description="step size of the game, as SPPO's")
    tau: float = Field(
        3e-4,
        gt=0,
        description="pull to the reference, win rate per nat; eta tau <= 1 is its share of pi_{t+1}",
    )

    @model_validator(mode="after")
    def _share_of_the_reference_is_at_most_one(self) -> "Regularised":
        if self.eta * self.tau > 1:
            raise ValueError(
                f"tau: {self.tau:g}, but eta tau = {self.eta * self.tau:g} is the share of the reference in pi_{{t+1}}"
                f" and at most 1; lower it to {1 / self.eta:g} or less"
            )
        return self
