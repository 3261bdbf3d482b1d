"""Best of n: of a policy's n answers the one that the oracle likes most among them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from sppo import oracle as oracles
from sppo import winrates
from sppo.benchmarks.evaluation_stage import EvaluationStage, evaluation_stage
from sppo.progress import Advance, Terminal
from sppo.recipe import OracleConfig

_CHOICES = pa.schema([("chosen", pa.int32()), ("win_rates", pa.list_(pa.float64()))])


def choose(
    home: Path,
    title: str,
    config: OracleConfig,
    prompts: Sequence[str],
    candidates: Sequence[Sequence[str]],
    upstream: EvaluationStage,
    terminal: Terminal,
) -> tuple[list[int], EvaluationStage]:
    """The number of the best of each prompt's candidates: that with the highest win rate among them.

    Args:
        home: the policy's folder in the evaluation.
        title: for messages.
        config: the oracle.
        prompts: as text.
        candidates: n for each prompt.
        upstream: the part that made them.
        terminal: where progress is shown.
    """
    found = evaluation_stage(
        home, f"{title}: best of n", "choices", {"oracle": oracles.identity(config)}, [upstream.fingerprint]
    )
    oracle = None if found.is_done() else oracles.load(config.model_dump())

    def work(numbers: range, advance: Advance) -> list[dict[str, Any]]:
        assert oracle is not None
        matrices = oracle.compare([prompts[n] for n in numbers], [candidates[n] for n in numbers])
        advance(len(numbers))
        rates = winrates.win_rates(matrices)
        return [{"chosen": int(of.argmax()), "win_rates": of.tolist()} for of in rates]

    return [row["chosen"] for row in found.compute(len(prompts), work, _CHOICES, terminal, "prompts")], found
