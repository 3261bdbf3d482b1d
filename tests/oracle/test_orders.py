"""How often the order of two responses decides between them."""

import numpy as np

from sppo.oracle.orders import OrderFlips


def test_firm_flips_are_counted_and_what_was_not_asked_is_not():
    nan, inf = np.nan, np.inf
    logits = np.array(
        [
            [
                0,
                2.0,
                0.5,
                0.0,
            ],  # y_0 stands first: a firm flip with y_1, none beyond doubt with y_2, not asked about y_3
            [1.5, 0, nan, inf],
            [0.5, nan, 0, -3.0],
            [0.0, inf, 3.0, 0],
        ]
    )
    flips = OrderFlips()
    flips.note([["a", "b", "c", "d"]], logits[None])
    # asked: (0,1) firm, (0,2) not firm, (1,3) firm at certainty, (2,3) consistent
    assert flips.counts == {"pairs_in_both_orders": 4, "order_flips": 2}
    flips.note([["a", "a", "c", "d"]], logits[None])
    assert flips.counts == {"pairs_in_both_orders": 7, "order_flips": 3}, (
        "equal texts leave nothing but the order"
    )
