r"""SPPO (arXiv:2405.00675), Algorithm 1: least squares on the log-ratio of every selected response.

The update is
:math:`\pi_{t+1} = \arg\min E_{y\sim\pi_t}(\log\frac{\pi(y|x)}{\pi_t(y|x)} - (\eta\hat P(y\succ\pi_t|x) - \log Z))^2`.

Requires K sampled responses with win rates, but no pairs and no demonstrations. The opponent is the policy at the start of
the iteration. The paper sums the loss over the selected responses of a prompt; the released code takes the mean.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from sppo.recipe.algorithm import Algorithm

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from sppo.objectives import Responses
    from sppo.winrates import Array


class SPPO(Algorithm):
    """The update of SPPO."""

    type: Literal["sppo"] = "sppo"
    """The algorithm; docs/algorithms.md describes the others."""
    eta: float = Field(1e3, gt=0)
    """Step size of the game (the released code's 1/beta)."""
    log_partition: Literal["half_eta", "samples"] | float = "half_eta"
    """log Z: half_eta is eta/2 as in the paper, samples computes it from the K responses, or it is a number of nats."""
    reduction: Literal["sum", "mean"] = "mean"
    """Take the sum (paper) or the mean (released code) over the selected responses of a prompt."""

    @property
    def all_win_rates(self) -> bool:
        """Whether log Z is computed from all win rates."""
        return self.log_partition == "samples"

    def compute_log_partition(self, win_rates: Array) -> float:
        """log Z in nats: eta/2 as in the paper, the value over the K samples, or a given number."""
        if self.log_partition == "half_eta":
            return self.eta / 2
        if self.log_partition == "samples":
            import torch

            from sppo import objectives

            return float(objectives.log_partition_over_samples(torch.from_numpy(win_rates), eta=self.eta))
        return float(self.log_partition)

    def loss(self, responses: Responses) -> Float[Tensor, " prompts"]:
        """The loss of :func:`sppo.objectives.sppo`, summed or averaged over each prompt's responses."""
        from sppo import objectives

        losses = objectives.sppo(
            responses.log_ratio,
            responses.win_rate,
            eta=self.eta,
            log_partition=responses.log_partition[responses.prompt],
        )
        return responses.by_prompt(losses, mean=self.reduction == "mean")

    def targets(self, responses: Responses) -> Float[Tensor, " responses"]:
        """The targets eta P^ - log Z, which are eta (P^ - 1/2) with the paper's log-partition."""
        return self.eta * responses.win_rate - responses.log_partition[responses.prompt]
