r"""Losses of self-play as pure functions of log-ratios and win rates.

A log-ratio is :math:`\log \pi_\theta(y|x) - \log \pi_t(y|x)` in nats, summed over the response
tokens, the end-of-turn token included. :math:`\pi_t` is the opponent: the policy at the start of the
iteration. Every function returns one loss per response (or per pair), not reduced. :class:`Responses` holds the
quantities that a loss can depend on.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F


def sppo(
    log_ratio: Float[Tensor, " responses"],
    win_rate: Float[Tensor, " responses"],
    *,
    eta: float,
    log_partition: float | Float[Tensor, " responses"] | None = None,
) -> Float[Tensor, " responses"]:
    r"""Squared distance of the log-ratio from its multiplicative-weights target.

    SPPO (arXiv:2405.00675), Equation 4.4:
    :math:`(\log\frac{\pi_\theta(y|x)}{\pi_t(y|x)} - (\eta \hat P(y\succ\pi_t|x) - \log Z))^2`,
    with :math:`\log Z` replaced by :math:`\eta/2` as in Algorithm 1 unless it is given.

    Args:
        log_ratio: nats, summed over the response tokens.
        win_rate: :math:`\hat P(y \succ \pi_t | x)`, in [0, 1].
        eta: step size of the game, dimensionless, > 0 (the released code's 1/beta).
        log_partition: :math:`\log Z_{\pi_t}(x)` in nats; None stands for eta/2. See
            :func:`log_partition_over_samples` for its value over the K sampled responses.

    Returns:
        One loss per response in nats squared, not reduced.
    """
    log_z = eta / 2 if log_partition is None else log_partition
    return (log_ratio - (eta * win_rate - log_z)) ** 2


def log_partition_over_samples(
    win_rate: Float[Tensor, "*prompts K"], *, eta: float
) -> Float[Tensor, "*prompts"]:
    r"""Log-partition of the multiplicative-weights update, over the K sampled responses.

    Equation 4.2's normaliser with the expectation over :math:`\pi_t` replaced by the mean of K draws:
    :math:`\log \frac1K \sum_k \exp(\eta \hat P(y_k \succ \pi_t | x))`, in nats.
    """
    return torch.logsumexp(eta * win_rate, dim=-1) - torch.log(
        torch.tensor(float(win_rate.shape[-1]), dtype=win_rate.dtype, device=win_rate.device)
    )


def dpo(
    log_ratio_chosen: Float[Tensor, " pairs"], log_ratio_rejected: Float[Tensor, " pairs"], *, beta: float
) -> Float[Tensor, " pairs"]:
    r"""Direct preference optimisation (arXiv:2305.18290), Equation 7.

    :math:`-\log \sigma(\beta (r_w - r_l))` with the log-ratios :math:`r` in nats and beta dimensionless.
    """
    return -F.logsigmoid(beta * (log_ratio_chosen - log_ratio_rejected))


def ipo(
    log_ratio_chosen: Float[Tensor, " pairs"], log_ratio_rejected: Float[Tensor, " pairs"], *, tau: float
) -> Float[Tensor, " pairs"]:
    r"""Identity preference optimisation (arXiv:2310.12036), Equation 17.

    :math:`(r_w - r_l - \frac{1}{2\tau})^2`. The log-ratios are sums over tokens, as in the paper; TRL
    divides them by the response's length.
    """
    return (log_ratio_chosen - log_ratio_rejected - 1 / (2 * tau)) ** 2


def spin(
    log_ratio_real: Float[Tensor, " pairs"], log_ratio_generated: Float[Tensor, " pairs"], *, lam: float
) -> Float[Tensor, " pairs"]:
    r"""Self-play fine-tuning (arXiv:2401.01335), Equation 4.7 with the logistic loss.

    :math:`\log(1 + \exp(-\lambda (r_{real} - r_{generated})))`: a demonstration against the opponent's
    own response to the same prompt.
    """
    return F.softplus(-lam * (log_ratio_real - log_ratio_generated))


def sft(log_prob: Float[Tensor, " responses"]) -> Float[Tensor, " responses"]:
    r"""Supervised fine-tuning: the negative log-likelihood :math:`-\log\pi_\theta(y|x)` in nats."""
    return -log_prob


@dataclass(frozen=True)
class Responses:
    """The responses of several prompts, one after the other, with the quantities that losses depend on.

    Attributes:
        log_ratio: log pi_theta(y|x) - log pi_t(y|x) in nats, with its gradient.
        opponent: log pi_t(y|x) in nats.
        win_rate: P^(y > pi_t | x), over all K responses to the prompt; NaN if the oracle was not asked.
        demonstration: whether the response is a demonstration that came with the prompt.
        references: log pi_s(y|x) - log pi_t(y|x) in nats, for the reference policies that the algorithm requires.
        reward: the value that the algorithm's `rewards` computed for the response; NaN if it computes none.
        prompt: the index of the prompt that each response belongs to, from 0.
        log_partition: log Z of each prompt in nats.
        winner: for each prompt, the index of the response with the highest win rate, or of its demonstration.
        loser: for each prompt, the index of the response with the lowest win rate; the winner's if there is only one.
    """

    log_ratio: Float[Tensor, " responses"]
    opponent: Float[Tensor, " responses"]
    win_rate: Float[Tensor, " responses"]
    demonstration: Bool[Tensor, " responses"]
    references: Float[Tensor, "policies responses"]
    reward: Float[Tensor, " responses"]
    prompt: Int[Tensor, " responses"]
    log_partition: Float[Tensor, " prompts"]
    winner: Int[Tensor, " prompts"]
    loser: Int[Tensor, " prompts"]

    def by_prompt(
        self,
        value: Float[Tensor, " responses"],
        *,
        mean: bool,
        among: Bool[Tensor, " responses"] | None = None,
    ) -> Float[Tensor, " prompts"]:
        """The sum or mean of a value over the responses of each prompt, or over some of them.

        Args:
            value: one value per response.
            mean: compute the mean rather than the sum; it is 0 for a prompt without responses.
            among: the responses to include; None: all.
        """
        # `where`, not a product with the mask: a value that is left out can be NaN, and NaN * 0 is NaN.
        value = value if among is None else torch.where(among, value, 0.0)
        total = torch.zeros_like(self.log_partition).index_add(0, self.prompt, value)
        if not mean:
            return total
        included = torch.ones_like(value) if among is None else among.to(value.dtype)
        count = torch.zeros_like(self.log_partition).index_add(0, self.prompt, included)
        return total / count.clamp(min=1)

    def pairwise(self, value: Float[Tensor, " responses"]) -> Float[Tensor, " prompts"]:
        r"""The mean of :math:`(v_i - v_j)^2` over the pairs of a prompt's responses; 0 for a prompt with one response.

        A constant that is added to all values of a prompt, such as log Z, does not change the result.
        """
        # The mean over ordered pairs of different responses is twice the unbiased variance.
        centred = value - self.by_prompt(value, mean=True)[self.prompt]
        size = self.by_prompt(torch.ones_like(value), mean=False)
        return 2 * self.by_prompt(centred**2, mean=False) / (size - 1).clamp(min=1)
