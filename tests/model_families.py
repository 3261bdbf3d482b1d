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
_ROUTED = {"n_group": 1, "topk_group": 1}
_GROUPED = _LATENT | _ROUTED | {"first_k_dense_replace": 1}
_INDEXED = {"index_topk": WINDOW, "index_head_dim": 16, "index_n_heads": 16}
_HYBRID = {"layer_types": ["linear_attention", "full_attention"]}
_SLIDING = {"layer_types": ["sliding_attention", "full_attention"]}
_TWO_ROPES = {
    "rope_parameters": {
        kind: {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [3, 3, 2]}
        for kind in ("sliding_attention", "full_attention")
    }
}
_SHARED_ATTENTION = {
    "num_hidden_layers": 4,
    "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
    "num_key_value_heads": 4,
}
_LONG = {"rope_theta": 10000.0, "rope_type": "longrope", "original_max_position_embeddings": 32}

_SETTINGS: dict[str, dict[str, Any]] = {
    "axk1": _GROUPED,
    "axk2": _LATENT | _INDEXED | {"mlp_layer_types": ["dense", "sparse"]},
    "bamba": {"attn_layer_indices": [1], "mamba_n_heads": 8, "mamba_d_head": 16},
    "bloom": {"hidden_dropout": 0.0},
    "codegen": {"rotary_dim": 8},
    "cohere_compass_text": {"layer_types": ["sliding_attention", "full_attention"]} | _TWO_ROPES,
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 1e4},
        "ffn_config": {"hidden_size": 64, "ffn_hidden_size": 96, "moe_num_experts": 4, "moe_top_k": 2},
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
    },
    "deepseek_v2": _GROUPED,
    "deepseek_v3": _GROUPED,
    "deepseek_v32": _LATENT | _INDEXED | _ROUTED | {"mlp_layer_types": ["dense", "sparse"]},
    "deepseek_v4": {
        "layer_types": ["compressed_sparse_attention", "heavily_compressed_attention"],
        "compress_rates": {"compressed_sparse_attention": 4, "heavily_compressed_attention": 8},
        "mlp_layer_types": ["moe", "moe"],
        "q_lora_rank": 16,
        "o_lora_rank": 8,
        "o_groups": 2,
        "num_key_value_heads": 1,
        "partial_rotary_factor": 0.5,
    }
    | _INDEXED,
    "dots1": _ROUTED | {"n_shared_experts": 1, "first_k_dense_replace": 1, "max_window_layers": 1},
    "gemma2": _SLIDING,
    "gemma3_text": _SLIDING,
    "gemma3n_text": _SLIDING
    | {"num_kv_shared_layers": 0, "vocab_size_per_layer_input": VOCABULARY, "hidden_size_per_layer_input": 8}
    | {"laurel_rank": 8, "altup_num_inputs": 2},
    "gemma4_text": _SLIDING | {"vocab_size_per_layer_input": VOCABULARY, "hidden_size_per_layer_input": 8},
    "glm4_moe_lite": _LATENT | _ROUTED | {"mlp_layer_types": ["dense", "sparse"]},
    "glm_moe_dsa": _LATENT | _INDEXED | _ROUTED | {"mlp_layer_types": ["dense", "sparse"]},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "gptj": {"rotary_dim": 8},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"], "mamba_n_heads": 8, "mamba_d_head": 16},
    "jamba": {"attn_layer_offset": 1, "attn_layer_period": 2},
    "hy_v4": _LATENT | _INDEXED | _ROUTED,
    "inkling_text": {
        "layer_types": ["hybrid_sliding", "hybrid"],
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 2,
        "swa_head_dim": 16,
        "rel_extent": 64,
        "logits_mup_width_multiplier": 1.0,
    },
    "kimi_linear": _LATENT | _HYBRID | {"linear_num_heads": 4, "linear_head_dim": 16},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "longcat_flash": _LATENT | {"ffn_hidden_size": 96, "expert_ffn_hidden_size": 32, "zero_expert_num": 2},
    "llama4_text": {"layer_types": ["chunked_attention", "full_attention"]},
    "mamba2": {"num_heads": 8, "head_dim": 16, "n_groups": 1},
    "minicpm3": _LATENT,
    "minimax": _HYBRID | {"block_size": WINDOW},
    "mistral": {"sliding_window": WINDOW},
    "qwen2": _SLIDING | {"use_sliding_window": True},
    "qwen3_next": _HYBRID,
    "qwen3_5_text": _HYBRID,
    "recurrent_gemma": {"block_types": ["recurrent", "attention"], "lru_width": 64},
    "qwen3_5_moe_text": _HYBRID,
    "qwen4_exp_text": _HYBRID
    | {"indexer_n_heads": 16, "indexer_kv_heads": 1, "indexer_head_dim": 16, "hc_lowrank": 8}
    | {"indexer_budget": WINDOW, "indexer_compress_ratio": 4},
    "youtu": _LATENT,
    "zamba": _SHARED_ATTENTION,
    "zamba2": _SHARED_ATTENTION | {"n_mamba_heads": 8},
    "zaya": {"num_experts_per_tok": 1, "router_hidden_size": 16},
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
    afmoe apertus arcee aria_text axk1 axk2 bamba biogpt bitnet bloom codegen cohere cohere2 cohere2_moe
    cohere_compass_text ctrl cwm dbrx deepseek_v2 deepseek_v3 deepseek_v32 deepseek_v4 diffllama doge dots1 ernie4_5
    ernie4_5_moe exaone4 exaone_moe falcon falcon_h1 falcon_mamba flex_olmo gemma gemma2 gemma3_text gemma3n_text
    gemma4_text glm glm4 glm4_moe glm4_moe_lite glm_moe_dsa gpt-sw3 gpt2 gpt_bigcode gpt_neo gpt_neox
    gpt_neox_japanese gpt_oss gptj granite granite_swa granitemoe granitemoe_swa granitemoehybrid granitemoeshared
    helium hrm_text hunyuan_v1_dense hunyuan_v1_moe hy_v3 hy_v4 hyperclovax inkling_text jais2 jamba jetmoe
    kimi_linear laguna lfm2 lfm2_moe llama llama4_text longcat_flash mamba mamba2 mellum mimo_v2_flash minicpm3
    minimax minimax_m2 minimax_m3_vl_text ministral ministral3 mistral mixtral modernbert-decoder mpt nanochat
    nemotron nemotron_h olmo olmo2 olmo3 olmo_hybrid olmoe openai-gpt opt persimmon phi phi3 phimoe qwen2 qwen2_moe
    qwen3 qwen3_5_moe_text qwen3_5_text qwen3_moe qwen3_next qwen4_exp_text recurrent_gemma rwkv seed_oss smollm3
    solar_open stablelm starcoder2 vaultgemma xglm xlstm youtu zamba zamba2 zaya
"""
NAMES = [*_PLAIN.split(), *_VARIANTS]
"""The families, by the name of their configuration in transformers, and variants of some of them."""
NOT_CAUSAL = ["bert", "electra", "roberta", "roformer"]
"""Encoders, which transformers can load as causal language models too; without `is_decoder` they see all tokens."""


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
    # Reading some attributes raises an error, because they differ between the layers.
    return key in {*dir(config), *config.attribute_map} and not (
        isinstance(member, property) and member.fset is None
    )


def draw_ids(count: int, seed: int = 0) -> list[int]:
    """Random token ids, none of them special."""
    return torch.randint(3, VOCABULARY, (count,), generator=torch.Generator().manual_seed(seed)).tolist()
