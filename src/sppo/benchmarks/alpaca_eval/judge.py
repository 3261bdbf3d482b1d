"""AlpacaEval 2's judge: two outputs named m and M, and the probability of the token that names the better one."""

import math
import re
from pathlib import Path

from sppo import randomness
from sppo.benchmarks.alpaca_eval.score import AlpacaEvalError
from sppo.benchmarks.judge_prompts import JudgePrompt, JudgePromptError, read_text
from sppo.endpoint.exchange import Answer

FIRST, SECOND = "m", "M"
SETTINGS = {"max_tokens": 1, "temperature": 1.0, "logprobs": True, "top_logprobs": 5}
"""The settings of a request. One token is sampled, but only the probabilities that come with it are read."""
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


def preference(answer: Answer, *, switched: bool) -> float | None:
    """The preference in a judge's answer, from 1 (the baseline is better) to 2 (the model is better).

    Let p be the first name's share of the two names' probability. The preference is 2 - p where the baseline stands
    first, and 1 + p otherwise. A name that is not among the most probable tokens counts as impossible.

    Returns:
        The preference; None where neither name is among the most probable tokens, or the judge refuses.

    Raises:
        AlpacaEvalError: the answer has no log-probabilities at all.
    """
    if answer.choices[0].refusal is not None:
        return None
    token = answer.choices[0].first_token
    if token is None or not token.top_logprobs:
        raise AlpacaEvalError(
            "the judge's answer has no log-probabilities of tokens (logprobs.content[0].top_logprobs); AlpacaEval 2"
            " weighs by them: use a server that gives them, as vLLM's does"
        )
    logprobs = {choice.token: choice.logprob for choice in token.top_logprobs}
    first, second = (math.exp(logprobs.get(name, -math.inf)) for name in (FIRST, SECOND))
    if first + second <= 0:
        return None
    p = first / (first + second)
    return 1 + p if switched else 2 - p


def read_prompt(path: Path) -> JudgePrompt:
    """Read a prompt in AlpacaEval's format: turns between ``<|im_start|>role`` and ``<|im_end|>``.

    Raises:
        JudgePromptError: it cannot be read or has no turn.
    """
    turns = _MESSAGE.findall(read_text(path))
    if not turns:
        raise JudgePromptError(f"{path}: no turns between <|im_start|>ROLE and <|im_end|>")
    return JudgePrompt(path.name, tuple((role, template) for role, template in turns))
