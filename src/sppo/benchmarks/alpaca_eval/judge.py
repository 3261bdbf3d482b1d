"""AlpacaEval 2's judge: two outputs named m and M, and the probability of the token that names the better one."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sppo import randomness
from sppo.benchmarks.alpaca_eval.score import AlpacaEvalError
from sppo.benchmarks.judge_prompts import JudgePrompt, JudgePromptError, read_text

FIRST, SECOND = "m", "M"
SETTINGS = {"max_tokens": 1, "temperature": 1.0, "logprobs": True, "top_logprobs": 5}
"""Of a request. One token is drawn, but only the probabilities that stand beside it are read."""
_MESSAGE = re.compile(r"<\|im_start\|>(\w+)\n(.*?)\n?<\|im_end\|>", flags=re.DOTALL)
PLACES = ("instruction", "output_1", "output_2")

PROMPT = JudgePrompt(
    "sppo/alpaca-eval",
    (
        (
            "system",
            "You compare two answers to the same instruction and name the one that people would prefer.",
        ),
        (
            "user",
            "Read the instruction and the two answers below. Weigh how correct, helpful, complete and well written"
            " each answer is; the order in which they stand means nothing.\n\n"
            "# Instruction\n\n{instruction}\n\n"
            "# Answer m\n\n{output_1}\n\n"
            "# Answer M\n\n{output_2}\n\n"
            "# Better answer\n\n"
            "Reply with the name of the better answer, m or M, and with nothing else.",
        ),
    ),
)


def is_switched(instruction: str, seed: int) -> bool:
    """Whether the model's output stands first instead of the baseline's: even odds, by the instruction alone."""
    return bool(randomness.generator("alpaca-eval position", seed, instruction).random() < 0.5)


def preference(answer: Mapping[str, Any], *, switched: bool) -> float | None:
    """The preference that a judge's answer holds: 1 (the baseline is better) to 2 (the model is).

    With p the probability of the first name among the two names, 2 - p where the baseline stands first, else 1 + p. A
    name that is not among the most probable tokens counts as impossible.

    Returns:
        None where neither name is among them.

    Raises:
        AlpacaEvalError: the answer has no log-probabilities at all.
    """
    try:
        tokens = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        logprobs = {str(token["token"]): float(token["logprob"]) for token in tokens}
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise AlpacaEvalError(
            "the judge's answer has no log-probabilities of tokens (logprobs.content[0].top_logprobs); AlpacaEval 2"
            " weighs by them: use a server that gives them, as vLLM's does"
        ) from error
    # a probability above 1 is a server's nonsense, and must not overflow
    first, second = (
        math.exp(min(logprobs[name], 0.0)) if name in logprobs else 0.0 for name in (FIRST, SECOND)
    )
    if not math.isfinite(first + second) or first + second <= 0:
        return None
    p = first / (first + second)
    return 1 + p if switched else 2 - p


def read_prompt(path: Path) -> JudgePrompt:
    """A prompt in AlpacaEval's format: turns between ``<|im_start|>role`` and ``<|im_end|>``.

    Raises:
        JudgePromptError: it cannot be read or has no turn.
    """
    turns = _MESSAGE.findall(read_text(path))
    if not turns:
        raise JudgePromptError(f"{path}: no turns between <|im_start|>ROLE and <|im_end|>")
    return JudgePrompt(path.name, tuple((role, template) for role, template in turns))
