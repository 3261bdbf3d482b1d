r"""PairRM, the paper's preference oracle: one encoder reads a prompt and two responses side by side.

PairRM (LLM-Blender, arXiv:2306.02561; `llm-blender/PairRM`, `llm-blender/PairRM-hf`) encodes a prompt and an
ordered pair of responses (:mod:`sppo.oracle.pairrm_input`) with a DeBERTa-v2
(:mod:`sppo.oracle.pairrm_encoder`) and reads the hidden states h at the three prefixes:

.. math::
    f(u) &= W_2 \tanh(W_1 u + b_1) + b_2 \\
    M_{ij} &= \operatorname{mean}_{tasks} f([h_{source}; h_{candidate1}]) - f([h_{source}; h_{candidate2}])

where y_i stands first and y_j second. M is not antisymmetric: the order matters to the encoder. Both orders
are always computed, and a probability is made from both:

- ``pairwise`` (the paper): :math:`P_{ij} = \sigma(M_{ij} - M_{ji})`;
- ``calibrated``: :math:`P_{ij} = \sigma((M_{ij} - M_{ji})/2)`, as PairRM was trained on one order's logit;
- ``averaged`` (the released code): :math:`P_{ij} = \sigma(s_i - s_j)`,
  :math:`s_i = \frac1K \sum_j (M_{ij} - M_{ji})`, which is transitive by construction.

Departs from the original in one point: there a candidate's limit depends on the longest source of its batch,
here on its own source, which is the original at batch 1. So no answer depends on what is asked beside it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from jaxtyping import Bool, Float
from pydantic import Field, model_validator
from scipy.special import expit

from sppo.oracle import OracleError
from sppo.oracle.model_folder import ModelOracle
from sppo.oracle.orders import OrderFlips
from sppo.policy import load as policies
from sppo.recipe.comparisons import PairsOracleSection
from sppo.recipe.oracle import Text
from sppo.tinyworld import PAIRRM as TINYWORLD_PAIRRM
from sppo.winrates import Array

if TYPE_CHECKING:
    import torch

    from sppo.oracle.pairrm_input import PairInput, Truncation

GPU_BATCH_PAIRS = 8
CPU_BATCH_VALUES = 2**19
"""Hidden values that go side by side on a CPU, where larger batches leave its caches and were measured slower."""

LIMITS = ("source_maxlength", "candidate_maxlength")
Probability = Literal["pairwise", "calibrated", "averaged"]

_PUBLISHED_PARAMETERS = 0.4e9


class PairRMOracle(ModelOracle, PairsOracleSection):
    """PairRM, the paper's oracle: a folder or hub name in either of its layouts."""

    settings_without_effect: ClassVar[frozenset[str]] = frozenset({"batch_pairs", "comparisons"})

    type: Literal["pairrm"] = "pairrm"
    model: str = Field("llm-blender/PairRM", min_length=1)
    """A folder, a hub name, or `tinyworld`."""
    revision: str | None = None
    """The revision of a model on the hub."""
    probability: Probability = "pairwise"
    """How P is made from both orders: pairwise as in the paper, calibrated, or averaged as in the released code."""
    text: Text = "prompt"
    """The form in which PairRM sees prompts: plain or templated."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Data type of the weights."""
    source_maxlength: int | None = Field(None, ge=3)
    """Longest prompt in tokens; None takes the checkpoint's, or the published PairRM's 1224 if it states none."""
    candidate_maxlength: int | None = Field(None, ge=3)
    """Longest response in tokens; None takes the checkpoint's, or the published PairRM's 412 if it states none."""
    batch_pairs: int | None = Field(None, ge=1)
    """Ordered pairs that are computed side by side; None chooses by the device and the model's size."""

    @model_validator(mode="after")
    def _averaged_over_all(self) -> PairRMOracle:
        if self.probability == "averaged" and self.comparisons.type != "all":
            raise ValueError(
                "comparisons: probability averaged is made from all pairs; leave it out, or choose pairwise or calibrated"
            )
        return self

    @property
    def folder(self) -> Path:
        """The folder that `model` names; `tinyworld` is the embedded one."""
        return TINYWORLD_PAIRRM if self.model == "tinyworld" else Path(self.model)

    def load(self) -> PairRM:
        """PairRM, loaded."""
        model = self.folder if self.model == "tinyworld" else self.model
        settings = self.model_dump(include={"revision", "probability", "dtype", "batch_pairs", *LIMITS})
        return PairRM.from_pretrained(model, **settings)

    def identity(self) -> dict[str, Any]:
        """The settings and the weights; limits only if they are given, so that runs without them stay valid."""
        values = super().identity()
        return {name: value for name, value in values.items() if name not in LIMITS or value is not None}

    @property
    def is_transitive(self) -> bool:
        """Whether the probability is made from averaged scores."""
        return self.probability == "averaged"

    def parameters(self) -> float:
        """The folder's, or those of the published PairRM."""
        try:
            return policies.count_parameters(self.folder) or _PUBLISHED_PARAMETERS
        except (OSError, ValueError, KeyError):
            return _PUBLISHED_PARAMETERS


class PairRM:
    """PairRM as an oracle. Made by :meth:`from_pretrained`.

    Attributes:
        inputs: the tokenizer and its limits.
        probability: how P is made from M.
        batch_pairs: at most so many ordered pairs in one forward pass; None: :data:`GPU_BATCH_PAIRS`, and on a
            CPU as many as :data:`CPU_BATCH_VALUES` allow. No answer depends on it, but for rounding.
        orders: how often the order of two responses decided between them.
    """

    def __init__(
        self,
        model: Any,
        head: torch.nn.Sequential,
        inputs: PairInput,
        *,
        probability: Probability = "pairwise",
        batch_pairs: int | None = None,
    ) -> None:
        from sppo.oracle.pairrm_encoder import row_encoder

        if probability not in PROBABILITIES:
            raise ValueError(f"probability: {probability!r}; known are {', '.join(PROBABILITIES)}")
        if batch_pairs is not None and batch_pairs < 1:
            raise ValueError(f"batch_pairs: {batch_pairs}; at least 1 is needed")
        self.inputs = inputs
        self.probability = probability
        self.batch_pairs = batch_pairs
        self.orders = OrderFlips()
        self._hidden: int = model.config.hidden_size
        self._encoder = row_encoder(model)
        self._head = head
        self._device = next(model.parameters()).device
        self._padding = model.config.pad_token_id or 0

    @classmethod
    def from_pretrained(
        cls,
        model: str | os.PathLike[str],
        *,
        revision: str | None = None,
        probability: Probability = "pairwise",
        dtype: Literal["float32", "bfloat16"] = "float32",
        batch_pairs: int | None = None,
        source_maxlength: int | None = None,
        candidate_maxlength: int | None = None,
        device: str | torch.device | None = None,
    ) -> PairRM:
        """Load a checkpoint in the layout of `llm-blender/PairRM` or of `llm-blender/PairRM-hf`.

        Args:
            model: a folder, or a name on the Hugging Face hub.
            revision: of a hub name.
            probability: how P is made from M; see the module.
            dtype: of the encoder; the head is always float32.
            batch_pairs: at most so many ordered pairs in one forward pass; None: by device and size.
            source_maxlength: the longest prompt in tokens; None: the checkpoint's.
            candidate_maxlength: the longest response in tokens; None: the checkpoint's.
            device: None: the first accelerator, or else the CPU.

        Raises:
            OracleError: the checkpoint is not there, is of another architecture, lacks a file or a weight,
                has one too many, or holds its weights only in a pickled pytorch_model.bin.
            ValueError: an argument is wrong.
        """
        import torch

        from sppo.oracle import pairrm_checkpoint
        from sppo.oracle.pairrm_input import PairInput

        if dtype not in ("float32", "bfloat16"):
            raise ValueError(f"dtype: {dtype!r}; known are float32, bfloat16")
        checkpoint = pairrm_checkpoint.limited(
            pairrm_checkpoint.read(pairrm_checkpoint.find(os.fspath(model), revision)),
            {"source_maxlength": source_maxlength, "candidate_maxlength": candidate_maxlength},
        )
        inputs = PairInput(
            checkpoint.tokenizer_json,
            checkpoint.limits,
            checkpoint.declared_ids,
            checkpoint.markers,
            checkpoint.reads,
        )
        encoder, head = pairrm_checkpoint.build(checkpoint, getattr(torch, dtype))
        rows = encoder.config.vocab_size
        if inputs.vocabulary > rows:
            raise OracleError(
                f"{checkpoint.tokenizer_json}: has ids up to {inputs.vocabulary - 1}, but the model's"
                f" vocabulary is {rows}; tokenizer and model are not of one checkpoint"
            )
        place = torch.device(device) if device is not None else _first_device()
        return cls(
            encoder.to(place), head.to(place), inputs, probability=probability, batch_pairs=batch_pairs
        )

    @property
    def truncation(self) -> Truncation:
        """The numbers of prompts and responses that have been encoded, and of those that were truncated."""
        return self.inputs.truncation

    @property
    def counts(self) -> dict[str, int]:
        """The truncation by name: `prompts`, `prompts_truncated`, `responses`, `responses_truncated`; and the order's effect."""
        return vars(self.truncation) | self.orders.counts

    def compare(
        self, prompts: Sequence[str], responses: Sequence[Sequence[str]]
    ) -> Float[Array, "prompts K K"]:
        """Like :meth:`sppo.oracle.Oracle.compare`; an empty response is valid.

        Raises:
            OracleError: a text cannot be encoded.
            ValueError: like :meth:`logits`.
        """
        return self.probabilities(self.logits(prompts, responses))

    def probabilities(self, logits: Float[Array, "prompts K K"]) -> Float[Array, "prompts K K"]:
        """P from the logits M of both orders, by the formula that `probability` names."""
        return PROBABILITIES[self.probability](logits)

    def compare_pairs(
        self,
        prompts: Sequence[str],
        responses: Sequence[Sequence[str]],
        wanted: Bool[np.ndarray[Any, Any], "prompts K K"],
    ) -> Float[Array, "prompts K K"]:
        """Like :meth:`compare` for some pairs only, from which `averaged` scores cannot be computed.

        Raises:
            OracleError: a text cannot be encoded, or the probability is `averaged`.
        """
        if self.probability == "averaged" and not _complete(wanted):
            raise OracleError(
                "probability: averaged needs all pairs of the K responses; compare them all, or choose"
                " pairwise or calibrated"
            )
        return self.probabilities(self.logits(prompts, responses, wanted))

    def logits(
        self,
        prompts: Sequence[str],
        responses: Sequence[Sequence[str]],
        wanted: Bool[np.ndarray[Any, Any], "prompts K K"] | None = None,
    ) -> Float[Array, "prompts K K"]:
        """The matrices M, in nats: entry [n, i, j] is the logit of the pair in which y_i stands first; the diagonal is zero.

        Args:
            prompts: N prompts as text.
            responses: K responses to each prompt.
            wanted: the ordered pairs to compare; the entries of all others are 0. None compares all pairs.

        Raises:
            OracleError: a text cannot be encoded.
            ValueError: the numbers of prompts and of lists of responses differ, or the lists differ in length.
        """
        counts = {len(of_prompt) for of_prompt in responses}
        if len(prompts) != len(responses) or len(counts) > 1:
            raise ValueError(
                f"responses: {len(responses)} lists of lengths {sorted(counts)} for {len(prompts)} prompts;"
                " give one for each prompt, all of the same length K"
            )
        if not prompts:
            return np.zeros((0, 0, 0))
        parts = [
            self._parts(n, prompt, of) for n, (prompt, of) in enumerate(zip(prompts, responses, strict=True))
        ]
        k = counts.pop()
        matrix = np.zeros((len(prompts), k, k))
        pairs = _pairs(parts, wanted)
        start = 0
        while start < len(pairs):
            batch = pairs[start : start + self._side_by_side(pairs[start], parts)]
            start += len(batch)
            answers = self._forward([self.inputs.pair(parts[p.n][0], p.first, p.second) for p in batch])
            for pair, answer in zip(batch, answers, strict=True):
                for i, j in pair.entries:
                    matrix[pair.n, i, j] = answer
        self.orders.note(responses, matrix)
        return matrix

    def _side_by_side(self, longest: _Pair, parts: Sequence[tuple[list[int], list[list[int]]]]) -> int:
        """The number of pairs, none longer than the given one, that go through the encoder at once."""
        if self.batch_pairs is not None:
            return self.batch_pairs
        if self._device.type != "cpu":
            return GPU_BATCH_PAIRS
        tokens = len(parts[longest.n][0]) + len(longest.first) + len(longest.second)
        return 2 * max(1, CPU_BATCH_VALUES // (2 * tokens * self._hidden))  # both orders have the same length

    def _parts(self, n: int, prompt: str, responses: Sequence[str]) -> tuple[list[int], list[list[int]]]:
        try:
            return self.inputs.parts(prompt, responses)
        except OracleError as error:
            raise OracleError(str(error), n) from error

    def _forward(self, pairs: Sequence[tuple[list[int], tuple[int, int, int]]]) -> list[float]:
        import torch

        lengths = torch.tensor([len(ids) for ids, _ in pairs])
        ids = torch.full((len(pairs), int(lengths.max())), self._padding)
        for row, (of_pair, _) in zip(ids, pairs, strict=True):
            row[: len(of_pair)] = torch.tensor(of_pair)
        rows = torch.tensor([rows for _, rows in pairs])
        with torch.inference_mode():
            hidden = self._encoder(
                ids.to(self._device), lengths.to(self._device), rows.to(self._device)
            ).float()
            source, *candidates = hidden.unbind(1)
            first, second = (self._head(torch.cat([source, candidate], -1)) for candidate in candidates)
            answers: list[float] = (first - second).mean(-1).tolist()
        return answers


def pairwise(logits: Float[Array, "*prompts K K"]) -> Float[Array, "*prompts K K"]:
    r"""The paper's probability, :math:`P_{ij} = \sigma(M_{ij} - M_{ji})`."""
    return np.asarray(expit(_both_orders(logits)))


def calibrated(logits: Float[Array, "*prompts K K"]) -> Float[Array, "*prompts K K"]:
    r"""The mean logit of both orders, :math:`P_{ij} = \sigma((M_{ij} - M_{ji})/2)`."""
    return np.asarray(expit(_both_orders(logits) / 2))


def averaged(logits: Float[Array, "*prompts K K"]) -> Float[Array, "*prompts K K"]:
    r"""The released code's probability, :math:`P_{ij} = \sigma(s_i - s_j)` with :math:`s` the mean of M - M^T over j."""
    scores = _both_orders(logits).mean(-1)
    return np.asarray(expit(scores[..., :, None] - scores[..., None, :]))


PROBABILITIES = {"pairwise": pairwise, "calibrated": calibrated, "averaged": averaged}


def _both_orders(logits: Array) -> Array:
    return logits - np.swapaxes(logits, -1, -2)


@dataclass(frozen=True)
class _Pair:
    """An ordered pair of different responses to a prompt, and the entries of M that its logit fills."""

    n: int
    first: list[int]
    second: list[int]
    entries: list[tuple[int, int]]


def _complete(wanted: Any) -> bool:
    return bool((wanted | np.eye(wanted.shape[-1], dtype=bool)).all())


def _pairs(parts: Sequence[tuple[list[int], list[list[int]]]], wanted: Any) -> list[_Pair]:
    """All wanted ordered pairs, the longest first, both orders side by side; equal responses are compared once."""
    pairs = []
    for n, (source, candidates) in enumerate(parts):
        alike: dict[tuple[int, ...], list[int]] = {}
        for index, candidate in enumerate(candidates):
            alike.setdefault(tuple(candidate), []).append(index)
        groups = list(alike.values())
        for a, first in enumerate(groups):
            for b, second in enumerate(groups):
                entries = [
                    (i, j) for i in first for j in second if i != j and (wanted is None or wanted[n, i, j])
                ]
                if entries:
                    pair = _Pair(n, candidates[first[0]], candidates[second[0]], entries)
                    length = len(source) + len(pair.first) + len(pair.second)
                    pairs.append((-length, n, min(a, b), max(a, b), a, pair))
    return [pair for *_, pair in sorted(pairs, key=lambda entry: entry[:-1])]


def _first_device() -> torch.device:
    import torch

    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return torch.device("cpu") if accelerator is None else accelerator
