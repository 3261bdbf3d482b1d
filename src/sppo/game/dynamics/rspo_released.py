r"""RSPO as its authors released it: the exact minimiser of SPPO's loss with penalties on log-probabilities.

With :math:`d = \log\frac{\pi}{\pi_{ref}}` and SPPO's targets g,

.. math:: \pi_{t+1} = \arg\min_\pi E_{y\sim\pi_t}\left[\left(\log\tfrac{\pi(y)}{\pi_t(y)} - g(y)\right)^2 + 2 c_r d^2
          + 2 c_f e^{-d} + 2 c_\chi e^{d} + 2 c_s \frac{e^d}{1 + e^d} + 2 c_h \log^2\pi(y)\right].

No exponential is limited here. There is no closed form; the minimum is found numerically, game by game. Unlike rspo.py's, the
penalties are no divergences where :math:`\pi \ne \pi_t`, so a fixed point under :math:`d^2` alone satisfies
:math:`2 c_r \pi (d - KL(\pi \| \pi_{ref})) = \pi g`: it is again the equilibrium of the game regularised by
:math:`\tau = 2 c_r / \eta`.

The loss with this minimiser
    That of the released code, on all responses of :math:`\pi_t` (sppo.algorithms.rspo_released).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sppo.game.dynamics.policies import Parameter, Policy, sppo_targets
from sppo.game.dynamics.rspo import RSPO, minimiser
from sppo.game.preference_games import Array


def update(
    policy: Policy,
    payoff: Array,
    reference: Policy,
    *,
    eta: Parameter,
    reverse_kl: float = 0.0,
    forward_kl: float = 0.0,
    chi_squared: float = 0.0,
    chi_squared_smoothed: float = 0.0,
    entropy: float = 0.0,
) -> Policy:
    """Return the minimiser of the released loss over normalised policies.

    Args:
        policy: [..., n] pi_t, every response with positive probability.
        payoff: [..., n, n] preference matrices.
        reference: [..., n] pi_ref, every response with positive probability.
        eta: step size, dimensionless.
        reverse_kl: c_r.
        forward_kl: c_f.
        chi_squared: c_chi.
        chi_squared_smoothed: c_s.
        entropy: c_h.

    Raises:
        GameError: a response has no probability, so the loss does not determine its log-ratio.
    """

    def penalty(log_policy: Array, anchor: Array, opponent: Array) -> tuple[float, Array]:
        gap = log_policy - anchor
        up, down = np.exp(gap), np.exp(-gap)
        value = (
            reverse_kl * gap**2
            + forward_kl * down
            + chi_squared * up
            + chi_squared_smoothed * up / (1 + up)
            + entropy * log_policy**2
        )
        slope = (
            2 * reverse_kl * gap
            - forward_kl * down
            + chi_squared * up
            + chi_squared_smoothed * up / (1 + up) ** 2
            + 2 * entropy * log_policy
        )
        played = 2 * np.exp(opponent)
        return float(played @ value), played * slope

    return minimiser(policy, reference, sppo_targets(policy, payoff, eta), penalty)


@dataclass(frozen=True)
class RSPOReleased(RSPO):
    """Self-play by the released loss, minimised to the end in every step.

    Attributes:
        eta: step size.
        forward_kl: c_f, the coefficient of the inverse exponential of the log-ratio to the reference.
        reverse_kl: c_r, the coefficient of its square.
    """

    name: str = "RSPO, as released"
    _update: ClassVar[Callable[..., Policy]] = staticmethod(update)
