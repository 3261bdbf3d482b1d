r"""log pi_t(y|x) of the responses that are trained on, by the trainer's own code or as the sampler computed it.

:math:`\log\pi_t(y|x)` stands in every log-ratio. Computed by the trainer's own code on the weights that training starts
from, it makes every log-ratio 0 at the first step, at the price of a pass over the data. The sampler has computed it
already, while it drew y; its kernels round differently (a serving engine in bfloat16 more than this package's own
loop), so some responses are computed both ways and the deviation is reported.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from sppo.rundir.tables import TrainingRow

CHECKED = 8
"""The number of prompts in a shard that the trainer's code computes as well, where the sampler's values are taken."""


class OpponentLogProb(NamedTuple):
    """log pi_t(y|x) of one response.

    Attributes:
        value: in nats.
        deviation: the trainer's value minus the sampler's, in nats; None where only one was computed.
    """

    value: float
    deviation: float | None


def log_probs(
    sampled: Sequence[Sequence[float | None]],
    score: Callable[[Sequence[int]], Sequence[Sequence[float]]],
    source: Literal["trainer", "sampler"],
) -> list[list[OpponentLogProb]]:
    """log pi_t(y|x) of each prompt's responses.

    Args:
        sampled: the sampler's values in nats; None where they do not hold, since the response is trained on shorter
            than it was drawn, or was not drawn at all. The trainer's code is used there.
        score: computes the values of all responses of some prompts, given the prompts' numbers, by the trainer's code.
        source: whose values to take.
    """
    needed = [
        number
        for number, values in enumerate(sampled)
        if source == "trainer" or number < CHECKED or any(value is None for value in values)
    ]
    scored = dict(zip(needed, score(needed), strict=True))
    return [
        [
            _log_prob(drawn, scored[number][k] if number in scored else None, source)
            for k, drawn in enumerate(values)
        ]
        for number, values in enumerate(sampled)
    ]


def _log_prob(
    sampled: float | None, scored: float | None, source: Literal["trainer", "sampler"]
) -> OpponentLogProb:
    if scored is None:
        assert sampled is not None
        return OpponentLogProb(sampled, None)
    if sampled is None:
        return OpponentLogProb(scored, None)
    return OpponentLogProb(scored if source == "trainer" else sampled, scored - sampled)


def deviation(rows: Iterable[TrainingRow]) -> dict[str, float] | None:
    """How far the sampler's log pi_t(y|x) lie from the trainer's, over the responses computed both ways.

    Returns:
        `responses`: how many; `mean_per_token` and `max_per_token`: the absolute deviation of a response over its
        number of tokens, in nats; `max`: that of a whole response, in nats. None where none was computed both ways.
    """
    both_ways = [
        (abs(response.sampler_deviation), len(response.token_ids))
        for row in rows
        for response in row.responses
        if response.sampler_deviation is not None
    ]
    if not both_ways:
        return None
    nats, tokens = np.array(both_ways).T
    return {
        "responses": len(nats),
        "mean_per_token": float((nats / tokens).mean()),
        "max_per_token": float((nats / tokens).max()),
        "max": float(nats.max()),
    }
