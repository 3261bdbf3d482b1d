"""A second oracle for recipes/real.yaml: which of two responses that keep equally many constraints is preferred.

Constraints can be kept by a text that says nothing. So between responses that keep equally many, the one that repeats itself
less, does not copy the prompt, and speaks about it is preferred, mildly. It belongs in `length_matched`, so that lengths
decide nothing (docs/real.md).
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
        [N, K, K], between 0.002 and 0.998.
    """
    scores = np.array(
        [[utility(prompt, text) for text in texts] for prompt, texts in zip(prompts, responses, strict=True)]
    )
    preferences: np.ndarray = 1 / (1 + np.exp(2 * (scores[:, None, :] - scores[:, :, None])))
    return preferences


def utility(prompt: str, response: str) -> float:
    """The sum of three shares, each in [0, 1]; an empty text has 0.

    They are those of the response's trigrams that are distinct, of its trigrams that the prompt does not contain, and of the
    prompt's content words that occur. The second one is there because the third alone prefers a copy of the prompt.
    """
    words, asked = (re.findall(r"\w+", text.lower()) for text in (response, prompt))
    if not words:
        return 0.0
    trigrams, copied = _trigrams(words), set(_trigrams(asked))
    own, stems = [trigram for trigram in trigrams if trigram not in copied], _stems(asked)
    shares = ((set(trigrams), trigrams), (own, trigrams), (stems & _stems(words), stems))
    return sum(len(part) / len(whole) if whole else 1.0 for part, whole in shares)


def _trigrams(words: Sequence[str]) -> list[tuple[str, str, str]]:
    return list(zip(words, words[1:], words[2:], strict=False))


def _stems(words: Sequence[str]) -> set[str]:
    """The first five letters of each content word, so that the forms of a word agree."""
    return {word[:5] for word in words if len(word) > 2 and word not in _STOP}
