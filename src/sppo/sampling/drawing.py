"""One token from each row of logits, by inversion of the cumulative distribution: one uniform number for each token.

A token is a function of its logits and of one number, so a response is the same whatever is drawn beside it.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sppo.sampling import Sampling

# The number of most probable tokens among which the nucleus is looked for first.
_NUCLEUS = 256
# The number of tokens whose weights are summed first when the cumulative distribution is searched.
_BLOCK = 64


def choose(
    logits: Float[Tensor, "rows vocabulary"], uniform: Float[Tensor, " rows"], settings: Sampling
) -> tuple[Int[Tensor, " rows"], Float[Tensor, " rows"]]:
    """Draw a token for each row; returns it with its log pi(token) at temperature 1 and without truncation, in nats.

    The token is the first whose cumulative probability exceeds the uniform number, in the order of the vocabulary.
    """
    scores = logits.float()
    weights = (scores - scores.amax(dim=-1, keepdim=True)).exp_()
    totals = _block_totals(weights)
    if _draws_from_the_policy(settings):
        chosen = _first_above(weights, totals, uniform)
    else:
        kept = warped(scores, settings)
        chosen = _first_above(kept, _block_totals(kept), uniform)
    log_prob = weights.gather(1, chosen).double().log() - totals[:, -1:].log()
    return chosen.squeeze(1), log_prob.squeeze(1)


def _block_totals(weights: Tensor) -> Tensor:
    """The cumulative sums of the weights at the end of each block of the vocabulary, in float64."""
    # Over a vocabulary of 10^5 entries a sum in float32 would lose improbable tokens, and a cumulative sum in float64 would
    # be dearer than the attention of the step. A block is summed in float32, which is exact enough for so few entries.
    spare = -weights.shape[-1] % _BLOCK
    padded = torch.nn.functional.pad(weights, (0, spare)) if spare else weights
    return padded.view(*padded.shape[:-1], -1, _BLOCK).sum(dim=-1).cumsum(dim=-1, dtype=torch.float64)


def _first_above(weights: Tensor, totals: Tensor, uniform: Tensor) -> Tensor:
    """The first token of each row whose cumulative weight is above the uniform number times the total weight."""
    # The uniform number is scaled by the total instead of normalising the weights. It is kept below the total even when
    # the product is rounded up, and the search is for the first cumulative value *above* it: a token of probability
    # 0 has the same cumulative value as the one before it, and is never the first.
    threshold = _below(uniform[:, None] * totals[:, -1:], totals[:, -1:])
    block = torch.searchsorted(totals, threshold, right=True)
    before = torch.where(block > 0, totals.gather(1, (block - 1).clamp(min=0)), 0.0)
    places = block * _BLOCK + torch.arange(_BLOCK, device=weights.device)
    inside = places < weights.shape[-1]
    within = torch.where(inside, weights.gather(1, places.clamp(max=weights.shape[-1] - 1)), 0.0)
    cumulative = within.cumsum(dim=-1, dtype=torch.float64)
    # The block's own sum is rounded otherwise than `totals`, hence once more below the last value.
    offset = torch.searchsorted(cumulative, _below(threshold - before, cumulative[:, -1:]), right=True)
    # Logits that are not finite have no such token; any is returned, and its log-probability of NaN says so.
    return (block * _BLOCK + offset).clamp(max=weights.shape[-1] - 1)


def _below(value: Tensor, limit: Tensor) -> Tensor:
    return torch.minimum(value, limit.nextafter(torch.zeros_like(limit)))


def _draws_from_the_policy(settings: Sampling) -> bool:
    return (settings.temperature, settings.top_k, settings.top_p, settings.min_p) == (1.0, 0, 1.0, 0.0)


def warped(scores: Tensor, settings: Sampling) -> Tensor:
    """Unnormalised probabilities after temperature, min-p, top-k and top-p, in this order (vLLM's)."""
    scores = scores / settings.temperature
    weights = (scores - scores.amax(dim=-1, keepdim=True)).exp_()
    # Each rule works on what the one before has left, so the order matters: top-p counts the probabilities of the tokens
    # that min-p and top-k have kept, as if these were all.
    if settings.min_p > 0.0:  # relative to the most probable token, whose weight is 1
        weights = weights.masked_fill(weights < settings.min_p, 0.0)
    if 0 < settings.top_k < weights.shape[-1]:
        least = weights.topk(settings.top_k, dim=-1).values[:, -1:]
        weights = _most_probable(weights, least, torch.full_like(least, settings.top_k, dtype=torch.long))
    if settings.top_p < 1.0:
        weights = _most_probable(weights, *_nucleus(weights, settings.top_p))
    return weights


def _most_probable(weights: Tensor, least: Tensor, count: Tensor) -> Tensor:
    """Keep the `count` largest weights of each row, of which `least` is the smallest, and set all others to 0."""
    above = weights > least
    tied = weights == least
    # Weights of bfloat16 logits often tie at the edge. Only as many tokens as are needed stay, the first of the vocabulary.
    spare = count - above.sum(dim=-1, keepdim=True)
    if bool((tied.sum(dim=-1, keepdim=True) > spare).any()):
        tied &= tied.cumsum(dim=-1) <= spare
    return weights.masked_fill(~(above | tied), 0.0)


def _nucleus(weights: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """The smallest weight and the size of each row's nucleus: the fewest tokens whose probabilities reach `top_p`."""
    # A token is inside while the more probable ones before it do not reach `top_p` yet.
    wanted = top_p * weights.sum(dim=-1, keepdim=True, dtype=torch.float64)
    for count in (min(_NUCLEUS, weights.shape[-1]), weights.shape[-1]):
        # Sorting the whole vocabulary is the dearest part of a step. It is needed only where the last of the first tokens
        # is still inside in some row, so that the nucleus may reach beyond them.
        top = weights.topk(count, dim=-1).values
        before = top.cumsum(dim=-1, dtype=torch.float64) - top
        inside = before < wanted
        if count == weights.shape[-1] or not bool(inside[:, -1].any()):
            break
    size = inside.sum(dim=-1, keepdim=True).clamp(min=1)
    return top.gather(1, size - 1), size
