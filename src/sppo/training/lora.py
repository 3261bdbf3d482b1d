"""Train a LoRA adapter instead of the weights.

If pi_t is an adapter, training continues with that adapter. Any other policy gets a fresh adapter whose matrices B are
zero, so that W + B A = W and the adapted policy computes exactly what the policy computes. In both cases training starts
from pi_t: all log-ratios of the first step are 0.
"""

import logging
from pathlib import Path
from typing import Any

import torch

from sppo.policy import adapter as adapters
from sppo.policy import load as policies
from sppo.policy.adapter import BasePolicy
from sppo.policy.chat_format import model_path
from sppo.policy.model_files import load_errors, weights_digest
from sppo.recipe import Lora, RecipeError, Sampling

_log = logging.getLogger(__name__)
_TASK = "CAUSAL_LM"


def check(
    settings: Lora | None,
    policy: Path,
    *,
    sampling: Sampling,
    quantization: str | None,
    trust_remote_code: bool,
) -> None:
    """Refuse, before anything is computed, a base policy that cannot be trained, or not with this adapter.

    Args:
        settings: the recipe's `training.adapter`.
        policy: the folder of the base policy, which can be an adapter.
        sampling: the recipe's `sampling` section, whose engine must be able to load adapters unless they are merged.
        quantization: the recipe's `policy.quantization`.
        trust_remote_code: as in :func:`sppo.policy.load`.

    Raises:
        RecipeError: a name matches no layer, the base policy is an adapter with other settings, or all weights of a
            quantised policy would be trained.
        AdapterError: the base policy is an adapter that cannot be used.
    """
    is_adapter = adapters.is_adapter(policy)
    if settings is None:
        if is_adapter:
            raise RecipeError(
                f"policy.model: {policy} is an adapter, which cannot be trained without training.adapter; set"
                " training.adapter to the adapter's settings, or merge it first: sppo export"
            )
        if method := policies.quantization_method(policy):
            raise RecipeError(
                f"policy.model: the weights of {policy} are quantised ({method}), so they have no gradients; set"
                " training.adapter to train an adapter beside them, or use a model whose weights are not quantised"
            )
        return
    if not sampling.takes_adapters and (is_adapter or not settings.merge):
        raise RecipeError(
            f"sampling.engine: {sampling.engine} samples only from whole policies during a run; set training.adapter.merge: true"
            f"{', and merge policy.model first: sppo export' if is_adapter else ''}, or engine: transformers"
        )
    base = policies.base_folder(policy, trust_remote_code=trust_remote_code)
    if settings.merge and (method := policies.quantization_method(base)):
        raise RecipeError(
            f"training.adapter.merge: true, but the weights of {base} are quantised ({method}), so that the update would be"
            " lost in rounding; set it to false"
        )
    layers = _adapted_layers(base, adapters.lora_config(settings, _TASK), settings, trust_remote_code)
    if is_adapter:
        _check_continued(settings, policy, base, layers, quantization, trust_remote_code)


def _check_continued(
    settings: Lora,
    policy: Path,
    base: Path,
    layers: set[str],
    quantization: str | None,
    trust_remote_code: bool,
) -> None:
    """Refuse an adapter that training would continue with, if its settings are not those of the recipe."""
    from peft import LoraConfig

    recorded = adapters.quantization_of(policy, quantization)
    if recorded != quantization:
        raise RecipeError(
            f"policy.quantization: none, but the adapter in {policy} was trained on a quantised base; set it to"
            f" {recorded}, or merge the adapter first: sppo export"
        )
    with load_errors(f"{policy} is no adapter that can be trained", adapters.AdapterError):
        config = LoraConfig.from_pretrained(str(policy))
    for name in ("r", "lora_alpha", "use_rslora"):
        if getattr(config, name) != getattr(settings, name):
            raise RecipeError(
                f"training.adapter.{name}: {getattr(settings, name)}, but the adapter in policy.model, with which training"
                f" continues, has {getattr(config, name)}; set it to that value, or merge the adapter first: sppo export"
            )
    config.base_model_name_or_path = None
    others = _adapted_layers(base, config, settings, trust_remote_code)
    if others != layers:
        names = sorted({name.rpartition(".")[2] for name in others})
        raise RecipeError(
            "training.adapter.target_modules: the adapter in policy.model, with which training continues, has others"
            f" ({', '.join(names)}); name the same layers, or merge the adapter first: sppo export"
        )


def prepare(model: Any, settings: Lora, seed: int) -> Any:
    """Add a trainable adapter to a policy, whose own weights get no gradients.

    Args:
        model: the policy as :func:`sppo.policy.load` returns it.
        settings: the recipe's `training.adapter`.
        seed: decides the matrices A of a fresh adapter.
    """
    from peft import PeftModel

    if isinstance(model, PeftModel):
        model.set_adapter("default")
        return model
    return adapters.added(model, settings, seed, _TASK)


def save(
    model: Any,
    folder: Path,
    *,
    policy: Path,
    model_name: str | None,
    revision: str | None,
    quantization: str | None,
) -> None:
    """Write the adapter without the base's weights, with a record of how to find the base again.

    Args:
        model: the model that :func:`prepare` returned.
        folder: the folder to write.
        policy: the folder of pi_t.
        model_name: the base policy as the recipe names it; not used if pi_t is an adapter, which records its base.
        revision: the revision of the base policy.
        quantization: the recipe's `policy.quantization`.

    Raises:
        sppo.policy.load.PolicyError: a weight of the adapter is not finite.
    """
    trained = ((name, value) for name, value in model.named_parameters() if value.requires_grad)
    policies.refuse_non_finite(trained, f"{folder} is not written")
    base = policies.base_folder(policy)
    model_name = model_name or str(base)
    local = model_path(model_name) == model_name and Path(model_name).is_dir()
    if adapters.is_adapter(policy):
        recorded = adapters.base_of(policy)
        model_name, revision = recorded.model, recorded.revision
        local = Path(model_name).is_dir() or recorded.relative is not None
    adapters.save(
        model,
        folder,
        BasePolicy(
            model=str(base.absolute()) if local else model_name,
            revision=revision,
            relative=adapters.relative_path(base, folder) if local else None,
            sha256=weights_digest(base),
            quantization=quantization,
        ),
    )


def merged(model: Any, dtype: torch.dtype) -> Any:
    """Merge the adapter into the model's weights, to be saved in `dtype`."""
    if dtype == torch.float32:
        model = (
            model.float()
        )  # converted before merging, so that the update is not rounded to the weights' dtype
    return adapters.merge(model)


def _adapted_layers(base: Path, config: Any, settings: Lora, trust_remote_code: bool) -> set[str]:
    """The names of the layers that a configuration adapts, determined without loading weights."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            AutoConfig.from_pretrained(base, trust_remote_code=trust_remote_code),
            trust_remote_code=trust_remote_code,
        )
    total = model.num_parameters()
    experts = {name: value.numel() for name, value in model.named_parameters() if value.ndim == 3}
    if fault := adapters.fault_of_targets(model, settings, str(base)):
        raise RecipeError(f"training.adapter.target_modules: {fault}")
    known = adapters.linear_layers(model)  # before peft puts its own into their places
    try:
        adapted = adapters.inject(model, config)
    except ValueError as error:
        raise RecipeError(f"training.adapter.target_modules: {error}") from error
    if adapters.adapts_embeddings(adapted):
        raise RecipeError(
            "training.adapter.target_modules: the token embeddings and the output head cannot be adapted; its linear"
            f" layers are {known}"
        )
    if experts and settings.target_modules == "all-linear":
        # Mixtures keep the weights of all experts of a layer in one tensor, which is not a linear layer to peft.
        _log.warning(
            "training.adapter.target_modules: all-linear does not adapt the experts of %s (%s), which hold %d%% of its"
            " weights",
            base,
            ", ".join(sorted({name.rpartition(".")[2] for name in experts})),
            100 * sum(experts.values()) // total,
        )
    return {name for name, module in adapted.named_modules() if isinstance(module, BaseTunerLayer)}
