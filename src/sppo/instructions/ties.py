"""The second oracle of recipes/real.yaml: which of two responses that keep equally many constraints is preferred.

Constraints can be kept by a text that says nothing. So between responses that keep equally many, the one that repeats itself
less and speaks about the prompt is preferred, mildly. The recipe puts this oracle into `length_matched`, so that lengths
decide nothing.
"""

import re
from collections.abc import Sequence

import numpy as np

_FUNCTION_WORDS = """
    a about all an and any are as at be but by can do for from has have how if in into is it its me my no not of on or our
    should so some than that the their them there these they this to use was we what when which who why will with write
    would you your
"""
_STOP = frozenset(_FUNCTION_WORDS.split())


def prefer(prompts: Sequence[str], responses: Sequence[Sequence[str]]) -> np.ndarray:
    r"""P(response i is preferred to response j), :math:`\sigma(2 (u_i - u_j))`, with u of :func:`utility`.

    Returns:
        [N, K, K], between 0.02 and 0.98.
    """
    scores = np.array(
        [[utility(prompt, text) for text in texts] for prompt, texts in zip(prompts, responses, strict=True)]
    )
    preferences: np.ndarray = 1 / (1 + np.exp(2 * (scores[:, None, :] - scores[:, :, None])))
    return preferences


def utility(prompt: str, response: str) -> float:
    """The share of distinct trigrams and the share of the prompt's content words that occur, each in [0, 1]; an empty text has 0."""
    words = re.findall(r"\w+", response.lower())
    if not words:
        return 0.0
    trigrams = list(zip(words, words[1:], words[2:], strict=False))
    distinct = len(set(trigrams)) / len(trigrams) if trigrams else 1.0
    asked = _stems(re.findall(r"\w+", prompt.lower()))
    about = len(asked & _stems(words)) / len(asked) if asked else 1.0
    return distinct + about


def _stems(words: Sequence[str]) -> set[str]:
    """The first five letters of each content word, so that the forms of a word agree."""
    return {word[:5] for word in words if len(word) > 2 and word not in _STOP}
