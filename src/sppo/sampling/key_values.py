"""The keys and values of the responses that are being written, and one step of the model over all of them.

There are four implementations, from fast to slow. :mod:`sppo.sampling.probe` measures which of them a model computes right.

:class:`Cohorts`: responses that begin together are a cohort, with memory of its own for their keys and values; the model
sees all cohorts as one batch, and only attention takes them one by one. So a response that has ended makes room for others
at once, a short one is not padded to the length of a long one, and growing copies little. It hands attention a mask of its
own, which not every architecture takes.

:class:`OneBatch`: the cache of transformers, a batch of several prompts at a time, padded on the left. A new batch begins
when all responses of the batch before have ended.

:class:`OnePrompt`: the cache of transformers, the responses to one prompt at a time, so that no padding enters recurrent
states or shifts the borders of chunks.

:class:`Recomputed`: no cache at all. Each step puts whole sequences through the model, the responses to one prompt at a time.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.cache_utils import Cache, DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

# Memory for new tokens grows by this many columns at least, and by a quarter of what there is: the columns that are copied
# over all growths are then a small multiple of those written.
_COLUMNS = 32
BY_COHORT = "sppo_by_cohort"


class KeyValues(Protocol):
    """The keys and values of the running responses; each response is a row, numbered from 0.

    Attributes:
        one_prompt: whether all rows that begin together have to be responses to the same prompt.
    """

    one_prompt: ClassVar[bool]

    def __init__(self, model: Any) -> None: ...

    @property
    def rows(self) -> int:
        """The number of running responses."""
        ...

    def room(self, columns: int, budget: int) -> int:
        """The number of further responses that fit, if none gets longer than `columns` with its prompt."""
        ...

    def admit(self, prompts: Sequence[Sequence[int]], repeats: Sequence[int], columns: int) -> Tensor:
        """Put prompts through the model and add `repeats` rows for each, behind the existing rows.

        Returns:
            [new rows, vocabulary] the logits of their first tokens.
        """
        ...

    def step(self, tokens: Tensor) -> Tensor:
        """Write a token to every row; returns [rows, vocabulary], the logits of the next tokens."""
        ...

    def keep(self, stay: Tensor) -> Tensor:
        """Remove the rows where `stay` is False.

        Returns:
            For each remaining row, in the new order, its old number.
        """
        ...


@dataclass
class _Cohort:
    """Responses that began together, a row for each.

    Attributes:
        padding: the number of empty columns to the left of each row's prompt.
        used: the number of columns written, the same for all rows.
        columns: the most columns that a row may come to need.
        states: keys and values of each layer, [rows or more, heads, used or more, width]; what is beyond the rows and the
            columns in use is memory that waits or was left behind.
        masks: for each window, the mask of the step under way.
    """

    padding: Tensor
    used: int
    columns: int
    states: list[tuple[Tensor, Tensor]]
    masks: dict[int | None, Tensor | None] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        return len(self.padding)

    def begin_step(self) -> None:
        """Make room for one more column and forget the masks of the step before."""
        self.masks = {}
        if self.used == self.states[0][0].shape[2]:
            grown = self.used + max(_COLUMNS, self.used // 4)
            for layer, pair in enumerate(self.states):
                self.states[layer] = (self._grow(pair[0], grown), self._grow(pair[1], grown))

    def _grow(self, before: Tensor, columns: int) -> Tensor:
        # Rows that were left behind are not copied: here their memory goes back.
        after = before.new_empty((self.rows, before.shape[1], columns, before.shape[3]))
        after[:, :, : self.used] = before[: self.rows, :, : self.used]
        return after

    def mask(self, window: int | None, dtype: torch.dtype) -> Tensor | None:
        """[rows, 1, 1, columns] additive: what the new token sees, itself included; None where it sees everything."""
        # Made once a step and shared by all layers of the same window. The new token stands in column `used`, behind all
        # others, so that causality needs no mask: only padding, and what a window has left behind, is hidden. The window
        # counts columns, which differ from positions by the row's padding alone; differences are the same.
        if window not in self.masks:
            columns = torch.arange(self.used + 1, device=self.padding.device)
            hidden = columns < self.padding[:, None]
            if window is not None:
                hidden = hidden | (columns <= self.used - window)
            self.masks[window] = None
            if self.padded or (window is not None and window <= self.used):
                zeros = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
                self.masks[window] = zeros.masked_fill_(hidden, torch.finfo(dtype).min)[:, None, None]
        return self.masks[window]

    def __post_init__(self) -> None:
        self.padded = bool(self.padding.any())

    def keep(self, staying: list[int]) -> list[int]:
        """Remove all rows but `staying`; returns the old numbers of the remaining rows in their new order."""
        # Rows from behind move into the holes, so that a response that ends costs one row's copy and not all of the
        # cohort's. There are as many holes among the first `count` rows as staying rows behind them.
        count = len(staying)
        holes = sorted(set(range(count)) - set(staying))
        movers = [row for row in staying if row >= count]
        order = list(range(count))
        for hole, mover in zip(holes, movers, strict=True):
            order[hole] = mover
        if movers:
            for keys, values in self.states:
                keys[holes, :, : self.used] = keys[movers, :, : self.used]
                values[holes, :, : self.used] = values[movers, :, : self.used]
        self.padding = self.padding[torch.tensor(order, dtype=torch.long, device=self.padding.device)]
        return order


class Cohorts:
    """Cohorts of responses side by side; all their rows are one batch to the model."""

    one_prompt: ClassVar[bool] = False

    def __init__(self, model: Any) -> None:
        AttentionInterface.register(BY_COHORT, _attend_by_cohort)
        AttentionMaskInterface.register(BY_COHORT, sdpa_mask)
        if model.config._attn_implementation != BY_COHORT:
            model.set_attn_implementation(BY_COHORT)
        self.model = model
        self._cohorts: list[_Cohort] = []
        text = model.config.get_text_config()
        self._kinds = list(getattr(text, "layer_types", None) or [])
        self._window = getattr(text, "sliding_window", None)

    @property
    def rows(self) -> int:
        """The number of running responses."""
        return sum(cohort.rows for cohort in self._cohorts)

    def room(self, columns: int, budget: int) -> int:
        """See :class:`KeyValues`; at least one response fits where none runs."""
        # Each row is charged with the most that it may need, so that what has begun never outgrows the budget.
        taken = sum(cohort.rows * cohort.columns for cohort in self._cohorts)
        return max((budget - taken) // columns, 0 if self._cohorts else 1)

    @torch.inference_mode()
    def admit(self, prompts: Sequence[Sequence[int]], repeats: Sequence[int], columns: int) -> Tensor:
        """See :class:`KeyValues`."""
        # Each prompt goes through the model once; its keys and values are then copied for each of its responses. A plain
        # DynamicCache keeps all columns in layers with a window too, where `mask` hides what the window leaves behind.
        written, logits = _prefill(self.model, prompts, DynamicCache())
        source = torch.arange(len(prompts)).repeat_interleave(torch.tensor(repeats)).to(logits.device)
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=logits.device)
        width = max(map(len, prompts))
        states = [(layer.keys[source], layer.values[source]) for layer in written.layers]
        self._cohorts.append(_Cohort((width - lengths)[source], width, columns, states))
        return logits[source]

    @torch.inference_mode()
    def step(self, tokens: Tensor) -> Tensor:
        """See :class:`KeyValues`."""
        for cohort in self._cohorts:
            cohort.begin_step()
        # The position of the new token: the tokens written before it, padding not counted.
        positions = torch.cat([cohort.used - cohort.padding for cohort in self._cohorts])
        # transformers makes no mask of its own where it is given one of four dimensions; `_attend_by_cohort` does not look
        # at it and takes each cohort's.
        given: Any = positions.new_zeros((1, 1, 1, 1), dtype=self.model.dtype)
        logits = self.model(
            input_ids=tokens[:, None],
            attention_mask=dict.fromkeys(self._kinds, given) if len(set(self._kinds)) > 1 else given,
            position_ids=positions[:, None],
            past_key_values=_CohortCache(self._cohorts, [self._window_of(n) for n in range(self._layers)]),
            use_cache=True,
        ).logits[:, -1]
        for cohort in self._cohorts:
            cohort.used += 1
        return logits  # type: ignore[no-any-return]

    @torch.inference_mode()
    def keep(self, stay: Tensor) -> Tensor:
        """See :class:`KeyValues`."""
        flags, begin, order = stay.tolist(), 0, []
        for cohort in self._cohorts:
            count = cohort.rows
            if not all(flags[begin : begin + count]):
                staying = [row for row in range(count) if flags[begin + row]]
                order += [begin + row for row in cohort.keep(staying)]
            else:
                order += range(begin, begin + count)
            begin += count
        self._cohorts = [cohort for cohort in self._cohorts if cohort.rows]
        return torch.tensor(order, dtype=torch.long, device=stay.device)

    @property
    def _layers(self) -> int:
        return len(self._cohorts[0].states)

    def _window_of(self, layer: int) -> int | None:
        kind = self._kinds[layer] if layer < len(self._kinds) else "sliding_attention"
        return self._window if kind == "sliding_attention" else None


class _CohortLayer(DynamicLayer):  # type: ignore[misc]
    """One layer of all cohorts, for one step; it goes to attention in the place of the keys and values."""

    def __init__(self, cohorts: list[_Cohort], number: int, window: int | None) -> None:
        super().__init__()
        self.cohorts, self.number, self.window = cohorts, number, window

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Write the keys and values of each row's new token; returns itself for both."""
        # transformers passes on to attention whatever `update` returns. Keys and values of cohorts of different lengths
        # do not make one tensor, so the layer itself goes there, and attention finds the cohorts in it.
        begin = 0
        for cohort in self.cohorts:
            end = begin + cohort.rows
            keys, values = cohort.states[self.number]
            keys[: cohort.rows, :, cohort.used] = key_states[begin:end, :, 0]
            values[: cohort.rows, :, cohort.used] = value_states[begin:end, :, 0]
            begin = end
        return self, self

    def get_seq_length(self) -> int:
        """The number of tokens before the new one, as far as transformers asks; positions are given separately."""
        return max(cohort.used for cohort in self.cohorts)


class _CohortCache(Cache):  # type: ignore[misc]
    def __init__(self, cohorts: list[_Cohort], windows: list[int | None]) -> None:
        super().__init__(layers=[_CohortLayer(cohorts, *layer) for layer in enumerate(windows)])


def _attend_by_cohort(
    module: Any, query: Tensor, key: Any, value: Any, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """Scaled dot-product attention: of new tokens cohort by cohort, of prompts as transformers computes it."""
    if not isinstance(key, _CohortLayer):
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)  # type: ignore[no-any-return]
    if kwargs.get("position_bias") is not None or kwargs.get("s_aux") is not None:
        raise NotImplementedError("attention with a learnt bias")
    outputs, begin = [], 0
    _, heads, _, width = query.shape
    for cohort in key.cohorts:
        end, seen = begin + cohort.rows, cohort.used + 1
        keys, values = (states[: cohort.rows, :, :seen] for states in cohort.states[key.number])
        groups = heads // keys.shape[1]
        mask = cohort.mask(key.window, query.dtype)
        # One token has one query a head. The `groups` query heads that share a key head stand next to each other, so they
        # can take the place of a sequence's queries: keys and values are read once, not copied for each query head.
        out = torch.nn.functional.scaled_dot_product_attention(
            query[begin:end].reshape(cohort.rows, heads // groups, groups, width),
            keys,
            values,
            attn_mask=None if mask is None else mask.expand(-1, -1, groups, -1),
            scale=kwargs.get("scaling"),
        )
        outputs.append(out.reshape(cohort.rows, 1, heads, -1))
        begin = end
    return torch.cat(outputs), None


class OneBatch:
    """The cache of transformers: one batch at a time, padded on the left, from which rows are removed as they end."""

    one_prompt: ClassVar[bool] = False

    def __init__(self, model: Any) -> None:
        self.model = model
        self._cache_name = _cache_name(model)
        self._mask = torch.zeros((0, 0), dtype=torch.long)

    @property
    def rows(self) -> int:
        """The number of running responses."""
        return len(self._mask)

    def room(self, columns: int, budget: int) -> int:
        """See :class:`KeyValues`; no response fits while others run."""
        return 0 if self.rows else max(1, budget // columns)

    @torch.inference_mode()
    def admit(self, prompts: Sequence[Sequence[int]], repeats: Sequence[int], columns: int) -> Tensor:
        """See :class:`KeyValues`."""
        assert self.rows == 0
        cache = DynamicCache(config=self.model.config)
        self._cache, logits = _prefill(self.model, prompts, cache, self._cache_name)
        source = torch.arange(len(prompts)).repeat_interleave(torch.tensor(repeats)).to(self.model.device)
        self._cache.reorder_cache(source)
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=source.device)
        longest = max(map(len, prompts))
        padding = (longest - lengths)[source][:, None]
        self._mask = (torch.arange(longest, device=source.device) >= padding).long()
        self._positions = lengths[source][:, None]
        return logits[source]

    @torch.inference_mode()
    def step(self, tokens: Tensor) -> Tensor:
        """See :class:`KeyValues`."""
        self._mask = torch.cat([self._mask, self._mask.new_ones(self.rows, 1)], dim=1)
        logits = self.model(
            input_ids=tokens[:, None],
            attention_mask=self._mask,
            position_ids=self._positions,
            use_cache=True,
            **{self._cache_name: self._cache},
        ).logits[:, -1]
        self._positions = self._positions + 1
        return logits  # type: ignore[no-any-return]

    @torch.inference_mode()
    def keep(self, stay: Tensor) -> Tensor:
        """See :class:`KeyValues`."""
        order = stay.nonzero().squeeze(1)
        self._mask, self._positions = self._mask[order], self._positions[order]
        if len(order):
            self._cache.reorder_cache(order)
        return order


class OnePrompt(OneBatch):
    """The cache of transformers for the responses to one prompt at a time, without padding."""

    one_prompt: ClassVar[bool] = True


class Recomputed:
    """The responses to one prompt at a time, without a cache: each step computes the whole sequences anew."""

    one_prompt: ClassVar[bool] = True

    def __init__(self, model: Any) -> None:
        self.model = model
        self._ids = torch.zeros((0, 0), dtype=torch.long)

    @property
    def rows(self) -> int:
        """The number of running responses."""
        return len(self._ids)

    def room(self, columns: int, budget: int) -> int:
        """See :class:`KeyValues`; no response fits while others run."""
        return 0 if self.rows else max(1, budget // columns)

    @torch.inference_mode()
    def admit(self, prompts: Sequence[Sequence[int]], repeats: Sequence[int], columns: int) -> Tensor:
        """See :class:`KeyValues`."""
        ((prompt,), (count,)) = (prompts, repeats)
        self._ids = torch.tensor([prompt], device=self.model.device)
        logits = plain_logits(self.model, self._ids)[:, -1].expand(count, -1)
        self._ids = self._ids.expand(count, -1)
        return logits

    @torch.inference_mode()
    def step(self, tokens: Tensor) -> Tensor:
        """See :class:`KeyValues`."""
        self._ids = torch.cat([self._ids, tokens[:, None]], dim=1)
        return plain_logits(self.model, self._ids)[:, -1]

    @torch.inference_mode()
    def keep(self, stay: Tensor) -> Tensor:
        """See :class:`KeyValues`."""
        order = stay.nonzero().squeeze(1)
        self._ids = self._ids[order]
        return order


def plain_logits(model: Any, ids: Tensor) -> Tensor:
    """[rows, tokens, vocabulary]: the logits of sequences of equal length, by a forward without cache and padding."""
    logits: Tensor = model(input_ids=ids, use_cache=False).logits
    return logits


def _cache_name(model: Any) -> str:
    """The name of the parameter by which a model takes its cache."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return (
        "cache_params" if "cache_params" in inspect.signature(inner.forward).parameters else "past_key_values"
    )


def _prefill(
    model: Any, prompts: Sequence[Sequence[int]], cache: DynamicCache, cache_name: str = "past_key_values"
) -> tuple[Any, Tensor]:
    """Put prompts through the model; returns their keys and values, and [prompts, vocabulary], the next logits."""
    # Padded on the left, so that all prompts end in the same column and the responses go on in the next one.
    width = max(map(len, prompts))
    ids = torch.zeros((len(prompts), width), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    mask = mask.to(model.device)
    logits = model(
        input_ids=ids.to(model.device),
        attention_mask=mask,
        position_ids=(mask.cumsum(dim=1) - 1).clamp(min=0),
        use_cache=True,
        logits_to_keep=1,
        **{cache_name: cache},
    ).logits[:, -1]
    return cache, logits
