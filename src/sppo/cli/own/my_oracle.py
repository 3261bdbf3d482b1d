"""An oracle of one's own: a function that says how probable it is that one response is preferred to another."""

import numpy as np


def prefer(prompts: list[str], responses: list[list[str]]) -> np.ndarray:
    """[N, K, K]: entry [n, i, j] is the probability that response i to prompt n is preferred to response j."""
    lengths = np.array([[len(text.split()) for text in texts] for texts in responses])
    distance = np.abs(lengths - 10)  # responses of about ten words are preferred
    difference = distance[:, :, None] - distance[:, None, :]
    return np.asarray(1 / (1 + np.exp(difference / 4)))
