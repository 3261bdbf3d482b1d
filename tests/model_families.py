"""Tiny random models of the causal families of transformers, for what has to hold for each of them.

    model = model_families.make("gpt_neo")

Each model has two layers (hybrids have one of each kind), windows and chunks of 16 tokens, and a RoPE limit of 32 tokens where
RoPE changes at a limit. So paths of 70 tokens reach beyond all of them. The weights are random.
"""

from typing import Any

import torch

VOCABULARY = 400
WINDOW = 16
PATH = 70
"""Tokens of prompt and response together: longer than every window, chunk and RoPE limit of the models."""

# Every family takes those of these settings that its configuration knows.
_SIZES: dict[str, Any] = {
    **dict.fromkeys(["hidden_size", "n_embd", "d_model"], 64),
    **dict.fromkeys(["num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers"], 2),
    **dict.fromkeys(["num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"], 4),
    **dict.fromkeys(["intermediate_size", "n_inner", "ffn_dim", "decoder_ffn_dim", "ffn_hidden_size"], 96),
    **dict.fromkeys(["sliding_window", "attention_window", "window_size", "attention_chunk_size"], WINDOW),
    **dict.fromkeys(["max_position_embeddings", "n_positions", "n_ctx"], 256),
    **dict.fromkeys(["num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"], 4),
    **dict.fromkeys(["num_experts_per_tok", "moe_topk", "num_key_value_heads"], 2),
    "moe_intermediate_size": 32,
    "head_dim": 16,
    "vocab_size": VOCABULARY,
    "initializer_range": 0.1,  # with the usual 0.02 attention would be all but uniform, and faults would not show
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_LATENT = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "head_dim": 8,
    "num_key_value_heads": 4,
}
_HYBRID = {"layer_types": ["linear_attention", "full_attention"]}
_SLIDING = {"layer_types": ["sliding_attention", "full_attention"]}
_LONG = {"rope_theta": 10000.0, "rope_type": "longrope", "original_max_position_embeddings": 32}

_SETTINGS: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1], "mamba_n_heads": 8, "mamba_d_head": 16},
    "bloom": {"hidden_dropout": 0.0},
    "codegen": {"rotary_dim": 8},
    "deepseek_v2": _LATENT | {"n_group": 1, "topk_group": 1, "first_k_dense_replace": 1},
    "deepseek_v3": _LATENT | {"n_group": 1, "topk_group": 1, "first_k_dense_replace": 1},
    "gemma2": _SLIDING,
    "gemma3_text": _SLIDING,
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "gptj": {"rotary_dim": 8},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"], "mamba_n_heads": 8, "mamba_d_head": 16},
    "jamba": {"attn_layer_offset": 1, "attn_layer_period": 2},
    "llama4_text": {"layer_types": ["chunked_attention", "full_attention"]},
    "mamba2": {"num_heads": 8, "head_dim": 16, "n_groups": 1},
    "minicpm3": _LATENT,
    "minimax": _HYBRID | {"block_size": WINDOW},
    "mistral": {"sliding_window": WINDOW},
    "qwen2": _SLIDING | {"use_sliding_window": True},
    "qwen3_next": _HYBRID,
    "qwen3_5_text": _HYBRID,
    "recurrent_gemma": {"block_types": ["recurrent", "attention"], "lru_width": 64},
    "youtu": _LATENT,
}
_VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama, dynamic NTK": (
        "llama",
        {
            "max_position_embeddings": 32,
            "rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0},
        },
    ),
    "phi3, longrope": (
        "phi3",
        {
            "original_max_position_embeddings": 32,
            "rope_parameters": _LONG | {"short_factor": [1.0] * 8, "long_factor": [4.0] * 8},
        },
    ),
    "llama, yarn": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "factor": 8.0,
                "rope_theta": 10000.0,
                "original_max_position_embeddings": 32,
            }
        },
    ),
}
_PLAIN = """
    afmoe apertus arcee aria_text bamba biogpt bitnet bloom codegen cohere cohere2 cohere2_moe ctrl cwm deepseek_v2
    deepseek_v3 diffllama doge ernie4_5 ernie4_5_moe exaone4 exaone_moe falcon falcon_h1 falcon_mamba flex_olmo gemma gemma2
    gemma3_text glm glm4 glm4_moe gpt-sw3 gpt2 gpt_bigcode gpt_neo gpt_neox gpt_neox_japanese gpt_oss gptj granite granite_swa
    granitemoe granitemoe_swa granitemoehybrid granitemoeshared helium hunyuan_v1_dense hunyuan_v1_moe hy_v3 jais2 jamba
    jetmoe laguna lfm2 llama llama4_text mamba mamba2 mellum mimo_v2_flash minicpm3 minimax minimax_m2 ministral ministral3
    mistral mixtral mpt nanochat nemotron nemotron_h olmo olmo2 olmo3 olmo_hybrid olmoe openai-gpt opt persimmon phi phi3
    phimoe qwen2 qwen2_moe qwen3 qwen3_5_text qwen3_moe qwen3_next recurrent_gemma rwkv seed_oss smollm3 solar_open stablelm
    starcoder2 vaultgemma xglm youtu
"""
NAMES = [*_PLAIN.split(), *_VARIANTS]
"""The families, by the name of their configuration in transformers, and variants of some of them."""


def make(name: str, seed: int = 0) -> Any:
    """A model of a family, in float32 on the CPU and in evaluation mode."""
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    kind, variant = _VARIANTS.get(name, (name, {}))
    config_class = CONFIG_MAPPING[kind]
    known = config_class()
    sizes = {key: value for key, value in _SIZES.items() if _can_be_set(known, key)}
    torch.manual_seed(seed)
    config = config_class(**(sizes | _SETTINGS.get(kind, {}) | variant))
    return AutoModelForCausalLM.from_config(config).float().eval()


def _can_be_set(config: Any, key: str) -> bool:
    member = getattr(type(config), key, None)
    return hasattr(config, key) and not (isinstance(member, property) and member.fset is None)


def draw_ids(count: int, seed: int = 0) -> list[int]:
    """Random token ids, none of them special."""
    return torch.randint(3, VOCABULARY, (count,), generator=torch.Generator().manual_seed(seed)).tolist()
