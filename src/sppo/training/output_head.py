r"""The output head, the log-softmax and the selection of the target's entry as one operation, computed in tiles.

A model's forward pass ends in logits for every token, [tokens, vocabulary], of which training needs one number per
response token. This module goes through the vocabulary in tiles. For the logits z = f(W h + b) of a token with target y:

- Forward: :math:`\log p_y = z_y - \log\sum_v e^{z_v}`. Each tile yields the log-sum-exp of its own columns, and the
  log-sum-exp of these values is the log-partition. The target's logit is in exactly one tile.
- Backward, for the gradient g of log p_y: :math:`\partial z_v = g\,(1[v=y] - e^{z_v - \log Z})`, then through f, then
  :math:`\partial h = \sum_v \partial z_v W_v` and :math:`\partial W_v = \sum_{tokens} \partial z_v h`.

The backward pass needs every z_v again and recomputes each tile from W and h, because keeping all of them would take
[tokens, vocabulary] numbers. At the price of one more product with W, neither pass ever holds more than one tile. Only
log Z, one number per token, is kept from the forward pass.

The operation is called through the model's own forward method: for the duration of the call, the forward methods of the
causal model and of its head are replaced, so that wrappers (for several processes, sharded parameters, adapters) see the
calls that they expect.
"""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

_TILE = {
    "cpu": 1 << 21,
    "cuda": 1 << 27,
}  # entries of a tile: small enough for a CPU's cache, enough work for a GPU
_LEAST_COLUMNS = 512


@dataclass(frozen=True)
class Logits:
    r"""How a model computes logits from the products z of its head: scale * z, or cap * tanh(scale * z / cap)."""

    scale: float = 1.0
    cap: float | None = None

    def forward(self, products: Tensor) -> Tensor:
        """Compute the logits in the memory of the products."""
        if self.scale != 1.0:
            products.mul_(self.scale)
        if self.cap is not None:
            products.div_(self.cap).tanh_().mul_(self.cap)
        return products

    def backward(self, gradient: Tensor, logits: Tensor) -> Tensor:
        """Compute the gradient of the products from that of the logits, in the memory of the latter."""
        # The derivative of c tanh(s z / c) is s (1 - tanh^2), and the tanh is the logit divided by the cap c, so the
        # products themselves are not needed. This overwrites `logits` as well.
        if self.cap is not None:
            gradient.mul_(1 - (logits / self.cap).square_())
        return gradient.mul_(self.scale) if self.scale != 1.0 else gradient


def token_log_probs(
    hidden: Float[Tensor, "tokens width"],
    weight: Float[Tensor, "vocabulary width"],
    bias: Float[Tensor, " vocabulary"] | None,
    targets: Int[Tensor, " tokens"],
    logits: Logits = Logits(),
) -> Float[Tensor, " tokens"]:
    r"""log softmax(logits(hidden weight^T + bias))[target] in nats, in float32 or more precisely; differentiable once.

    Products are computed in the dtype of `hidden`, or in autocast's if it is on; sums in float32 or more precisely.
    """
    log_probs: Tensor = _TokenLogProbs.apply(hidden, weight, bias, targets, logits)  # type: ignore[no-untyped-call]
    return log_probs


class _TokenLogProbs(torch.autograd.Function):
    """Saves the inputs and each token's log-partition; the backward pass recomputes every tile."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, logits: Logits
    ) -> Tensor:
        device = hidden.device.type
        autocast = torch.is_autocast_enabled(device)
        # Autocast is switched off and its dtype applied explicitly, so that both passes compute the same tiles: the
        # backward pass usually runs outside the autocast block.
        ctx.dtype = torch.get_autocast_dtype(device) if autocast else hidden.dtype
        ctx.logits = logits
        with torch.autocast(device, enabled=False):
            target_logits, partitions = [], []
            for tile in _tiles(hidden.to(ctx.dtype), weight, bias, targets, logits):
                # Each tile yields one number per token, which is 0 unless the tile holds the target: their sum is the
                # target's logit.
                target_logits.append(tile.logits.gather(1, tile.target)[:, 0] * tile.has_target)
                partitions.append(tile.logits.logsumexp(dim=1))
            # log sum_v e^{z_v} = log sum_tiles e^{log sum_{v in tile} e^{z_v}}. Both sums factor out their largest term, so
            # nothing overflows, however the columns are divided into tiles.
            log_partition = torch.stack(partitions).logsumexp(dim=0)
        ctx.save_for_backward(hidden, weight, bias, targets, log_partition)
        return torch.stack(target_logits).sum(dim=0) - log_partition

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, log_partition = ctx.saved_tensors
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        products = hidden.to(ctx.dtype)
        # The gradient of h is a sum over all tiles, so it is accumulated in float32: otherwise its rounding error would
        # grow with the number of tiles. A row of W, or an entry of b, belongs to one tile only, so it is written once and
        # needs no initial zeros.
        hidden_gradient = torch.zeros(hidden.shape, dtype=_sums(ctx.dtype), device=hidden.device)
        weight_gradient = torch.empty_like(weight) if needs_weight else None
        bias_gradient = torch.empty_like(bias) if needs_bias else None
        with torch.autocast(hidden.device.type, enabled=False):
            for tile in _tiles(products, weight, bias, targets, ctx.logits):
                # The softmax is computed in the memory of the logits; only the derivative of the cap needs them again.
                logits = tile.logits.clone() if ctx.logits.cap is not None else tile.logits
                # The gradient of the logits is -g p_v in every column, plus g in the target's column if it is in this tile.
                signal = tile.logits.sub_(log_partition[:, None]).exp_().mul_(-gradient[:, None])
                signal.scatter_add_(1, tile.target, (gradient * tile.has_target)[:, None])
                signal = ctx.logits.backward(signal, logits)
                if bias_gradient is not None:
                    bias_gradient[tile.vocabulary] = signal.sum(dim=0)
                narrow = signal.to(ctx.dtype)
                if needs_hidden:
                    _add_product(hidden_gradient, narrow, tile.weight)
                if weight_gradient is not None:
                    weight_gradient[tile.vocabulary] = narrow.T @ products
        return (
            hidden_gradient.to(hidden.dtype) if needs_hidden else None,
            weight_gradient,
            bias_gradient,
            None,
            None,
        )


@dataclass(frozen=True)
class _Tile:
    """The logits of all tokens for a part of the vocabulary.

    Attributes:
        vocabulary: the token ids of the part.
        weight: [part, width] the head's rows for the part, in the dtype of the products.
        logits: [tokens, part] the logits; they can be overwritten, and are valid until the next tile is requested.
        target: [tokens, 1] the column of each token's target; an arbitrary column if another tile holds it.
        has_target: [tokens] whether this tile holds the target.
    """

    vocabulary: slice
    weight: Tensor
    logits: Tensor
    target: Tensor
    has_target: Tensor


def _tiles(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, logits: Logits
) -> Iterator[_Tile]:
    """Compute the tiles one after the other, each in the memory of the previous one."""
    size, vocabulary = len(hidden), len(weight)
    columns = max(_LEAST_COLUMNS, _TILE["cpu" if hidden.device.type == "cpu" else "cuda"] // max(1, size))
    # The tiles are made equally large without changing their number: a short last tile would be an inefficient product.
    columns = math.ceil(vocabulary / math.ceil(vocabulary / columns))
    memory = hidden.new_empty(size * min(columns, vocabulary))
    for start in range(0, vocabulary, columns):
        part = slice(start, min(start + columns, vocabulary))
        head_rows = weight[part].to(hidden.dtype)
        products = memory[: size * len(head_rows)].view(size, len(head_rows))
        torch.mm(hidden, head_rows.T, out=products)
        if bias is not None:
            products.add_(bias[part])
        has_target = (targets >= part.start) & (targets < part.stop)
        # gather and scatter need a valid column for every token, so the column is clamped; `has_target` multiplies the
        # values of other tiles' targets by 0.
        target = (targets - part.start).clamp(0, len(head_rows) - 1)[:, None]
        # In float32 this is the same memory; in bfloat16 it is a copy, because the softmax needs more digits than the
        # product.
        yield _Tile(part, head_rows, logits.forward(products.to(_sums(products.dtype))), target, has_target)


def _sums(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which products of the given dtype are summed."""
    return torch.promote_types(dtype, torch.float32)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add left @ right to a total in float32.

    On a CPU, torch returns products in the dtype of their factors only, so that the product of each tile is rounded once,
    like any product of autocast. Products in float32 would take four times as long on processors that multiply bfloat16.
    """
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    elif left.device.type == "cuda":
        total.add_(torch.mm(left, right, out_dtype=total.dtype))
    else:
        total.add_(torch.mm(left, right))


def causal_model(model: Any) -> Any:
    """Unwrap a causal language model from wrappers for several processes, adapters and compilation."""
    while True:
        if hasattr(model, "get_base_model"):
            model = model.get_base_model()
        elif isinstance(inner := getattr(model, "module", getattr(model, "_orig_mod", None)), nn.Module):
            model = inner
        else:
            return model


@contextlib.contextmanager
def fused(model: Any, logits: Logits, positions: Tensor, targets: Tensor) -> Iterator[None]:
    """Within the block, calling the model returns log-probabilities of tokens instead of logits.

    Args:
        model: the model, possibly wrapped.
        logits: the result of :func:`measure_logits`.
        positions: [tokens] the hidden state from which each target is predicted, as an index into the hidden states
            flattened to [rows x columns].
        targets: [tokens] the ids of the targets.
    """
    causal = causal_model(model)
    head = causal.get_output_embeddings()

    # The hidden states of the prompts are dropped here, so that the head is computed for response tokens only. The weight
    # is read inside the head's call, because a sharded weight is complete only between the head's hooks.
    def head_forward(hidden: Tensor) -> Tensor:
        predicting = hidden.flatten(0, -2).index_select(0, positions)
        return token_log_probs(predicting, head.weight, head.bias, targets, logits)

    # What the causal model does besides calling its body and its head is left out: it slices hidden states and computes a
    # loss, which are not needed, and scales or caps the logits, which `logits` does.
    def model_forward(*args: Any, **kwargs: Any) -> Tensor:
        log_probs: Tensor = head(causal.base_model(*args, **kwargs)[0])
        return log_probs

    with _replaced_forward(causal, model_forward), _replaced_forward(head, head_forward):
        yield


@contextlib.contextmanager
def _replaced_forward(module: nn.Module, function: Any) -> Iterator[None]:
    """Within the block, replace the forward method of a module."""
    # It is replaced on the instance, not on the class, so that calling the module still runs its hooks. The instance can
    # already have a forward method of its own (accelerate's or an adapter's), which is restored.
    before = {name: value for name, value in vars(module).items() if name == "forward"}
    vars(module)["forward"] = function
    try:
        yield
    finally:
        del vars(module)["forward"]
        vars(module).update(before)


@torch.no_grad()
def measure_logits(model: Any, mixed_precision: str = "no") -> Logits | None:
    """Find out, on a few tokens, how the model computes its logits from the products of its output head.

    Args:
        model: the model, in evaluation mode.
        mixed_precision: the precision that the model itself computes in.

    Returns:
        The rule that reproduces the model's own log-probabilities; None if no known rule does.
    """
    causal = causal_model(model)
    head = getattr(causal, "get_output_embeddings", lambda: None)()
    if not isinstance(head, nn.Linear) or causal.base_model is causal:
        return None
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, causal.config.get_text_config().vocab_size, (2, 8), generator=generator).to(device)
    own = model(input_ids=ids, use_cache=False).logits.float().log_softmax(dim=-1)
    expected = own[:, :-1].gather(-1, ids[:, 1:, None]).flatten()
    positions = torch.arange(ids.numel(), device=device).view_as(ids)[:, :-1].flatten()
    deviations = {}
    for logits in _candidates(causal.config.get_text_config()):
        with fused(model, logits, positions, ids[:, 1:].flatten()):
            log_probs = model(input_ids=ids, use_cache=False)
        deviations[logits] = float((log_probs - expected).abs().max())
    nearest = min(deviations, key=deviations.__getitem__)
    return nearest if deviations[nearest] <= tolerance(model, mixed_precision) else None


def tolerance(model: Any, mixed_precision: str = "no") -> float:
    """The largest rounding difference between two computations of a token's log-probability, in nats."""
    precise = torch.finfo(next(model.parameters()).dtype).bits >= 32 and mixed_precision == "no"
    return 1e-3 if precise else 0.05


def _candidates(config: Any) -> list[Logits]:
    """The rules that a configuration can mean; if the measurement cannot distinguish them, the first one is taken."""
    # Architectures disagree on the meaning of such a field: Cohere multiplies by `logit_scale`, Granite divides by
    # `logits_scaling`. Both readings are tried, each with the cap and without it.
    cap = getattr(config, "final_logit_softcapping", None) or getattr(config, "logits_soft_cap", None)
    names = ("logit_scale", "logits_scaling", "lm_head_multiplier", "output_multiplier")
    factors = [float(value) for name in names if (value := getattr(config, name, None))]
    scales = [scale for factor in factors for scale in (factor, 1 / factor)] + [1.0]
    return list(
        dict.fromkeys(Logits(scale, limit) for limit in dict.fromkeys((cap, None)) for scale in scales)
    )
