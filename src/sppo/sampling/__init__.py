"""y ~ pi(. | x): one protocol for everything that draws responses from a policy.

Each engine stands in a file of its own, with its section of the recipe (:class:`sppo.recipe.sampling.Sampling`) and its
work. Names of engines are found through :mod:`sppo.recipe.registry`.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from sppo.policy import load as policies
from sppo.recipe.sampling import FirstToken, Key, PromptBatch, Response, SampledPolicy, Sampler, Sampling
from sppo.sampling.dtype import weights_dtype

__all__ = [
    "FirstToken",
    "Key",
    "PromptBatch",
    "Response",
    "SampledPolicy",
    "Sampler",
    "Sampling",
    "SamplingError",
    "load",
]


class SamplingError(RuntimeError):
    """Sampling cannot begin or go on; the message says what to change."""


def load(
    settings: Sampling,
    policy: Path,
    *,
    stop_ids: Sequence[int],
    decode: Callable[[Sequence[int]], str],
    dtype: str,
    temperature: float | None = None,
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
    quantization: str | None = None,
) -> Sampler:
    """Load a policy into the sampler that a recipe's `sampling:` describes.

    Args:
        settings: the section of the recipe.
        policy: a transformers folder, or an adapter's.
        stop_ids: as in :class:`SampledPolicy`.
        decode: as in :class:`SampledPolicy`.
        dtype: the type of the weights, unless :func:`sppo.sampling.dtype.weights_dtype` finds a better one.
        temperature: replaces that of `settings`. Below 0.01 the most probable token is taken.
        attn_implementation: as in :class:`SampledPolicy`.
        trust_remote_code: as in :class:`SampledPolicy`.
        quantization: as in :class:`SampledPolicy`.

    Raises:
        SamplingError: as for :meth:`Sampling.load`.
        sppo.policy.load.PolicyError: the policy does not load.
    """
    if temperature is not None:
        settings = settings.model_copy(update={"temperature": temperature})
    base = policies.base_folder(policy, trust_remote_code=trust_remote_code)
    is_quantised = quantization is not None or policies.quantization_method(base) is not None
    return settings.load(
        SampledPolicy(
            policy,
            stop_ids,
            decode,
            weights_dtype(settings, dtype, policies.count_parameters(base), is_quantised),
            attn_implementation,
            trust_remote_code,
            quantization,
        )
    )
