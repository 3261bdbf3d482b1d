r"""Oracles around another one: they take out what length alone decides, or draw near ties or near-identical texts together.

Each changes P entry by entry with an odd function of :math:`P_{ij} - \frac12` and of the difference of lengths, or scales
:math:`P_{ij} - \frac12` by a number that is the same for both orders, so :math:`P + P^\top = 1` and the diagonal 1/2 are kept.
:math:`\ell` is a response's length in characters.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from pydantic import Field, field_validator, model_validator
from scipy.special import expit

from sppo.oracle import (
    CheckedOracle,
    Comparison,
    Composite,
    Counting,
    Oracle,
    OracleSection,
    Pairs,
    Preferences,
    Prompts,
    Responses,
    own_policy,
)
from sppo.recipe.comparisons import Comparisons
from sppo.recipe.oracle import OracleConfig, Text, refuse_inner_ensemble
from sppo.recipe.run_policies import OraclePolicy
from sppo.winrates import Array

Lengths = Float[Array, "prompts K"]
"""The characters of each response."""
Adjust = Callable[[Preferences, Prompts, Responses], Preferences]
"""(P, prompts, responses) -> P'."""


class WrapperOracle(OracleSection):
    """An oracle around another, which decides everything but the matrix's entries."""

    oracle: OracleConfig
    """The oracle whose answers are changed."""

    @field_validator("oracle")
    @classmethod
    def _has_no_ensemble_of_its_own(cls, value: OracleSection) -> OracleSection:
        refuse_inner_ensemble(value)
        return value

    def adjust(self, matrix: Preferences, prompts: Prompts, responses: Responses) -> Preferences:
        """The adjusted P from the inner oracle's P, the prompts and the responses."""
        raise NotImplementedError(f"{type(self).__name__} has no adjust")

    def load(self) -> "Wrapper":
        """The wrapper around the inner oracle, loaded."""
        return Wrapper(CheckedOracle(self.oracle.load()), self.oracle.label, self.adjust)

    def identity(self) -> dict[str, Any]:
        """The settings, with the identity of the inner oracle."""
        return super().identity() | {"oracle": self.oracle.identity()}

    def prompt_form(self) -> Text:
        """The form in which the inner oracle sees prompts."""
        return self.oracle.prompt_form()

    def chosen_comparisons(self) -> Comparisons | None:
        """Which pairs the inner oracle compares."""
        return self.oracle.chosen_comparisons()

    @property
    def holds_a_model(self) -> bool:
        """Whether the inner oracle holds a model."""
        return self.oracle.holds_a_model

    @property
    def answers_any_prompt(self) -> bool:
        """Whether the inner oracle does."""
        return self.oracle.answers_any_prompt

    def parameters(self) -> float:
        """The parameters of the inner oracle's models that read pairs."""
        return self.oracle.parameters()

    def further_pairs(self, k: int) -> int:
        """Those of the inner oracle."""
        return self.oracle.further_pairs(k)

    def response_parameters(self) -> float:
        """The parameters of the inner oracle's models that read each response by itself."""
        return self.oracle.response_parameters()


class LengthControlledOracle(WrapperOracle):
    """logit P'_ij = logit P_ij - penalty tanh((l_i - l_j) / scale), with l the length in characters."""

    type: Literal["length_controlled"] = "length_controlled"
    penalty: float = Field(ge=-100, le=100)
    """The penalty in nats; `sppo oracle check` prints the one that fits the oracle's answers."""
    scale: float = Field(500, gt=0)
    """The difference of lengths, in characters, beyond which longer counts little more."""

    def adjust(self, matrix: Preferences, prompts: Prompts, responses: Responses) -> Preferences:
        """:func:`length_controlled` with these settings."""
        return length_controlled(matrix, lengths(responses), penalty=self.penalty, scale=self.scale)


class LengthMatchedOracle(WrapperOracle):
    """P'_ij = P_ij where the longer is at most max_ratio times as long as the shorter, in characters; else 1/2."""

    type: Literal["length_matched"] = "length_matched"
    max_ratio: float = Field(1.5, ge=1)
    """The largest ratio of the longer response's length to the shorter one's."""

    def adjust(self, matrix: Preferences, prompts: Prompts, responses: Responses) -> Preferences:
        """:func:`length_matched` with these settings."""
        return length_matched(matrix, lengths(responses), max_ratio=self.max_ratio)


class NearTieOracle(WrapperOracle):
    """P' - 1/2 = (P - 1/2) min(1, |P - 1/2| / delta): near ties become nearer."""

    type: Literal["near_tie"] = "near_tie"
    delta: float = Field(0.1, gt=0, le=0.5)
    """The |P - 1/2| below which a pair is a near tie."""

    def adjust(self, matrix: Preferences, prompts: Prompts, responses: Responses) -> Preferences:
        """:func:`near_tie` with these settings."""
        return near_tie(matrix, delta=self.delta)


class SimilarityOracle(WrapperOracle):
    """P' - 1/2 = (P - 1/2) min(1, (1 - s) / (1 - threshold)), with s how alike two responses are: the same text ties."""

    type: Literal["similarity"] = "similarity"
    measure: Literal["words", "hidden_states"] = "words"
    """How alike two responses are: the share of words and of pairs of neighbouring words that they have in common, or the
    cosine of a policy's hidden states."""
    threshold: float = Field(0.8, ge=0, lt=1)
    """The similarity up to which P is left as it is; hidden states need one nearer to 1."""
    policy: OraclePolicy | None = None
    """hidden_states: whose they are: `current`, which is pi_t and what is taken if nothing is named, `base`, or another policy."""

    @model_validator(mode="before")
    @classmethod
    def _current_policy(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        if value.get("measure") == "hidden_states":
            return {**value, "policy": "current" if value.get("policy") is None else value["policy"]}
        if value.get("policy") is not None:
            raise ValueError(
                "policy: only for measure: hidden_states; set this measure, or remove the policy"
            )
        return value

    @model_validator(mode="after")
    def _reads_plain_prompts(self) -> "SimilarityOracle":
        if self.policy is not None and self.oracle.prompt_form() != "prompt":
            raise ValueError(
                "measure: hidden_states writes prompts by the policy's own template, but the oracle inside has text: chat;"
                " set its text to prompt, or the measure to words"
            )
        return self

    def load(self) -> "Wrapper":
        """The wrapper around the inner oracle, with the policy if hidden states are compared."""
        if self.policy is None:
            return super().load()
        from sppo.oracle.hidden_states import HiddenStates

        states = HiddenStates.of_policy(self.policy)

        def adjust(matrix: Preferences, prompts: Prompts, responses: Responses) -> Preferences:
            return similarity_gated(matrix, states.similarity(prompts, responses), threshold=self.threshold)

        return Wrapper(CheckedOracle(self.oracle.load()), self.oracle.label, adjust, states)

    def identity(self) -> dict[str, Any]:
        """The settings, with the identities of the inner oracle and of the policy, if there is one."""
        identity = super().identity()
        if self.policy is None:  # as earlier versions recorded it
            return {key: value for key, value in identity.items() if key != "policy"}
        return identity | {"policy": own_policy.identity(self.policy)}

    @property
    def holds_a_model(self) -> bool:
        """Whether it computes hidden states, or the inner oracle holds a model."""
        return self.policy is not None or super().holds_a_model

    def check(self) -> None:
        """Refuse a policy that is not there or has no chat template."""
        if self.policy is not None:
            own_policy.find(self.policy)

    def response_parameters(self) -> float:
        """Those of the inner oracle, and of the policy whose hidden states are compared."""
        own = 0.0 if self.policy is None else own_policy.parameters(self.policy)
        return own + super().response_parameters()

    def adjust(self, matrix: Preferences, prompts: Prompts, responses: Responses) -> Preferences:
        """:func:`similarity_gated` by the overlap of words."""
        return similarity_gated(matrix, word_overlap(responses), threshold=self.threshold)


class Wrapper(Composite):
    """An oracle whose answers are adjusted.

    Args:
        inner: the oracle.
        name: the name of the inner oracle's answer among the components.
        adjust: (P, prompts, responses) -> P'.
        counted: what it counts by while it adjusts; None: nothing.
    """

    def __init__(
        self, inner: CheckedOracle, name: str, adjust: Adjust, counted: Counting | None = None
    ) -> None:
        self.inner = inner
        self.name = name
        self.adjust = adjust
        self.counted = counted

    @property
    def counts(self) -> Mapping[str, int]:
        """What was counted while answers were adjusted, such as truncated texts."""
        return {} if self.counted is None else self.counted.counts

    def compare_with_components(self, prompts: Prompts, responses: Responses) -> Comparison:
        """Like :meth:`compare`, but also returns the matrices of the inner oracle and of its components."""
        matrix, inside = self.inner.compare_with_components(prompts, responses)
        components = {self.name: matrix} | {f"{self.name}/{name}": part for name, part in inside.items()}
        return Comparison(self.adjust(matrix, prompts, responses), components)

    def compare_pairs(self, prompts: Prompts, responses: Responses, wanted: Pairs) -> Preferences:
        """Like :meth:`compare` for some pairs only; the inner oracle is asked about no others, where it can be."""
        matrix = self.inner.compare_pairs(prompts, responses, wanted)
        return self.adjust(matrix, prompts, responses)

    @property
    def inner_oracles(self) -> Sequence[Oracle]:
        """The inner oracle."""
        return [self.inner]


def lengths(responses: Responses) -> Lengths:
    """The characters of each response."""
    return np.array([[len(text) for text in of_prompt] for of_prompt in responses], dtype=np.float64)


def length_term(lengths: Lengths, scale: float) -> Preferences:
    r""":math:`\tanh((\ell_i - \ell_j)/s)`: a difference beyond the scale counts no more."""
    return np.tanh((lengths[..., :, None] - lengths[..., None, :]) / scale)


def length_controlled(matrix: Preferences, lengths: Lengths, *, penalty: float, scale: float) -> Preferences:
    r"""Subtracts a penalty for being longer from the log-odds; what is certain stays certain.

    :math:`\operatorname{logit} P'_{ij} = \operatorname{logit} P_{ij} - \lambda \tanh((\ell_i - \ell_j)/s)`, after the
    length term of AlpacaEval's length-controlled win rate (arXiv:2404.04475).

    Args:
        matrix: P.
        lengths: in characters.
        penalty: :math:`\lambda`, nats.
        scale: s, characters.
    """
    shift = penalty * length_term(lengths, scale)
    against = matrix.swapaxes(-1, -2)  # 1 - P, without its rounding
    # The odds P : (1 - P) are to be divided by exp(shift), which overflows for large shifts. As exp(-s) is
    # sigma(-s) : sigma(s), weighting both sides by these gives the same odds with factors within [0, 1].
    ours, theirs = matrix * expit(-shift), against * expit(shift)
    return np.asarray(ours / (ours + theirs))


def length_matched(matrix: Preferences, lengths: Lengths, *, max_ratio: float) -> Preferences:
    """Keeps P where the longer response is at most max_ratio times as long as the shorter; else 1/2.

    An empty response counts as one character.
    """
    size = np.maximum(lengths, 1)
    ratio = size[..., :, None] / size[..., None, :]
    matched = np.maximum(ratio, ratio.swapaxes(-1, -2)) <= max_ratio
    return np.where(matched, matrix, 0.5)


def near_tie(matrix: Preferences, *, delta: float) -> Preferences:
    r""":math:`P' = \frac12 + d \min(1, |d|/\delta)` with :math:`d = P - \frac12`: continuous, and P beyond delta."""
    margin = matrix - 0.5
    return np.asarray(0.5 + margin * np.minimum(1.0, np.abs(margin) / delta))


def word_overlap(responses: Responses) -> Preferences:
    r"""How alike the responses to each prompt are: Dice's coefficient of their words and pairs of neighbouring words.

    :math:`s_{ij} = 2 |W_i \cap W_j| / (|W_i| + |W_j|)` with W the multiset of a response's words in lower case, without punctuation,
    and of its pairs of neighbouring words, which tell the order. It is 1 for the same words in the same order, also for none, and
    0 where no word is shared. Scripts without spaces have words as long as a sentence, so that only equal sentences are alike.

    Returns:
        [N, K, K] in [0, 1], symmetric.
    """

    def parts(text: str) -> Counter[Any]:
        words = re.findall(r"\w+", text.lower())
        return Counter([*words, *pairwise(words)])

    def dice(first: Counter[Any], second: Counter[Any]) -> float:
        both = first.total() + second.total()
        return 2 * (first & second).total() / both if both else 1.0

    counted = [[parts(text) for text in texts] for texts in responses]
    return np.array([[[dice(first, second) for second in of] for first in of] for of in counted])


def similarity_gated(matrix: Preferences, similarity: Preferences, *, threshold: float) -> Preferences:
    r""":math:`P' = \frac12 + (P - \frac12) \min(1, \frac{1 - s}{1 - \text{threshold}})`: continuous, P up to the threshold, 1/2 at s = 1.

    Args:
        matrix: P.
        similarity: s, symmetric, in [0, 1].
        threshold: the similarity up to which P is kept, less than 1.
    """
    return np.asarray(0.5 + (matrix - 0.5) * np.minimum(1.0, (1 - similarity) / (1 - threshold)))


def fit_penalty(
    probability: Float[Array, " pairs"], difference: Float[Array, " pairs"], *, scale: float
) -> float:
    r"""The :math:`\lambda` whose :math:`\sigma(\lambda \tanh((\ell_i - \ell_j)/s))` is nearest to P in log loss.

    It is what lengths alone say of P, and the penalty that takes it out. It is kept between -20 and 20 nats, where
    lengths decide everything, and is 0 where all lengths are equal.

    Args:
        probability: :math:`P_{ij}` in one order of each pair.
        difference: :math:`\ell_i - \ell_j`.
        scale: s, characters.
    """
    from scipy.optimize import minimize_scalar

    term = np.tanh(difference / scale)
    if not np.any(term):
        return 0.0

    def loss(penalty: float) -> float:
        return float(np.mean(np.logaddexp(0, penalty * term) - probability * penalty * term))

    return float(minimize_scalar(loss, bounds=(-20, 20), method="bounded", options={"xatol": 1e-6}).x)
