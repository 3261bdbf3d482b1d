"""The best of n: the one of a policy's n responses that an oracle prefers to the others."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from sppo import oracle as oracles
from sppo import winrates
from sppo.benchmarks.evaluation_stage import EvaluationStage
from sppo.progress import Advance, Terminal
from sppo.recipe import OracleConfig

_CHOICES = pa.schema([("chosen", pa.int32()), ("win_rates", pa.list_(pa.float64()))])


def settings(config: OracleConfig) -> dict[str, Any]:
    """The settings of the stage that chooses."""
    return {"oracle": oracles.identity(config)}


def choose(
    stage: EvaluationStage,
    config: OracleConfig,
    prompts: Sequence[str],
    candidates: Sequence[Sequence[str]],
    terminal: Terminal,
) -> list[tuple[int, list[float]]]:
    """Choose the candidate with the highest win rate against the other candidates, for each prompt.

    Args:
        stage: the stage that holds the choices, with :func:`settings` and the candidates' stage upstream.
        config: the oracle that compares.
        prompts: N prompts as text.
        candidates: n responses to each prompt.
        terminal: where progress is shown.

    Returns:
        For each prompt the number of the best candidate, and the win rates of all n.
    """
    oracle = None if stage.is_done() else oracles.load(config.model_dump())

    def compare(numbers: range, advance: Advance) -> list[dict[str, Any]]:
        assert oracle is not None
        matrices = oracle.compare([prompts[n] for n in numbers], [candidates[n] for n in numbers])
        advance(len(numbers))
        return [
            {"chosen": int(rates.argmax()), "win_rates": rates.tolist()}
            for rates in winrates.win_rates(matrices)
        ]

    rows = stage.compute(len(prompts), compare, _CHOICES, terminal, "prompts")
    return [(row["chosen"], row["win_rates"]) for row in rows]
