"""Build the prompts, the tokenizer and the base policy of the tiny world from its grammar.

    python -m sppo.tinyworld.build [--output DIR] [--only prompts tokenizer policy]

Every step has a fixed seed, so that the same machine and versions give the same files. Prompts and tokenizer take
seconds. The policy is trained by supervised learning on responses that are sampled for the training instructions
only; its loss is that of the response and its end-of-turn token.

The package's own command trains the PairRM of ``pairrm/``, on pairs that the panel has compared::

    python -m sppo.tinyworld.build --only pairs --output DIR
    sppo train-oracle recipes/oracles/tinyworld.yaml --set pairs.source=DIR/pairs.jsonl
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sppo.policy.library_messages import quiet
from sppo.tinyworld import annotators, grammar

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPECIAL_TOKENS = [f"<|{name}|>" for name in ("pad", "bos", "system", "user", "assistant", "end")]
PAD, BOS, SYSTEM, USER, ASSISTANT, END = SPECIAL_TOKENS
VOCABULARY = 1200
CONTEXT = 512

CHAT_TEMPLATE = """\
{{- bos_token -}}
{%- for message in messages -%}
{%- if message['role'] not in ['system', 'user', 'assistant'] -%}
{{- raise_exception('unknown role: ' ~ message['role']) -}}
{%- endif -%}
{{- '<|' ~ message['role'] ~ '|>' ~ message['content'] ~ '<|end|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|assistant|>' -}}
{%- endif -%}
"""

TRAINING_SEED = 20240501
TOKENIZER_SEED = 7
DEMONSTRATIONS_SEED = 20240102
DRAFTS = 8
EXAMPLES = 64_000
BATCH = 32
LEARNING_RATE = 3e-3
WARM_UP = 100
PAIRS_SEED = 11
PAIRS = 100_000
PANEL = (annotators.scholar, annotators.editor, annotators.host)


def write_prompts(folder: Path) -> None:
    """Write ``train.jsonl`` and ``held_out.jsonl``: a prompt on each line, with a demonstration in the former."""
    folder.mkdir(parents=True, exist_ok=True)
    training, held_out = grammar.instructions()
    taught = [
        {"prompt_id": key, "prompt": prompt, "completion": demonstration(key, prompt, index)}
        for key, prompt, index in training
    ]
    asked = [{"prompt_id": key, "prompt": prompt} for key, prompt, _ in held_out]
    for name, rows in (("train", taught), ("held_out", asked)):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")


def demonstration(prompt_id: str, prompt: str, topic: int) -> str:
    """Return a good response: the one of eight drafts by the grammar's writer that the panel prefers to the others."""
    rng = random.Random(f"{DEMONSTRATIONS_SEED} {prompt_id}")
    drafts = [grammar.sample_response(grammar.TOPICS[topic], rng) for _ in range(DRAFTS)]
    rates = sum(annotator([prompt], [drafts])[0].mean(axis=1) for annotator in PANEL)
    return drafts[int(rates.argmax())]


def write_tokenizer(folder: Path) -> None:
    """Train a byte-level BPE on text of the grammar and write it with its chat template.

    The tokenizer itself adds no special tokens: the chat template writes BOS, once.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    pairs = list(grammar.sample_pairs(TOKENIZER_SEED, 20_000))
    tokenizer.train_from_iterator((text for pair in pairs for text in pair), trainer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": END,
        "pad_token": PAD,
        "additional_special_tokens": [SYSTEM, USER, ASSISTANT],
        "model_max_length": CONTEXT,
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")


def write_policy(folder: Path, examples: int = EXAMPLES, threads: int = 1) -> None:
    """Train the base policy, a Llama of about a million parameters, and write it into the tokenizer's ``folder``."""
    import torch
    from transformers import AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(threads)
    torch.manual_seed(TRAINING_SEED)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    bos, end, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    special_ids = {"bos_token_id": bos, "eos_token_id": end, "pad_token_id": pad}
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=320,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        dtype="float32",
        **special_ids,
    )
    policy: Any = LlamaForCausalLM(config)
    _train(policy, _batches(tokenizer, grammar.sample_pairs(TRAINING_SEED, examples)), tokenizer.pad_token_id)
    policy.generation_config = GenerationConfig(
        do_sample=True, temperature=1.0, top_k=0, top_p=1.0, **special_ids
    )
    with quiet():
        policy.save_pretrained(folder)
    # safetensors makes its files readable by their owner only; everyone must be able to read those of a package
    (folder / "model.safetensors").chmod(0o644)


def _train(policy: Any, batches: list[list[tuple[list[int], list[int]]]], pad: int) -> None:
    """Train with AdamW at a learning rate that warms up linearly and then falls along a cosine to a twentieth."""
    import torch

    decayed = [p for p in policy.parameters() if p.ndim > 1]
    others = [p for p in policy.parameters() if p.ndim <= 1]
    optimiser = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}],
        lr=LEARNING_RATE,
        betas=(0.9, 0.98),
    )

    def rate(step: int) -> float:
        progress = min(1.0, step / len(batches))
        return min(1.0, (step + 1) / WARM_UP) * (0.05 + 0.95 * (1 + math.cos(math.pi * progress)) / 2)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, rate)
    policy.train()
    for step, batch in enumerate(batches):
        input_ids, labels = _padded(batch, pad)
        loss = policy(input_ids=input_ids, labels=labels).loss
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step % 100 == 0 or step + 1 == len(batches):
            print(f"step {step + 1} of {len(batches)}: loss {loss.item():.3f}", flush=True)
    policy.eval()


def write_pairs(folder: Path, count: int = PAIRS) -> None:
    """Write ``pairs.jsonl``: training instructions, two of the writer's responses to each, and the panel's preference."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(PAIRS_SEED)
    training, _ = grammar.instructions()
    with (folder / "pairs.jsonl").open("w", encoding="utf-8") as file:
        for _ in range(count):
            _, prompt, index = rng.choice(training)
            a, b = (grammar.sample_response(grammar.TOPICS[index], rng) for _ in range(2))
            answers = [float(annotator([prompt], [[a, b]])[0, 0, 1]) for annotator in PANEL]
            row = {"prompt": prompt, "response_a": a, "response_b": b}
            file.write(json.dumps(row | {"probability": sum(answers) / len(answers)}) + "\n")


def _batches(tokenizer: PreTrainedTokenizerFast, pairs: Any) -> list[list[tuple[list[int], list[int]]]]:
    """Make batches of (prompt ids, response ids) of similar lengths, in random order."""
    prompts, responses = zip(*pairs, strict=True)
    chats = tokenizer.apply_chat_template(
        [[{"role": "user", "content": prompt}] for prompt in prompts],
        add_generation_prompt=True,
        tokenize=False,
    )
    prompt_ids = tokenizer(chats, add_special_tokens=False)["input_ids"]
    response_ids = tokenizer([text + END for text in responses], add_special_tokens=False)["input_ids"]
    examples = list(zip(prompt_ids, response_ids, strict=True))
    rng = random.Random(TRAINING_SEED)
    batches = []
    # Sorting by length within large chunks avoids most of the padding and keeps each batch nearly random.
    for start in range(0, len(examples), 16 * BATCH):
        chunk = sorted(examples[start : start + 16 * BATCH], key=lambda pair: len(pair[0]) + len(pair[1]))
        chunk_batches = [chunk[i : i + BATCH] for i in range(0, len(chunk), BATCH)]
        rng.shuffle(chunk_batches)
        batches += chunk_batches
    return batches


def _padded(batch: list[tuple[list[int], list[int]]], pad: int) -> tuple[Any, Any]:
    """Make right-padded input ids and labels, [batch, longest]; prompts and padding have no loss."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    input_ids = [torch.tensor(prompt + response) for prompt, response in batch]
    labels = [torch.tensor([-100] * len(prompt) + response) for prompt, response in batch]
    # Under causal attention no position sees the padding to its right, so no mask is needed.
    return pad_sequence(input_ids, True, pad), pad_sequence(labels, True, -100)


def main(arguments: Sequence[str] | None = None) -> None:
    """Build the parts of the world that the command line names, or all of them."""
    shipped = ("prompts", "tokenizer", "policy")
    parser = argparse.ArgumentParser(
        prog="python -m sppo.tinyworld.build", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path(__file__).parent,
        help="folder to write to; the default is this package",
    )
    parser.add_argument("--only", nargs="+", choices=(*shipped, "pairs"), default=shipped)
    parser.add_argument(
        "--threads", type=int, default=1, help="threads of torch; their number changes the rounding"
    )
    options = parser.parse_args(arguments)
    if "prompts" in options.only:
        write_prompts(options.output / "prompts")
    if "tokenizer" in options.only:
        write_tokenizer(options.output / "policy")
    if "policy" in options.only:
        write_policy(options.output / "policy", threads=options.threads)
    if "pairs" in options.only:
        write_pairs(options.output)


if __name__ == "__main__":
    main()
