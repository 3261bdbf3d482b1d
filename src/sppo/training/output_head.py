r"""The output head, the log-softmax and the choice of the target's entry as one operation, in tiles.

A model's forward ends in logits for every token, [tokens, vocabulary], of which training needs one number for each
response token. Here the vocabulary is walked over in tiles. With logits z = f(W h + b) of a token and its target y:

- forward: :math:`\log p_y = z_y - \log\sum_v e^{z_v}`. Each tile gives the log-sum-exp of its own columns, and the
  log-sum-exp over the tiles' values is the log-partition; the target's logit is in exactly one of the tiles.
- backward, for the gradient g of log p_y: :math:`\partial z_v = g\,(1[v=y] - e^{z_v - \log Z})`, from there through f,
  then :math:`\partial h = \sum_v \partial z_v W_v` and :math:`\partial W_v = \sum_{tokens} \partial z_v h`.

The backward pass needs every z_v again. It computes each tile a second time from W and h, since keeping them would be
[tokens, vocabulary] numbers: one more product with W buys that neither pass ever holds more than a tile. Of the
softmax only log Z is kept, one number a token.

The operation is reached through the model's own forward: the forwards of the causal model and of its head are replaced
for the call, so that whatever wraps them (several processes, sharded parameters, adapters) sees its usual calls.
"""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

_TILE = {"cpu": 1 << 21, "cuda": 1 << 27}  # entries of a tile: within a CPU's cache, enough work for a GPU
_LEAST_COLUMNS = 512


@dataclass(frozen=True)
class Logits:
    r"""How a model turns its head's products z into logits: scale * z, or cap * tanh(scale * z / cap)."""

    scale: float = 1.0
    cap: float | None = None

    def of(self, products: Tensor) -> Tensor:
        """The logits; overwrites the products."""
        if self.scale != 1.0:
            products.mul_(self.scale)
        if self.cap is not None:
            products.div_(self.cap).tanh_().mul_(self.cap)
        return products

    def backward(self, gradient: Tensor, logits: Tensor) -> Tensor:
        """The gradient of the products from that of the logits, which it overwrites."""
        # d/dz of c tanh(s z / c) is s (1 - tanh^2), and the logits divided by the cap are the tanh. `logits` is
        # overwritten as well.
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
    r"""log softmax(logits(hidden weight^T + bias))[target], in nats, float32 at least; differentiable once.

    Products are computed in the dtype of `hidden` (autocast's where it is on), sums in float32 at least.
    """
    log_probs: Tensor = _TokenLogProbs.apply(hidden, weight, bias, targets, logits)  # type: ignore[no-untyped-call]
    return log_probs


class _TokenLogProbs(torch.autograd.Function):
    """Saves the inputs and each token's log-partition; the backward pass computes every tile again."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, logits: Logits
    ) -> Tensor:
        device = hidden.device.type
        autocast = torch.is_autocast_enabled(device)
        # Autocast's dtype is taken over by hand and autocast turned off, so that both passes compute the same tiles: the
        # backward pass usually runs outside of the autocast block.
        ctx.dtype = torch.get_autocast_dtype(device) if autocast else hidden.dtype
        ctx.logits = logits
        with torch.autocast(device, enabled=False):
            chosen, partitions = [], []
            for tile in _tiles(hidden.to(ctx.dtype), weight, bias, targets, logits):
                # One number a token from each tile, of which all but one are 0: their sum is the target's logit.
                chosen.append(tile.logits.gather(1, tile.target)[:, 0] * tile.has_target)
                partitions.append(tile.logits.logsumexp(dim=1))
            # log sum_v e^{z_v} = log sum_tiles e^{log sum_{v in tile} e^{z_v}}; either sum takes out its greatest term
            # first, so nothing overflows however the columns are divided.
            log_partition = torch.stack(partitions).logsumexp(dim=0)
        ctx.save_for_backward(hidden, weight, bias, targets, log_partition)
        return torch.stack(chosen).sum(dim=0) - log_partition

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, log_partition = ctx.saved_tensors
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        products = hidden.to(ctx.dtype)
        # The gradient of h is a sum over all tiles and is kept in float32, or its rounding would grow with their number.
        # A row of W, or an entry of b, is in one tile alone: it is written once, and needs no zeros to begin with.
        hidden_gradient = torch.zeros(hidden.shape, dtype=_sums(ctx.dtype), device=hidden.device)
        weight_gradient = torch.empty_like(weight) if needs_weight else None
        bias_gradient = torch.empty_like(bias) if needs_bias else None
        with torch.autocast(hidden.device.type, enabled=False):
            for tile in _tiles(products, weight, bias, targets, ctx.logits):
                # The softmax is made in the memory of the logits; only the cap's derivative asks for them again.
                logits = tile.logits.clone() if ctx.logits.cap is not None else tile.logits
                # -g p_v in every column, then + g in the target's, where the tile has it.
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
        vocabulary: the ids of the part.
        weight: [part, width] the head's rows for it, in the dtype of the products.
        logits: [tokens, part] valid, and free to be overwritten, until the next tile is asked for.
        target: [tokens, 1] the column of each token's target; an arbitrary column where another tile has it.
        has_target: [tokens] whether the target is in this tile.
    """

    vocabulary: slice
    weight: Tensor
    logits: Tensor
    target: Tensor
    has_target: Tensor


def _tiles(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, logits: Logits
) -> Iterator[_Tile]:
    """The tiles one after the other, each in the memory of the one before."""
    size, vocabulary = len(hidden), len(weight)
    columns = max(_LEAST_COLUMNS, _TILE["cpu" if hidden.device.type == "cpu" else "cuda"] // max(1, size))
    # The same number of tiles, but of one size: a short last tile would be the least efficient product.
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
        # Clamped, since gather and scatter need a valid column everywhere; `has_target` makes the wrong ones count 0.
        target = (targets - part.start).clamp(0, len(head_rows) - 1)[:, None]
        # In float32 this is the same memory; in bfloat16 a copy, since the softmax needs more digits than the product.
        yield _Tile(part, head_rows, logits.of(products.to(_sums(products.dtype))), target, has_target)


def _sums(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which products of a dtype are summed up."""
    return torch.promote_types(dtype, torch.float32)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add left @ right to a total in float32 without rounding the product to the dtype of its factors first."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    elif left.device.type == "cuda":
        total.add_(torch.mm(left, right, out_dtype=total.dtype))
    else:
        total.addmm_(left.to(total.dtype), right.to(total.dtype))


def causal_model(model: Any) -> Any:
    """The causal language model inside its wrappers (for several processes, adapters, compilation)."""
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
        model: wrapped or not.
        logits: as :func:`measure_logits` found them.
        positions: [tokens] where each target is predicted: an index into the hidden states, flattened to
            [rows x columns].
        targets: [tokens] the targets' ids.
    """
    causal = causal_model(model)
    head = causal.get_output_embeddings()

    # The prompt's hidden states are dropped here, before the head: it is computed for response tokens alone. The weight is
    # read inside the head's call, since a sharded weight is whole only between the head's hooks.
    def head_forward(hidden: Tensor) -> Tensor:
        predicting = hidden.flatten(0, -2).index_select(0, positions)
        return token_log_probs(predicting, head.weight, head.bias, targets, logits)

    # What the causal model does beside its body and its head (slicing, scale, cap, a loss) is left out: `logits` has it.
    def model_forward(*args: Any, **kwargs: Any) -> Tensor:
        log_probs: Tensor = head(causal.base_model(*args, **kwargs)[0])
        return log_probs

    with _replaced_forward(causal, model_forward), _replaced_forward(head, head_forward):
        yield


@contextlib.contextmanager
def _replaced_forward(module: nn.Module, function: Any) -> Iterator[None]:
    """Within the block, a module computes with another forward."""
    # On the instance, not on the class: calling the module still runs its hooks. A forward may stand there before
    # (accelerate's, an adapter's) and is put back.
    own = vars(module).get("forward")
    vars(module)["forward"] = function
    try:
        yield
    finally:
        del vars(module)["forward"]
        if own is not None:
            vars(module)["forward"] = own


@torch.no_grad()
def measure_logits(model: Any, mixed_precision: str = "no") -> Logits | None:
    """Find out, on a few tokens, how the model's logits follow from the products of its output head.

    Args:
        model: in evaluation mode.
        mixed_precision: the precision that the model computes in by itself.

    Returns:
        None where no known rule gives the model's own log-probabilities.
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
    """By how many nats two computations of a token's log-probability may differ, depending on the precision."""
    precise = torch.finfo(next(model.parameters()).dtype).bits >= 32 and mixed_precision == "no"
    return 1e-3 if precise else 0.05


def _candidates(config: Any) -> list[Logits]:
    """The rules that a configuration can stand for; where the measurement cannot tell them apart, the first is taken."""
    # Architectures disagree on what such a field does: Cohere multiplies by `logit_scale`, Granite divides by
    # `logits_scaling`. So both readings are tried, each with the cap and without it.
    cap = getattr(config, "final_logit_softcapping", None)
    names = ("logit_scale", "logits_scaling", "lm_head_multiplier", "output_multiplier")
    factors = [float(value) for name in names if (value := getattr(config, name, None))]
    scales = [scale for factor in factors for scale in (factor, 1 / factor)] + [1.0]
    return list(
        dict.fromkeys(Logits(scale, limit) for limit in dict.fromkeys((cap, None)) for scale in scales)
    )
