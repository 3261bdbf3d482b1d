"""Tiny random models: the architecture, special tokens and chat format of six families, in a few kilobytes.

    folder = tiny_models.make("gemma-2", tmp_path / "gemma-2")

Each folder loads with AutoModelForCausalLM and AutoTokenizer, offline and without warnings. The weights are
random and the templates are written here after the families' formats; nothing of a released model is in them.
"""

from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

VOCABULARY = 400
CONTEXT = 512
SENTENCES = (
    "Hello, how are you? I am well, thank you. Describe a fox in one sentence.",
    "The quick brown fox jumps over the lazy dog while the owl watches from the tree.",
    "What is the capital of France? The capital of France is Paris, on the river Seine.",
    "Write a short poem about the sea. The sea is wide and blue and sings all day.",
    "system user assistant model You are a helpful assistant. Answer briefly.",
    "1 2 3 4 5 6 7 8 9 10 and so on; (a + b) * c = a*c + b*c.",
)

_ALTERNATE = """\
{%- for message in messages -%}
{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
{{- raise_exception('roles must take turns, the user first') -}}
{%- endif -%}
{%- endfor -%}
"""

_LLAMA_3 = """\
{{- bos_token -}}
{%- for message in messages -%}
{{- '<|start_header_id|>' ~ message['role'] ~ '<|end_header_id|>\n\n' -}}
{{- message['content'] | trim ~ '<|eot_id|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' -}}{%- endif -%}
"""

_MISTRAL = (
    "{{- bos_token -}}\n"
    + _ALTERNATE
    + """\
{%- for message in messages -%}
{%- if message['role'] == 'user' -%}
{{- '[INST] ' ~ message['content'] ~ ' [/INST]' -}}
{%- else -%}
{{- ' ' ~ message['content'] ~ eos_token -}}
{%- endif -%}
{%- endfor -%}
"""
)

_CHATML = """\
{%- for message in messages -%}
{{- '<|im_start|>' ~ message['role'] ~ '\n' ~ message['content'] ~ '<|im_end|>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}
"""

_QWEN_2 = (
    """\
{%- if messages[0]['role'] != 'system' -%}
{{- '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' -}}
{%- endif -%}
"""
    + _CHATML
)

# thoughts of earlier turns are left out, and an empty thought is written where thinking is switched off
_QWEN_3 = """\
{%- for message in messages -%}
{%- set content = message['content'] -%}
{%- if message['role'] == 'assistant' and '</think>' in content -%}
{%- set content = content.split('</think>')[-1].lstrip('\n') -%}
{%- endif -%}
{{- '<|im_start|>' ~ message['role'] ~ '\n' ~ content ~ '<|im_end|>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\n' -}}
{%- if enable_thinking is defined and not enable_thinking -%}{{- '<think>\n\n</think>\n\n' -}}{%- endif -%}
{%- endif -%}
"""

_GEMMA_2 = (
    """\
{{- bos_token -}}
{%- if messages[0]['role'] == 'system' -%}{{- raise_exception('there is no system role') -}}{%- endif -%}
"""
    + _ALTERNATE
    + """\
{%- for message in messages -%}
{%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
{{- '<start_of_turn>' ~ role ~ '\n' ~ message['content'] | trim ~ '<end_of_turn>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<start_of_turn>model\n' -}}{%- endif -%}
"""
)

_PHI_3 = """\
{%- for message in messages -%}
{{- '<|' ~ message['role'] ~ '|>\n' ~ message['content'] ~ '<|end|>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>\n' -}}{%- else -%}{{- eos_token -}}{%- endif -%}
"""


@dataclass(frozen=True)
class Family:
    """The configuration that distinguishes one family from another.

    Attributes:
        config: name of its configuration class in transformers.
        settings: its own settings, beside those that all families share.
        special: its special tokens, in the order of their ids.
        template: its chat template.
        eos: the tokenizer's end-of-sequence token.
        stops: the tokens at which its generation config stops.
        end_of_turn: the token that ends the assistant's turn.
        bos: its beginning-of-sequence token; None where it has none.
        adds_bos: whether its tokenizer writes BOS by itself.
        pad: its padding token.
        swallows: special tokens that take the white space behind them.
        plain: added tokens that are not special.
    """

    config: str
    settings: dict[str, Any]
    special: tuple[str, ...]
    template: str
    eos: str
    stops: tuple[str, ...]
    end_of_turn: str
    bos: str | None = None
    adds_bos: bool = False
    pad: str | None = None
    swallows: tuple[str, ...] = ()
    plain: tuple[str, ...] = ()


FAMILIES = {
    "llama-3": Family(
        config="LlamaConfig",
        settings={"rope_theta": 5e5},
        special=(
            "<|begin_of_text|>",
            "<|end_of_text|>",
            "<|start_header_id|>",
            "<|end_header_id|>",
            "<|eot_id|>",
        ),
        template=_LLAMA_3,
        bos="<|begin_of_text|>",
        adds_bos=True,
        eos="<|eot_id|>",
        stops=("<|end_of_text|>", "<|eot_id|>"),
        end_of_turn="<|eot_id|>",
    ),
    "mistral": Family(
        config="MistralConfig",
        settings={"sliding_window": 32},
        special=("<unk>", "<s>", "</s>"),
        template=_MISTRAL,
        bos="<s>",
        adds_bos=True,
        eos="</s>",
        stops=("</s>",),
        end_of_turn="</s>",
    ),
    "qwen2": Family(
        config="Qwen2Config",
        settings={
            "tie_word_embeddings": True,
            "vocab_size": 448,
        },  # more rows than tokens, as its releases have
        special=("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        template=_QWEN_2,
        eos="<|im_end|>",
        stops=("<|im_end|>", "<|endoftext|>"),
        end_of_turn="<|im_end|>",
        pad="<|endoftext|>",
    ),
    "qwen3": Family(
        config="Qwen3Config",
        settings={"head_dim": 16, "tie_word_embeddings": True, "vocab_size": 448},
        special=("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        template=_QWEN_3,
        eos="<|im_end|>",
        stops=("<|im_end|>", "<|endoftext|>"),
        end_of_turn="<|im_end|>",
        pad="<|endoftext|>",
        plain=("<think>", "</think>"),
    ),
    "gemma-2": Family(
        config="Gemma2Config",
        settings={
            "head_dim": 8,
            "query_pre_attn_scalar": 8,
            "sliding_window": 32,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
        },
        special=("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"),
        template=_GEMMA_2,
        bos="<bos>",
        adds_bos=True,
        eos="<eos>",
        stops=("<eos>", "<end_of_turn>"),
        end_of_turn="<end_of_turn>",
        pad="<pad>",
    ),
    "phi-3": Family(
        config="Phi3Config",
        settings={"original_max_position_embeddings": CONTEXT},
        special=(
            "<unk>",
            "<s>",
            "</s>",
            "<|endoftext|>",
            "<|assistant|>",
            "<|system|>",
            "<|end|>",
            "<|user|>",
        ),
        template=_PHI_3,
        bos="<s>",
        eos="<|endoftext|>",
        stops=("<|endoftext|>", "<|assistant|>", "<|end|>"),
        end_of_turn="<|end|>",
        pad="<|endoftext|>",
        swallows=("<|assistant|>", "<|system|>", "<|end|>", "<|user|>"),
    ),
}


def make(family: str, folder: Path, seed: int = 0, **config_overrides: Any) -> Path:
    """Write a tiny random model of a family.

    Args:
        family: a key of :data:`FAMILIES`.
        folder: where to; made if it is not there.
        seed: of the weights.
        config_overrides: settings of the configuration, e.g. ``vocab_size`` or ``num_hidden_layers``.

    Returns:
        The folder.
    """
    import torch
    import transformers

    of = FAMILIES[family]
    tokenizer = make_tokenizer(family)
    settings: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": CONTEXT,
        "initializer_range": 0.1,  # not 0.02: distributions that are not flat
        "tie_word_embeddings": False,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        **of.settings,
        **config_overrides,
    }
    config = getattr(transformers, of.config)(**settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    stops = [tokenizer.convert_tokens_to_ids(token) for token in of.stops]
    model.generation_config = transformers.GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=stops if len(stops) > 1 else stops[0],
        pad_token_id=tokenizer.pad_token_id,
    )
    shown = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        model.save_pretrained(folder)
    finally:
        if shown:
            transformers.utils.logging.enable_progress_bar()
    tokenizer.save_pretrained(folder)
    return folder


def make_tokenizer(family: str) -> Any:
    """A byte-level BPE with the family's special tokens and chat template."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    of = FAMILIES[family]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_trained(family)),
        bos_token=of.bos,
        eos_token=of.eos,
        pad_token=of.pad,
        unk_token="<unk>" if "<unk>" in of.special else None,
        clean_up_tokenization_spaces=False,
        model_max_length=CONTEXT,
    )
    tokenizer.chat_template = of.template
    return tokenizer


@cache
def _trained(family: str) -> str:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    of = FAMILIES[family]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [
        AddedToken(token, normalized=False, special=True, rstrip=token in of.swallows) for token in of.special
    ]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(of.plain),
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in of.plain])
    if of.adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{of.bos} $A", special_tokens=[(of.bos, tokenizer.token_to_id(of.bos))]
        )
    text: str = tokenizer.to_str()
    return text


def make_writer(family: str, text: str, folder: Path) -> Path:
    """Write a tiny policy that gives one response, spelled letter by letter, to whatever it is asked.

    Its layers add nothing, so that the next token depends on the last one alone: behind the last token of the generation
    prompt stands the first letter, behind each letter the next one, and behind the last letter the end of turn. Special
    tokens that the text spells are not among its ids.

    Args:
        family: a key of :data:`FAMILIES`.
        text: the response; no letter occurs in it twice.
        folder: where to.
    """
    import torch
    from safetensors.torch import load_file, save_file

    make(family, folder, hidden_size=128, head_dim=32)
    tokenizer = make_tokenizer(family)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "x"}], tokenize=False, add_generation_prompt=True
    )
    chain = [
        tokenizer(prompt, add_special_tokens=False)["input_ids"][-1],
        *(token for letter in text for token in tokenizer(letter, add_special_tokens=False)["input_ids"]),
        tokenizer.convert_tokens_to_ids(FAMILIES[family].end_of_turn),
    ]
    assert len(set(chain)) == len(chain)
    weights = load_file(folder / "model.safetensors")
    for name, weight in weights.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            weight.zero_()
    embedding, head = weights["model.embed_tokens.weight"], weights["lm_head.weight"]
    head.zero_()
    for number, token in enumerate(chain):
        embedding[token] = torch.nn.functional.one_hot(torch.tensor(number), 128)
    for token, following in pairwise(chain):
        # the norm makes the length of a hidden state sqrt(128), so that the logit is 25
        head[following] = embedding[token] * 25 / 128**0.5
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
