r"""The hidden states of a DeBERTa-v2 at a few rows, equal to those of transformers' DebertaV2Model but faster.

Disentangled attention adds to the content's scores what contents and relative positions say of one another:

.. math::
    A_{qk} = \frac{Q_q \cdot K_k + Q_q \cdot K^r_{\delta(q,k)} + K_k \cdot Q^r_{\delta(q,k)}}{\sqrt{3d}}

with :math:`\delta(q, k)` the bucket of the distance q - k. Three things are arranged differently from
transformers, which changes no more than the order of additions:

- :math:`K^r` and :math:`Q^r` depend on weights only: they are computed once per layer, at loading;
- the last two terms are an additive mask to fused attention;
- the last layer is computed only at the rows that are read.
"""

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import linear, scaled_dot_product_attention

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # transformers compiles three helpers with torch.jit
    from transformers.models.deberta_v2 import modeling_deberta_v2

deberta: Any = modeling_deberta_v2
"""transformers' DeBERTa-v2; its modules carry no types."""


def row_encoder(model: Any) -> "RowEncoder | AnyEncoder":
    """The last hidden states of an encoder at chosen rows, the quick way where it is a DeBERTa-v2."""
    return RowEncoder(model) if isinstance(model, deberta.DebertaV2Model) else AnyEncoder(model)


class AnyEncoder:
    """The last hidden states of any of transformers' encoders at chosen rows, as it computes them itself."""

    def __init__(self, model: Any) -> None:
        self.model = model
        if getattr(model.config, "use_cache", False):
            model.config.use_cache = False  # a causal model would keep the keys and values of every pair

    @torch.inference_mode()
    def __call__(self, ids: Tensor, lengths: Tensor, rows: Tensor) -> Float[Tensor, "pairs rows hidden"]:
        """See :meth:`RowEncoder.__call__`."""
        return self.differentiable(ids, lengths, rows)

    def differentiable(
        self, ids: Tensor, lengths: Tensor, rows: Tensor
    ) -> Float[Tensor, "pairs rows hidden"]:
        """See :meth:`RowEncoder.differentiable`."""
        real = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
        return _at(self.model(input_ids=ids, attention_mask=real.long()).last_hidden_state, rows)


class RowEncoder:
    """The last hidden states of a DeBERTa-v2 at chosen rows.

    Args:
        model: a DebertaV2Model of any configuration, in evaluation mode, on its device and in its dtype.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        config = model.config
        self._attentions = [_Attention(layer.attention.self) for layer in model.encoder.layer]
        self._positions = _Positions(self._attentions[0].module) if config.relative_attention else None
        self._prepared: list[_Weights] | None = None

    @torch.inference_mode()
    def __call__(
        self,
        ids: Int[Tensor, "pairs tokens"],
        lengths: Int[Tensor, " pairs"],
        rows: Int[Tensor, "pairs rows"],
    ) -> Float[Tensor, "pairs rows hidden"]:
        """Encode sequences with weights that stay as they are.

        Args:
            ids: padded on the right, with any id.
            lengths: how many of each sequence's ids count.
            rows: which hidden states are wanted.
        """
        if self._prepared is None:
            self._prepared = self._prepare()
            for attention, weights in zip(self._attentions, self._prepared, strict=True):
                attention.share(weights)
        return self._encode(ids, lengths, rows, self._prepared)

    def differentiable(
        self,
        ids: Int[Tensor, "pairs tokens"],
        lengths: Int[Tensor, " pairs"],
        rows: Int[Tensor, "pairs rows"],
    ) -> Float[Tensor, "pairs rows hidden"]:
        """Encode sequences with gradients, and with the model's dropout if it is in training mode."""
        return self._encode(ids, lengths, rows, self._prepare())

    def _prepare(self) -> "list[_Weights]":
        relative = self.model.encoder.get_rel_embedding()
        return [attention.prepare(relative) for attention in self._attentions]

    def _encode(
        self, ids: Tensor, lengths: Tensor, rows: Tensor, prepared: "list[_Weights]"
    ) -> Float[Tensor, "pairs rows hidden"]:
        tokens = ids.shape[1]
        real = torch.arange(tokens, device=ids.device) < lengths[:, None]
        padded = not bool(real.all())
        encoder = self.model.encoder
        hidden: Tensor = self.model.embeddings(input_ids=ids, mask=real if padded else None)
        embedded = hidden
        buckets = None if self._positions is None else self._positions(tokens, ids.device)
        last = len(encoder.layer) - 1
        for number, (layer, attention) in enumerate(zip(encoder.layer, self._attentions, strict=True)):
            convolved = number == 0 and encoder.conv is not None
            few = rows if number == last and not convolved else None
            context = attention(hidden, prepared[number], buckets, ~real if padded else None, few)
            hidden = hidden if few is None else _at(hidden, few)
            hidden = layer.attention.output(context, hidden)
            hidden = layer.output(layer.intermediate(hidden), hidden)
            if convolved:
                hidden = encoder.conv(embedded, hidden, real.to(torch.uint8))
        return hidden if few is not None else _at(hidden, rows)


class _Positions:
    """The buckets of pairs of positions; those of a shorter sequence are a corner of those of a longer one."""

    def __init__(self, attention: Any) -> None:
        self.span: int = attention.pos_ebd_size
        self.buckets: int = attention.position_buckets
        self.furthest: int = attention.max_relative_positions
        self._forward = torch.zeros(0, 0, dtype=torch.long)
        self._backward = self._forward

    def __call__(
        self, tokens: int, device: torch.device
    ) -> tuple[Int[Tensor, "tokens tokens"], Int[Tensor, "tokens tokens"]]:
        """The matrix [q, k] -> delta(q, k) and its transpose, both with contiguous rows."""
        if self._forward.shape[0] < tokens or self._forward.device != device:
            size = torch.empty(-(-tokens // 256) * 256, 0)
            # on the CPU, so that a logarithm on a boundary between buckets is rounded alike everywhere
            distance = deberta.build_relative_position(size, size, self.buckets, self.furthest)[0]
            bucket = (distance + self.span).clamp(0, 2 * self.span - 1)
            self._forward = bucket.to(device)
            self._backward = bucket.T.contiguous().to(device)
        return self._forward[:tokens, :tokens], self._backward[:tokens, :tokens]


@dataclass(frozen=True)
class _Weights:
    """The weights of a layer's attention, in the form in which they are used.

    Attributes:
        weight, bias: the projections to queries, keys and values, stacked.
        position_keys, position_queries: K^r and Q^r of all buckets, scaled, [heads, head, buckets].
    """

    weight: Tensor
    bias: Tensor
    position_keys: Tensor | None
    position_queries: Tensor | None


class _Attention:
    """One layer's disentangled self-attention, without its output projection."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self.heads: int = module.num_attention_heads
        self.terms = [term for term in ("c2p", "p2c") if term in module.pos_att_type]
        self.scale: float = (module.attention_head_size * (1 + len(self.terms))) ** -0.5
        self.projections = module.query_proj, module.key_proj, module.value_proj

    def prepare(self, relative: Tensor | None) -> _Weights:
        """The weights made from those of the module and from the embeddings of relative positions."""
        module = self.module
        keys = queries = None
        if relative is not None:
            relative = module.pos_dropout(relative[: 2 * module.pos_ebd_size])
            if "c2p" in self.terms:
                keys = self._positional(
                    module.key_proj if module.share_att_key else module.pos_key_proj, relative
                )
            if "p2c" in self.terms:
                queries = self._positional(
                    module.query_proj if module.share_att_key else module.pos_query_proj, relative
                )
        return _Weights(
            torch.cat([projection.weight for projection in self.projections]),
            torch.cat([projection.bias for projection in self.projections]),
            keys,
            queries,
        )

    def share(self, weights: _Weights) -> None:
        """Make the module's weights views of the prepared ones, so that memory does not hold them twice."""
        for projection, part in zip(self.projections, weights.weight.chunk(3), strict=True):
            projection.weight.data = part

    def _positional(self, projection: Any, relative: Tensor) -> Float[Tensor, "heads head buckets"]:
        projected: Tensor = projection(relative) * self.scale
        return projected.reshape(len(relative), self.heads, -1).permute(1, 2, 0).contiguous()

    def __call__(
        self,
        hidden: Float[Tensor, "pairs tokens hidden"],
        weights: _Weights,
        buckets: tuple[Tensor, Tensor] | None,
        padding: Bool[Tensor, "pairs tokens"] | None,
        rows: Int[Tensor, "pairs rows"] | None,
    ) -> Tensor:
        """The contexts at all positions, or at the given rows only."""
        query, key, value = self._split(linear(hidden, weights.weight, weights.bias))
        if rows is not None:
            query = query.gather(2, rows[:, None, :, None].expand(-1, self.heads, -1, query.shape[-1]))
        mask = None if buckets is None else self._bias(query, key, weights, buckets, rows)
        if padding is not None:
            if mask is None:
                mask = query.new_zeros(query.shape[0], 1, query.shape[2], key.shape[2])
            mask = mask.masked_fill(padding[:, None, None, :], torch.finfo(mask.dtype).min)
        return self._attend(query, key, value, mask).transpose(1, 2).flatten(2)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        dropout = self.module.dropout.p if self.module.training else 0.0
        if mask is None or query.dtype == torch.float32 or query.device.type != "cpu" or dropout:
            return scaled_dot_product_attention(
                query, key, value, attn_mask=mask, scale=self.scale, dropout_p=dropout
            )
        # on a CPU the fused kernel is slower than its parts in bfloat16
        scores = mask.expand(-1, self.heads, -1, -1).flatten(0, 1)
        scores = scores.baddbmm(query.flatten(0, 1), key.flatten(0, 1).mT, alpha=self.scale)
        return (scores.softmax(-1) @ value.flatten(0, 1)).view_as(query)

    def _split(self, projected: Tensor) -> tuple[Tensor, ...]:
        pairs, tokens, _ = projected.shape
        return projected.view(pairs, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind()

    def _bias(
        self,
        query: Tensor,
        key: Tensor,
        weights: _Weights,
        buckets: tuple[Tensor, Tensor],
        rows: Tensor | None,
    ) -> Float[Tensor, "pairs heads queries tokens"] | None:
        forward, backward = buckets
        pairs, tokens = key.shape[0], key.shape[2]
        # [pairs, 1, queries, tokens] and [pairs, 1, tokens, queries]. The position terms depend on (q, k) through the
        # bucket alone: one product with all buckets' keys or queries, then a gather by bucket, gives every entry.
        if rows is None:
            forward, backward = forward[None, None], backward[None, None]
        else:
            forward = forward[rows][:, None]
            backward = forward.mT
        bias: Tensor | None = None
        if weights.position_keys is not None:
            by_bucket = query @ weights.position_keys
            bias = by_bucket.gather(-1, forward.expand(pairs, self.heads, -1, tokens))
        if weights.position_queries is not None:
            by_bucket = key @ weights.position_queries
            part = _transposed(by_bucket.gather(-1, backward.expand(pairs, self.heads, tokens, -1)))
            bias = part if bias is None else part.add_(bias)
        return bias


def _transposed(bias: Float[Tensor, "pairs heads tokens queries"]) -> Tensor:
    """A contiguous copy with the last two dimensions exchanged."""
    if bias.device.type != "cpu" or bias.requires_grad:
        return bias.mT.contiguous()
    # torch exchanges a matrix in blocks that fit its cache, but several matrices element by element
    pairs, heads, tokens, queries = bias.shape
    exchanged = bias.new_empty(pairs, heads, queries, tokens)
    for source, target in zip(bias.flatten(0, 1), exchanged.flatten(0, 1), strict=True):
        target.copy_(source.T)
    return exchanged


def _at(hidden: Float[Tensor, "pairs tokens hidden"], rows: Int[Tensor, "pairs rows"]) -> Tensor:
    return hidden.gather(1, rows[..., None].expand(-1, -1, hidden.shape[-1]))
