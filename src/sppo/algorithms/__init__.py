"""What one optimiser step minimises: a loss for each prompt from its responses' log-ratios, one file per algorithm."""

from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sppo.recipe import (
    AlgorithmConfig,
    Comal,
    Dpo,
    Egpo,
    Inpo,
    Ipo,
    Mnpo,
    NashMd,
    Onpo,
    Rlhf,
    Rspo,
    Sft,
    Spin,
    Sppo,
)
from sppo.winrates import Array


@dataclass(frozen=True)
class Responses:
    """The responses of some prompts in a row, with what losses need of each.

    Attributes:
        log_ratio: log pi_theta(y|x) - log pi_t(y|x), nats, with its gradient.
        opponent: log pi_t(y|x), nats.
        win_rate: P^(y > pi_t | x), over all K of the prompt; NaN where the oracle was not asked.
        demonstration: whether it came with the prompt, instead of from pi_t.
        references: log pi_s(y|x) - log pi_t(y|x) of the reference policies that the algorithm asks for, nats.
        reward: what :meth:`Algorithm.rewards` gave it.
        prompt: which prompt each belongs to, 0, 1, ...
        log_partition: of each prompt, nats.
        winner: the response with the highest win rate of each prompt, or its demonstration.
        loser: the one with the lowest; the same where a prompt has one response.
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
        of: Bool[Tensor, " responses"] | None = None,
    ) -> Float[Tensor, " prompts"]:
        """Sum or mean over the responses of each prompt, or over some of them.

        Args:
            value: of each response.
            mean: instead of the sum; 0 where a prompt has none.
            of: the responses that count; None: all.
        """
        total = torch.zeros_like(self.log_partition)
        counted = torch.ones_like(value) if of is None else of.to(value.dtype)
        total = total.index_add(0, self.prompt, value if of is None else torch.where(of, value, 0.0))
        if not mean:
            return total
        ones = torch.zeros_like(self.log_partition).index_add(0, self.prompt, counted)
        return total / (ones if of is None else ones.clamp(min=1))

    def pairwise(self, value: Float[Tensor, " responses"]) -> Float[Tensor, " prompts"]:
        r"""Mean over the pairs of a prompt's responses of :math:`(v_i - v_j)^2`; 0 where a prompt has one response.

        What a loss of differences is: whatever is added to all values of a prompt, such as log Z, has no part in it.
        """
        centred = value - self.by_prompt(value, mean=True)[self.prompt]
        size = self.by_prompt(torch.ones_like(value), mean=False)
        return 2 * self.by_prompt(centred**2, mean=False) / (size - 1).clamp(min=1)


class Algorithm(Protocol):
    """An update pi_t -> pi_{t+1}."""

    def loss(self, responses: Responses) -> Float[Tensor, " prompts"]:
        """One loss per prompt, not reduced over prompts."""
        ...

    def targets(self, responses: Responses) -> Float[Tensor, " responses"] | None:
        """Where the loss of each response's log-ratio is least, nats; None where it wants differences alone."""
        ...

    def log_partition(self, win_rate: Array) -> float:
        """log Z of a prompt in nats, from the win rates of its K responses; 0 where the loss has none."""
        ...

    def rewards(self, matrix: Array, references: Array) -> Array | None:
        """What it makes of the comparisons of a prompt's responses beside P^; None: nothing.

        Args:
            matrix: [m, m] P(y_i > y_j | x) of the responses that are trained on.
            references: [policies, m] log pi_s(y|x) - log pi_t(y|x), nats.
        """
        ...


def load(config: AlgorithmConfig) -> Algorithm:
    """The algorithm that a recipe's `algorithm:` describes."""
    match config:
        case Sppo():
            from sppo.algorithms.sppo import SPPO

            return SPPO(config.eta, config.reduction, config.log_partition)
        case Dpo():
            from sppo.algorithms.dpo import DPO

            return DPO(config.beta)
        case Ipo():
            from sppo.algorithms.ipo import IPO

            return IPO(config.tau)
        case Spin():
            from sppo.algorithms.spin import SPIN

            return SPIN(config.lam)
        case Sft():
            from sppo.algorithms.sft import SFT

            return SFT()
        case Rspo():
            from sppo.algorithms.rspo import RSPO

            return RSPO(config.eta, config.forward_kl, config.reverse_kl)
        case Inpo():
            from sppo.algorithms.inpo import INPO

            return INPO(config.eta, config.tau)
        case Comal():
            from sppo.algorithms.comal import COMAL

            return COMAL(config.eta, config.tau)
        case Onpo():
            from sppo.algorithms.onpo import ONPO

            return ONPO(config.eta)
        case Egpo():
            from sppo.algorithms.egpo import EGPO

            return EGPO(config.eta, config.tau)
        case Mnpo():
            from sppo.algorithms.mnpo import MNPO

            return MNPO(config.eta, config.tau)
        case NashMd():
            from sppo.algorithms.nash_md import NashMD

            return NashMD(config.eta, config.tau)
        case Rlhf():
            from sppo.algorithms.rlhf import RLHF

            return RLHF(config.beta)
