r"""DPO self-play: fit a scalar reward to the preferences between the opponent's responses, then follow it.

Direct preference optimisation (arXiv:2305.18290), equation 7, over pairs :math:`y, y' \sim \pi_t`:

.. math:: -E\, P(y \succ y') \log\sigma\left(\beta \log\frac{\pi(y)}{\pi_{ref}(y)} -
          \beta \log\frac{\pi(y')}{\pi_{ref}(y')}\right)

has the minimiser :math:`\pi_{t+1}(y) \propto \pi_{ref}(y) \exp(r(y)/\beta)`, where r is the Bradley-Terry
fit whose win rates against :math:`\pi_t` equal the game's (sppo.game.bradley_terry). The fit averages cycles
away, but it follows the opponent, so on a cycle DPO self-play goes round like multiplicative weights, with a
step that grows without bound as preferences become certain. Where some responses win every comparison with
the rest, there is no minimiser: DPO sends their log-ratio to infinity.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sppo.game.bradley_terry import fit_log_strength
from sppo.game.dynamics.dynamic import Iterate
from sppo.game.dynamics.policies import (
    Parameter,
    Policy,
    column,
    normalised,
    require_positive,
    require_reference,
)
from sppo.game.preference_games import Array


def update(policy: Policy, payoff: Array, reference: Policy, *, beta: Parameter) -> Policy:
    """Return the minimiser of DPO's population loss on pairs of the policy's own responses.

    Args:
        policy: [..., n] pi_t, which writes both responses of a pair.
        payoff: [..., n, n] preference matrices.
        reference: [..., n] pi_ref, the denominator of the log-ratios.
        beta: regularisation, dimensionless (the paper's beta).

    Raises:
        ValueError: some responses win every comparison with the others, so that there is no minimiser.
    """
    return normalised(reference.log + fit_log_strength(payoff, policy.probability) / column(beta))


@dataclass(frozen=True)
class DPOSelfPlay:
    """Iterated DPO; the reference of the loss is either the opponent or the first reference."""

    beta: Parameter
    reference: Literal["opponent", "first"] = "opponent"
    name: str = "DPO self-play"

    def __post_init__(self) -> None:
        require_positive(beta=self.beta)
        require_reference(self.reference)

    def step(self, iterate: Iterate, payoff: Array) -> Iterate:
        """Return the next iterate."""
        reference = iterate.policy if self.reference == "opponent" else iterate.reference
        policy = update(iterate.policy, payoff, reference, beta=self.beta)
        return iterate.then(policy)
