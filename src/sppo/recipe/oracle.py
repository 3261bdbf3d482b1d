"""The interface of every oracle: a section of the recipe, with the answers that are needed before it is loaded."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Protocol

import numpy as np
from jaxtyping import Bool, Float

from sppo.recipe.registered import Registered
from sppo.recipe.section import Section
from sppo.winrates import Array, win_rates

if TYPE_CHECKING:
    from sppo.recipe.comparisons import Comparisons

Text = Literal["prompt", "chat"]
"""The form in which an oracle sees a prompt: its plain text, or as the policy's chat template renders it."""

Prompts = Sequence[str]
"""N prompts as text."""
Responses = Sequence[Sequence[str]]
"""For each prompt its K responses as text; K is the same for all N."""
Preferences = Float[Array, "prompts K K"]
"""Entry [n, i, j] is P(y_i > y_j | x_n); P + P^T = 1, diagonal 1/2."""
Pairs = Bool[np.ndarray[Any, Any], "prompts K K"]
"""Which pairs of the K responses are compared; symmetric."""


class Oracle(Protocol):
    """Anything that compares the responses to a prompt with one another."""

    def compare(self, prompts: Prompts, responses: Responses) -> Preferences:
        """The probabilities that responses are preferred to each other."""
        ...


class OracleSection(Section):
    """An oracle as a recipe describes it.

    A subclass adds its settings as fields, with ``type: Literal[NAME] = NAME`` for its name in recipes. If it has a
    field `text`, recipes can choose the form in which it sees prompts; without one it sees plain text. It imports torch
    inside its methods only: reading a recipe must not load it.

    Attributes:
        settings_without_effect: the fields that no answer depends on, so that changing them makes no stage stale.
    """

    settings_without_effect: ClassVar[frozenset[str]] = frozenset()

    type: str

    def load(self) -> Oracle:
        """The oracle, ready to compare.

        Raises:
            sppo.oracle.OracleError: it cannot be loaded.
        """
        raise NotImplementedError(f"{type(self).__name__} has no load")

    def identity(self) -> dict[str, Any]:
        """The settings that its answers depend on, and in subclasses the source or the weights behind them."""
        return self.model_dump(exclude={*self.settings_without_effect})

    def check(self) -> None:
        """Refuse, before anything is computed, what is not there; called once all policies of a run that it computes with are known.

        Raises:
            sppo.oracle.OracleError: the message says what to change.
        """

    def refuse_engine(self) -> None:
        """Refuse the run's engine, if it computes with a policy in it and the engine cannot give what it needs.

        Raises:
            ValueError: the message names the key and the way out.
        """

    @property
    def label(self) -> str:
        """Its name among other oracles: its type, or in subclasses its function or model."""
        return self.type

    @property
    def holds_a_model(self) -> bool:
        """Whether it computes with a model of its own, which a GPU would hold."""
        return False

    @property
    def answers_any_prompt(self) -> bool:
        """Whether it can be asked about any prompt, as it is in a trial before the run."""
        return True

    @property
    def annotators(self) -> tuple[str, ...]:
        """The names of the components that are annotators of their own, between whom an algorithm may choose."""
        return ()

    def win_rates(
        self, matrix: Array, components: Mapping[str, Array], settled: Sequence[bool] | None = None
    ) -> Float[Array, " K"]:
        """P^ of each of a prompt's K responses, from its comparisons as they are stored (:func:`sppo.winrates.win_rates`)."""
        del components
        return win_rates(matrix, settled)

    @property
    def win_rate_settings(self) -> dict[str, Any]:
        """The settings that P^ depends on and the comparisons do not; empty for the mean over the responses."""
        return {}

    @property
    def is_transitive(self) -> bool:
        """Whether its preferences come from one score per response, so that no cycle is possible."""
        return False

    def parameters(self) -> float:
        """The parameters of the models that read pairs of responses, for the dry run's estimate; 0 where they are unknown."""
        return 0.0

    def further_pairs(self, k: int) -> int:
        """The pairs that annotation compares for K responses beside those of the K with each other, for the estimate."""
        del k
        return 0

    def response_parameters(self) -> float:
        """The parameters of the models that read each response by itself, for the estimate; 0 where they are unknown."""
        return 0.0

    def prompt_form(self) -> Text:
        """The form in which it sees prompts."""
        form: Text = getattr(self, "text", "prompt")
        return form

    def chosen_comparisons(self) -> "Comparisons | None":
        """Which pairs annotation compares; None: all of them, since it would save nothing to compare fewer."""
        chosen: Comparisons | None = getattr(self, "comparisons", None)
        return chosen


def refuse_inner_ensemble(inner: OracleSection) -> None:
    """Refuse an oracle inside another one whose own way to P^ would have no effect there.

    Raises:
        ValueError: it has one.
    """
    for key, value in inner.win_rate_settings.items():
        raise ValueError(
            f"{key}: {value} has no effect inside another oracle, which takes the matrix alone; set it to mean, or make the"
            f" {inner.type} the outermost oracle"
        )


OracleConfig = Annotated[OracleSection, Registered("oracles")]


def oracle_name(config: OracleSection) -> str:
    """An oracle's type and what it is made of, such as `pairrm tinyworld` or `panel (pairrm tinyworld, function a:b)`."""

    def name(values: Mapping[str, Any]) -> str:
        own = [str(values[key]) for key in ("model", "function", "constraints") if values.get(key)]
        policy = values.get("policy")
        own += [str(policy["model"] if isinstance(policy, Mapping) else policy)] if policy else []
        server = [str(values["endpoint"]["model"])] if values.get("endpoint") else []
        inner = [*(values.get("members") or []), *(values.get(key) for key in ("oracle", "tie_break"))]
        parts = ", ".join(name(part) for part in inner if part)
        return " ".join([values["type"], *own, *server, *([f"({parts})"] if parts else [])])

    return name(config.model_dump())
