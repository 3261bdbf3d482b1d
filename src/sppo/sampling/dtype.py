"""The data type that a policy's weights have while it is sampled."""

from sppo.recipe.sampling import Sampling
from sppo.rundir.environment import multiplies_bfloat16

LEAST_PARAMETERS = 50e6
"""Smaller policies stay as they are: matrix products are too small a part of their steps for a shorter type to pay."""


def weights_dtype(settings: Sampling, dtype: str, parameters: float, is_quantised: bool = False) -> str:
    """The data type while sampling: bfloat16 where the recipe names none and the processor multiplies it natively.

    Such a processor needs half of the time for a matrix product. What is trained on does not depend on the sampler's
    log-probabilities, since the trainer computes them anew; how far the two are apart is recorded and guarded
    (`guard.max_sampler_deviation`).

    Args:
        settings: the recipe's section, whose `dtype` decides if it is given.
        dtype: the policy's own data type, `policy.dtype`.
        parameters: the number of the policy's parameters.
        is_quantised: whether they are rounded to four or eight bits, which fixes the type that they are multiplied in.
    """
    is_fixed = settings.dtype is not None or is_quantised or not settings.holds_a_model
    if is_fixed or parameters < LEAST_PARAMETERS:
        return settings.dtype or dtype
    import torch

    on_gpu = torch.cuda.is_available()
    return "bfloat16" if multiplies_bfloat16() and not on_gpu else dtype
