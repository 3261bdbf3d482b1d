"""The game between the policies of runs, computed from the responses that their evaluations have recorded."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from sppo import winrates
from sppo.benchmarks.head_to_head.score import Compare, games
from sppo.policy.chat_format import plain_text
from sppo.progress import Terminal
from sppo.recipe import ANSWERS, keep_answers_in
from sppo.rundir.folder import RunError
from sppo.rundir.reader import RunReader, label, with_run_policies

Array = winrates.Array


def policies(
    runs: Sequence[Path], compare: Compare, terminal: Terminal | None = None
) -> tuple[list[str], Float[Array, "prompts m m"], list[str], Float[Array, "prompts c m"]]:
    """The game between all evaluated policies of some runs, on the held-out prompts that the runs share.

    The base policy of the first run stands for those of all runs. The challengers are best-of-n policies: of a
    policy's n recorded responses to a prompt, they give the one with the highest win rate among them.

    Args:
        runs: the run folders; the last policy of the last run is the last strategy of the game.
        compare: the method of the oracle that compares the responses.
        terminal: shows progress; None shows none.

    Returns:
        The names of the m policies, their win rates on each prompt, the names of the challengers, and the win rates
        of the challengers against the m policies on each prompt.

    Raises:
        RunError: a run has no evaluated policy, or the runs share no held-out prompt.
    """
    names, by_policy = held_out_responses(runs)
    shared = sorted(set.intersection(*map(set, by_policy)))
    if not shared:
        raise RunError(f"{', '.join(map(str, runs))}: these runs have no held-out prompt in common")
    counts = [min(len(responses[prompt][1]) for prompt in shared) for responses in by_policy]
    batches = []
    with (terminal or Terminal(quiet=True)).bar(
        "game between the policies", len(shared), "prompts"
    ) as advance:
        for start in range(0, len(shared), _BATCH):
            batch = shared[start : start + _BATCH]
            texts = [
                [responses[prompt][1][:n] for prompt in batch]
                for responses, n in zip(by_policy, counts, strict=True)
            ]
            batches.append(games(compare, [by_policy[0][prompt][0] for prompt in batch], texts))
            advance(len(batch))
    challengers = [f"{name}, best of {n}" for name, n in zip(names, counts, strict=True) if n > 1]
    keep = [index for index, n in enumerate(counts) if n > 1]
    payoff, best = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    return names, payoff, challengers, best[:, keep]


_BATCH = 16
"""The number of prompts that the oracle is asked about at a time."""


def oracle_of(run: Path) -> Any:
    """Loads the oracle that annotates a run."""
    from sppo import oracle

    reader = RunReader(run)
    config = with_run_policies(reader, reader.recipe.needed_oracle("the game between policies"))
    return oracle.load(keep_answers_in(config, run / ANSWERS).model_dump())


def is_transitive(run: Path) -> bool:
    """Whether the preferences of the run's oracle cannot be cyclic."""
    return RunReader(run).recipe.needed_oracle("the game between policies").is_transitive


def held_out_responses(runs: Sequence[Path]) -> tuple[list[str], list[dict[str, tuple[str, list[str]]]]]:
    """The names of all evaluated policies of some runs, and for each policy and held-out prompt its responses.

    Responses are a mapping from the prompt's id to the text of the prompt and the texts of the responses.

    Raises:
        RunError: a run has no evaluated policy.
    """
    names: list[str] = []
    by_policy: list[dict[str, tuple[str, list[str]]]] = []
    for position, run in enumerate(runs):
        reader = RunReader(run)
        evaluated = reader.evaluated
        if len(evaluated) < 2:
            raise RunError(f"{run}: no policy of this run has been evaluated; finish an iteration first")
        for number in evaluated if position == 0 else evaluated[1:]:
            name = label(number)
            names.append(name if len(runs) == 1 or number == 0 else f"{run.name}, {name}")
            by_policy.append(
                {row.prompt_id: (plain_text(row.messages), row.texts) for row in reader.held_out(number)}
            )
    return names, by_policy
