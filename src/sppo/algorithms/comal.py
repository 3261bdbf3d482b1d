r"""COMAL (arXiv:2410.23223): INPO steps, after some of which the reference moves to the policy.

The loss is INPO's (inpo.py) with the reference :math:`\pi_{ref}` in place of the base: the policy at the last iteration
that `inner` divides. So each stretch solves a game regularised by where it began, a proximal-point step, and the last
iterate approaches the von Neumann winner of the game itself, which INPO's does not.

Needs: responses with win rates, and the reference's log-probabilities. The released code moves the reference after 12
iterations; a run of three can move it once or twice.
"""

from typing import Literal

from pydantic import Field

from sppo.algorithms.inpo import INPO


class COMAL(INPO):
    """INPO whose reference moves to the current policy after every `inner` iterations."""

    type: Literal["comal"] = "comal"  # type: ignore[assignment]
    inner: int = Field(2, ge=1, description="iterations before the reference moves to the policy")

    def reference_policies(self, t: int) -> tuple[int, ...]:
        """The policy at which the reference last moved."""
        return (t - (t - 1) % self.inner,)
