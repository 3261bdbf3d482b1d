r"""Supervised fine-tuning: the negative log-likelihood of the demonstrations, :math:`-\log\pi_\theta(y|x)`.

Needs: a demonstration for each prompt; no oracle and no responses of :math:`\pi_t`, which nothing is drawn from. The
log-likelihood of a response is the sum over its tokens and a step takes the mean over prompts, so that every
demonstration counts alike; most trainers take the mean over tokens, in which long ones count more.
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from sppo import objectives
from sppo.algorithms import Responses
from sppo.winrates import Array


@dataclass(frozen=True)
class SFT:
    """The update of supervised fine-tuning."""

    def loss(self, responses: Responses) -> Float[Tensor, " prompts"]:
        """As :func:`sppo.objectives.sft`, averaged over each prompt's demonstrations."""
        each = objectives.sft(responses.log_ratio + responses.opponent)
        return responses.by_prompt(each, mean=True, of=responses.demonstration)

    def targets(self, responses: Responses) -> None:
        """None: a likelihood has no target."""

    def log_partition(self, win_rate: Array) -> float:
        """0: there is none."""
        return 0.0

    def rewards(self, matrix: Array, references: Array) -> None:
        """None: it learns from no comparisons."""
