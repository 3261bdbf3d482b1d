"""Write a policy as an ordinary transformers folder that earlier versions of transformers and other programs can read."""

import json
from pathlib import Path
from typing import Any

from sppo.policy import load as policies
from sppo.policy.model_files import read_configuration
from sppo.policy.tokenizer_files import copy_tokenizer

_GENERATION = "generation_config.json"


def save_model(
    model: Any, folder: Path, source: Path, *, state: dict[str, Any] | None = None, **options: Any
) -> None:
    """Write the weights and the configuration of a whole model.

    The generation settings are left to :func:`sppo.policy.tokenizer_files.copy_tokenizer`, which copies those of the source
    as they are: transformers loads settings that it refuses to write.

    Args:
        model: a causal language model of transformers, without an adapter.
        folder: the folder to write.
        source: the folder of the policy that the model was made from.
        state: the weights, if the model itself holds only a part of them; they have the data type to be saved.
        options: further arguments of transformers' `save_pretrained`.

    Raises:
        PolicyError: a weight is not finite.
    """
    from transformers import GenerationConfig

    policies.refuse_non_finite(
        model.named_parameters() if state is None else state.items(), f"{folder} is not written"
    )
    settings, model.generation_config = model.generation_config, GenerationConfig()
    try:
        with policies.quiet():
            model.save_pretrained(folder, state_dict=state, **options)
    finally:
        model.generation_config = settings
    (folder / _GENERATION).unlink(missing_ok=True)
    file = folder / "config.json"
    config = read_configuration(file)
    if state is not None:  # the model itself still has the data type that it was trained in
        config["dtype"] = str(next(iter(state.values())).dtype).removeprefix("torch.")
    base = read_configuration(policies.base_folder(source) / "config.json")
    file.write_text(
        json.dumps(with_earlier_keys(config, base), indent=2, sort_keys=True) + "\n", encoding="utf-8"
    )


def save_merged(
    source: Path,
    folder: Path,
    *,
    dtype: str,
    trust_remote_code: bool = False,
    chat_template: str | None = None,
    **options: Any,
) -> None:
    """Write a policy as one ordinary folder with its tokenizer; an adapter is merged into its base.

    Args:
        source: the folder of the policy or of its adapter.
        folder: the folder to write; files of other names that lie there are kept.
        dtype: the data type of the weights.
        trust_remote_code: run Python code that comes with the model.
        chat_template: a file to use instead of the policy's chat template.
        options: further arguments of transformers' `save_pretrained`.

    Raises:
        PolicyError: the policy does not load, or a weight is not finite.
    """
    model = policies.load_merged(source, dtype=dtype, trust_remote_code=trust_remote_code)
    save_model(model, folder, source, **options)
    copy_tokenizer(source, folder, chat_template)


def with_earlier_keys(config: dict[str, Any], base: dict[str, Any]) -> dict[str, Any]:
    """A configuration in which keys of transformers 4 stand beside the keys that have replaced them.

    A program that knows only the earlier keys takes its defaults where they are missing: a RoPE base of 10000 instead of
    500000 gives other log-probabilities without an error.

    Args:
        config: the configuration as transformers writes it.
        base: the configuration of the policy that the model was made from, whose further keys are kept.
    """
    if base.get("model_type") != config.get("model_type"):  # the language model of a multimodal base
        base = base.get("text_config") or {}
    rope = config.get("rope_parameters") or {}
    nested = isinstance(rope.get("full_attention"), dict)
    parameters = rope["full_attention"] if nested else rope
    top = ("rope_theta", "partial_rotary_factor", "original_max_position_embeddings")
    earlier = {key: parameters[key] for key in top if key in parameters}
    if nested and isinstance(rope.get("sliding_attention"), dict):
        earlier["rope_local_base_freq"] = rope["sliding_attention"].get("rope_theta")
    elif parameters.get("rope_type") == "longrope":  # Phi-3 of transformers 4 takes exactly these three keys
        factors = {key: parameters[key] for key in ("short_factor", "long_factor")}
        earlier["rope_scaling"] = {"type": "longrope", **factors}
    elif parameters.get("rope_type", "default") != "default":
        earlier["rope_scaling"] = {key: value for key, value in parameters.items() if key not in top[:2]}
    earlier |= {key: value for key, value in base.items() if key != "quantization_config"}
    earlier["torch_dtype"] = config.get("dtype")
    config = earlier | config
    for key, value in config.items():
        if key.endswith("_config") and isinstance(value, dict) and key != "quantization_config":
            config[key] = with_earlier_keys(value, base.get(key) or {})
    return config
