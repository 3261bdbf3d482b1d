"""Tiny random models of text and images, of which a policy is the language model."""

import transformers

LINEAR_ATTENTION = {"num_value_heads": 4, "num_key_heads": 2, "key_head_dim": 8, "value_head_dim": 8}


def make(folder, kind):
    """A tiny model of text and images, as its releases are stored."""
    text = {
        "vocab_size": 400,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 512,
    }
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    if kind.startswith("qwen3_5"):
        linear = {f"linear_{name}": size for name, size in LINEAR_ATTENTION.items()}
        text |= {"layer_types": ["linear_attention", "full_attention"], **linear}
        experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
        vision = {
            "hidden_size": 32,
            "intermediate_size": 64,
            "depth": 1,
            "num_heads": 2,
            "out_hidden_size": 32,
        }
        if kind == "qwen3_5_moe":
            text |= {**experts, "shared_expert_intermediate_size": 16}
            config = transformers.Qwen3_5MoeConfig(text_config=text, vision_config=vision)
            model = transformers.Qwen3_5MoeForConditionalGeneration(config)
        else:
            config = transformers.Qwen3_5Config(text_config=text, vision_config=vision)
            model = transformers.Qwen3_5ForConditionalGeneration(config)
    elif kind == "llama4":
        text |= {"num_local_experts": 2, "num_experts_per_tok": 1, "intermediate_size_mlp": 64}
        widths = ("vision_output_dim", "projector_input_dim", "projector_output_dim")
        vision |= {"image_size": 28, "patch_size": 14, "intermediate_size": 128, **dict.fromkeys(widths, 32)}
        config = transformers.Llama4Config(text_config=text, vision_config=vision)
        model = transformers.Llama4ForConditionalGeneration(config)
    elif kind == "got_ocr2":
        vision = {"hidden_size": 32, "mlp_dim": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
        vision |= {"image_size": 28, "patch_size": 14, "output_channels": 16}
        config = transformers.GotOcr2Config(text_config=text, vision_config=vision)
        model = transformers.GotOcr2ForConditionalGeneration(config)
    elif kind == "gemma4":
        text |= {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 400, "global_head_dim": 8}
        text |= {"num_kv_shared_layers": 0, "layer_types": ["sliding_attention", "full_attention"]}
        vision |= {"num_key_value_heads": 2, "head_dim": 16, "patch_size": 14}
        config = transformers.Gemma4Config(text_config=text, vision_config=vision, audio_config=None)
        model = transformers.Gemma4ForConditionalGeneration(config)
    else:
        vision |= {"image_size": 28, "patch_size": 14}
        config = transformers.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=1)
        model = transformers.Gemma3ForConditionalGeneration(config)
    model.save_pretrained(folder)
    return folder
