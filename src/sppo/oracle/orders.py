"""Counts how often the order in which two responses stand decides between them."""

import numpy as np
from jaxtyping import Float

from sppo.oracle import Responses
from sppo.winrates import Array

FIRM = 1.0
"""Nats of log-odds from which a verdict counts as firm."""


class OrderFlips:
    """Counts pairs that were asked in both orders, and those whose winner firmly depends on the order.

    Pairs of equal texts are not counted: there the order is all that an oracle can go by.
    """

    def __init__(self) -> None:
        self.counts = {"pairs_in_both_orders": 0, "order_flips": 0}

    def note(self, responses: Responses, logits: Float[Array, "prompts K K"]) -> None:
        """Count the pairs of an answer.

        Args:
            responses: K responses to each prompt.
            logits: M in nats, of which entry [n, i, j] is about y_i standing first; 0 where a pair was not asked, NaN where
                it has no verdict. A pair counts as a flip if M_ij and M_ji have the same sign and at least :data:`FIRM`
                nats each.
        """
        for of_prompt, matrix in zip(responses, logits, strict=True):
            texts = np.array([of_prompt.index(text) for text in of_prompt])
            rows, columns = np.triu_indices(len(of_prompt), 1)
            both = np.stack([matrix[rows, columns], matrix[columns, rows]])
            asked = (texts[rows] != texts[columns]) & ~np.isnan(both).any(0) & (both != 0).any(0)
            firm = (both >= FIRM).all(0) | (both <= -FIRM).all(0)
            self.counts["pairs_in_both_orders"] += int(asked.sum())
            self.counts["order_flips"] += int((asked & firm).sum())
