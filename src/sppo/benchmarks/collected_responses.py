"""A participant's answers to a benchmark with a file of questions: drawn from a policy, or read from a file."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from sppo.benchmarks.best_of import choose
from sppo.benchmarks.participants import Participant
from sppo.benchmarks.question_files import BenchmarkQuestion, read_answers, write_answers
from sppo.benchmarks.responses import Decoding, Question, empty_share, respond, shortcomings
from sppo.progress import Terminal
from sppo.recipe import OracleConfig


class CollectedResponses(NamedTuple):
    """A participant's answers.

    Attributes:
        turns: for each question a text for each turn.
        tokens: for each question, of all turns; None where a file does not say.
        fingerprint: what judgments of them depend on.
        lacks: what is wrong with them, as shares; of a file, how many are empty.
    """

    turns: list[tuple[str, ...]]
    tokens: list[int | None]
    fingerprint: str
    lacks: dict[str, float]


def collect_responses(
    home: Path,
    benchmark: str,
    participant: Participant,
    questions: Sequence[BenchmarkQuestion],
    temperatures: Sequence[float | None],
    decoding: Decoding,
    terminal: Terminal,
    *,
    with_tokens: bool,
    best_of: int = 1,
    chooser: OracleConfig | None = None,
) -> CollectedResponses:
    """The answers, written in the benchmark's own format as well where a policy has made them.

    Args:
        home: the evaluation's folder.
        benchmark: its name.
        participant: a policy, or a file of answers.
        questions: of the benchmark.
        temperatures: of each, where the benchmark says so.
        decoding: how policies answer.
        terminal: where progress is shown.
        with_tokens: the format is Arena-Hard's, which counts tokens.
        best_of: answers of a policy, of which `chooser` takes one; of questions with one turn.
        chooser: an oracle.
    """
    if not participant.is_policy:
        found = read_answers(participant.path, participant.name)
        turns = found.to(questions)
        counts = [found.tokens.get(question.id) for question in questions]
        lacks = {"empty_share": empty_share([text for of in turns for text in of])}
        return CollectedResponses(turns, counts, participant.fingerprint, lacks)
    asked = [
        Question(str(question.id), question.turns, temperature)
        for question, temperature in zip(questions, temperatures, strict=True)
    ]
    answers, made = respond(home, benchmark, participant, asked, decoding, terminal, n=best_of)
    chosen: Sequence[int] = [0] * len(questions)
    if chooser is not None and best_of > 1:
        chosen, made = choose(
            home / participant.file_name,
            f"{benchmark}, {participant.name}",
            chooser,
            [question.turns[0] for question in questions],
            [[turns[0].text for turns in choices] for choices in answers],
            made,
            terminal,
        )
    kept = [choices[number] for choices, number in zip(answers, chosen, strict=True)]
    said = [tuple(one.text for one in of) for of in kept]
    tokens = [sum(one.tokens for one in of) for of in kept]
    path = made.folder / "model_answer" / f"{participant.file_name}.jsonl"
    write_answers(path, participant.file_name, questions, said, tokens if with_tokens else None)
    return CollectedResponses(said, list(tokens), made.fingerprint, shortcomings([[of] for of in kept]))
