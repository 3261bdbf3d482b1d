"""Judged pairs: read, checked, described, and split by prompt."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sppo import randomness
from sppo.oracle import OracleError, excerpt
from sppo.oracle.training.published import Joined, published_votes
from sppo.policy import chat_format as chat
from sppo.progress import counted_text
from sppo.prompts import sources
from sppo.prompts.conversations import PromptError, read_conversation, read_preference
from sppo.recipe.oracle_training import Pairs
from sppo.rundir import votes
from sppo.rundir.reader import RunReader, is_run
from sppo.rundir.shards import DamagedShard

SKEWED = 0.6
"""The share of pairs beyond which a side, or the longer response, is reported as favoured."""


class Votes(NamedTuple):
    """The numbers of votes for each side of a pair, and of ties."""

    a: int
    b: int
    tie: int

    @property
    def share(self) -> float:
        """P(a is preferred) as the votes say it, a tie counting one half."""
        return (self.a + self.tie / 2) / sum(self)


LABELS = {"a": Votes(1, 0, 0), "b": Votes(0, 1, 0), "tie": Votes(0, 0, 1)}


@dataclass(frozen=True)
class JudgedPair:
    """A prompt, two responses, and P(a is preferred), by a judgment of its own or by votes that are counted.

    Attributes:
        probability: the judgment, or the share of the votes for a with ties as halves.
        group: the value by which measures are reported as well; empty: none.
        votes: None if `probability` is one judgment.
    """

    prompt: str
    response_a: str
    response_b: str
    probability: float
    group: str = ""
    votes: Votes | None = None

    @property
    def characters(self) -> int:
        """The characters of all three texts."""
        return len(self.prompt) + len(self.response_a) + len(self.response_b)

    @property
    def judgments(self) -> int:
        """How many judgments there are, by which the pair counts."""
        return 1 if self.votes is None else sum(self.votes)


def read(columns: Pairs, note: Callable[[str], None] = lambda text: None) -> list[JudgedPair]:
    """All pairs of the sources, one source after another; the votes on a pair are counted together.

    Args:
        columns: the sources and their columns.
        note: is told, in a sentence, what was left out.

    Raises:
        OracleError: a source cannot be read or lacks a column, or a row lacks a text, has a probability outside
            [0, 1] or votes that cannot be; the message names the row, counted from 1.
    """
    named = [columns.source] if isinstance(columns.source, str) else columns.source
    joined = Joined(columns.texts, columns.without_text == "leave_out")
    rows: list[JudgedPair] = []
    for source in named:
        numbered = enumerate(_rows(source, columns, joined), 1)
        limit = None if columns.limit is None else columns.limit - len(rows)
        rows += [_pair(row, columns, f"{source}, row {number}") for number, row in islice(numbered, limit)]
    if joined.left_out:
        note(
            f"{counted_text(joined.left_out, 'vote')} left out (pairs.without_text: leave_out), since a response named there has no"
            f" text: {', '.join(sorted(joined.lacking)[:4])}"
        )
    pairs = _counted(rows)
    if len({pair.prompt for pair in pairs}) < 2:
        raise OracleError(
            f"pairs.source: {', '.join(named)}: pairs of at least 2 prompts are needed, one held out"
        )
    return pairs


def _counted(rows: Sequence[JudgedPair]) -> list[JudgedPair]:
    """The rows with all votes on the same two responses in one, where the first of them stands."""
    found: dict[Any, JudgedPair] = {}
    for number, row in enumerate(rows):
        if row.votes is None:
            found[number] = row
            continue
        key = (row.prompt, *sorted((row.response_a, row.response_b)), row.group)
        known = found.setdefault(key, row)
        if known is not row:
            assert known.votes is not None
            a, b, tie = row.votes if known.response_a == row.response_a else row.votes[1::-1] + row.votes[2:]
            votes = Votes(known.votes.a + a, known.votes.b + b, known.votes.tie + tie)
            found[key] = replace(known, votes=votes, probability=votes.share)
    return list(found.values())


def unfolded(pairs: Sequence[JudgedPair]) -> tuple[Any, Any]:
    """Every single judgment: the number of its pair, and what it says, which is 1, 0 or 1/2 of a vote.

    Returns:
        Two arrays, [judgments] each.
    """
    number: list[int] = []
    target: list[float] = []
    for place, pair in enumerate(pairs):
        said = [pair.probability] if pair.votes is None else np.repeat([1.0, 0.0, 0.5], pair.votes).tolist()
        number += [place] * len(said)
        target += said
    return np.array(number, dtype=np.intp), np.array(target, dtype=np.float64)


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
    """The shares of judgments from which a model could learn something other than preferences: a side, or length.

    Returns:
        `pairs`, `prompts`, `judgments`, of which `ties`; pairs with `several_votes`, of which `contradicted` have votes for
        both sides; `identical`, pairs of twice the same text; of the judgments that are no tie `a_preferred`; of those of
        responses of unequal length `longer_preferred`.
    """
    number, target = unfolded(pairs)
    longer = np.array([len(pair.response_a) - len(pair.response_b) for pair in pairs])[number]
    decided = target != 0.5
    unequal = decided & (longer != 0)
    several = [pair.votes for pair in pairs if pair.votes is not None and sum(pair.votes) > 1]
    return {
        "pairs": len(pairs),
        "prompts": len({pair.prompt for pair in pairs}),
        "judgments": len(target),
        "ties": int((~decided).sum()),
        "several_votes": len(several),
        "contradicted": sum(votes.a > 0 and votes.b > 0 for votes in several),
        "identical": sum(pair.response_a == pair.response_b for pair in pairs),
        "a_preferred": _share(target[decided] > 0.5),
        "longer_preferred": _share((target > 0.5)[unequal] == (longer > 0)[unequal]),
    }


def check(described: Mapping[str, float], pairs: Sequence[JudgedPair]) -> None:
    """Refuse pairs from which no preference can be learnt.

    Raises:
        OracleError: all are ties, or all of several votes are for one side.
    """
    if described["ties"] == described["judgments"]:
        raise OracleError(
            f"pairs.source: all {described['pairs']:,} pairs are ties, from which no preference can be learnt; give pairs of"
            " which one response is preferred"
        )
    side = described["a_preferred"]
    if side in (0, 1) and described["judgments"] > 1 and all(pair.votes is not None for pair in pairs):
        raise OracleError(
            f"pairs.label: all {described['judgments'] - described['ties']:,} votes that are no tie are for response_{'a' if side else 'b'},"
            " so they say nothing that the columns do not; usually another column holds the labels. If the preferred response"
            " does stand in one column throughout, name the columns `chosen` and `rejected` and leave the label out"
        )


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
    if described["contradicted"]:
        found.append(
            f"voters contradict each other on {described['contradicted']:,} of {described['several_votes']:,} pairs with several"
            " votes: every vote counts, so such a pair is learnt as a share of votes"
        )
    if described["identical"]:
        found.append(
            f"{described['identical']:,} pairs hold the same response twice, from which nothing can be learnt"
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
    judged = _judged(row, of, where)
    prompt, response_a, response_b = texts.values()
    if isinstance(judged, Votes):
        return JudgedPair(prompt, response_a, response_b, judged.share, group, judged)
    return JudgedPair(prompt, response_a, response_b, judged, group)


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


def _judged(row: Mapping[str, Any], of: Pairs, where: str) -> float | Votes:
    """What a row says: counted votes, or else a probability, or else a label, which is one vote."""
    counts = [of.votes_a, of.votes_b, of.votes_tie]
    if any(row.get(column) is not None for column in counts):
        return _votes({column: row.get(column) for column in counts}, where)
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
            f"{where}: has neither {of.probability!r} nor {of.label!r}; set pairs.probability, pairs.label or pairs.votes_a"
        )
    if not isinstance(value, int | float) or not 0 <= value <= 1:
        raise OracleError(f"{where}: {column}: {excerpt(str(value), 60)} is not a probability in [0, 1]")
    return float(value)


def _votes(counts: Mapping[str, Any], where: str) -> Votes:
    found = []
    for column, value in counts.items():
        text = str(0 if value is None else value).removesuffix(
            ".0"
        )  # tables with gaps hold whole numbers as floats
        if isinstance(value, bool) or not text.isascii() or not text.isdigit() or len(text) > 9:
            raise OracleError(
                f"{where}: {column}: {excerpt(str(value), 60)} is no number of votes: 0, 1, 2 ..."
            )
        found.append(int(text))
    if not sum(found):
        raise OracleError(f"{where}: {', '.join(counts)} are all 0; leave pairs without a vote out")
    return Votes(*found)


def _rows(source: str, of: Pairs, joined: Joined) -> Iterator[dict[str, Any]]:
    if is_run(Path(source)):
        yield from _of_run(Path(source), of)
        return
    files = sources.local_files(source)
    try:
        if files and all(map(votes.is_votes, files)):
            yield from map(dict, votes.counted([vote for path in files for vote in votes.read(path)]))
            return
        for part in map(str, files) if files else [source]:
            rows = sources.read_rows(
                part, columns=lambda known: known, split=of.split, config=of.config, revision=of.revision
            )
            for position, row in rows:
                if not isinstance(row, dict):
                    reason = (
                        row if isinstance(row, PromptError) else "not an object with a value for each column"
                    )
                    raise OracleError(f"{position}: {reason}")
                for complete in joined.rows(row, Path(part), str(position)):
                    yield from published_votes(complete, of, str(position))
    except (PromptError, votes.VotesError) as error:
        raise OracleError(f"pairs.source: {str(error).removeprefix('prompts: ')}") from error


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
