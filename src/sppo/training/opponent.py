r"""log pi_t(y|x) of the responses that are trained on, computed by the trainer's code or taken from the sampler.

:math:`\log\pi_t(y|x)` is part of every log-ratio. When the trainer's own code computes it, with the weights that
training starts from, every log-ratio is 0 at the first step; this costs a forward pass over the data. The sampler has
computed the same quantity while drawing y, but its kernels round differently: a serving engine in bfloat16 more than the
package's own sampling loop. When the sampler's values are taken, some responses are therefore computed by both, and the
deviation is reported.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from sppo.rundir.tables import TrainingRow

CHECKED = 8
"""The number of prompts in each shard for which both values are computed when the sampler's values are taken."""


class OpponentLogProb(NamedTuple):
    """log pi_t(y|x) of one response.

    Attributes:
        value: in nats.
        deviation: the trainer's value minus the sampler's, in nats; None if only one was computed.
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
        sampled: the sampler's values in nats. None for a response that was shortened after sampling or was not sampled,
            for which the trainer's code computes the value.
        score: given the indices of some prompts, computes the values of all their responses by the trainer's code.
        source: whose values to take where both exist.
    """
    needed = [
        number
        for number, values in enumerate(sampled)
        if source == "trainer" or number < CHECKED or any(value is None for value in values)
    ]
    scored = dict(zip(needed, score(needed), strict=True))
    return [
        [
            _log_prob(value, scored[number][k] if number in scored else None, source)
            for k, value in enumerate(values)
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
    """How far the sampler's log pi_t(y|x) deviate from the trainer's, over the responses that both have computed.

    Returns:
        `responses`: the number of such responses; `mean_per_token` and `max_per_token`: the absolute deviation of a
        response divided by its number of tokens, in nats; `max`: the largest absolute deviation of a whole response, in
        nats. None if there is no such response.
    """
    deviations = [
        (abs(response.sampler_deviation), len(response.token_ids))
        for row in rows
        for response in row.responses
        if response.sampler_deviation is not None
    ]
    if not deviations:
        return None
    nats, tokens = np.array(deviations).T
    return {
        "responses": len(nats),
        "mean_per_token": float((nats / tokens).mean()),
        "max_per_token": float((nats / tokens).max()),
        "max": float(nats.max()),
    }
