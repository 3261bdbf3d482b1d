"""The games of a run: its oracle's preferences prompt by prompt, and its policies as strategies."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from sppo import winrates
from sppo.benchmarks.head_to_head.score import Compare, games
from sppo.policy.chat_format import plain_text
from sppo.recipe import ANSWERS, keep_answers_in, load
from sppo.rundir.folder import RunError
from sppo.rundir.shards import read_shard

Array = winrates.Array


class Preferences(NamedTuple):
    """An iteration's preference matrices, [prompts, K, K], and the prompts that they belong to."""

    prompt_ids: list[str]
    matrices: Float[Array, "prompts K K"]


def preferences(run: Path, iteration: int | None = None) -> dict[int, Preferences]:
    """The preference matrices of a run by iteration, as its oracle answered.

    Args:
        run: a run folder.
        iteration: only this one.

    Raises:
        RunError: nothing has been annotated, or is to be.
        sppo.rundir.tables.DamagedShard: a shard cannot be read.
    """
    found = {}
    for number in iterations(run):
        shards = sorted((run / f"iter-{number}" / "preferences").glob("part-*.parquet"))
        if shards and iteration in (None, number):
            rows = [row for shard in shards for row in read_shard(shard).to_pylist()]
            found[number] = Preferences(
                [row["prompt_id"] for row in rows], np.array([row["matrix"] for row in rows])
            )
    if any(np.isnan(part.matrices).any() for part in found.values()):
        raise RunError(
            f"{run}: its responses were compared with some of the others only (oracle.opponents); the game needs"
            " whole matrices: annotate without it"
        )
    if not found:
        algorithm = load(run / "recipe.yaml").algorithm
        if not algorithm.preferences:
            raise RunError(
                f"{run}: there are no preferences to look at: its algorithm, {algorithm.type}, asks no oracle in training;"
                " `sppo game policies` compares its policies"
            )
        which = "" if iteration is None else f" in iteration {iteration}"
        raise RunError(f"{run}: nothing has been annotated{which}; run `sppo annotate` first")
    return found


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

    recipe = keep_answers_in(load(run / "recipe.yaml"), run / ANSWERS)
    return oracle.load(recipe.needed_oracle("the game between policies").model_dump())


def is_transitive(run: Path) -> bool:
    """Whether the run's oracle cannot prefer in circles."""
    from sppo import oracle

    return oracle.is_transitive(load(run / "recipe.yaml").needed_oracle("the game between policies"))


def answers(runs: Sequence[Path]) -> tuple[list[str], list[dict[str, tuple[str, list[str]]]]]:
    """For each evaluated policy of some runs its name, and by held-out prompt the prompt's text and its responses.

    Raises:
        RunError: a run has no evaluated policy.
    """
    names: list[str] = []
    found: list[dict[str, tuple[str, list[str]]]] = []
    for position, run in enumerate(runs):
        evaluated = [
            number
            for number in [0, *iterations(run)]
            if (run / f"iter-{number}" / "evaluation.json").is_file()
        ]
        if len(evaluated) < 2:
            raise RunError(f"{run}: no policy of it has been evaluated; finish an iteration first")
        for number in evaluated if position == 0 else evaluated[1:]:
            label = "base" if number == 0 else f"iteration {number}"
            names.append(label if len(runs) == 1 or number == 0 else f"{run.name}, {label}")
            found.append(
                {
                    row["prompt_id"]: (
                        plain_text(row["messages"]),
                        [response["text"] for response in row["responses"]],
                    )
                    for row in held_out_rows(run, number)
                }
            )
    return names, found


def held_out_rows(run: Path, iteration: int) -> list[dict[str, Any]]:
    """The held-out prompts with an evaluated policy's responses: `prompt_id`, `messages` and `responses`."""
    return [
        row
        for shard in sorted((run / f"iter-{iteration}" / "evaluation").glob("part-*.parquet"))
        for row in read_shard(shard, columns=["prompt_id", "messages", "responses"]).to_pylist()
    ]


def iterations(run: Path) -> list[int]:
    """The iterations of a run that have been begun.

    Raises:
        RunError: it is no run folder.
    """
    if not (run / "recipe.yaml").is_file():
        raise RunError(f"{run} is no run folder: it has no recipe.yaml")
    return sorted(
        int(path.name[5:]) for path in run.glob("iter-*") if path.name[5:].isdigit() and path.name != "iter-0"
    )
