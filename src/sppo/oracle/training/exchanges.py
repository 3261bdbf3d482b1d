r"""A reward model or a general preference model of which an adapter, or all weights, are trained with the head.

With s the difference of two rewards, or the general preference model's score over its temperature, a batch's loss is

.. math:: \frac1B \sum_n \frac{w_n}{\bar w} (-t_n \log \sigma(s_n) - (1 - t_n) \log(1 - \sigma(s_n))),

where w_n is the number of judgments of pair n, :math:`\bar w` their mean over the training pairs, and t_n the share for the first response.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, normalize

from sppo import randomness
from sppo.oracle.general_preference import skew_product
from sppo.oracle.training.backbones import TAU, Backbone, Weight
from sppo.oracle.training.fit import item_of, numbers
from sppo.oracle.training.pairs import JudgedPair
from sppo.policy import adapter as adapters
from sppo.recipe.training import Lora


class ExchangeNetwork(nn.Module):
    """A backbone and its head, as something to train.

    Args:
        backbone: the backbone.
        adapter: the adapter that is trained with the head; None trains all weights.
        seed: draws the head and the adapter.

    Raises:
        sppo.policy.adapter.AdapterError: the adapter names a layer that is not there, or peft is not installed.
    """

    def __init__(self, backbone: Backbone, adapter: Lora | None, seed: int) -> None:
        super().__init__()
        head = backbone.head
        self.backbone = backbone
        if adapter is not None:
            backbone.model = adapters.added(
                backbone.model, adapter, randomness.seed("train-oracle", seed, "adapter")
            )
            for weight in backbone.lacking:
                weight.requires_grad_(True)  # it is random, and nothing else would train it
        self.adapted = adapter is not None
        self.encoder = backbone.model
        outputs = 1 if head.type == "reward_model" else head.dimensions
        self.head_layer = nn.Linear(backbone.width, outputs, bias=False)
        generator = torch.Generator().manual_seed(randomness.seed("train-oracle", seed, "head"))
        nn.init.normal_(self.head_layer.weight, std=1 / backbone.width, generator=generator)

    def forward(
        self,
        padding: int,
        probability: Float[Tensor, " pairs"],
        weight: Float[Tensor, " pairs"],
        input_ids: Int[Tensor, "texts tokens"],
        attention_mask: Int[Tensor, "texts tokens"],
        token_type_ids: Int[Tensor, "texts tokens"] | None = None,
    ) -> dict[str, Tensor]:
        """The loss and the logits of P; the first responses of all pairs stand before the second ones."""
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        if token_type_ids is not None:
            inputs["token_type_ids"] = token_type_ids
        hidden = self.backbone.hidden(inputs, padding).float()
        with torch.autocast(
            hidden.device.type, enabled=False
        ):  # a head in bfloat16 would round what P depends on
            first, second = self.head_layer(hidden).chunk(2)
        if self.backbone.head.type == "reward_model":
            score = (first - second)[:, 0]
        else:
            score = skew_product(normalize(first, dim=-1), normalize(second, dim=-1)) / TAU
        return {"loss": binary_cross_entropy_with_logits(score, probability, weight), "logits": score}

    def finish(self) -> Weight:
        """Merge the adapter into the backbone, and return the head's weight.

        Raises:
            sppo.policy.adapter.AdapterError: a merged weight is not finite.
        """
        if self.adapted:
            self.backbone.model = self.encoder = adapters.merge(self.encoder)
        weight: Weight = self.head_layer.weight.detach().double().cpu().numpy()
        return weight


class ExchangeInputs:
    """The inputs of an :class:`ExchangeNetwork`."""

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone

    def item(self, pair: JudgedPair, swapped: bool, weight: float) -> dict[str, Any]:
        """A pair's two exchanges, its target and its weight."""
        texts = [pair.response_a, pair.response_b][:: -1 if swapped else 1]
        return {"rows": self.backbone.rows([pair.prompt] * 2, texts), **item_of(pair, swapped, weight)}

    def collate(self, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """A batch, padded on the right."""
        rows = [item["rows"][side] for side in (0, 1) for item in items]
        inputs, padding = self.backbone.inputs(rows)
        return {**inputs, "padding": padding, **numbers(items)}
