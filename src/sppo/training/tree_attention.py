"""How responses that share a prompt attend: each sees the prompt and itself, and none of the others.

Four methods compute the same attention. From the fastest:

- `pieces`, on a CPU: one call of scaled-dot-product attention for each prompt and each response, the prompt's keys put
  before the response's own.
- `flex`, on a GPU: flex attention, whose block mask lets the kernel skip blocks of tokens that do not see each other.
- `mask`: an additive mask, for every attention that heeds one.
- `rows`: nothing is shared; each response has a row of its own with the prompt before it. Every model computes it right.

`pieces` and `flex` take trees one after the other in a single row, without padding.

What a model must fulfil for one of the first three: attention is the only place where tokens meet (no recurrence, no
convolution), it heeds a mask of four dimensions, and positions come from `position_ids`. Nothing of this is looked up by
the name of an architecture: :func:`sppo.training.log_probs.measure_capabilities` compares each method with `rows`.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from sppo.training.layout import Layout

AttentionMethod = Literal["pieces", "flex", "mask", "rows"]
IMPLEMENTATIONS: dict[AttentionMethod, str] = {"pieces": "sppo_pieces", "flex": "flex_attention"}
"""The names that transformers knows the methods by which replace the model's own attention."""


def methods_to_try(implementation: str, device: torch.device) -> list[AttentionMethod]:
    """The methods that share the prompt and may suit a model, best first.

    Args:
        implementation: the model's attention as transformers names it. Only the default, sdpa, is replaced by a faster
            one: any other was asked for by the user.
        device: that the model is on.
    """
    fastest: dict[str, AttentionMethod] = {"cpu": "pieces", "cuda": "flex"}
    method = fastest.get(device.type)
    if method is not None and implementation in ("sdpa", IMPLEMENTATIONS[method]):
        return [method, "mask"]
    return ["mask"]


def masks(method: AttentionMethod, config: Any, layout: Layout, dtype: torch.dtype) -> Any:
    """The attention mask to give a model: one mask, or one for each of its kinds of layers.

    Args:
        method: any but `rows`.
        config: the text model's configuration.
        layout: a layout whose tensors are on the model's device.
        dtype: the dtype of an additive mask.
    """
    make: dict[str, Callable[[int | None], Any]] = {
        "pieces": lambda window: _pieces(layout, window),
        "flex": lambda window: block_mask(layout, window),
        "mask": lambda window: additive(layout, window, dtype),
    }
    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or [])
    # Models whose layers differ (Gemma 2) look their mask up by the layer's kind, so all kinds are handed over at once.
    if len(kinds) > 1:
        return {kind: make[method](window if kind == "sliding_attention" else None) for kind in kinds}
    # Without `layer_types` all layers have the window (Mistral). A window may also stand in the configuration of a
    # model that does not use it: then all layers are called `full_attention`.
    return make[method](None if kinds == {"full_attention"} else window)


def additive(layout: Layout, window: int | None, dtype: torch.dtype) -> Tensor:
    """[rows, 1, query, key]: 0 where the key is seen, elsewhere the least number of the dtype."""
    # Finite, as in transformers' own masks: a row without a visible key would be NaN with -inf. Beside a visible key a
    # hidden one has the weight exp(least) = 0.
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

    # The heads (None) share one mask. Compiled, the rule is evaluated block by block, and [columns, columns] is never
    # held in memory.
    return create_block_mask(
        mask_mod, rows, None, columns, columns, device=str(device), _compile=device.type == "cuda"
    )


def _pieces(layout: Layout, window: int | None) -> Tensor:
    """[1, 1, 3, columns] integers for :func:`_attend`: tree, branch, and the window, 0 for none."""
    # transformers makes no mask of its own where it is given one of four dimensions: this one reaches every layer as it
    # is, though it is none in the usual sense. The dtype tells it from real masks, which are bool or floating point.
    windows = torch.full_like(layout.tree, window or 0)
    return torch.stack([layout.tree, layout.branch, windows], dim=1)[:, None]


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention of one row of trees, piece by piece; with any other mask, transformers' own sdpa attention."""
    if attention_mask is None or attention_mask.dtype != torch.long:
        inner: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **others
        )
        return inner
    tree_and_branch = attention_mask[0, 0, :2]
    window = int(attention_mask[0, 0, 2, 0])
    groups = query.shape[1] // key.shape[1]
    # A piece is a run of columns of one tree and one branch: a prompt, or a response.
    pieces, sizes = torch.unique_consecutive(tree_and_branch, dim=1, return_counts=True)
    # Split, not sliced: the backward of a split is one concatenation, that of each slice a zero-filled full tensor.
    queries, keys, values = (
        states.split(sizes.tolist(), dim=2)
        for states in (query, repeat_kv(key, groups), repeat_kv(value, groups))
    )
    outputs = []
    prompt: list[Tensor] = []
    for index, branch in enumerate(pieces[1].tolist()):
        own = [keys[index], values[index]]
        if branch == 0:
            prompt, seen = own, own  # the responses that follow are to this prompt
        else:
            # Keys carry their rotary positions already, and the response's go on from the prompt's: the two together
            # are the keys of the plain sequence. The prompt's gradients add up over its responses through the cat.
            seen = [torch.cat(pair, dim=2) for pair in zip(prompt, own, strict=True)]
        outputs.append(_causal(queries[index], *seen, window=window, scale=scaling, dropout=dropout))
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


def _causal(query: Tensor, key: Tensor, value: Tensor, *, window: int, scale: Any, dropout: float) -> Tensor:
    """Attention of the last `size` tokens of a sequence of `total` to all that is not after them.

    Query i stands at position i + total - size, so it sees the keys j <= i + total - size; with a window, only those
    with i + total - size - j < window.
    """
    size, total = query.shape[2], key.shape[2]
    if size == total and not 0 < window < total:
        return F.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scale, dropout_p=dropout
        )
    # `is_causal` would let query i see the keys j <= i, which is right for whole sequences only.
    seen = torch.ones(size, total, dtype=torch.bool, device=query.device).tril(total - size)
    if 0 < window < total:
        seen = seen.triu(total - size - window + 1)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=scale, dropout_p=dropout)


# Ordinary calls of the model (generate, evaluation) go on to work while `pieces` is set: transformers makes them the
# masks of sdpa, with which `_attend` calls sdpa.
AttentionInterface.register(IMPLEMENTATIONS["pieces"], _attend)
AttentionMaskInterface.register(IMPLEMENTATIONS["pieces"], sdpa_mask)
