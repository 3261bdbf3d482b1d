"""Arena-Hard's judge: its prompt, how often it is asked, and the verdict in its reply."""

import re
from pathlib import Path
from typing import Any

import yaml

from sppo.benchmarks.arena_hard.score import VERDICTS
from sppo.benchmarks.judge_prompts import JudgePrompt, JudgePromptError, read_text

ATTEMPTS = 2
SETTINGS = {"temperature": 0.0, "max_tokens": 4096}
PLACES = ("question_1", "answer_1", "answer_2")
PROMPT = JudgePrompt(
    "sppo/arena-hard",
    (
        (
            "system",
            "You judge two assistants' answers to a user's request. Work the request out for yourself first. Then"
            " compare both answers with what you found: say which mistakes they make, whether they help the user,"
            " keep to what was asked, and say it without padding; where the request is unclear, asking back is a"
            " virtue. The order of the answers means nothing.\n\n"
            "End with exactly one of these verdicts:\n"
            "[[A>>B]] assistant A is much better\n"
            "[[A>B]] assistant A is a little better\n"
            "[[A=B]] they are about as good as each other\n"
            "[[B>A]] assistant B is a little better\n"
            "[[B>>A]] assistant B is much better",
        ),
        (
            "user",
            "# Request\n\n{question_1}\n\n# Assistant A\n\n{answer_1}\n\n# End of assistant A\n\n"
            "# Assistant B\n\n{answer_2}\n\n# End of assistant B",
        ),
    ),
)
ASK_AGAIN = "Please finish your judgment with one of the five verdicts in double square brackets."
_VERDICT = re.compile(r"\[\[([AB<>=]+)\]\]")
_LATER = re.compile(r"\[([AB<>=]+)\]")


def parse_verdict(judgment: str) -> str | None:
    """The verdict in a judge's answer: one of :data:`VERDICTS`, or None.

    As in v0.1, verdicts stand in double square brackets; the same verdict twice is one, and two different ones are
    none. Where there is none in that form, the benchmark's later rule is tried: any case, then single brackets.
    """
    for pattern, text in ((_VERDICT, judgment), (_VERDICT, judgment.upper()), (_LATER, judgment.upper())):
        found = set(pattern.findall(text))
        if found:
            verdict = found.pop()
            return verdict if not found and verdict in VERDICTS else None
    return None


def has_verdict(judgment: str) -> bool:
    """Whether a judge need not be asked again: there is a verdict, or there are several."""
    return bool(_VERDICT.search(judgment.upper()) or parse_verdict(judgment))


def read_prompt(path: Path) -> JudgePrompt:
    """The benchmark's own `judge_config.yaml`: its `system_prompt` and `prompt_template`.

    Raises:
        JudgePromptError: it is not one.
    """
    try:
        found: Any = yaml.safe_load(read_text(path))
        system, templates = found["system_prompt"], found["prompt_template"]
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise JudgePromptError(
            f"{path}: no judge_config.yaml with system_prompt and prompt_template: {error}"
        ) from error
    texts = [templates] if isinstance(templates, str) else templates
    if (
        not isinstance(system, str)
        or not isinstance(texts, list)
        or not all(isinstance(t, str) for t in texts)
    ):
        raise JudgePromptError(f"{path}: system_prompt and prompt_template are texts")
    messages = (("system", system), *(("user", text) for text in texts))
    return JudgePrompt(path.name, messages).require(PLACES)
