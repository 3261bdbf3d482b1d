"""Judged pairs: read, checked, described, and split by prompt."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, islice
from pathlib import Path
from typing import Any

import numpy as np

from sppo import randomness
from sppo.oracle import OracleError, excerpt
from sppo.policy import chat_format as chat
from sppo.prompts import sources
from sppo.prompts.conversations import PromptError, read_conversation, read_preference
from sppo.recipe.oracle_training import Pairs
from sppo.rundir import votes
from sppo.rundir.reader import RunReader, is_run
from sppo.rundir.shards import DamagedShard

LABELS = {"a": 1.0, "b": 0.0, "tie": 0.5}
SKEWED = 0.6
"""The share of pairs beyond which a side, or the longer response, is reported as favoured."""


@dataclass(frozen=True)
class JudgedPair:
    """A prompt, two responses, and P(a is preferred)."""

    prompt: str
    response_a: str
    response_b: str
    probability: float
    group: str = ""

    @property
    def characters(self) -> int:
        """The characters of all three texts."""
        return len(self.prompt) + len(self.response_a) + len(self.response_b)


def read(columns: Pairs) -> list[JudgedPair]:
    """All pairs of the sources, one source after another.

    Raises:
        OracleError: a source cannot be read or lacks a column, or a row lacks a text or has a probability outside
            [0, 1]; the message names the row, counted from 1.
    """
    sources = [columns.source] if isinstance(columns.source, str) else columns.source
    pairs: list[JudgedPair] = []
    for source in sources:
        numbered = enumerate(_rows(source, columns), 1)
        limit = None if columns.limit is None else columns.limit - len(pairs)
        pairs += [_pair(row, columns, f"{source}, row {number}") for number, row in islice(numbered, limit)]
    if len({pair.prompt for pair in pairs}) < 2:
        raise OracleError(
            f"pairs.source: {', '.join(sources)}: pairs of at least 2 prompts are needed, one held out"
        )
    return pairs


def split(
    pairs: Sequence[JudgedPair], held_out: float, seed: int
) -> tuple[list[JudgedPair], list[JudgedPair]]:
    """Pairs to train on and held-out ones; no prompt is in both. The split depends on the prompts and the seed."""
    prompts = sorted(
        {pair.prompt for pair in pairs}, key=lambda prompt: randomness.digest("pairs", seed, prompt)
    )
    aside = set(prompts[: min(max(1, round(held_out * len(prompts))), len(prompts) - 1)])
    return (
        [pair for pair in pairs if pair.prompt not in aside],
        [pair for pair in pairs if pair.prompt in aside],
    )


def describe(pairs: Sequence[JudgedPair]) -> dict[str, float]:
    """The shares of pairs from which a model could learn something other than preferences: a side, or length.

    Returns:
        `pairs`, `prompts`, `ties`; of the pairs that are no tie `a_preferred`; of those of unequal length
        `longer_preferred`.
    """
    target = np.array([pair.probability for pair in pairs])
    longer = np.array([len(pair.response_a) - len(pair.response_b) for pair in pairs])
    decided = target != 0.5
    unequal = decided & (longer != 0)
    return {
        "pairs": len(pairs),
        "prompts": len({pair.prompt for pair in pairs}),
        "ties": int((~decided).sum()),
        "a_preferred": _share(target[decided] > 0.5),
        "longer_preferred": _share((target > 0.5)[unequal] == (longer > 0)[unequal]),
    }


def warnings(described: Mapping[str, float]) -> list[str]:
    """Sentences that warn about the pairs before training."""
    found = []
    a, longer = described["a_preferred"], described["longer_preferred"]
    if max(a, 1 - a) > SKEWED:
        found.append(
            f"{max(a, 1 - a):.0%} of the pairs favour response_{'a' if a > 0.5 else 'b'}: the order is drawn anew"
            " in training, but what tells the sides apart (which model wrote them, say) can be learnt"
        )
    if max(longer, 1 - longer) > SKEWED:
        found.append(
            f"the {'longer' if longer > 0.5 else 'shorter'} response is preferred in {max(longer, 1 - longer):.0%} of"
            " the pairs: compare with the length-only baseline"
        )
    return found


def _share(true: Any) -> float:
    return float(np.mean(true)) if len(true) else float("nan")


def _pair(row: Mapping[str, Any], of: Pairs, where: str) -> JudgedPair:
    texts = {}
    if of.response_a not in row and {"chosen", "rejected"} <= row.keys():
        row = _with_preference(row, of, where)
    for name in ("prompt", "response_a", "response_b"):
        column = getattr(of, name)
        if column not in row:
            raise OracleError(
                f"{where}: has no column {column!r}; it has {', '.join(map(repr, row))}. Set pairs.{name}"
            )
        value = row[column]
        try:
            value = read_conversation(value) if name == "prompt" else value
            if isinstance(value, list) and name == "prompt":
                value = chat.plain_text(chat.as_messages(value))
        except (PromptError, chat.ChatError) as error:
            raise OracleError(f"{where}: {column}: {error}") from error
        if not isinstance(value, str):
            raise OracleError(f"{where}: {column}: {excerpt(str(value), 60)} is no text")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise OracleError(
                f"{where}: {column}: {excerpt(value, 60)} holds half of a surrogate pair"
            ) from None
        texts[name] = value
    if of.group is not None and of.group not in row:
        raise OracleError(f"{where}: has no column {of.group!r}; set pairs.group")
    group = "" if of.group is None else str(row[of.group])
    return JudgedPair(**texts, probability=_probability(row, of, where), group=group)


def _with_preference(row: Mapping[str, Any], of: Pairs, where: str) -> dict[str, Any]:
    """A row of a preference data set (`chosen`, `rejected`) under the columns of a judged pair."""
    try:
        preference = read_preference(row.get(of.prompt), row["chosen"], row["rejected"])
    except PromptError as error:
        raise OracleError(f"{where}: {error}") from error
    texts = {
        of.prompt: preference.prompt,
        of.response_a: preference.chosen,
        of.response_b: preference.rejected,
    }
    return {**row, **texts, of.probability: 1.0}


def _probability(row: Mapping[str, Any], of: Pairs, where: str) -> float:
    if of.probability in row:
        column, value = of.probability, row[of.probability]
    elif of.label in row:
        column, value = of.label, row[of.label]
        if isinstance(value, str) and value.strip().lower() in LABELS:
            return LABELS[value.strip().lower()]
        if not isinstance(value, int | float):
            raise OracleError(f"{where}: {column}: {excerpt(str(value), 60)}; known are {', '.join(LABELS)}")
    else:
        raise OracleError(
            f"{where}: has neither {of.probability!r} nor {of.label!r}; set pairs.probability or pairs.label"
        )
    if not isinstance(value, int | float) or not 0 <= value <= 1:
        raise OracleError(f"{where}: {column}: {excerpt(str(value), 60)} is not a probability in [0, 1]")
    return float(value)


def _rows(source: str, of: Pairs) -> Iterator[dict[str, Any]]:
    if is_run(Path(source)):
        yield from _of_run(Path(source), of)
        return
    files = sources.local_files(source)
    try:
        if files and all(map(votes.is_votes, files)):
            yield from map(dict, votes.counted([vote for path in files for vote in votes.read(path)]))
            return
        rows = sources.read_rows(
            source, columns=lambda known: known, split=of.split, config=of.config, revision=of.revision
        )
        for position, row in rows:
            if not isinstance(row, dict):
                reason = row if isinstance(row, PromptError) else "not an object with a value for each column"
                raise OracleError(f"{position}: {reason}")
            yield from published_votes(row, of, str(position))
    except (PromptError, votes.VotesError) as error:
        raise OracleError(f"pairs.source: {str(error).removeprefix('prompts: ')}") from error


_PANDALM = {0: "tie", 1: "a", 2: "b"}
_MT_BENCH = {"model_a": "a", "model_b": "b"}


def published_votes(row: dict[str, Any], of: Pairs, where: str) -> list[dict[str, Any]]:
    """A row as pairs with a label, if it has the columns of a published file of votes with texts; else the row itself.

    These are PandaLM's test set (`instruction`, `input`, `response1`, `response2`, `annotator1` and so on: a pair for each
    annotator), and MT-Bench's human judgments (`conversation_a`, `conversation_b`, `winner`, and `turn`, by which a
    conversation is read).

    Raises:
        OracleError: a vote, a conversation or a turn is none of those that these files have.
    """
    if {of.response_a, of.prompt} & row.keys():
        return [row]
    if {"instruction", "response1", "response2", "annotator1"} <= row.keys():
        prompt = "\n\n".join(str(row[name]) for name in ("instruction", "input") if row.get(name))
        votes_ = {name: value for name, value in row.items() if name.startswith("annotator")}
        for name, value in votes_.items():
            if type(value) is not int or value not in _PANDALM:
                raise OracleError(f"{where}: {name}: {excerpt(str(value), 60)}; a vote is 0 (tie), 1 or 2")
        texts = {of.prompt: prompt, of.response_a: row["response1"], of.response_b: row["response2"]}
        return [{**row, **texts, of.label: _PANDALM[value]} for value in votes_.values()]
    if {"conversation_a", "conversation_b", "winner"} <= row.keys():
        return [_mt_bench(row, of, where)]
    return [row]


def _mt_bench(row: dict[str, Any], of: Pairs, where: str) -> dict[str, Any]:
    turn = row.get("turn", 1)
    if type(turn) is not int or turn < 1:
        raise OracleError(f"{where}: turn: {excerpt(str(turn), 60)} is no number of a turn")
    winner = str(row["winner"])
    label = _MT_BENCH.get(winner, "tie" if winner.split(" ")[0] == "tie" else None)
    if label is None:
        raise OracleError(f"{where}: winner: {excerpt(winner, 60)}; known are model_a, model_b and tie")
    sides = []
    for column in ("conversation_a", "conversation_b"):
        messages = row[column]
        if not isinstance(messages, list) or len(messages) < 2 * turn:
            raise OracleError(f"{where}: {column}: it has no turn {turn}")
        sides.append(messages[: 2 * turn])
    # From the second turn on the two conversations differ before the last response as well: the whole is the response.
    texts = {of.prompt: sides[0][:1], of.response_a: _written(sides[0]), of.response_b: _written(sides[1])}
    return {**row, **texts, of.label: label}


def _written(messages: list[Any]) -> Any:
    """What follows the first message: a response, or the rest of a conversation with roles."""
    if len(messages) == 2:
        return messages[1].get("content") if isinstance(messages[1], dict) else None
    try:
        return chat.plain_text(messages[1:])
    except (AttributeError, KeyError, TypeError):
        return None


def _of_run(path: Path, columns: Pairs) -> Iterator[dict[str, Any]]:
    """Every pair of different texts that a run's oracle has compared, by iteration, prompt and response."""
    run = RunReader(path)
    try:
        for iteration in run.iterations:
            for row, matrix in run.compared(iteration):
                for i, j in combinations(range(len(matrix)), 2):
                    if row.texts[i] != row.texts[j] and not math.isnan(matrix[i, j]):
                        yield {
                            columns.prompt: row.messages,
                            columns.response_a: row.texts[i],
                            columns.response_b: row.texts[j],
                            columns.probability: float(matrix[i, j]),
                            "iteration": iteration,
                        }
    except DamagedShard as error:
        raise OracleError(f"pairs.source: {error}") from error
