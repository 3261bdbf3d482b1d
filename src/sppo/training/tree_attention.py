"""Attention of sequences that share tokens: each token attends to what precedes it in its own sequence, and to nothing else.

Four methods compute the same attention. From the fastest:

- `pieces`, on a CPU: calls of scaled-dot-product attention for each node of the forest (`forest.py`), such as a prompt or
  a response, in which the keys of the nodes that it follows precede its own. Memory grows with the tokens, not with their square.
- `flex`, on a GPU: flex attention, whose block mask lets the kernel skip blocks of tokens that do not attend to each other.
- `mask`: an additive mask, for every attention implementation that respects one. Responses share their prompt.
- `rows`: nothing is shared; each response has a row of its own, with a copy of the prompt. This is right for every model.

`pieces` and `flex` take all trees in a single row, without padding, in which prompts that begin alike share tokens. `mask` gives
each tree a row, because what it computes and keeps grows with the square of a row.

The first three methods are right for a model if attention is its only operation across tokens (no recurrence, no
convolution), if its attention respects a mask of four dimensions, and if it takes positions from `position_ids`. Whether a
model satisfies this is not decided by the name of its architecture:
:func:`sppo.training.log_probs.measure_capabilities` compares each method with `rows`.
"""

from collections.abc import Callable
from functools import lru_cache
from itertools import accumulate
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from sppo.training.layout import Layout

AttentionMethod = Literal["pieces", "flex", "mask", "rows"]
IMPLEMENTATIONS: dict[AttentionMethod, str] = {"pieces": "sppo_pieces", "flex": "flex_attention"}
"""The methods that replace the model's own attention, with their names in transformers."""
_BLOCK = 512
"""The most queries that share a call of attention with a mask: blocks of 512 to 1,024 are fastest."""
_SHORT = 256
"""The most keys of a sequence whose attention is computed in float32 on a CPU."""


def methods_to_try(implementation: str, device: torch.device) -> list[AttentionMethod]:
    """The methods that share the prompt and could suit a model, the fastest first.

    Args:
        implementation: transformers' name of the model's attention. Only the default, sdpa, is replaced by a faster
            implementation: any other was chosen by the user.
        device: the device that the model is on.
    """
    fastest: dict[str, AttentionMethod] = {"cpu": "pieces", "cuda": "flex"}
    method = fastest.get(device.type)
    if method is not None and implementation in ("sdpa", IMPLEMENTATIONS[method]):
        return [method, "mask"]
    return ["mask"]


def masks(method: AttentionMethod, config: Any, layout: Layout, dtype: torch.dtype) -> Any:
    """The attention mask to pass to a model: one mask, or one mask for each kind of layer.

    Args:
        method: any method but `rows`.
        config: the text model's configuration.
        layout: a layout whose tensors are on the model's device.
        dtype: the data type of an additive mask.
    """
    make: dict[str, Callable[[int | None], Any]] = {
        "pieces": lambda window: _pieces(layout, window),
        "flex": lambda window: block_mask(layout, window),
        "mask": lambda window: additive(layout, window, dtype),
    }
    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or [])
    # Models whose layers differ (Gemma 2) look up their mask by the kind of layer, so all kinds are passed at once.
    if len(kinds) > 1:
        return {kind: make[method](window if kind == "sliding_attention" else None) for kind in kinds}
    # Without `layer_types` all layers have the window (Mistral). The configuration of a model that does not use a window
    # can contain one nevertheless: then all layers are of the kind `full_attention`.
    return make[method](None if kinds == {"full_attention"} else window)


def additive(layout: Layout, window: int | None, dtype: torch.dtype) -> Tensor:
    """[rows, 1, query, key]: 0 if the query attends to the key, otherwise the lowest number of the dtype."""
    # The number is finite, as in transformers' own masks: with -inf, a row without a visible key would be NaN. Beside a
    # visible key it has the same effect, because exp(lowest) rounds to 0.
    hidden = ~layout.visible(window).to(layout.ids.device)[:, None]
    return torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill(
        hidden, torch.finfo(dtype).min
    )


def block_mask(layout: Layout, window: int | None) -> Any:
    """The mask for flex attention: blocks of 128 x 128 tokens, of which the empty ones are never computed."""
    from torch.nn.attention.flex_attention import create_block_mask

    rows, columns = layout.ids.shape
    device = layout.ids.device

    def mask_mod(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return layout.sees(row, query, key, window)

    # The heads share one mask (None). When it is compiled, the rule is evaluated block by block, so that the matrix of
    # [columns, columns] is never held in memory.
    return create_block_mask(
        mask_mod, rows, None, columns, columns, device=str(device), _compile=device.type == "cuda"
    )


def _pieces(layout: Layout, window: int | None) -> Tensor:
    """[1, 1, 3, columns] integers for :func:`_attend`: node, end, and window (0: no window)."""
    # transformers passes a mask of four dimensions on to every layer unchanged, so this tensor reaches `_attend` although
    # it is not a mask in the usual sense. Its dtype distinguishes it from real masks, which are bool or floating point.
    windows = torch.full_like(layout.node, window or 0)
    return torch.stack([layout.node, layout.end, windows], dim=1)[:, None]


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **further: Any,
) -> tuple[Tensor, None]:
    """Attention of one row, piece by piece; with any other mask, transformers' own sdpa attention."""
    if attention_mask is None or attention_mask.dtype != torch.long:
        result: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **further
        )
        return result
    nodes, end_of_column = attention_mask[0, 0, :2]
    window = int(attention_mask[0, 0, 2, 0])
    # Queries that share keys become a batch of their own, [key heads, queries of each, columns, width], and the keys are expanded
    # to them without being copied.
    shared = key.shape[1]
    # A piece is the run of columns of a node.
    sizes = torch.unique_consecutive(nodes, return_counts=True)[1].tolist()
    # The states are split, not sliced: the backward pass of a split is one concatenation, whereas that of every slice
    # fills a full tensor with zeros.
    queries, keys, values = (
        torch.split(states[0].view(shared, -1, *states.shape[2:]), sizes, dim=2)
        for states in (query, key, value)
    )
    begins = list(accumulate(sizes, initial=0))[:-1]
    ends = end_of_column[begins].tolist()
    outputs = []
    path: list[int] = []  # the pieces that precede the current one in its sequences, and itself
    for index, begin in enumerate(begins):
        while path and ends[path[-1]] <= begin:
            path.pop()
        path.append(index)
        # The keys are already rotated by their positions, and a node's positions continue from those of the node that it
        # follows, so the concatenation is exactly the keys of the sequence x y_r. Its backward pass adds the gradients of all
        # pieces to those of what they share.
        seen = [
            torch.cat([states[piece] for piece in path], dim=2) if len(path) > 1 else states[index]
            for states in (keys, values)
        ]
        outputs += _causal(queries[index], *seen, window=window, scale=scaling, dropout=dropout)
    return torch.cat(outputs, dim=2).flatten(0, 1)[None].transpose(1, 2).contiguous(), None


def _causal(
    query: Tensor, key: Tensor, value: Tensor, *, window: int, scale: Any, dropout: float
) -> list[Tensor]:
    """Causal attention of the last `size` tokens of a sequence of `total` tokens, as consecutive parts.

    Query i has the position i + total - size, so it attends to the keys j <= i + total - size; with a window, only to
    those with i + total - size - j < window.
    """
    size, total = query.shape[2], key.shape[2]
    if size == total and not 0 < window < total:
        return [_attention(query, key, value, is_causal=True, scale=scale, dropout_p=dropout)]
    # `is_causal` would let query i attend to the keys j <= i, which is right only if there are as many queries as keys, so a
    # mask is needed. A mask of all queries would be quadratic, and autograd would keep one for each layer. Therefore the
    # queries go in blocks, each with the keys up to its end and from the beginning of its window on.
    parts = []
    for begin, queries in zip(range(0, size, _BLOCK), torch.split(query, _BLOCK, dim=2), strict=True):
        stop = total - size + begin + queries.shape[2]
        first = max(0, total - size + begin - window + 1) if window else 0
        seen = [states if stop - first == total else states[:, :, first:stop] for states in (key, value)]
        mask = _last_rows(queries, stop - first, window)
        parts.append(_attention(queries, *seen, attn_mask=mask, scale=scale, dropout_p=dropout))
    return parts


def _attention(query: Tensor, key: Tensor, value: Tensor, **further: Any) -> Tensor:
    """Attention of [key heads, queries of each, ..], in which the queries of a key head share its keys and values."""
    precision = _precision(query, key.shape[2])
    keys, values = (states.to(precision).expand(-1, query.shape[1], -1, -1) for states in (key, value))
    with torch.autocast(query.device.type, enabled=False):
        return F.scaled_dot_product_attention(query.to(precision), keys, values, **further).to(value.dtype)


def _precision(queries: Tensor, keys: int) -> torch.dtype:
    """The type in which the attention of queries to so many keys is computed."""
    kind = queries.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else queries.dtype
    # torch's backward pass prepares every matrix product of bfloat16 anew on a CPU. For short sequences that takes several
    # times as long as the products do in float32.
    return torch.float32 if kind == "cpu" and dtype.itemsize < 4 and keys <= _SHORT else dtype


def _last_rows(queries: Tensor, total: int, window: int) -> Tensor:
    """[queries, total] what the last queries of a sequence of `total` tokens add to their scores: 0, or -inf if hidden."""
    count = queries.shape[2]
    before = total - count
    # All such masks of a model are views of one tensor, so that autograd keeps no more than that for all blocks and layers.
    strip = _strip(1 << max(0, before - 1).bit_length(), window, _precision(queries, total), queries.device)
    middle = strip.shape[1] - _BLOCK
    return strip[:count, middle - before : middle + count]


@lru_cache(maxsize=16)
def _strip(before: int, window: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """[_BLOCK, before + _BLOCK] the mask of `_BLOCK` queries with `before` keys before those of their own tokens."""
    # A tensor that is made in inference mode could not be kept for a backward pass.
    with torch.inference_mode(False):
        seen = torch.ones(_BLOCK, before + _BLOCK, dtype=torch.bool, device=device).tril(before)
        if window:
            seen = seen.triu(before - window + 1)
        return torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill_(~seen, -torch.inf)


# Ordinary calls of the model, such as generation, keep working while `pieces` is set: transformers makes the masks of
# sdpa for them, and with such a mask `_attend` calls sdpa.
AttentionInterface.register(IMPLEMENTATIONS["pieces"], _attend)
AttentionMaskInterface.register(IMPLEMENTATIONS["pieces"], sdpa_mask)
