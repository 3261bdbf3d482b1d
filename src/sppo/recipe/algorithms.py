"""The recipe's `algorithm:`, one section for each type, and what each needs of the rest of the recipe."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from sppo.recipe.section import Section


class AlgorithmSection(Section):
    """What every algorithm says of itself.

    Attributes:
        samples: it learns from responses of pi_t.
        preferences: and from what the oracle says of them.
        demonstrations: it learns from responses that the prompts bring with them.
        all_responses: the best and the worst of the K will not do, nor comparisons of some of the pairs.
    """

    samples: ClassVar[bool] = True
    preferences: ClassVar[bool] = True
    demonstrations: ClassVar[bool] = False
    all_responses: ClassVar[bool] = False

    def reference_policies(self, t: int) -> tuple[int, ...]:
        """Which of pi_1 (the base) to pi_t stand in the loss of iteration t, beside the opponent pi_t.

        Args:
            t: counts the policies that the run has accepted so far, the base included.
        """
        return ()


class Sppo(AlgorithmSection):
    """The update of SPPO."""

    type: Literal["sppo"] = "sppo"
    eta: float = Field(1e3, gt=0, description="step size of the game (the released code's 1/beta)")
    log_partition: Literal["half_eta", "samples"] | float = Field(
        "half_eta",
        description="half_eta: eta/2 as in the paper; samples: exact over the K; or a number, nats",
    )
    reduction: Literal["sum", "mean"] = Field(
        "mean", description="over the selected responses of a prompt: sum (paper) or mean (released code)"
    )


class Dpo(AlgorithmSection):
    """Iterative DPO on the best and the worst of each prompt."""

    type: Literal["dpo"] = "dpo"
    beta: float = Field(0.1, gt=0, description="as in DPO: a larger one stays closer to pi_t")


class Ipo(AlgorithmSection):
    """Iterative IPO on the best and the worst of each prompt."""

    type: Literal["ipo"] = "ipo"
    tau: float = Field(0.1, gt=0, description="as in IPO: the log-ratios are to differ by 1/(2 tau)")


class Spin(AlgorithmSection):
    """Demonstrations against pi_t's own responses."""

    preferences: ClassVar[bool] = False
    demonstrations: ClassVar[bool] = True

    type: Literal["spin"] = "spin"
    lam: float = Field(0.1, gt=0, description="the paper's lambda: a larger one stays closer to pi_t")


class Sft(AlgorithmSection):
    """Supervised fine-tuning on demonstrations."""

    samples: ClassVar[bool] = False
    preferences: ClassVar[bool] = False
    demonstrations: ClassVar[bool] = True

    type: Literal["sft"] = "sft"


class Regularised(AlgorithmSection):
    """A step of the game that is pulled to a reference policy."""

    eta: float = Field(1e3, gt=0, description="step size of the game, as SPPO's")
    tau: float = Field(
        3e-4,
        gt=0,
        description="pull to the reference, win rate per nat; eta tau <= 1 is its share of pi_{t+1}",
    )

    @model_validator(mode="after")
    def _at_most_the_whole_way(self) -> "Regularised":
        if self.eta * self.tau > 1:
            raise ValueError(
                f"tau: {self.tau:g}, but eta tau = {self.eta * self.tau:g} is the share of the reference in pi_{{t+1}}"
                f" and at most 1; lower it to {1 / self.eta:g} or less"
            )
        return self


class Inpo(Regularised):
    """Mirror descent on the game that the base regularises."""

    type: Literal["inpo"] = "inpo"

    def reference_policies(self, t: int) -> tuple[int, ...]:
        """The base."""
        return (1,)


class Comal(Regularised):
    """INPO whose reference moves to the policy now and then."""

    type: Literal["comal"] = "comal"
    inner: int = Field(2, ge=1, description="iterations before the reference moves to the policy")

    def reference_policies(self, t: int) -> tuple[int, ...]:
        """The policy at the last move of the reference."""
        return (t - (t - 1) % self.inner,)


class Egpo(Regularised):
    """Extragradient: odd iterations look ahead, even ones step from where the one before stood."""

    type: Literal["egpo"] = "egpo"

    def reference_policies(self, t: int) -> tuple[int, ...]:
        """Where the step begins, and the base."""
        return (t if t % 2 else t - 1, 1)


class Mnpo(Regularised):
    """INPO whose last policy is the geometric mean of several."""

    type: Literal["mnpo"] = "mnpo"
    opponents: int = Field(2, ge=1, description="how many of the last policies stand in the mean")

    def reference_policies(self, t: int) -> tuple[int, ...]:
        """The base, then the last policies."""
        return (1, *(s for s in range(t, t - self.opponents, -1) if s >= 1))


class NashMd(Regularised):
    """Mirror descent from, and against, the mixture of the policy and the base."""

    all_responses: ClassVar[bool] = True

    type: Literal["nash_md"] = "nash_md"

    def reference_policies(self, t: int) -> tuple[int, ...]:
        """The base."""
        return (1,)


class Onpo(AlgorithmSection):
    """Optimistic mirror descent: the last win rates count twice, those before are taken back."""

    type: Literal["onpo"] = "onpo"
    eta: float = Field(1e3, gt=0, description="step size of the game, as SPPO's")

    def reference_policies(self, t: int) -> tuple[int, ...]:
        """All of them: the win rates before are read off the steps that were made by them."""
        return tuple(range(1, t))


class Rspo(AlgorithmSection):
    """SPPO's least squares and a divergence from the base."""

    type: Literal["rspo"] = "rspo"
    eta: float = Field(1e3, gt=0, description="step size of the game, as SPPO's")
    forward_kl: float = Field(0.1, ge=0, description="weight of KL(base || pi), nats squared per nat")
    reverse_kl: float = Field(0.1, ge=0, description="weight of KL(pi || base), nats squared per nat")

    def reference_policies(self, t: int) -> tuple[int, ...]:
        """The base."""
        return (1,)


class Rlhf(AlgorithmSection):
    """A Bradley-Terry reward, and a policy gradient with the KL to the base."""

    all_responses: ClassVar[bool] = True

    type: Literal["rlhf"] = "rlhf"
    beta: float = Field(0.1, gt=0, description="of the KL to the base, nats of reward per nat")

    def reference_policies(self, t: int) -> tuple[int, ...]:
        """The base."""
        return (1,)


AlgorithmConfig = Annotated[
    Sppo | Dpo | Ipo | Spin | Sft | Rspo | Inpo | Comal | Onpo | Egpo | Mnpo | NashMd | Rlhf,
    Field(discriminator="type"),
]
