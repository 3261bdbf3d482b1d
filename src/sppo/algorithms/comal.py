r"""COMAL (arXiv:2410.23223): INPO whose reference policy moves to the current policy at regular intervals.

The loss is INPO's (inpo.py), with a reference :math:`\pi_{ref}` in place of the base policy: the policy after the last
multiple of `inner` iterations. The iterations between two moves thus solve a game that is regularised towards the policy
at their beginning, which is a proximal-point step, and the last iterate approaches the von Neumann winner of the game
itself, whereas INPO's does not.

Requires responses with win rates, and the reference policy's log-probabilities. The released code moves the reference
after 12 iterations; a run of three iterations can move it once or twice.
"""

from typing import Literal

from pydantic import Field

from sppo.algorithms.inpo import INPO


class COMAL(INPO):
    """INPO whose reference moves to the current policy after every `inner` iterations."""

    type: Literal["comal"] = "comal"  # type: ignore[assignment]
    inner: int = Field(2, ge=1)
    """Iterations before the reference moves to the policy."""

    def reference_policies(self, t: int) -> tuple[int, ...]:
        """The policy to which the reference last moved."""
        return (t - (t - 1) % self.inner,)
