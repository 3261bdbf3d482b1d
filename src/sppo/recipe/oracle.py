"""What every oracle is: a section of the recipe, and what the rest of the program asks of it before it is loaded."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Protocol

from jaxtyping import Float

from sppo.recipe.registered import Registered
from sppo.recipe.section import Section
from sppo.winrates import Array

Text = Literal["prompt", "chat"]


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


class OracleSection(Section):
    """An oracle as a recipe describes it.

    A subclass adds its settings as fields, with ``type: Literal[NAME] = NAME`` for its name in recipes, and ``text``,
    which says whether it sees plain prompts (`prompt`) or templated ones (`chat`). It imports torch inside its methods
    only: reading a recipe must not load it.

    Attributes:
        settings_without_effect: fields that no answer depends on, so that changing them makes no stage stale.
        holds_a_model: whether it computes with a model of its own, which a GPU would hold.
        is_transitive: whether its preferences come from one score per response, so that no cycle is possible.
        label: what it is called among others.
        opponents: with how many of the others annotation compares each response; None: with all.
    """

    settings_without_effect: ClassVar[frozenset[str]] = frozenset()

    type: str

    if TYPE_CHECKING:
        # fields of most sections; of a wrapper, properties that ask the oracle inside

        @property
        def text(self) -> Text:
            """What the oracle sees as the prompt."""
            ...

    def load(self) -> Oracle:
        """The oracle, ready to compare.

        Raises:
            sppo.oracle.OracleError: it cannot be loaded.
        """
        raise NotImplementedError(f"{type(self).__name__} has no load")

    def identity(self) -> dict[str, Any]:
        """What its answers depend on: its settings, and in subclasses the source or the weights behind them."""
        return self.model_dump(exclude={*self.settings_without_effect})

    @property
    def label(self) -> str:
        """What it is called among others: its type, or in subclasses its function or model."""
        return self.type

    @property
    def holds_a_model(self) -> bool:
        """Whether it computes with a model of its own, which a GPU would hold."""
        return False

    @property
    def is_transitive(self) -> bool:
        """Whether its preferences come from one score per response, so that no cycle is possible."""
        return False

    def parameters(self) -> float:
        """How many parameters its model has, for the dry run's estimate; 0 where it has none or they are not known."""
        return 0.0

    def compared_opponents(self) -> int | None:
        """With how many of the others annotation compares each response; None: with all."""
        opponents: int | None = getattr(self, "opponents", None)
        return opponents


OracleConfig = Annotated[OracleSection, Registered("oracles")]
