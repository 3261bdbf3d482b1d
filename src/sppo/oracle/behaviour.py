"""Measures how an oracle behaves on given prompts and responses, before a policy is optimised against it."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import stats
from scipy.special import expit

from sppo.game import cyclic_triples
from sppo.oracle import BothOrders, CheckedOracle, OracleError, checked, excerpt, parts_of
from sppo.oracle.wrappers import fit_penalty, lengths
from sppo.winrates import Array

PROMPTS_AT_ONCE = 64
CERTAIN = 10.0
"""Log-odds are limited to this many nats, since those of verdicts that all agree are infinite."""


@dataclass(frozen=True)
class OrderConsistency:
    """The influence of the order of two responses on an oracle that sees them side by side.

    Attributes:
        inconsistency: the mean of |M_ij + M_ji| in nats; 0 if the order does not matter.
        flips: the share of pairs whose winner depends on the order.
        first_wins: the mean probability of the response that stands first; 1/2 if no position is favoured.
    """

    inconsistency: float
    flips: float
    first_wins: float


@dataclass(frozen=True)
class Check:
    """An oracle's behaviour.

    Attributes:
        prompts: the number of prompts.
        pairs: the number of unordered pairs of responses that were compared.
        cyclic_triples: the share of triples of responses that are preferred in a circle.
        near_ties: the share of pairs with |P - 1/2| below `tie`.
        tie: the |P - 1/2| below which a pair is a near tie.
        mean_margin: the mean |P - 1/2|.
        longer_wins: the mean P of the longer of two responses.
        length_correlation: Spearman's correlation of P_ij with the difference of lengths in characters, over ordered pairs.
        length_penalty: the fitted lambda of `length_controlled` in nats, at `length_scale`.
        length_scale: the scale of the fitted penalty in characters.
        orders: the consistency of each component that is asked in both orders, by its class.
        counts: what the oracle counted.
        seconds: the seconds that the comparisons took, without loading.
        pairs_per_second: unordered pairs per second.
    """

    prompts: int
    pairs: int
    cyclic_triples: float
    near_ties: float
    tie: float
    mean_margin: float
    longer_wins: float
    length_correlation: float
    length_penalty: float
    length_scale: float
    orders: Mapping[str, OrderConsistency]
    counts: Mapping[str, int]
    seconds: float
    pairs_per_second: float


def check(
    oracle: CheckedOracle,
    prompts: Sequence[str],
    responses: Sequence[Sequence[str]],
    *,
    tie: float = 0.05,
    length_scale: float = 500,
    advance: Callable[[int], None] = lambda count: None,
) -> Check:
    """Ask an oracle about every pair of responses, and measure.

    Args:
        oracle: an oracle from :func:`sppo.oracle.load`.
        prompts: the prompts as text.
        responses: at least two responses to each prompt; their number may differ.
        tie: the |P - 1/2| below which a pair is a near tie.
        length_scale: the scale of the fitted length penalty, in characters.
        advance: called with the number of prompts compared since the last call.

    Raises:
        OracleError: the oracle fails, or there is nothing to compare.
    """
    groups: dict[int, list[int]] = {}
    for index, of_prompt in enumerate(responses):
        if len(of_prompt) < 2:
            raise OracleError(
                f"the prompt {excerpt(prompts[index])} has {len(of_prompt)} responses; 2 are needed"
            )
        groups.setdefault(len(of_prompt), []).append(index)
    if not groups:
        raise OracleError("there are no prompts to check the oracle on")
    asked = _Asked(oracle)
    for indices in groups.values():
        for start in range(0, len(indices), PROMPTS_AT_ONCE):
            part = indices[start : start + PROMPTS_AT_ONCE]
            asked.ask([prompts[index] for index in part], [responses[index] for index in part])
            advance(len(part))
    return asked.measured(tie, length_scale)


class _Asked:
    """The oracle's answers so far."""

    def __init__(self, oracle: CheckedOracle) -> None:
        self.oracle = oracle
        self.matrices: list[Float[Array, "prompts K K"]] = []
        self.lengths: list[Float[Array, "prompts K"]] = []
        self.logits: dict[str, list[Float[Array, " pairs"]]] = {}
        self.seconds = 0.0

    def ask(self, prompts: Sequence[str], responses: Sequence[Sequence[str]]) -> None:
        k = len(responses[0])
        upper = np.triu_indices(k, 1)
        begin = time.perf_counter()
        outer = self.oracle.inner
        if isinstance(outer, BothOrders):  # asked once for both
            logits = outer.logits(prompts, responses)
            matrix = checked(outer.probabilities(logits), prompts, k)
            found = {type(outer).__name__: logits}
            self.seconds += time.perf_counter() - begin
        else:
            matrix = self.oracle.compare(prompts, responses)
            self.seconds += time.perf_counter() - begin
            inner = [part for part in parts_of(outer) if isinstance(part, BothOrders)]
            found = {
                f"{type(part).__name__} {number + 1}" if len(inner) > 1 else type(part).__name__: part.logits(
                    prompts, responses
                )
                for number, part in enumerate(inner)
            }
        self.matrices.append(matrix)
        self.lengths.append(lengths(responses))
        for name, logits in found.items():
            one = np.stack([logits[:, *upper], logits.swapaxes(1, 2)[:, *upper]], -1)
            self.logits.setdefault(name, []).append(one.reshape(-1, 2))

    def measured(self, tie: float, length_scale: float) -> Check:
        ours, longer = [], []
        for matrix, length in zip(self.matrices, self.lengths, strict=True):
            upper = np.triu_indices(matrix.shape[-1], 1)
            ours.append(matrix[:, *upper].ravel())
            difference = length[:, :, None] - length[:, None, :]
            longer.append(difference[:, *upper].ravel())
        p, difference = np.concatenate(ours), np.concatenate(longer)
        unequal = difference != 0
        triples = np.concatenate([cyclic_triples(matrix) for matrix in self.matrices])
        return Check(
            prompts=sum(len(matrix) for matrix in self.matrices),
            pairs=len(p),
            cyclic_triples=float(np.mean(triples)),
            near_ties=float(np.mean(np.abs(p - 0.5) < tie)),
            tie=tie,
            mean_margin=float(np.mean(np.abs(p - 0.5))),
            longer_wins=float(np.mean(np.where(difference > 0, p, 1 - p)[unequal])) if unequal.any() else 0.5,
            length_correlation=_rank_correlation(p, difference),
            length_penalty=fit_penalty(p, difference, scale=length_scale),
            length_scale=length_scale,
            orders={name: _consistency(np.concatenate(of)) for name, of in self.logits.items()},
            counts=self.oracle.counts,
            seconds=self.seconds,
            pairs_per_second=len(p) / max(self.seconds, 1e-9),
        )


def _consistency(logits: Float[Array, "pairs 2"]) -> OrderConsistency:
    """The consistency of M_ij and M_ji over all pairs."""
    kept = np.clip(logits, -CERTAIN, CERTAIN)
    return OrderConsistency(
        inconsistency=float(np.mean(np.abs(kept.sum(-1)))),
        flips=float(np.mean(kept[:, 0] * kept[:, 1] > 0)),
        first_wins=float(np.mean(expit(kept))),
    )


def _rank_correlation(probability: Float[Array, " pairs"], difference: Float[Array, " pairs"]) -> float:
    """Spearman's correlation over both orders of every pair; 0 where one of the two is constant."""
    p = np.concatenate([probability, 1 - probability])
    d = np.concatenate([difference, -difference])
    if np.ptp(p) == 0 or np.ptp(d) == 0:
        return 0.0
    return float(stats.spearmanr(p, d).statistic)
