r"""SPPO (arXiv:2405.00675), Algorithm 1: least squares on the log-ratio of every selected response.

:math:`\pi_{t+1} = \arg\min E_{y\sim\pi_t}(\log\frac{\pi(y|x)}{\pi_t(y|x)} - (\eta\hat P(y\succ\pi_t|x) - \log Z))^2`.

Needs: K sampled responses with win rates; no pairs, no demonstrations. The opponent is the policy at the start of
the iteration. The paper sums over the selected responses of a prompt, the released code takes their mean.
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
    eta: float = Field(1e3, gt=0, description="step size of the game (the released code's 1/beta)")
    log_partition: Literal["half_eta", "samples"] | float = Field(
        "half_eta",
        description="half_eta: eta/2 as in the paper; samples: exact over the K; or a number, nats",
    )
    reduction: Literal["sum", "mean"] = Field(
        "mean", description="over the selected responses of a prompt: sum (paper) or mean (released code)"
    )

    def compute_log_partition(self, win_rates: Array) -> float:
        """eta/2 as in the paper, its value over the K samples, or a given number; nats."""
        if self.log_partition == "half_eta":
            return self.eta / 2
        if self.log_partition == "samples":
            import torch

            from sppo import objectives

            return float(objectives.log_partition_over_samples(torch.from_numpy(win_rates), eta=self.eta))
        return float(self.log_partition)

    def loss(self, responses: Responses) -> Float[Tensor, " prompts"]:
        """The squares of :func:`sppo.objectives.sppo`, summed or averaged over each prompt's responses."""
        from sppo import objectives

        losses = objectives.sppo(
            responses.log_ratio,
            responses.win_rate,
            eta=self.eta,
            log_partition=responses.log_partition[responses.prompt],
        )
        return responses.by_prompt(losses, mean=self.reduction == "mean")

    def targets(self, responses: Responses) -> Float[Tensor, " responses"]:
        """eta P^ - log Z: eta (P^ - 1/2) with the paper's log-partition."""
        return self.eta * responses.win_rate - responses.log_partition[responses.prompt]
