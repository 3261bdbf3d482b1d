"""What every algorithm is: a section of the recipe, what it needs of the rest of it, and a loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from sppo.recipe.registered import Registered
from sppo.recipe.section import Section

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from sppo.objectives import Responses
    from sppo.winrates import Array


class Algorithm(Section):
    """An update pi_t -> pi_{t+1}.

    A subclass adds its settings as fields, with ``type: Literal[NAME] = NAME`` for its name in recipes, and a loss. It
    imports torch inside its methods only: reading a recipe must not load it.

    Attributes:
        samples: whether it learns from responses of pi_t.
        preferences: whether it learns from the oracle's preferences between them.
        demonstrations: whether it learns from responses that the prompts bring with them.
        all_responses: whether it needs all K responses and the comparisons of all their pairs.
    """

    samples: ClassVar[bool] = True
    preferences: ClassVar[bool] = True
    demonstrations: ClassVar[bool] = False
    all_responses: ClassVar[bool] = False

    type: str

    def reference_policies(self, t: int) -> tuple[int, ...]:
        """Which of pi_1 (the base) to pi_t stand in the loss of iteration t, besides the opponent pi_t.

        Args:
            t: the number of policies that the run has accepted so far, the base included.
        """
        return ()

    def loss(self, responses: Responses) -> Float[Tensor, " prompts"]:
        """One loss per prompt, not reduced over prompts."""
        raise NotImplementedError(f"{type(self).__name__} has no loss")

    def targets(self, responses: Responses) -> Float[Tensor, " responses"] | None:
        """The log-ratio of each response at which the loss is least, nats; None where only differences matter."""
        return None

    def compute_log_partition(self, win_rates: Array) -> float:
        """log Z of a prompt in nats, from the win rates of its K responses; 0 where it cancels or there is none."""
        return 0.0

    def rewards(self, matrix: Array, references: Array) -> Array | None:
        """A number for each response that the loss takes in place of P^; None where P^ is all that it takes.

        Args:
            matrix: [m, m] P(y_i > y_j | x) of the responses that are trained on.
            references: [policies, m] log pi_s(y|x) - log pi_t(y|x), nats.
        """
        return None


AlgorithmConfig = Annotated[Algorithm, Registered("algorithms", default="sppo")]
