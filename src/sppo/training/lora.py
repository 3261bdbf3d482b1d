"""The adapter that is trained instead of the weights.

If pi_t is an adapter's folder, training goes on with that adapter. Any other policy gets a fresh adapter whose matrices
B are zero, so that W + B A = W and the adapted policy computes exactly what the policy computes. Either way training
starts from pi_t: all log-ratios of the first step are 0.
"""

from pathlib import Path
from typing import Any

import torch

from sppo.policy import adapter as adapters
from sppo.policy import load as policies
from sppo.policy.adapter import BasePolicy
from sppo.policy.chat_format import model_path
from sppo.recipe import Lora, RecipeError, Sampling


def check(
    settings: Lora | None,
    policy: Path,
    *,
    sampling: Sampling,
    quantization: str | None,
    trust_remote_code: bool,
) -> None:
    """Refuse an adapter that the base policy cannot take, before anything is computed.

    Args:
        settings: the recipe's `training.adapter`.
        policy: folder of the base policy; it can be an adapter's.
        sampling: the recipe's `sampling`, whose engine has to take adapters unless they are merged.
        quantization: the recipe's `policy.quantization`.
        trust_remote_code: as in :func:`sppo.policy.load`.

    Raises:
        RecipeError: a name matches no layer, or the base policy is an adapter of other settings.
        AdapterError: the base policy is an adapter that cannot be used.
    """
    given = adapters.is_adapter(policy)
    if settings is None:
        if given:
            raise RecipeError(
                f"policy.model: {policy} is an adapter, which cannot be trained without one; set training.adapter"
                " to its settings, or merge it first: sppo export"
            )
        return
    if not sampling.takes_adapters and (given or not settings.merge):
        raise RecipeError(
            f"sampling.engine: {sampling.engine} samples only from whole policies during a run; set training.adapter.merge: true"
            f"{', and merge policy.model first: sppo export' if given else ''}, or engine: transformers"
        )
    base = policies.base_folder(policy, trust_remote_code=trust_remote_code)
    layers = _layers(base, _config(settings), settings, trust_remote_code)
    if not given:
        return
    if adapters.quantization_of(policy, quantization) != quantization:
        raise RecipeError(
            f"policy.quantization: none, but the adapter in {policy} was trained on a quantised base; set it to"
            f" {adapters.quantization_of(policy, None)}, or merge the adapter first: sppo export"
        )
    from peft import LoraConfig

    theirs = LoraConfig.from_pretrained(str(policy))
    for name in ("r", "lora_alpha", "use_rslora"):
        if getattr(theirs, name) != getattr(settings, name):
            raise RecipeError(
                f"training.adapter.{name}: {getattr(settings, name)}, but the adapter in policy.model, which"
                f" training goes on with, has {getattr(theirs, name)}; say the same, or merge it first: sppo export"
            )
    theirs.base_model_name_or_path = None
    others = _layers(base, theirs, settings, trust_remote_code)
    if others != layers:
        named = sorted({name.rpartition(".")[2] for name in others})
        raise RecipeError(
            "training.adapter.target_modules: the adapter in policy.model, which training goes on with, has"
            f" others ({', '.join(named)}); say the same, or merge it first: sppo export"
        )


def prepare(model: Any, settings: Lora, seed: int) -> Any:
    """The policy with a trainable adapter in it; nothing else of it has gradients.

    Args:
        model: as :func:`sppo.policy.load` returns it.
        settings: the recipe's `training.adapter`.
        seed: decides a fresh adapter's matrices A.
    """
    from peft import PeftModel, get_peft_model

    if isinstance(model, PeftModel):
        model.set_adapter("default")
        return model
    # The adapter's random numbers are its own: those of the training go on as if there were no adapter.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return get_peft_model(model, _config(settings))


def save(
    model: Any,
    folder: Path,
    *,
    policy: Path,
    model_name: str | None,
    revision: str | None,
    quantization: str | None,
) -> None:
    """Write the adapter without the base weights, and what is needed to find the base again.

    Args:
        model: as :func:`prepare` returned it.
        folder: the folder to write.
        policy: folder of pi_t.
        model_name: the base policy as the recipe calls it, where pi_t is no adapter.
        revision: the revision of that policy.
        quantization: the recipe's `policy.quantization`.
    """
    base = policies.base_folder(policy)
    model_name = model_name or str(base)
    local = model_path(model_name) == model_name and Path(model_name).is_dir()
    if adapters.is_adapter(policy):
        before = adapters.base_of(policy)
        model_name, revision = before.model, before.revision
        local = Path(model_name).is_dir() or before.relative is not None
    adapters.save(
        model,
        folder,
        BasePolicy(
            model=str(base.absolute()) if local else model_name,
            revision=revision,
            relative=adapters.relative_path(base, folder) if local else None,
            sha256=policies.weights_digest(base),
            quantization=quantization,
        ),
    )


def merged(model: Any, dtype: torch.dtype) -> Any:
    """The ordinary model with the adapter merged into its weights, to be saved in `dtype`."""
    if dtype == torch.float32:
        model = model.float()  # before merging, so that the update is not rounded to the weights' dtype
    return adapters.merge(model)


def _config(settings: Lora) -> Any:
    from peft import LoraConfig

    # No dropout: it would add noise to the log-ratios, which would not be 0 at the first step.
    return LoraConfig(
        task_type="CAUSAL_LM",
        lora_dropout=0.0,
        **settings.model_dump(include={"r", "lora_alpha", "target_modules", "use_rslora"}),
    )


def _layers(base: Path, config: Any, settings: Lora, trust_remote_code: bool) -> set[str]:
    """The names of the layers that a configuration adapts, determined without loading weights."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        whole = AutoModelForCausalLM.from_config(
            AutoConfig.from_pretrained(base, trust_remote_code=trust_remote_code),
            trust_remote_code=trust_remote_code,
        )
    linear = {name for name, module in whole.named_modules() if isinstance(module, torch.nn.Linear)}
    known = ", ".join(sorted({name.rpartition(".")[2] for name in linear} - {"lm_head"}))
    wanted = settings.target_modules if isinstance(settings.target_modules, list) else []
    names = [name for name, _ in whole.named_modules()]
    for target in wanted:
        if not any(name == target or name.endswith(f".{target}") for name in names):
            raise RecipeError(
                f"training.adapter.target_modules: {target!r} matches no layer of {base}; its linear layers are {known}"
            )
    try:
        adapted = adapters.inject(whole, config)
    except ValueError as error:
        raise RecipeError(f"training.adapter.target_modules: {error}") from error
    if adapters.adapts_embeddings(adapted):
        raise RecipeError(
            "training.adapter.target_modules: the token embeddings and the output head cannot be adapted; its linear"
            f" layers are {known}"
        )
    return {name for name, module in adapted.named_modules() if isinstance(module, BaseTunerLayer)}
