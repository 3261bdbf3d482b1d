r"""COMAL: solve the regularised game, make its solution the new reference, repeat.

A convergent meta-algorithm for alignment with general preferences (arXiv:2410.23223): a proximal-point
method in which every proximal step solves the regularised game
:math:`P(\pi \succ \pi') - \tau KL(\pi \| \pi_{ref}) + \tau KL(\pi' \| \pi_{ref})` by some steps of INPO and
then moves the reference, :math:`\pi_{ref} \leftarrow \pi`. As the reference approaches the policy, the
regularisation vanishes, and the last iterate converges to a von Neumann winner of the game itself.

The loss with this minimiser
    INPO's, with the current reference.
"""

from __future__ import annotations

from dataclasses import dataclass

from sppo.game.dynamics.dynamic import Iterate
from sppo.game.dynamics.inpo import update
from sppo.game.dynamics.policies import Parameter, require_mixture
from sppo.game.preference_games import Array, GameError


@dataclass(frozen=True)
class COMAL:
    """Self-play by COMAL.

    Attributes:
        eta: step size of the INPO steps.
        tau: weight of the relative entropy to the current reference, win rate per nat.
        inner: number of INPO steps before the reference moves to the policy.
    """

    eta: Parameter
    tau: Parameter
    inner: int = 20
    name: str = "COMAL"

    def __post_init__(self) -> None:
        require_mixture(self.eta, self.tau)
        if self.inner < 1:
            raise GameError(
                f"inner = {self.inner} must be at least 1: the reference moves after that many steps."
            )

    def step(self, iterate: Iterate, payoff: Array) -> Iterate:
        """Return the next iterate; every `inner` steps its policy becomes its reference."""
        policy = update(iterate.policy, payoff, iterate.reference, eta=self.eta, tau=self.tau)
        reference = policy if iterate.number % self.inner == 0 else iterate.reference
        return iterate.then(policy, reference=reference)
