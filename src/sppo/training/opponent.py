r"""log pi_t(y|x) of what is trained on, by the trainer's own code or as the sampler counted it.

:math:`\log\pi_t(y|x)` stands in every log-ratio. The trainer's own code on the weights that training starts from makes
every log-ratio 0 at the first step, at the price of a pass over the data. The sampler has counted it already, while it
drew y; its kernels round otherwise (a serving engine in bfloat16 more than this package's own loop), so a part of the
responses is computed both ways and the deviation is reported.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import numpy as np

CHECKED = 8
"""How many prompts of a shard are computed by the trainer's code as well, where the sampler's values are taken."""


def fill(
    rows: Sequence[dict[str, Any]],
    score: Callable[[Sequence[dict[str, Any]]], Sequence[Sequence[float]]],
    source: Literal["trainer", "sampler"],
) -> None:
    """Give each response of training rows its `opponent_log_prob` and `sampler_deviation`.

    Args:
        rows: as :data:`sppo.rundir.tables.TRAINING`; `sampler_log_prob` of a response is None where it does not hold,
            since the response is trained on shorter than it was drawn. The trainer's code is used there.
        score: log pi_t(y|x) of all responses of some rows by the trainer's code, nats.
        source: whose values to take.
    """
    responses = [response for row in rows for response in row["responses"]]
    for response in responses:
        response["opponent_log_prob"], response["sampler_deviation"] = response["sampler_log_prob"], None
    needed = [
        row
        for number, row in enumerate(rows)
        if source == "trainer"
        or number < CHECKED
        or any(response["sampler_log_prob"] is None for response in row["responses"])
    ]
    for row, values in zip(needed, score(needed), strict=True):
        for response, value in zip(row["responses"], values, strict=True):
            sampled = response["sampler_log_prob"]
            if sampled is not None:
                response["sampler_deviation"] = value - sampled
            if source == "trainer" or sampled is None:
                response["opponent_log_prob"] = value


def deviation(rows: Iterable[dict[str, Any]]) -> dict[str, float] | None:
    """How far the sampler's log pi_t(y|x) lie from the trainer's, over the responses computed both ways.

    Returns:
        `responses`: how many; `mean_per_token` and `max_per_token`: of the absolute deviation of a response over its
        tokens, nats; `max`: of a whole response, nats. None if none was computed both ways.
    """
    found = [
        (abs(response["sampler_deviation"]), len(response["token_ids"]))
        for row in rows
        for response in row["responses"]
        if response["sampler_deviation"] is not None
    ]
    if not found:
        return None
    nats, tokens = np.array(found).T
    return {
        "responses": len(nats),
        "mean_per_token": float((nats / tokens).mean()),
        "max_per_token": float((nats / tokens).max()),
        "max": float(nats.max()),
    }
