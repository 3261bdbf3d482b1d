"""Head to head: how probably each of several policies is preferred to each other policy, by an oracle.

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
from sppo.benchmarks.evaluation import Evaluation
from sppo.benchmarks.evaluation_stage import evaluation_stage
from sppo.benchmarks.head_to_head import score as head_to_head
from sppo.benchmarks.outputs import Outputs, read_outputs
from sppo.benchmarks.participants import Participant
from sppo.benchmarks.question_files import Question
from sppo.benchmarks.responses import respond
from sppo.benchmarks.results import save, show_table
from sppo.game import solve
from sppo.progress import Advance, Terminal, counted_text
from sppo.recipe import OracleConfig, PromptSource
from sppo.rundir.folder import RunError
from sppo.rundir.votes import read as read_votes
from sppo.winrates import Array

NAME = "head-to-head"
_MATRIX = pa.list_(pa.list_(pa.float64()))
_GAMES = pa.schema([("question_id", pa.string()), ("payoff", _MATRIX), ("best", _MATRIX)])


@dataclass(frozen=True)
class HeadToHead:
    """The game between m policies.

    Attributes:
        names: the names of the policies.
        payoff: [m, m] how probably the row policy's responses are preferred to the column policy's.
        low: [m, m] lower ends of the intervals over prompts.
        high: [m, m] upper ends of the intervals over prompts.
        winner: [m] the von Neumann winner.
        prompts: the number of prompts.
        best: [m, m] the payoff of the best of the row policy's responses to a prompt; None where all policies give one.
    """

    names: list[str]
    payoff: Float[Array, "m m"]
    low: Float[Array, "m m"]
    high: Float[Array, "m m"]
    winner: Float[Array, " m"]
    prompts: int
    best: Float[Array, "m m"] | None

    def record(self) -> dict[str, Any]:
        """The figures, for a file."""
        return {
            "prompts": self.prompts,
            "win_rates": self.payoff.tolist(),
            "low": self.low.tolist(),
            "high": self.high.tolist(),
            "best_of": None if self.best is None else self.best.tolist(),
            "von_neumann_winner": self.winner.tolist(),
        }


def play(
    evaluation: Evaluation,
    participants: Sequence[Participant],
    config: OracleConfig,
    prompts: Sequence[str] | None,
    *,
    responses: int = 1,
    confidence: float = 0.95,
    resamples: int = 2000,
) -> HeadToHead:
    """Let policies respond, let the oracle compare, and solve the game.

    Args:
        evaluation: the settings of the command.
        participants: two or more policies or files of outputs.
        config: the oracle's configuration.
        prompts: the prompts for the policies; None: the instructions of the files of outputs.
        responses: the number of responses of each policy to each prompt; a file has one.
        confidence: the level of the intervals.
        resamples: the number of resamples of the bootstrap over prompts.

    Raises:
        RunError: there are fewer than two participants, or no prompts.
        sppo.benchmarks.outputs.OutputsError: the files do not answer the same prompts.
    """
    if len(participants) < 2:
        raise RunError("head to head needs at least two policies or files of outputs")
    if config.prompt_form() == "chat":
        raise RunError(
            "oracle.text: chat; policies with templates of their own are compared on plain prompts here"
        )
    files = {p.name: read_outputs(p.path, p.name) for p in participants if not p.is_policy}
    if prompts is None:
        if not files:
            raise RunError(
                "no prompts: name a file of them with --prompts, or a run folder, or a file of outputs"
            )
        prompts = list(next(iter(files.values())).texts)
    questions = [Question(_identity(text), (text,)) for text in prompts]
    pairs = [_texts(evaluation, p, files.get(p.name), questions, responses) for p in participants]
    texts, upstream = zip(*pairs, strict=True)
    games = _compare(evaluation, participants, config, questions, texts, upstream)
    seed = randomness.seed("bootstrap", evaluation.decoding.seed)
    low, high = head_to_head.intervals(games.payoff, confidence=confidence, resamples=resamples, seed=seed)
    payoff = games.payoff.mean(axis=0)
    several = any(len(of_policy[0]) > 1 for of_policy in texts)
    best = games.best.mean(axis=0) if several else None
    names = [participant.name for participant in participants]
    game = HeadToHead(names, payoff, low, high, solve(payoff).policy, len(questions), best)
    settings = {
        "policies": [{"name": p.name, **p.record()} for p in participants],
        "oracle": oracles.identity(config),
        "decoding": evaluation.decoding.identity(),
        "responses": responses,
        "confidence": confidence,
    }
    save(evaluation.home / f"{NAME}.json", NAME, {**settings, **game.record()})
    return game


def of_votes(
    paths: Sequence[Path], *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> HeadToHead:
    """The matrix of people's votes, with intervals over prompts; NaN where two policies were not compared.

    Raises:
        RunError: there is no vote.
        sppo.rundir.votes.VotesError: a file cannot be read.
    """
    rows = read_votes(*paths)
    rates = votes.by_prompt(rows)
    if not rates:
        raise RunError(f"{', '.join(map(str, paths))}: there are no votes")
    names = sorted({name for pair in rates for name in pair})
    payoff, low, high = (np.where(np.eye(len(names)) > 0, 0.5, np.nan) for _ in range(3))
    for (first, second), values in rates.items():
        place = names.index(first), names.index(second)
        rate = head_to_head.interval(
            np.array(values),
            confidence=confidence,
            resamples=resamples,
            seed=randomness.seed("bootstrap", seed),
        )
        payoff[place], low[place], high[place] = rate["mean"], rate["low"], rate["high"]
    whole = not np.isnan(payoff).any()
    winner = solve(payoff).policy if whole else np.full(len(names), np.nan)
    prompts = len({row["prompt_id"] for row in rows if row["label"] != "skip"})
    return HeadToHead(names, payoff, low, high, winner, prompts, None)


def show(terminal: Terminal, game: HeadToHead) -> None:
    """Print the matrix with its intervals, and the winner."""
    terminal.show_json({"policies": game.names, **game.record()})
    count = len(game.names)

    def cell(i: int, j: int) -> str:
        if i == j:
            return "-"
        if np.isnan(game.payoff[i, j]):
            return "not compared"
        return f"{game.payoff[i, j]:.3f} [{game.low[i, j]:.3f}, {game.high[i, j]:.3f}]"

    rows = [
        [
            game.names[i],
            *(cell(i, j) for j in range(count)),
            "" if np.isnan(game.winner[i]) else f"{game.winner[i]:.3f}",
        ]
        for i in range(count)
    ]
    title = f"{counted_text(game.prompts, 'prompt')}; winner: the von Neumann winner, the mixture that none of them beats"
    show_table(terminal, ["P(row > column)", *game.names, "winner"], rows, title)
    if game.best is not None:
        rows = [[game.names[i], *(f"{value:.3f}" for value in game.best[i])] for i in range(count)]
        show_table(terminal, ["best of n > column", *game.names], rows)


def read_prompts(source: PromptSource) -> list[str]:
    """The prompts of a source, one user message each.

    Raises:
        RunError: a prompt is empty, malformed, there twice, or a conversation of several messages.
        sppo.prompts.PromptError: the source cannot be read.
    """
    texts: dict[str, None] = {}
    for where, value in prompt_sources.read_source(source):
        try:
            messages = prompt_sources.interpret(value, source).messages
        except prompt_sources.PromptError as error:
            raise RunError(f"{where}: {error}") from error
        if len(messages) > 1:
            raise RunError(f"{where}: {len(messages)} messages; policies respond to single messages here")
        if messages[0]["content"] in texts:
            raise RunError(f"{where}: this prompt is there twice; remove one")
        texts[messages[0]["content"]] = None
    if not texts:
        raise RunError(f"{source.source}: there are no prompts in it")
    return list(texts)


def _texts(
    evaluation: Evaluation,
    participant: Participant,
    outputs: Outputs | None,
    questions: Sequence[Question],
    n: int,
) -> tuple[list[list[str]], str]:
    """A participant's responses to each question, and their fingerprint."""
    if outputs is not None:
        texts = outputs.to([question.turns[0] for question in questions])
        return [[text] for text in texts], participant.fingerprint
    responded, stage = respond(evaluation, participant, questions, n=n)
    return [[turns[0].text for turns in choices] for choices in responded], stage.fingerprint


def _compare(
    evaluation: Evaluation,
    participants: Sequence[Participant],
    config: OracleConfig,
    questions: Sequence[Question],
    texts: Sequence[Sequence[Sequence[str]]],
    upstream: Sequence[str],
) -> head_to_head.Games:
    """Compare the texts of all policies, prompt by prompt."""
    settings = {
        "oracle": oracles.identity(config),
        "names": [participant.name for participant in participants],
        "prompts": [question.id for question in questions],
    }
    stage = evaluation_stage(evaluation.home, f"{NAME}: comparisons", "comparisons", settings, upstream)
    oracle = None if stage.is_done() else oracles.load(config.model_dump())

    def compare(numbers: range, advance: Advance) -> list[dict[str, Any]]:
        assert oracle is not None
        played = head_to_head.games(
            oracle.compare,
            [questions[n].turns[0] for n in numbers],
            [[of_policy[n] for n in numbers] for of_policy in texts],
        )
        advance(len(numbers))
        return [
            {"question_id": questions[n].id, "payoff": payoff.tolist(), "best": best.tolist()}
            for n, payoff, best in zip(numbers, played.payoff, played.best, strict=True)
        ]

    rows = stage.compute(len(questions), compare, _GAMES, evaluation.terminal, "prompts")
    return head_to_head.Games(
        np.array([row["payoff"] for row in rows]), np.array([row["best"] for row in rows])
    )


def _identity(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
