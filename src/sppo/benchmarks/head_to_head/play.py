"""Head to head: how probably each of several policies is preferred to each other, by an oracle.

The matrix is a game with the policies as strategies; its von Neumann winner is the mixture that none of them beats.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float

from sppo import oracle as oracles
from sppo import prompts as prompt_sources
from sppo import randomness
from sppo.arena import votes
from sppo.benchmarks.evaluation_stage import evaluation_stage
from sppo.benchmarks.head_to_head import score as head_to_head
from sppo.benchmarks.outputs import read_outputs
from sppo.benchmarks.participants import Participant
from sppo.benchmarks.responses import Decoding, Question, respond
from sppo.benchmarks.results import save, show_table
from sppo.game import solve
from sppo.progress import Advance, Terminal
from sppo.recipe import OracleConfig, PromptSource
from sppo.rundir.folder import RunError
from sppo.winrates import Array

NAME = "head-to-head"
_MATRIX = pa.list_(pa.list_(pa.float64()))
_GAMES = pa.schema([("question_id", pa.string()), ("payoff", _MATRIX), ("best", _MATRIX)])


@dataclass(frozen=True)
class HeadToHead:
    """The game between policies.

    Attributes:
        names: m of them.
        payoff: [m, m] how probably the row policy's responses are preferred to the column policy's.
        low: [m, m] lower ends of the intervals over prompts.
        high: [m, m] upper ends.
        winner: [m] the von Neumann winner.
        prompts: how many.
        best: [m, m] the same as the payoff of the best of each row policy's responses; None with one response each.
    """

    names: list[str]
    payoff: Float[Array, "m m"]
    low: Float[Array, "m m"]
    high: Float[Array, "m m"]
    winner: Float[Array, " m"]
    prompts: int
    best: Float[Array, "m m"] | None


def play(
    home: Path,
    participants: Sequence[Participant],
    config: OracleConfig,
    prompts: Sequence[str] | None,
    decoding: Decoding,
    terminal: Terminal,
    *,
    responses: int = 1,
    confidence: float = 0.95,
    resamples: int = 2000,
) -> HeadToHead:
    """Let policies answer, let the oracle compare, and solve the game.

    Args:
        home: the evaluation's folder.
        participants: two or more.
        config: the oracle.
        prompts: what policies are asked; None: what the files of outputs answer.
        decoding: how policies answer.
        terminal: where progress is shown.
        responses: of each policy to each prompt; a file has one.
        confidence: of the intervals.
        resamples: of the bootstrap over prompts.

    Raises:
        RunError: fewer than two participants, or no prompts.
        sppo.benchmarks.outputs.OutputsError: files that do not answer the same prompts.
    """
    if len(participants) < 2:
        raise RunError("head to head needs at least two policies or files of outputs")
    files = {one.name: read_outputs(one.path, one.name) for one in participants if not one.is_policy}
    if prompts is None:
        if not files:
            raise RunError(
                "no prompts: name a file of them with --prompts, or a run folder, or a file of outputs"
            )
        prompts = list(next(iter(files.values())).texts)
    questions = [Question(_identity(text), (text,)) for text in prompts]
    answers, upstream = [], []
    for one in participants:
        if one.is_policy:
            found, made = respond(home, NAME, one, questions, decoding, terminal, n=responses)
            answers.append([[turns[0].text for turns in choices] for choices in found])
            upstream.append(made.fingerprint)
        else:
            answers.append([[text] for text in files[one.name].to(prompts)])
            upstream.append(one.fingerprint)
    games = _compared(
        home, [one.name for one in participants], config, questions, answers, upstream, terminal
    )
    payoff = games.payoff.mean(axis=0)
    low, high = head_to_head.intervals(
        games.payoff,
        confidence=confidence,
        resamples=resamples,
        seed=randomness.seed("bootstrap", decoding.seed),
    )
    several = any(len(of_policy[0]) > 1 for of_policy in answers)
    result = HeadToHead(
        [one.name for one in participants],
        payoff,
        low,
        high,
        solve(payoff).policy,
        len(questions),
        games.best.mean(axis=0) if several else None,
    )
    save(
        home / f"{NAME}.json",
        NAME,
        {
            "policies": [
                {"name": one.name, "path": str(one.path), "fingerprint": one.fingerprint}
                for one in participants
            ],
            "oracle": oracles.identity(config),
            "decoding": decoding.identity(),
            "responses": responses,
            "prompts": result.prompts,
            "confidence": confidence,
            "win_rates": payoff.tolist(),
            "low": low.tolist(),
            "high": high.tolist(),
            "best_of": None if result.best is None else result.best.tolist(),
            "von_neumann_winner": result.winner.tolist(),
        },
    )
    return result


def of_votes(
    paths: Sequence[Path], *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> HeadToHead:
    """The matrix of people's votes, with intervals over prompts; NaN where two policies were not compared.

    Raises:
        RunError: there is no vote.
        sppo.arena.votes.VotesError: a file that cannot be read.
    """
    rows = {row["vote_id"]: row for path in paths for row in votes.read(path)}
    rates = votes.by_prompt(list(rows.values()))
    if not rates:
        raise RunError(f"{', '.join(map(str, paths))}: there are no votes")
    names = sorted({name for pair in rates for name in pair})
    payoff, low, high = (np.where(np.eye(len(names)) > 0, 0.5, np.nan) for _ in range(3))
    for (first, second), values in rates.items():
        place = names.index(first), names.index(second)
        found = head_to_head.interval(
            np.array(values),
            confidence=confidence,
            resamples=resamples,
            seed=randomness.seed("bootstrap", seed),
        )
        payoff[place], low[place], high[place] = found["mean"], found["low"], found["high"]
    whole = not np.isnan(payoff).any()
    winner = solve(payoff).policy if whole else np.full(len(names), np.nan)
    prompts = len({row["prompt_id"] for row in rows.values()})
    return HeadToHead(names, payoff, low, high, winner, prompts, None)


def show(terminal: Terminal, found: HeadToHead) -> None:
    """The matrix, its intervals, and the winner."""
    count = len(found.names)
    show_table(
        terminal,
        ["P(row > column)", *found.names, "winner"],
        [
            [
                found.names[i],
                *(
                    "-"
                    if i == j
                    else "not compared"
                    if np.isnan(found.payoff[i, j])
                    else f"{found.payoff[i, j]:.3f} [{found.low[i, j]:.3f}, {found.high[i, j]:.3f}]"
                    for j in range(count)
                ),
                "" if np.isnan(found.winner[i]) else f"{found.winner[i]:.3f}",
            ]
            for i in range(count)
        ],
        f"{found.prompts} prompts; winner: the von Neumann winner, the mixture that none of them beats",
    )
    if found.best is not None:
        rows = [[found.names[i], *(f"{value:.3f}" for value in found.best[i])] for i in range(count)]
        show_table(terminal, ["best of n > column", *found.names], rows)


def read_prompts(source: PromptSource) -> list[str]:
    """The prompts of a source, one user message each.

    Raises:
        RunError: a prompt is empty, malformed, there twice, or a conversation of several messages.
        sppo.prompts.PromptError: the source cannot be read.
    """
    found: dict[str, None] = {}
    for where, value in prompt_sources.read_source(source):
        try:
            messages = prompt_sources.interpret(value, source).messages
        except prompt_sources.PromptError as error:
            raise RunError(f"{where}: {error}") from error
        if len(messages) > 1:
            raise RunError(f"{where}: {len(messages)} messages; policies are asked single messages here")
        if messages[0]["content"] in found:
            raise RunError(f"{where}: this prompt is there twice; remove one")
        found[messages[0]["content"]] = None
    if not found:
        raise RunError(f"{source.source}: there are no prompts in it")
    return list(found)


def _compared(
    home: Path,
    names: Sequence[str],
    config: OracleConfig,
    questions: Sequence[Question],
    answers: Sequence[Sequence[Sequence[str]]],
    upstream: Sequence[str],
    terminal: Terminal,
) -> head_to_head.Games:
    if config.text == "chat":
        raise RunError(
            "oracle.text: chat; policies with templates of their own are compared on plain prompts here"
        )
    settings = {
        "oracle": oracles.identity(config),
        "names": list(names),
        "prompts": [q.id for q in questions],
    }
    found = evaluation_stage(home, f"{NAME}: comparisons", "comparisons", settings, upstream)
    oracle = None if found.is_done() else oracles.load(config.model_dump())

    def work(part_of: range, advance: Advance) -> list[dict[str, Any]]:
        assert oracle is not None
        played = head_to_head.games(
            oracle.compare,
            [questions[index].turns[0] for index in part_of],
            [[of_policy[index] for index in part_of] for of_policy in answers],
        )
        advance(len(part_of))
        return [
            {"question_id": questions[index].id, "payoff": payoff.tolist(), "best": best.tolist()}
            for index, payoff, best in zip(part_of, played.payoff, played.best, strict=True)
        ]

    rows = found.compute(len(questions), work, _GAMES, terminal, "prompts")
    return head_to_head.Games(
        np.array([row["payoff"] for row in rows]), np.array([row["best"] for row in rows])
    )


def _identity(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
