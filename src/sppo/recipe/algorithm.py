"""The base class of algorithms: a recipe section, what the algorithm needs, and its loss."""

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
    may import torch only inside its methods, so that reading a recipe does not load torch.

    Attributes:
        samples: whether the algorithm learns from responses of pi_t.
        preferences: whether it learns from the oracle's preferences between those responses.
        demonstrations: whether it learns from responses that the data set holds beside its prompts.
        all_responses: whether it needs all K responses and the comparisons of all their pairs.
        annotators: whether it needs the preferences of several annotators, the members of a panel.
    """

    samples: ClassVar[bool] = True
    preferences: ClassVar[bool] = True
    demonstrations: ClassVar[bool] = False
    all_responses: ClassVar[bool] = False
    annotators: ClassVar[bool] = False

    type: str

    def reference_policies(self, t: int) -> tuple[int, ...]:
        """The policies among pi_1 (the base) to pi_t that the loss of iteration t contains, besides the opponent pi_t.

        Args:
            t: the number of policies that the run has accepted so far, including the base.
        """
        return ()

    def initial_policy(self, t: int) -> int:
        """The policy among pi_1 to pi_t from whose weights the training of iteration t starts; mostly pi_t.

        Args:
            t: as for `reference_policies`.
        """
        return t

    def loss(self, responses: Responses) -> Float[Tensor, " prompts"]:
        """Compute one loss per prompt, not reduced over prompts."""
        raise NotImplementedError(f"{type(self).__name__} has no loss")

    def targets(self, responses: Responses) -> Float[Tensor, " responses"] | None:
        """The log-ratio of each response that minimises the loss, in nats; None if only differences matter."""
        return None

    @property
    def all_win_rates(self) -> bool:
        """Whether the loss uses P^ of all K responses, and not only of those that are trained on."""
        return self.all_responses

    @property
    def uses_comparisons(self) -> bool:
        """Whether `rewards` takes the place of P^ in the loss."""
        return type(self).rewards is not Algorithm.rewards

    def compute_log_partition(self, win_rates: Array) -> float:
        """Compute a prompt's log Z in nats from the win rates of its K responses; 0 if the loss does not contain Z."""
        return 0.0

    def rewards(self, matrix: Array, references: Array) -> Array | None:
        """Compute the number that the loss uses for each response instead of P^; None if it uses P^ itself.

        Args:
            matrix: [m, m] P(y_i > y_j | x) between the responses that are trained on; [annotators, m, m] that of each
                annotator, for an algorithm that needs several.
            references: [policies, m] log pi_s(y|x) - log pi_t(y|x), nats.
        """
        return None


AlgorithmConfig = Annotated[Algorithm, Registered("algorithms", default="sppo")]
