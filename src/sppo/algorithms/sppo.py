r"""SPPO (arXiv:2405.00675), Algorithm 1: least squares on the log-ratio of every selected response.

:math:`\pi_{t+1} = \arg\min E_{y\sim\pi_t}(\log\frac{\pi(y|x)}{\pi_t(y|x)} - (\eta\hat P(y\succ\pi_t|x) - \log Z))^2`.

Needs: K sampled responses with win rates; no pairs, no demonstrations. The opponent is the policy at the start of
the iteration. The paper sums over the selected responses of a prompt, the released code takes their mean.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from sppo import objectives
from sppo.algorithms import Responses
from sppo.winrates import Array


@dataclass(frozen=True)
class SPPO:
    """The update of SPPO; eta is the step size of the game."""

    eta: float
    reduction: Literal["sum", "mean"]
    partition: Literal["half_eta", "samples"] | float

    def log_partition(self, win_rate: Array) -> float:
        """eta/2 as in the paper, its value over the K samples, or a given number; nats."""
        if self.partition == "half_eta":
            return self.eta / 2
        if self.partition == "samples":
            return float(objectives.log_partition_over_samples(torch.from_numpy(win_rate), eta=self.eta))
        return float(self.partition)

    def loss(self, responses: Responses) -> Float[Tensor, " prompts"]:
        """As :func:`sppo.objectives.sppo`, summed or averaged over each prompt's responses."""
        each = objectives.sppo(
            responses.log_ratio,
            responses.win_rate,
            eta=self.eta,
            log_partition=responses.log_partition[responses.prompt],
        )
        return responses.by_prompt(each, mean=self.reduction == "mean")

    def targets(self, responses: Responses) -> Float[Tensor, " responses"]:
        """eta P^ - log Z: eta (P^ - 1/2) with the paper's log-partition."""
        return self.eta * responses.win_rate - responses.log_partition[responses.prompt]

    def rewards(self, matrix: Array, references: Array) -> None:
        """None: P^ is all it takes of the comparisons."""
