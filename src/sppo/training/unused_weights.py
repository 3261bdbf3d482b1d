"""Weights that get no gradient while training.

Several processes wait for the gradient of every weight that is trained, so that they must know if some get none. Such a weight is
after the training what it was before, which should not go unsaid.
"""

import logging
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from sppo.policy.structure import measured_once
from sppo.training.log_probs import Capabilities, response_log_probs, small_trees
from sppo.training.output_head import causal_model

_log = logging.getLogger(__name__)
_SHOWN = 4


def freeze_beside_text(model: nn.Module) -> None:
    """Freeze the weights of a multimodal model that text never reaches, such as those of its vision tower."""
    causal = causal_model(model)
    if causal.config.get_text_config() is causal.config:
        return
    head = causal.get_output_embeddings()
    text = [causal.get_decoder(), *([head] if head is not None else [])]
    reached = {id(parameter) for module in text for parameter in module.parameters()}
    for parameter in causal.parameters():
        if id(parameter) not in reached:
            parameter.requires_grad_(False)


def has_weights_without_gradient(model: nn.Module, capabilities: Capabilities) -> bool:
    """Whether some of the trained weights get no gradient from a short text, such as those that choose what is attended to.

    They are named, but not frozen: an expert that no token of a short text is sent to, or a layer that takes part in long
    texts only, can get a gradient from another text.

    Args:
        model: the model, not sharded.
        capabilities: the result of :func:`sppo.training.log_probs.measure_capabilities`.
    """
    names = _names_without_gradient(model, capabilities)
    if names:
        _log.warning(
            "%d weights of %s get no gradient from a short text; where no text gives them one, training leaves them as they"
            " are: %s",
            len(names),
            type(causal_model(model)).__name__,
            _shortened(names),
        )
    return bool(names)


@measured_once
def _names_without_gradient(model: nn.Module, capabilities: Capabilities) -> list[str]:
    reached = _reached(response_log_probs(model, small_trees(model), capabilities))
    return [
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and id(parameter) not in reached
    ]


def _reached(result: Tensor) -> set[int]:
    """The weights that a backward pass from a result gives gradients to, found by walking its graph."""
    reached, seen, nodes = set(), set(), [result.grad_fn]
    while nodes:
        node: Any = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            reached.add(id(node.variable))
        nodes += [following for following, _ in node.next_functions]
    return reached


def _shortened(names: Iterable[str]) -> str:
    """Some of the names, with a star for the number of a layer."""
    kinds = sorted({".".join("*" if part.isdigit() else part for part in name.split(".")) for name in names})
    return ", ".join(kinds[:_SHOWN]) + (" and more" if len(kinds) > _SHOWN else "")
