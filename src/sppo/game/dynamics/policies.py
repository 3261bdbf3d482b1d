"""The policies of many games at once, kept as logarithms, and the arithmetic that dynamics share."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sppo.game.preference_games import Array, GameError, policy_weights

Parameter = float | Array


class Policy(NamedTuple):
    """Distributions over the responses of one or many games.

    Learning drives probabilities below the smallest float long before they cease to matter, so updates act on
    the logarithms; the probabilities are kept as well because every step needs both.

    Attributes:
        log: [..., n] log-probabilities in nats, -inf for a response that is never played.
        probability: [..., n] the exponentials of `log`.
    """

    log: Array
    probability: Array


def normalised(logits: Array) -> Policy:
    r"""The policy :math:`\pi \propto \exp(\text{logits})`, [..., n]."""
    shifted = logits - logits.max(-1, keepdims=True)
    weights = np.exp(shifted)
    total = weights.sum(-1, keepdims=True)
    weights /= total
    shifted -= np.log(total)
    return Policy(shifted, weights)


def as_policy(weights: npt.ArrayLike, n: int | None = None, *, name: str = "policy") -> Policy:
    """Make a policy from probabilities [..., n]; policy_weights says which ones are refused."""
    probability = policy_weights(weights, n, name=name)
    with np.errstate(divide="ignore"):
        return Policy(np.log(probability), probability)


def expected_win_rates(payoff: Array, policy: Policy) -> Array:
    r"""Win rate :math:`P(y \succ \pi)` of every response y, [..., n]; exact, without checks."""
    return np.asarray(np.matmul(payoff, policy.probability[..., None])[..., 0])


def multiplicative_step(logits: Array, payoff: Array, opponent: Policy, eta: Parameter) -> Policy:
    r"""The policy :math:`\pi(y) \propto \exp(\text{logits}(y) + \eta P(y \succ \text{opponent}))`, [..., n]."""
    return normalised(logits + column(eta) * expected_win_rates(payoff, opponent))


def sppo_targets(policy: Policy, payoff: Array, eta: Parameter) -> Array:
    r"""SPPO's targets of the log-ratios, :math:`\eta (P(y \succ \pi_t) - \tfrac12)`, [..., n] in nats."""
    return column(eta) * (expected_win_rates(payoff, policy) - 0.5)


def geometric_mixture(policy: Policy, reference: Policy, weight: Parameter) -> Array:
    r"""Unnormalised logits of :math:`\pi^{1 - \text{weight}} \pi_{ref}^{\text{weight}}`, [..., n]."""
    share = column(weight)
    if np.isneginf(policy.log).any() or np.isneginf(reference.log).any():
        # 0 x -inf would be NaN: a policy of weight zero excludes no response, even one that it never plays
        with np.errstate(invalid="ignore"):
            own = np.where(share == 1, 0.0, (1 - share) * policy.log)
            other = np.where(share == 0, 0.0, share * reference.log)
        return np.asarray(own + other)
    return np.asarray((1 - share) * policy.log + share * reference.log)


def column(parameter: Parameter) -> Parameter:
    """Shape a parameter so that it multiplies [..., n]: an array with one value per game becomes a column."""
    return parameter[..., None] if isinstance(parameter, np.ndarray) else parameter


def require_positive(**parameters: Parameter) -> None:
    """Refuse a parameter that is not positive and finite, and name it."""
    for name, value in parameters.items():
        if not np.all(np.isfinite(value)) or not np.all(np.asarray(value) > 0):
            raise GameError(f"{name} = {value} must be positive and finite.")


def require_reference(reference: str) -> None:
    """Refuse a reference other than the two that iterated DPO and IPO know."""
    if reference not in ("opponent", "first"):
        raise GameError(f"reference = {reference!r}; choose 'opponent' or 'first'.")


def require_mixture(eta: Parameter, tau: Parameter) -> None:
    """Refuse eta x tau > 1, which would pull a policy towards the reference by more than the whole distance."""
    require_positive(eta=eta, tau=tau)
    if np.any(np.asarray(eta) * np.asarray(tau) > 1):
        raise GameError(
            f"eta * tau = {np.max(np.asarray(eta) * np.asarray(tau)):.4g} must be at most 1: it is the share "
            "of the reference in the new policy. Lower eta or tau."
        )
