"""log pi(y|x), computed by the same code for the policy that is trained and for the opponent.

Responses that share a prompt are computed together, and so are prompts that begin alike (`forest.py`): what they share goes
through the model once, the rest branches off behind it (`layout.py`) and attends to what precedes it in its own sequence
(`tree_attention.py`), and the output head is computed only where a response's token is predicted (`output_head.py`). A model for
which this would not be right gets a row for each response, with a copy of the prompt.
"""

import contextlib
import logging
import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from sppo.policy.load import PolicyError
from sppo.policy.structure import measured_once
from sppo.training.forest import LEAST_SHARED, Forest, Tree, families
from sppo.training.layout import Layout, Targets
from sppo.training.output_head import Logits, causal_model, fused, measure_logits, tolerance
from sppo.training.tree_attention import IMPLEMENTATIONS, AttentionMethod, masks, methods_to_try

__all__ = [
    "Capabilities",
    "Pack",
    "Tree",
    "log_probs",
    "measure_capabilities",
    "measure_noise",
    "packs",
    "precision",
    "response_log_probs",
    "set_training_mode",
    "small_trees",
]

_log = logging.getLogger(__name__)
# Of an average layer of width h autograd keeps about 24 h values for a token, and 2 h of its keys and values are copied, or fewer
# if queries share them.
_COPIES_PER_TOKEN = 12
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Capabilities:
    """The fastest computations that have been measured to be right for a model.

    Attributes:
        attention: the attention method for responses that share a prompt; `rows` if the model cannot share it.
        logits: the rule by which the output head gives the logits, in which case the head is fused with the log-softmax;
            None: the model's own head is called, and its logits are kept in memory.
        least_shared: the least number of tokens of a run that prompts share.
        queries_per_key: the number of attention heads that share keys and values.
    """

    attention: AttentionMethod
    logits: Logits | None
    least_shared: int = LEAST_SHARED
    queries_per_key: int = 1

    @property
    def in_one_row(self) -> bool:
        """Whether all trees are placed in one row, in which prompts that begin alike share tokens."""
        return self.attention in IMPLEMENTATIONS

    def trees(self, trees: Sequence[Tree]) -> list[Tree]:
        """The trees that are computed in place of the given ones: one for each response if prompts are not shared."""
        if self.attention == "rows":
            return [sequence for tree in trees for sequence in tree.sequences()]
        return list(trees)

    def tokens(self, trees: Sequence[Tree]) -> int:
        """The number of tokens that go through the model for the given trees, including padding, as a pack counts them.

        Tokens that trees share count once. With `pieces` the keys and values of what trees share are copied for each node that
        follows, and autograd keeps the copies, of which twelve take the memory of a token, or a multiple of twelve if queries
        share keys. They count accordingly, though trees never count for more than without sharing.
        """
        trees = self.trees(trees)
        sizes = [tree.tokens for tree in trees]
        if not self.in_one_row:
            return len(sizes) * max(sizes)
        forest = Forest(trees, self.least_shared)
        per_token = _COPIES_PER_TOKEN * self.queries_per_key
        copies = forest.copies // per_token if self.attention == "pieces" else 0
        return min(sum(sizes), forest.tokens + copies)


@dataclass(frozen=True)
class Pack:
    """Trees that go through the model in one pass.

    Attributes:
        indices: the index of each tree in the sequence that was packed.
    """

    indices: list[int]
    trees: list[Tree]


def packs(trees: Sequence[Tree], pack_tokens: int, capabilities: Capabilities) -> Iterator[Pack]:
    """Divide trees into packs, each with as many trees as the token budget allows, and at least one.

    Args:
        trees: trees with at least one response each, in any order; each becomes part of exactly one pack.
        pack_tokens: the largest number of tokens that go through the model together, including padding.
        capabilities: the model's capabilities.
    """
    # The trees are sorted by length, so that trees of similar length share a pack and rows need little padding. The index
    # breaks ties, so that the packs are the same in every run. Trees that share tokens stay together, at the place of the
    # longest of them.
    groups = (
        families(trees, capabilities.least_shared)
        if capabilities.in_one_row
        else [[i] for i in range(len(trees))]
    )
    groups.sort(key=lambda group: min((-trees[i].tokens, i) for i in group))
    order = [index for group in groups for index in group]
    ordered = [trees[index] for index in order]
    begin = 0
    while begin < len(order):
        end = begin + _fitting(ordered, begin, pack_tokens, capabilities)
        yield Pack(order[begin:end], ordered[begin:end])
        begin = end


def _fitting(trees: Sequence[Tree], begin: int, pack_tokens: int, capabilities: Capabilities) -> int:
    """The number of trees from `begin` on that fit into a pack together, at least one."""

    def tokens(count: int) -> int:
        return capabilities.tokens(trees[begin : begin + count])

    # What a further tree adds depends on all others, so that they are counted together. The number is doubled as long as the
    # trees fit and then bisected, because counting after each tree would be quadratic in their number.
    known, remaining = 1, len(trees) - begin
    while known < remaining and tokens(2 * known) <= pack_tokens:
        known = min(2 * known, remaining)
    return bisect_right(range(1, min(2 * known, remaining) + 1), pack_tokens, lo=known, key=tokens)


def response_log_probs(
    model: Any, trees: Sequence[Tree], capabilities: Capabilities
) -> Float[Tensor, " responses"]:
    r"""log pi(y|x) of all responses of some trees, in their order, in nats; differentiable.

    :math:`\log\pi(y|x) = \sum_i \log\pi(y_i | x, y_{<i})`, summed over the response tokens, the end-of-turn token
    included.

    Args:
        model: the model, possibly wrapped.
        trees: prompts with their responses.
        capabilities: the model's capabilities.
    """
    parameter = next(model.parameters())
    layout = Layout(
        capabilities.trees(trees), in_one_row=capabilities.in_one_row, least_shared=capabilities.least_shared
    ).to(parameter.device)
    # With a row for each response, the ordinary padding mask suffices: the model itself makes it causal.
    mask: Any = layout.real.long()
    if capabilities.attention != "rows":
        mask = masks(
            capabilities.attention, causal_model(model).config.get_text_config(), layout, parameter.dtype
        )
    inputs = {
        "input_ids": layout.ids,
        "attention_mask": mask,
        "position_ids": layout.positions,
        "use_cache": False,
    }
    targets = layout.targets(parameter.device)
    if capabilities.logits is None:
        token_log_probs = _with_the_models_own_head(model, inputs, targets)
    else:
        # The model is called as a whole, with its forward method replaced so that it returns log-probabilities: calling
        # its body and its head separately would bypass the wrappers that gather weights and reduce gradients.
        positions = targets.row * layout.ids.shape[1] + targets.source
        with fused(model, capabilities.logits, positions, targets.token):
            token_log_probs = model(**inputs)
    # Each token's value is added to the sum of its response, so responses of different lengths need no padding.
    total = torch.zeros(layout.responses, device=parameter.device, dtype=token_log_probs.dtype)
    return total.index_add(0, targets.response, token_log_probs)


def _with_the_models_own_head(
    model: Any, inputs: dict[str, Any], targets: Targets
) -> Float[Tensor, " tokens"]:
    # `logits_to_keep` selects the same columns in every row, so it gets the union of the columns that the rows need.
    kept, column = torch.unique(targets.source, return_inverse=True)
    logits = model(**inputs, logits_to_keep=kept).logits[targets.row, column]
    log_probs: Tensor = logits.float().log_softmax(dim=-1).gather(1, targets.token[:, None])[:, 0]
    return log_probs


def measure_capabilities(model: Any, mixed_precision: str = "no") -> Capabilities:
    """Find out, on small trees, which computations are right for the model, and log those that are not.

    The reference is a row for each response. Attention kernels that ignore a mask, recurrent layers and the like are
    revealed by log-probabilities that differ from it; a head that is more than a matrix product is revealed by those that
    differ from the model's own logits. The model's attention is left set to the method that is returned. Models of the same
    structure, such as the policies of a run, are measured once in a process.

    Args:
        model: the model, possibly wrapped.
        mixed_precision: the precision that the model itself computes in, as sharded models do.

    Raises:
        sppo.policy.load.PolicyError: the model fails to compute even a row for each response.
    """
    causal = causal_model(model)
    own = causal.config._attn_implementation
    capabilities = _measure_capabilities(model, mixed_precision)
    _result_or_error(lambda: _set_attention(causal, capabilities, own))
    return capabilities


@measured_once
def _measure_capabilities(model: Any, mixed_precision: str) -> Capabilities:
    device = next(model.parameters()).device
    size = 1 if device.type == "cpu" else 32
    trees = small_trees(model, size)
    training, allowed = model.training, tolerance(model, mixed_precision)
    causal = causal_model(model)
    config, own = causal.config.get_text_config(), causal.config._attn_implementation
    limits = _unmeasured_limits(config)
    model.eval()
    try:
        _refuse_non_causal(model, allowed)
        logits = _result_or_error(lambda: measure_logits(model, mixed_precision))
        if not isinstance(logits, Logits):
            logits = None
            _log.warning("the output head of %s is not fused: its logits are kept", type(causal).__name__)
        alone = Capabilities("rows", logits)
        with _shortened_limits(config, 3 * size):
            expected = _result_or_error(lambda: response_log_probs(model, trees, alone))
            if isinstance(expected, Exception):
                raise PolicyError(
                    f"policy.model: {type(causal).__name__} fails to compute log-probabilities:"
                    f" {type(expected).__name__}: {expected}; choose another model, or another version of transformers"
                ) from expected
            for method in [] if limits else methods_to_try(own, device):
                # Prompts share whatever they have in common, because these trees are short.
                shared = Capabilities(method, logits, least_shared=1)
                computed = _result_or_error(partial(_set_and_compute, model, trees, shared, own))
                if isinstance(computed, Tensor) and _agree(computed, expected, allowed):
                    return Capabilities(method, logits, queries_per_key=_queries_per_key(config))
        for name, limit in limits.items():
            _refuse_padding_error(model, alone, f"{name}: {limit}", min(limit, _LONGEST_PROBE), allowed)
    finally:
        model.train(training)
    reason = f"its configuration has {limits}" if limits else "sharing the prompt would change the result"
    _log.warning("%s gets a row with the prompt for each response: %s", type(causal).__name__, reason)
    return alone


def _refuse_non_causal(model: Any, allowed: float) -> None:
    """Refuse a model whose prediction of a token depends on later tokens, such as an encoder."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, _vocabulary(model), (1, 8), generator=generator).to(
        next(model.parameters()).device
    )

    def compute(part: Tensor) -> Tensor:
        logits: Tensor = model(input_ids=part, use_cache=False).logits[0, :4]
        return logits.float().log_softmax(dim=-1)

    deviation = _result_or_error(lambda: (compute(ids[:, :4]) - compute(ids)).abs().mean())
    # The mean over the vocabulary, because rounding changes single entries of a model in bfloat16 by more than `allowed`.
    if isinstance(deviation, Tensor) and deviation > 10 * allowed:
        raise PolicyError(
            f"policy.model: {type(causal_model(model)).__name__} predicts a token from later tokens, so that it gives"
            " responses no probabilities; choose a causal language model, or set is_decoder in the configuration of one"
            " that was trained as a decoder"
        )


def small_trees(model: Any, size: int = 1) -> list[Tree]:
    """Three prompts with six responses, `size` times as long as the shortest trees that reveal every fault.

    The first two have nothing in common, because one must not attend to the other; there are several responses, because they
    must not attend to each other; and different lengths, so that rows are padded. The third is a later turn of the first: its
    prompt ends with one of the first one's responses, so that three nodes follow each other. On a GPU the trees span several of
    the blocks of 128 tokens that flex attention works in, because otherwise its block mask would not be tested.
    """
    generator = torch.Generator().manual_seed(0)
    ids = iter(torch.randint(0, _vocabulary(model), (24 * size,), generator=generator).tolist())
    prompts_and_responses = ((5, (3, 4, 2)), (1, (4, 3)))

    def take(count: int) -> list[int]:
        return [next(ids) for _ in range(count * size)]

    first, second = (
        Tree(take(prompt), [take(length) for length in lengths]) for prompt, lengths in prompts_and_responses
    )
    return [first, second, Tree(first.prompt + first.responses[2], [take(2)])]


_SHORTENED = ("sliding_window", "attention_chunk_size")
_LIMIT = re.compile(r"window|chunk|index_topk|compress")
_NO_LIMIT = re.compile(r"^use_|pattern$|_layers$|^chunk_size_feed_forward$")
_LONGEST_PROBE = 2048


@contextlib.contextmanager
def _shortened_limits(config: Any, tokens: int) -> Iterator[None]:
    """Within the block, the attention window and the attention chunk of a configuration are a few tokens long."""
    # The trees of a measurement are shorter than a real window or chunk, which they would therefore not test. transformers
    # reads both values from the configuration whenever it makes a mask, and so does `masks`, so that shortening them tests
    # both sides. If a model has copied such a value, the two sides differ, and it gets a row for each response.
    before = {name: value for name in _SHORTENED if (value := getattr(config, name, None))}
    try:
        for name, value in before.items():
            setattr(config, name, min(value, tokens))
        yield
    finally:
        for name, value in before.items():
            setattr(config, name, value)


def _unmeasured_limits(config: Any) -> dict[str, int]:
    """The entries of a configuration that limit attention in ways that small trees do not reveal."""
    # Layers that count columns instead of positions, such as the local layers of GPT-Neo, are right for trees that are
    # shorter than their window and wrong for longer ones. Their window cannot be shortened: it is part of their buffers.
    return {
        name: value
        for name, value in config.to_dict().items()
        if type(value) is int and value > 0 and name not in _SHORTENED
        if _LIMIT.search(name) and not _NO_LIMIT.search(name)
    }


def _refuse_padding_error(
    model: Any, capabilities: Capabilities, limit: str, tokens: int, allowed: float
) -> None:
    """Refuse a model for which the log-probabilities of one row depend on the length of another."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, _vocabulary(model), (2 * tokens + 8,), generator=generator).tolist()
    # Both sequences exceed the limit; the shorter one is padded in one computation and not in the other.
    tree = Tree(ids[:8], [ids[8:], ids[8 : 8 + tokens + tokens // 4]])
    with torch.no_grad():
        together = response_log_probs(model, [tree], capabilities)
        alone = torch.cat([response_log_probs(model, [row], capabilities) for row in tree.sequences()])
    lengths = torch.tensor([len(response) for response in tree.responses], device=alone.device)
    if not _agree(together / lengths, alone / lengths, allowed):
        raise PolicyError(
            f"policy.model: {type(causal_model(model)).__name__} gives a response other log-probabilities beside a longer"
            f" one, because of {limit} in its configuration; choose another model"
        )


@measured_once
def measure_noise(model: Any, capabilities: Capabilities, mixed_precision: str = "no") -> bool:
    """Whether the model computes something else in training mode than in evaluation mode, which defines pi_theta.

    Noise that is added while training would be part of every log-ratio, and those of the first step would not be 0. Models of
    the same structure are measured once in a process.

    Args:
        model: the model, possibly wrapped, with its dropout off.
        capabilities: the result of :func:`measure_capabilities`.
        mixed_precision: the precision that the model itself computes in.

    Raises:
        sppo.policy.load.PolicyError: the noise cannot be switched off.
    """
    allowed = tolerance(model, mixed_precision)

    def agrees(size: int, noisy: bool) -> bool:
        trees = small_trees(model, size)
        model.eval()
        with torch.no_grad():
            expected = response_log_probs(model, trees, capabilities)
        set_training_mode(model, noisy)
        computed = _result_or_error(lambda: response_log_probs(model, trees, capabilities))
        return isinstance(computed, Tensor) and _agree(computed, expected, allowed)

    with torch.random.fork_rng():
        # A router that draws its experts changes so few tokens that small trees can miss it. It is noticed by the random
        # numbers that it takes.
        before = _random_states()
        if agrees(1, noisy=False) and _random_states() == before:
            return False
        if agrees(16 if _context(model) > 9 * 16 else 1, noisy=True):
            return True
    raise PolicyError(
        f"policy.model: {type(causal_model(model)).__name__} adds noise while it is trained, so that its log-ratios would"
        " be wrong; switch the noise off in its configuration, or choose another model"
    )


def _random_states() -> list[bytes]:
    """The states of torch's random number generators."""
    on_gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return [state.numpy().tobytes() for state in (torch.get_rng_state(), *on_gpus)]


def set_training_mode(model: Any, noisy: bool) -> None:
    """Put a model into training mode; a noisy one only where this is needed to recompute activations."""
    model.train()
    if noisy:
        # transformers checkpoints a layer only in training mode. The flag is set on the layer alone: the modules within it,
        # where routers and the like add their noise, stay in evaluation mode.
        for module in causal_model(model).modules():
            module.training = bool(getattr(module, "gradient_checkpointing", False))


def _agree(one: Tensor, other: Tensor, allowed: float) -> bool:
    return torch.allclose(one, other, rtol=allowed, atol=allowed)


def _set_and_compute(model: Any, trees: Sequence[Tree], capabilities: Capabilities, own: str) -> Tensor:
    _set_attention(causal_model(model), capabilities, own)
    return response_log_probs(model, trees, capabilities)


def _set_attention(causal: Any, capabilities: Capabilities, own: str) -> None:
    causal.set_attn_implementation(IMPLEMENTATIONS.get(capabilities.attention, own))


def _result_or_error(compute: Callable[[], _Result]) -> _Result | Exception:
    """The result of a computation without gradients, or the error that the model raises."""
    try:
        with torch.no_grad():
            return compute()
    except (TypeError, ValueError, RuntimeError, KeyError, IndexError, AttributeError) as error:
        return error


def _queries_per_key(config: Any) -> int:
    """The number of attention heads that share keys and values; 1 if the configuration does not tell."""
    heads = getattr(config, "num_attention_heads", None)
    shared = getattr(config, "num_key_value_heads", None)
    return heads // shared if isinstance(heads, int) and isinstance(shared, int) and shared else 1


def _vocabulary(model: Any) -> int:
    return int(causal_model(model).config.get_text_config().vocab_size)


def _context(model: Any) -> int:
    return int(
        getattr(causal_model(model).config.get_text_config(), "max_position_embeddings", None) or 1 << 20
    )


def precision(mixed_precision: str, device: torch.device | str) -> contextlib.AbstractContextManager[Any]:
    """The autocast context for a recipe's `mixed_precision`."""
    if mixed_precision == "no":
        return contextlib.nullcontext()
    return torch.autocast(torch.device(device).type, dtype=torch.bfloat16)


@torch.no_grad()
def log_probs(
    model: Any,
    trees: Sequence[Tree],
    *,
    pack_tokens: int,
    mixed_precision: str = "no",
    capabilities: Capabilities | None = None,
) -> list[list[float]]:
    """log pi(y|x) of the responses of any number of trees, in nats, without gradients.

    Args:
        model: the model on its device, in evaluation mode.
        trees: prompts with their responses; a tree without responses is allowed.
        pack_tokens: the largest number of tokens that go through the model together.
        mixed_precision: `no` or `bf16`, as in training.
        capabilities: the model's capabilities; None: they are measured first.

    Returns:
        For each tree, one value for each of its responses.
    """
    capabilities = capabilities or measure_capabilities(model)
    results: list[list[float]] = [[] for _ in trees]
    device = next(model.parameters()).device
    nonempty = [index for index, tree in enumerate(trees) if tree.responses]
    for pack in packs([trees[index] for index in nonempty], pack_tokens, capabilities):
        with precision(mixed_precision, device):
            values = response_log_probs(model, pack.trees, capabilities)
        remaining = iter(values.tolist())
        for index, tree in zip(pack.indices, pack.trees, strict=True):
            results[nonempty[index]] = [next(remaining) for _ in tree.responses]
    return results
