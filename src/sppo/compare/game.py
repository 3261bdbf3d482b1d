"""The game between the policies of runs, played with the responses that their evaluations have recorded."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from sppo import winrates
from sppo.benchmarks.head_to_head.score import Compare, games
from sppo.policy.chat_format import plain_text
from sppo.recipe import ANSWERS, keep_answers_in
from sppo.rundir.folder import RunError
from sppo.rundir.reader import RunReader, label

Array = winrates.Array


def policies(
    runs: Sequence[Path], compare: Compare
) -> tuple[list[str], Float[Array, "prompts m m"], list[str], Float[Array, "prompts c m"]]:
    """The game between all evaluated policies of some runs, on the held-out prompts that they share.

    The base policy of the first run stands for all. The challengers are best-of-n: of each policy's n recorded
    responses to a prompt the one with the highest win rate among them.

    Args:
        runs: run folders; the last one's last policy is the last strategy.
        compare: of the oracle.

    Returns:
        m names and their win rates prompt by prompt; the challengers' names and win rates against the m.

    Raises:
        RunError: a run has no evaluated policy, or the runs share no held-out prompt.
    """
    names, said = answers(runs)
    shared = sorted(set.intersection(*(set(of_policy) for of_policy in said)))
    if not shared:
        raise RunError(f"{', '.join(map(str, runs))}: they have no held-out prompt in common")
    counts = [min(len(of_policy[prompt][1]) for prompt in shared) for of_policy in said]
    found = []
    for start in range(0, len(shared), _BATCH):
        part = shared[start : start + _BATCH]
        texts = [
            [of_policy[prompt][1][:n] for prompt in part] for of_policy, n in zip(said, counts, strict=True)
        ]
        found.append(games(compare, [said[0][prompt][0] for prompt in part], texts))
    rivals = [f"{name}, best of {n}" for name, n in zip(names, counts, strict=True) if n > 1]
    keep = [index for index, n in enumerate(counts) if n > 1]
    payoff, best = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return names, payoff, rivals, best[:, keep]


_BATCH = 64


def oracle_of(run: Path) -> Any:
    """The oracle that a run was annotated with."""
    from sppo import oracle

    recipe = keep_answers_in(RunReader(run).recipe, run / ANSWERS)
    return oracle.load(recipe.needed_oracle("the game between policies").model_dump())


def is_transitive(run: Path) -> bool:
    """Whether the run's oracle cannot prefer in circles."""

    return RunReader(run).recipe.needed_oracle("the game between policies").is_transitive


def answers(runs: Sequence[Path]) -> tuple[list[str], list[dict[str, tuple[str, list[str]]]]]:
    """For each evaluated policy of some runs its name, and by held-out prompt the prompt's text and its responses.

    Raises:
        RunError: a run has no evaluated policy.
    """
    names: list[str] = []
    found: list[dict[str, tuple[str, list[str]]]] = []
    for position, run in enumerate(runs):
        reader = RunReader(run)
        evaluated = reader.evaluated
        if len(evaluated) < 2:
            raise RunError(f"{run}: no policy of it has been evaluated; finish an iteration first")
        for number in evaluated if position == 0 else evaluated[1:]:
            name = label(number)
            names.append(name if len(runs) == 1 or number == 0 else f"{run.name}, {name}")
            found.append(
                {row.prompt_id: (plain_text(row.messages), row.texts) for row in reader.held_out(number)}
            )
    return names, found
