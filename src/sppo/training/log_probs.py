"""log pi(y|x): one piece of code for the policy that is trained and for the opponent.

Responses that share a prompt are computed together: the prompt's tokens go through the model once, and each response
branches off behind it (`layout.py`), sees the prompt and itself (`tree_attention.py`), and meets the output head only
where its tokens are predicted (`output_head.py`). A model that cannot take such a mask gets a row for each response, with
the prompt before it.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from sppo.training.layout import Layout, Targets, Tree
from sppo.training.output_head import Logits, causal_model, fused, measure_logits, tolerance
from sppo.training.tree_attention import IMPLEMENTATIONS, AttentionMethod, masks, methods_to_try

__all__ = [
    "Capabilities",
    "Pack",
    "Tree",
    "log_probs",
    "measure_capabilities",
    "packs",
    "precision",
    "response_log_probs",
]

_log = logging.getLogger(__name__)
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Capabilities:
    """The fastest computations that were measured to be right for a model.

    Attributes:
        attention: how responses that share a prompt attend; `rows` where the model cannot share it.
        logits: how the logits follow from the output head, which is then fused with the log-softmax; None: the model's
            own head is called, and its logits are kept.
    """

    attention: AttentionMethod
    logits: Logits | None

    @property
    def in_one_row(self) -> bool:
        """Whether trees stand one after the other in one row, without padding."""
        return self.attention in IMPLEMENTATIONS

    def trees(self, trees: Sequence[Tree]) -> list[Tree]:
        """The trees that go through the model in the place of the given ones."""
        if self.attention == "rows":
            return [sequence for tree in trees for sequence in tree.sequences()]
        return list(trees)

    def tokens(self, trees: Sequence[Tree]) -> int:
        """The number of tokens that go through the model for the trees, padding included."""
        sizes = [tree.tokens for tree in self.trees(trees)]
        return sum(sizes) if self.in_one_row else len(sizes) * max(sizes)


@dataclass(frozen=True)
class Pack:
    """Trees that go through the model in one pass.

    Attributes:
        indices: the trees' places in the sequence that was packed.
    """

    indices: list[int]
    trees: list[Tree]


def packs(trees: Sequence[Tree], pack_tokens: int, capabilities: Capabilities) -> Iterator[Pack]:
    """Divide trees into packs: as many as the budget holds, and at least one.

    Args:
        trees: in any order, each with at least one response. Each is in exactly one pack.
        pack_tokens: the most tokens that go through the model together, padding included.
        capabilities: of the model.
    """
    # Longest first: neighbours are of like size, so that rows need little padding. The index decides between equals, so
    # that the packs are the same in every run.
    pack: list[int] = []
    for index in sorted(range(len(trees)), key=lambda i: (-trees[i].tokens, i)):
        if pack and capabilities.tokens([trees[i] for i in [*pack, index]]) > pack_tokens:
            yield Pack(pack, [trees[i] for i in pack])
            pack = []
        pack.append(index)
    if pack:
        yield Pack(pack, [trees[i] for i in pack])


def response_log_probs(
    model: Any, trees: Sequence[Tree], capabilities: Capabilities
) -> Float[Tensor, " responses"]:
    r"""log pi(y|x) of all responses of some trees, in their order, in nats; differentiable.

    log pi(y|x) is the sum over the response's tokens, the end-of-turn token included. The output head is computed only
    where a response token is predicted.

    Args:
        model: a causal language model of transformers, wrapped or not.
        trees: computed in one pass.
        capabilities: of the model.
    """
    parameter = next(model.parameters())
    layout = Layout(capabilities.trees(trees), in_one_row=capabilities.in_one_row).to(parameter.device)
    # With a row for each response, the ordinary mask of padding will do: the model makes it causal.
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
        # The model is called as a whole, its forward replaced meanwhile: calling its body and its head separately would
        # go past the wrappers that gather weights and reduce gradients. It then returns log-probabilities.
        positions = targets.row * layout.ids.shape[1] + targets.source
        with fused(model, capabilities.logits, positions, targets.token):
            token_log_probs = model(**inputs)
    # Token by token into the response that each belongs to; responses of any lengths, without padding.
    total = torch.zeros(layout.responses, device=parameter.device, dtype=token_log_probs.dtype)
    return total.index_add(0, targets.response, token_log_probs)


def _with_the_models_own_head(
    model: Any, inputs: dict[str, Any], targets: Targets
) -> Float[Tensor, " tokens"]:
    # `logits_to_keep` takes columns, the same in every row: the union of the columns that any row needs, each once.
    kept, column = torch.unique(targets.source, return_inverse=True)
    logits = model(**inputs, logits_to_keep=kept).logits[targets.row, column]
    log_probs: Tensor = logits.float().log_softmax(dim=-1).gather(1, targets.token[:, None])[:, 0]
    return log_probs


def measure_capabilities(model: Any, mixed_precision: str = "no") -> Capabilities:
    """Find out, on small trees, how the model computes right and fastest; log what it cannot do.

    The reference is a row for each response. Attention kernels that ignore a mask, recurrent layers and the like show in
    log-probabilities that differ from it; a head that is more than a matrix product shows in those that differ from
    the model's own logits. The model's attention is left set to the method that is returned.

    Args:
        model: wrapped or not.
        mixed_precision: the precision that the model computes in by itself, as sharded models do.
    """
    device = next(model.parameters()).device
    trees = _small_trees(_vocabulary(model), size=1 if device.type == "cpu" else 32)
    training, allowed = model.training, tolerance(model, mixed_precision)
    causal = causal_model(model)
    own = causal.config._attn_implementation
    model.eval()
    try:
        logits = _attempt(lambda: measure_logits(model, mixed_precision))
        if logits is None:
            _log.warning("the output head of %s is not fused: its logits are kept", type(causal).__name__)
        alone = Capabilities("rows", logits)
        expected = _attempt(lambda: response_log_probs(model, trees, alone))
        for method in methods_to_try(own, device):
            shared = Capabilities(method, logits)
            computed = _attempt(partial(_set_and_compute, model, trees, shared, own))
            if (
                computed is not None
                and expected is not None
                and torch.allclose(computed, expected, rtol=allowed, atol=allowed)
            ):
                return shared
    finally:
        model.train(training)
    _attempt(lambda: causal.set_attn_implementation(own))
    _log.warning("%s does not compute responses that share a prompt together", type(causal).__name__)
    return alone


def _small_trees(vocabulary: int, size: int) -> list[Tree]:
    """Two prompts with five responses, `size` times as long as the least that shows every fault.

    Two trees, so that one must not see the other; several responses, so that they must not see each other, and of
    several lengths, so that rows are padded. On a GPU the trees span several of the blocks of 128
    tokens that flex attention works in, or its block mask would not be put to the test.
    """
    generator = torch.Generator().manual_seed(0)
    ids = iter(torch.randint(0, vocabulary, (22 * size,), generator=generator).tolist())
    prompts_and_responses = ((5, (3, 4, 2)), (1, (4, 3)))

    def take(count: int) -> list[int]:
        return [next(ids) for _ in range(count * size)]

    return [
        Tree(take(prompt), [take(length) for length in lengths]) for prompt, lengths in prompts_and_responses
    ]


def _set_and_compute(model: Any, trees: Sequence[Tree], capabilities: Capabilities, own: str) -> Tensor:
    causal_model(model).set_attn_implementation(IMPLEMENTATIONS.get(capabilities.attention, own))
    return response_log_probs(model, trees, capabilities)


def _attempt(compute: Callable[[], _Result]) -> _Result | None:
    """The result of a computation without gradients; None where the model raises an error."""
    try:
        with torch.no_grad():
            return compute()
    except (TypeError, ValueError, RuntimeError, KeyError, IndexError, AttributeError):
        return None


def _vocabulary(model: Any) -> int:
    return int(causal_model(model).config.get_text_config().vocab_size)


def precision(mixed_precision: str, device: torch.device | str) -> AbstractContextManager[Any]:
    """The autocast block that a recipe's `mixed_precision` stands for."""
    if mixed_precision == "no":
        return nullcontext()
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
        model: on its device, in evaluation mode.
        trees: prompts with their responses; a tree without responses is allowed.
        pack_tokens: the most tokens that go through the model together.
        mixed_precision: `no` or `bf16`, as in training.
        capabilities: of the model; None: they are measured first.

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
