"""Arena-Hard's judge: its prompt, how often it is asked, and the verdict in its reply."""

import re
from pathlib import Path
from typing import Any

from sppo.benchmarks.arena_hard.score import VERDICTS
from sppo.benchmarks.judge_prompts import JudgePrompt, JudgePromptError, read_text
from sppo.endpoint.exchange import after_thought
from sppo.recipe import RecipeError, read_value

ATTEMPTS = 2
SETTINGS = {"temperature": 0.0, "max_tokens": 4096}
PLACES = ("question_1", "answer_1", "answer_2")
_PLACES_OF_TODAY = {"QUESTION": "question_1", "ANSWER_A": "answer_1", "ANSWER_B": "answer_2"}
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


def parse_verdict(judgment: str, *, last_counts: bool = False) -> str | None:
    """The verdict in a judge's answer: one of :data:`VERDICTS`, or None.

    In v0.1's files verdicts stand in double square brackets; the same verdict twice is one verdict, and two different
    ones are none. Where no verdict has that form, any case and then single brackets are tried, as the benchmark does
    since April 2025. What the judge thinks before its verdict is not read.

    Args:
        judgment: the text of the judge's answer.
        last_counts: whether the last of different verdicts counts, as it does in the benchmark's present layout.
    """
    said = after_thought(judgment) or ""
    for pattern, text in ((_VERDICT, said), (_VERDICT, said.upper()), (_LATER, said.upper())):
        verdicts = pattern.findall(text)
        if verdicts:
            is_clear = last_counts or len(set(verdicts)) == 1
            return verdicts[-1] if is_clear and verdicts[-1] in VERDICTS else None
    return None


def has_verdict(judgment: str) -> bool:
    """Whether a judge need not be asked again, because it has given a verdict or several."""
    said = after_thought(judgment) or ""
    return bool(_VERDICT.search(said.upper()) or parse_verdict(said))


def read_prompt(path: Path) -> JudgePrompt:
    """Read the benchmark's own configuration of the judge, with `prompt_template` and mostly `system_prompt`.

    Since April 2025 the benchmark's files name the places otherwise and have no system prompt, which the benchmark keeps
    in its code; such a file gets this project's system prompt, and the name of the prompt says so.

    Raises:
        JudgePromptError: the file is no such configuration.
    """
    try:
        content: Any = read_value(read_text(path), name=str(path))
        system, templates = content.get("system_prompt"), content["prompt_template"]
    except (RecipeError, KeyError, TypeError, AttributeError) as error:
        raise JudgePromptError(f"{path}: no judge_config.yaml with prompt_template: {error}") from error
    texts = [templates] if isinstance(templates, str) else templates
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in [system or "", *texts]):
        raise JudgePromptError(f"{path}: system_prompt and prompt_template are texts")
    for today, place in _PLACES_OF_TODAY.items():
        texts = [text.replace(f"{{{today}}}", f"{{{place}}}") for text in texts]
    name = path.name if system else f"{path.name} with the system prompt of {PROMPT.name}"
    messages = (("system", system or PROMPT.messages[0][1]), *(("user", text) for text in texts))
    return JudgePrompt(name, messages).require(PLACES)
