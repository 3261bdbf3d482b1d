"""MT-Bench's judge: its four prompts, and the grade in its reply."""

import re
from collections.abc import Sequence
from pathlib import Path

from sppo.benchmarks.judge_prompts import JudgePrompt, JudgePromptError
from sppo.benchmarks.outputs import read_rows
from sppo.benchmarks.question_files import Question
from sppo.endpoint.exchange import after_thought

WITH_REFERENCE = ("math", "reasoning", "coding")
SETTINGS = {"temperature": 0.0, "max_tokens": 2048}
_GRADE = (
    "Then grade it from 1 (useless) to 10 (as good as it can be), in this form: [[grade]], e.g. Grade: [[5]]"
)
_WEIGH = (
    "Judge the assistant's answer to the user's question. Weigh whether it is correct, helpful, relevant, deep enough,"
    " detailed enough and, where that is asked for, creative. Explain your judgment in a few sentences first. "
)
_REFERENCE = (
    "Judge the assistant's answer to the user's question, beside a reference answer. Weigh whether it is correct and"
    " helpful: find its mistakes by comparing the two, and explain them first. "
)
_SECOND = "The conversation has two turns: grade the answer to the second question alone. "
_ONE_TURN = "# Question\n\n{question}\n\n"
_ONE_ANSWER = "# The assistant's answer\n\n{answer}\n\n# End of the answer"
_TWO_TURNS = (
    "# First question\n\n{question_1}\n\n# The assistant's first answer\n\n{answer_1}\n\n"
    "# Second question\n\n{question_2}\n\n# The assistant's second answer\n\n{answer_2}\n\n# End of the second answer"
)
PROMPTS = {
    "single-v1": JudgePrompt("single-v1", (("user", _WEIGH + _GRADE + "\n\n" + _ONE_TURN + _ONE_ANSWER),)),
    "single-math-v1": JudgePrompt(
        "single-math-v1",
        (
            (
                "user",
                f"{_REFERENCE}{_GRADE}\n\n{_ONE_TURN}# Reference answer\n\n{{ref_answer_1}}\n\n{_ONE_ANSWER}",
            ),
        ),
    ),
    "single-v1-multi-turn": JudgePrompt(
        "single-v1-multi-turn", (("system", _WEIGH + _SECOND + _GRADE), ("user", _TWO_TURNS))
    ),
    "single-math-v1-multi-turn": JudgePrompt(
        "single-math-v1-multi-turn",
        (
            ("system", _REFERENCE + _SECOND + _GRADE),
            (
                "user",
                "# Reference answer to the first question\n\n{ref_answer_1}\n\n"
                "# Reference answer to the second question\n\n{ref_answer_2}\n\n" + _TWO_TURNS,
            ),
        ),
    ),
}
"""The prompts by the benchmark's names: for one turn or both, without and with a reference answer."""
_SCORE = re.compile(r"\[\[(\d+\.?\d*)\]\]")
_BACKUP = re.compile(r"\[(\d+\.?\d*)\]")
_WORDED = re.compile(
    r"\[+\s*(?:(?:rating|score|grade)\s*[:=]?\s*)?(\d+(?:\.\d+)?)\s*(?:/\s*10)?\s*\]+", re.IGNORECASE
)


def parse_score(judgment: str) -> float | None:
    """The grade in a judge's answer, 0 to 10; None where there is none.

    The grade is the first ``[[x]]``, or else the first ``[x]``, as in FastChat, or else the first of the form
    ``[rating: 7]`` or ``[[7/10]]``, which FastChat ignores. A number above 10 is no grade. What the judge thinks
    before its grade is not read.
    """
    said = after_thought(judgment) or ""
    for pattern in (_SCORE, _BACKUP, _WORDED):
        match = pattern.search(said)
        if match:
            value = float(match[1])
            return value if value <= 10 else None
    return None


def prompt_name(question: Question, turn: int) -> str:
    """The name of the judge's prompt by which a question's turn, 1 or 2, is graded."""
    name = "single-math-v1" if question.category in WITH_REFERENCE else "single-v1"
    return name if turn == 1 else f"{name}-multi-turn"


def places(question: Question, responses: Sequence[str], reference: Sequence[str] | None) -> dict[str, str]:
    """The texts for the places of the judge's prompts."""
    values = {"question": question.turns[0], "answer": responses[0]}
    for name, texts in (("question", question.turns), ("answer", responses), ("ref_answer", reference or ())):
        values |= {f"{name}_{number}": text for number, text in enumerate(texts, 1)}
    return values


def read_prompts(path: Path) -> dict[str, JudgePrompt]:
    """Read the four prompts that grade single responses from FastChat's `judge_prompts.jsonl`.

    Raises:
        JudgePromptError: one of them is missing or malformed.
        OutputsError: the file cannot be read.
    """
    rows = {row.get("name"): row for row in read_rows(path)}
    prompts = {}
    for name in PROMPTS:
        row = rows.get(name)
        if row is None or not isinstance(row.get("prompt_template"), str):
            raise JudgePromptError(f"{path}: there is no prompt {name!r} with a prompt_template in it")
        system = row.get("system_prompt")
        first = (("system", system),) if isinstance(system, str) and system else ()
        prompts[name] = JudgePrompt(name, (*first, ("user", row["prompt_template"])))
    return prompts
