"""Which way of sampling a model computes right, measured when it is loaded.

Architectures differ in what they do with padding, windows, chunks and caches, and a wrong way raises no error: it draws from
another distribution. So each way is compared with plain forwards, which have neither cache nor padding, on prompts and
responses that reach beyond every window and chunk that the configuration names; the fastest that agrees is taken.
"""

from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from sppo.policy.structure import measured_once
from sppo.sampling import SamplingError
from sppo.sampling.key_values import (
    BY_COHORT,
    Cohorts,
    KeyValues,
    OneBatch,
    OnePrompt,
    Recomputed,
    plain_logits,
)

_STEPS = 8
_LEAST_SPAN = 9
# The most work of a probe, in parameters times tokens of its longest prompt: about a second.
_WORK = {"cpu": 4e10, "cuda": 1e14}
# What a model's rounding may change: the largest difference of a log-probability in float32, and in other types, where
# single differences are large, the mean divergence of the distributions; both in nats.
_TOLERANCE_FLOAT32 = 2e-3
_TOLERANCE_HALF = 0.05


@measured_once
def fastest_right_way(model: Any) -> type[KeyValues]:
    """The fastest class of keys and values with which the model gives the logits of a plain forward.

    Models of the same structure, such as the policies of a run, are measured once in a process.

    Raises:
        SamplingError: not even whole sequences without a cache can be computed, or the model is not causal.
    """
    span, is_whole = _span(model)
    before = model.config._attn_implementation
    ways: list[type[KeyValues]] = [OnePrompt]
    if is_whole or not _has_chunks(
        model
    ):  # a probe that ends before the first border of chunks cannot clear padding
        ways = [OneBatch, OnePrompt]
        if before in ("sdpa", BY_COHORT):
            ways = [Cohorts, *ways]
    for way in ways:
        if _agrees(model, way, span):
            return way
        if way is Cohorts:
            model.set_attn_implementation(before)
    ids = torch.tensor([_draw_ids(model, 8)], device=model.device)
    try:
        with torch.inference_mode():
            first, whole = plain_logits(model, ids[:, :4])[0], plain_logits(model, ids)[0]
    except (TypeError, ValueError, RuntimeError, LookupError, AttributeError, NotImplementedError) as error:
        raise SamplingError(
            f"policy.model: {type(model).__name__} cannot compute a sequence without a cache ({error}); it cannot be"
            " sampled here. Use the engine vllm, if vLLM supports the model, or another base policy"
        ) from error
    if not _is_close(first, whole, model.dtype):
        raise SamplingError(
            f"policy.model: {type(model).__name__} predicts a token from later tokens, so that responses cannot be drawn"
            " token by token; choose a causal language model, or set is_decoder in the configuration of one that was"
            " trained as a decoder"
        )
    return Recomputed


def rope_limit(config: Any) -> int | None:
    """The length from which on RoPE is another for the whole sequence; None if it never changes."""
    # Dynamic NTK and longrope choose the angles of all positions by the length of the sequence in the forward. Then the
    # probability of a token depends on how long its response becomes, so a policy is only defined up to this length.
    text = config.get_text_config()
    parameters = getattr(text, "rope_parameters", None) or {}
    groups = [group for group in (parameters, *parameters.values()) if isinstance(group, dict)]
    if not any(group.get("rope_type") in ("dynamic", "longrope") for group in groups):
        return None
    limits = [group.get("original_max_position_embeddings") for group in groups]
    limits += [getattr(text, "original_max_position_embeddings", None), text.max_position_embeddings]
    return next(int(limit) for limit in limits if limit)


def _span(model: Any) -> tuple[int, bool]:
    """The length of the longest prompt of the probe, and whether it reaches to the last window and chunk."""
    text = model.config.get_text_config()
    # Behind the first chunk a wrong way can still look right: the second border shows whether chunks begin by position.
    sizes = [
        2 * value if "chunk" in name else value
        for name, value in vars(text).items()
        if ("window" in name or "chunk" in name or name == "block_size") and type(value) is int
    ]
    # Its responses then cross the border.
    span = max(max(sizes, default=0) - _STEPS // 2, _LEAST_SPAN)
    limits = [rope_limit(model.config), getattr(text, "max_position_embeddings", None)]
    span = max(1, min([span, *(limit - _STEPS - 1 for limit in limits if limit)]))
    work = _WORK.get(model.device.type, _WORK["cpu"]) / max(model.num_parameters(), 1)
    return (span, True) if span <= max(work, _LEAST_SPAN) else (_LEAST_SPAN, False)


def _has_chunks(model: Any) -> bool:
    text = model.config.get_text_config()
    return "chunked_attention" in (getattr(text, "layer_types", None) or [])


def _draw_ids(model: Any, count: int) -> list[int]:
    vocabulary = model.config.get_text_config().vocab_size
    ids: list[int] = torch.randint(
        0, vocabulary, (count,), generator=torch.Generator().manual_seed(0)
    ).tolist()
    return ids


def _agrees(model: Any, way: type[KeyValues], span: int) -> bool:
    """Whether given responses get the same logits as in plain forwards."""
    ids = _draw_ids(model, span + 3 * _STEPS + 6)
    responses = [ids[span + 6 + row * _STEPS :][:_STEPS] for row in range(3)]
    # Two prompts of different lengths, for the padding; one with two responses, for the copies; a row that ends early,
    # for the rows that move.
    prompts, owners = [ids[:span], ids[span : span + 6]], [0, 1, 1]
    batches = [[0], [1, 2]] if way.one_prompt else [[0, 1, 2]]
    try:
        for rows in batches:
            owned = [owners[row] for row in rows]
            expected = _plain(model, [prompts[owner] for owner in owned], [responses[row] for row in rows])
            repeats = [owned.count(owner) for owner in sorted(set(owned))]
            logits = _by_steps(
                way(model),
                [prompts[owner] for owner in sorted(set(owned))],
                repeats,
                torch.tensor([responses[row] for row in rows], device=model.device),
            )
            if not all(_is_close(*pair, model.dtype) for pair in zip(logits, expected, strict=True)):
                return False
    except (TypeError, ValueError, RuntimeError, LookupError, AttributeError, NotImplementedError):
        return False
    return True


@torch.inference_mode()
def _plain(model: Any, prompts: list[list[int]], responses: list[list[int]]) -> list[Tensor]:
    """For each row [steps, vocabulary], the logits of its response's tokens and of the one behind the last but one."""
    # Sequences of equal length, which need no padding, go through the model together: the weights are read once for them.
    logits: list[Tensor] = []
    for length, rows in groupby(zip(prompts, responses, strict=True), key=lambda row: len(row[0])):
        ids = torch.tensor([prompt + response[:-1] for prompt, response in rows], device=model.device)
        logits += plain_logits(model, ids)[:, length - 1 :]
    return logits


def _by_steps(
    rows: KeyValues, prompts: list[list[int]], repeats: list[int], responses: Tensor
) -> list[Tensor]:
    """The same logits step by step; where there are several rows, the second ends in the middle."""
    numbers = torch.arange(len(responses), device=responses.device)
    written: list[list[Tensor]] = [[] for _ in responses]
    logits = rows.admit(prompts, repeats, len(prompts[0]) + _STEPS)
    for step in range(_STEPS):
        for row, values in zip(numbers.tolist(), logits, strict=True):
            written[row].append(values)
        if step == _STEPS // 2 and len(numbers) > 1:
            order = rows.keep(numbers != 1)
            numbers = numbers[order]
        if step < _STEPS - 1:
            logits = rows.step(responses[numbers, step])
    return [torch.stack(values) for values in written]


def _is_close(logits: Tensor, expected: Tensor, dtype: torch.dtype) -> bool:
    found = logits.float().log_softmax(dim=-1)
    wanted = expected[: len(found)].float().log_softmax(dim=-1)
    if dtype == torch.float32:
        return bool(((found - wanted).abs() <= _TOLERANCE_FLOAT32 * (1 + wanted.abs())).all())
    divergence = (wanted.exp() * (wanted - found)).sum(dim=-1)
    return bool(divergence.mean() <= _TOLERANCE_HALF)  # a NaN agrees with nothing
