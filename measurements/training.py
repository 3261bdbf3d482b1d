r"""The speed and memory of training, side by side with TRL's DPOTrainer (`sppo_hard`) in one process.

Its figures stand in docs/experiments.md under "Training beside TRL". Both train the same random Llama-like model on the
same prompts and responses (with lengths like UltraFeedback's: prompts of about 180 tokens, responses of about 300, long
tails) with the same optimiser. TRL runs at its best: references are precomputed, and of several batch sizes the fastest
counts. Repeats alternate, so that both see the same machine; ratios are ratios of medians. Each response token counts
once: TRL gets three pairs that cover five responses.

    OMP_NUM_THREADS=2 python measurements/training.py                        # the 58M model, on a CPU
    OMP_NUM_THREADS=2 python measurements/training.py --model tiny           # smoke
    OMP_NUM_THREADS=1 python measurements/training.py --model smollm2 --rows precision --cpu-time   # bfloat16 beside float32
    python measurements/training.py --model mistral-7b --device cuda --prompts 64 --repeats 3 --rows 2 memory \
        --optimizer rmsprop --liger --trl-batches 1 2 4                    # one GPU of 140 GB, with liger-kernel
"""

import argparse
import ctypes
import gc
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
import trl_peer

from sppo.algorithms.sppo import SPPO
from sppo.rundir.shards import table
from sppo.rundir.tables import TRAINING
from sppo.training.examples import StepBatches
from sppo.training.log_probs import Tree, log_probs, measure_capabilities
from sppo.training.schedule import plan
from sppo.training.trainer import SelfPlayTrainer

EOS = 2
MODELS = {
    "tiny": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 2000,
    },
    "58m": {
        "hidden_size": 512,
        "intermediate_size": 1376,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "vocab_size": 32_000,
    },
    "smollm2": {  # the shape of SmolLM2-135M-Instruct
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49_152,
        "tie_word_embeddings": True,
    },
    "long": {  # small enough for 32,768 tokens on one thread
        "hidden_size": 256,
        "intermediate_size": 688,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 8192,
    },
    "mistral-7b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 32_000,
    },
}


def make_model(args):
    shape = MODELS[args.model]
    if args.layers is not None:
        shape = shape | {"num_hidden_layers": args.layers}
    config = transformers.LlamaConfig(
        **shape, max_position_embeddings=max(4096, args.max_tokens), bos_token_id=1, eos_token_id=EOS
    )
    torch.manual_seed(0)
    dtype = torch.bfloat16 if args.device == "cuda" else torch.float32
    with torch.device(args.device):
        model = transformers.AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation=args.attention
        )
    return model.eval()


def draw(args, responses):
    """Prompts with responses: log-normal lengths, those of one prompt's responses alike, cut at the limits."""
    generator = np.random.default_rng(0)

    def length(mean, sigma, most, least=2):
        return int(np.clip(generator.lognormal(math.log(mean) - sigma**2 / 2, sigma), least, most))

    def ids(count):
        return generator.integers(3, MODELS[args.model]["vocab_size"], count).tolist()

    rows = []
    for _ in range(args.prompts):
        prompt = ids(length(args.prompt_tokens, 0.8, args.max_tokens // 4))
        of_prompt = length(args.response_tokens, 0.45, args.max_tokens)
        most = args.max_tokens - len(prompt)
        rows.append((prompt, [[*ids(length(of_prompt, 0.4, most) - 1), EOS] for _ in range(responses)]))
    return rows


def pairs(rows):
    """Pairs that cover every prompt's responses, as few as do."""
    found = []
    for prompt, responses in rows:
        for first in range(0, len(responses), 2):
            found.append((prompt, responses[first], responses[(first + 1) % len(responses)]))
    return found


class Ours:
    """One optimiser step, and the reference pass, of sppo."""

    name = "sppo"

    def __init__(self, args, rows, folder, mixed_precision="no"):
        self.args, self.model, self.mixed_precision = args, make_model(args), mixed_precision
        self.trees = [Tree(prompt, responses) for prompt, responses in rows]
        self.found = measure_capabilities(self.model)
        opponent = log_probs(self.model, self.trees, pack_tokens=args.pack_tokens, capabilities=self.found)
        examples = [
            {
                "prompt_id": str(number),
                "prompt_token_ids": prompt,
                "log_partition": args.eta / 2,
                "responses": [
                    {
                        "k": k,
                        "token_ids": ids,
                        "win_rate": float(k % 2 == 0),
                        "opponent_log_prob": opponent[number][k],
                    }
                    for k, ids in enumerate(responses)
                ],
            }
            for number, (prompt, responses) in enumerate(rows)
        ]
        steps = plan(len(rows), batch_prompts=len(rows), epochs=1, keep_epochs=None, warmup_ratio=0)
        batches = StepBatches(table(examples, TRAINING), batch_prompts=len(rows), steps=steps, seed=0)
        self.trainer = SelfPlayTrainer(
            model=self.model,
            args=transformers.TrainingArguments(**common(args, folder), max_steps=1),
            batches=batches,
            algorithm=SPPO(eta=args.eta, reduction="sum"),
            pack_tokens=args.pack_tokens,
            mixed_precision=mixed_precision,
        )
        self.batches = [{"step": batches[0]}]

    def reference(self):
        values = log_probs(
            self.model.eval(),
            self.trees,
            pack_tokens=self.args.pack_tokens,
            capabilities=self.found,
            mixed_precision=self.mixed_precision,
        )
        return [value for of_prompt in values for value in of_prompt]


class Theirs:
    """The same of TRL's DPOTrainer, with further settings of its DPOConfig."""

    name = "TRL"

    def __init__(self, args, rows, folder, batch, **further):
        self.model, self.batch = make_model(args), batch
        found = pairs(rows)
        # pairs of like length side by side: less padding than its own random order gives
        found.sort(key=lambda pair: len(pair[0]) + max(len(pair[1]), len(pair[2])))
        liger = {}
        if args.device == "cuda" and args.liger:
            liger = {"use_liger_kernel": True}
        self.trainer = trl_peer.trainer(
            self.model,
            found,
            folder,
            eos=EOS,
            loss_type="sppo_hard",
            beta=1 / args.eta,
            precompute_ref_log_probs=True,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=math.ceil(len(found) / batch),
            train_sampling_strategy="sequential",
            **common(args, folder),
            **liger,
            **further,
        )
        self.batches = list(self.trainer.get_train_dataloader())
        self.trainer.current_gradient_accumulation_steps = len(self.batches)

    def reference(self):
        found = []
        for batch in self.batches:
            chosen, rejected = self.trainer.compute_ref_log_probs(self.model.eval(), batch)
            found += [*chosen.tolist(), *rejected.tolist()]
        return found


def common(args, folder):
    return {
        "output_dir": str(folder),
        "learning_rate": 5e-7,
        "optim": args.optimizer,
        "max_grad_norm": 1.0,
        "gradient_checkpointing": args.gradient_checkpointing,
        "gradient_checkpointing_kwargs": {"use_reentrant": False} if args.gradient_checkpointing else None,
        "bf16": False,  # the weights are bfloat16 themselves on a GPU
        "use_cpu": args.device == "cpu",
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
        "dataloader_pin_memory": False,
        "remove_unused_columns": False,
    }


def step(contender):
    """What the Trainer does for one optimiser step; returns the loss."""
    trainer = contender.trainer
    if trainer.optimizer is None:
        trainer.create_optimizer()
        if trainer.args.gradient_checkpointing:
            contender.model.gradient_checkpointing_enable(trainer.args.gradient_checkpointing_kwargs)
    loss = sum(float(trainer.training_step(contender.model, batch)) for batch in contender.batches)
    trainer.accelerator.clip_grad_norm_(contender.model.parameters(), 1.0)
    trainer.optimizer.step()
    trainer.optimizer.zero_grad()
    return loss


def seconds(function, args):
    """Of the clock on the wall, or of the CPU."""
    clock = time.process_time if args.cpu_time else time.perf_counter
    if args.device == "cuda":
        torch.cuda.synchronize()
    start = clock()
    function()
    if args.device == "cuda":
        torch.cuda.synchronize()
    return clock() - start


def matmul_rate(args):
    """FLOP/s of a square product in the model's dtype: what the machine gives at best."""
    size, dtype = (8192, torch.bfloat16) if args.device == "cuda" else (2048, torch.float32)
    one, two = (torch.randn(size, size, device=args.device, dtype=dtype) for _ in range(2))
    times = [seconds(lambda: one @ two, args) for _ in range(20)]
    return 2 * size**3 / statistics.median(times)


def model_flops(args, rows):
    """6 a weight and token that it is used for; prompts count once, the head at response tokens."""
    of = MODELS[args.model]
    model = transformers.LlamaConfig(**of)
    head_dim = model.hidden_size // model.num_attention_heads
    attention = 2 * model.hidden_size**2 + 2 * model.hidden_size * head_dim * model.num_key_value_heads
    layer = attention + 3 * model.hidden_size * model.intermediate_size
    tokens = sum(len(prompt) + sum(map(len, responses)) for prompt, responses in rows)
    answers = sum(sum(map(len, responses)) for _, responses in rows)
    return 6 * (tokens * model.num_hidden_layers * layer + answers * model.hidden_size * model.vocab_size)


def fastest_batch(args, rows, folder):
    """The batch size with which TRL's step is fastest."""
    times = {}
    for batch in args.trl_batches:
        peer = Theirs(args, rows, folder / f"batch-{batch}", batch)
        step(peer)
        times[batch] = seconds(lambda peer=peer: step(peer), args)
        del peer
        gc.collect()
    print("TRL, seconds a step by batch size:", {batch: round(value, 2) for batch, value in times.items()})
    return min(times, key=times.__getitem__)


def time_row(args, responses, folder):
    """Medians of alternating repeats, of the step and of the reference pass."""
    rows = draw(args, responses)
    tokens = sum(sum(map(len, of_prompt)) for _, of_prompt in rows)
    batch = args.trl_batches[0]
    if len(args.trl_batches) > 1:
        batch = fastest_batch(args, rows, folder)
    both: list[Any] = [Ours(args, rows, folder / "ours"), Theirs(args, rows, folder / "theirs", batch)]
    losses = {contender.name: step(contender) for contender in both}
    times = {(contender.name, what): [] for contender in both for what in ("step", "reference")}
    for _ in range(args.repeats):
        for contender in both:
            times[contender.name, "step"].append(seconds(lambda c=contender: step(c), args))
        for contender in both:
            times[contender.name, "reference"].append(seconds(contender.reference, args))
    medians = {key: statistics.median(values) for key, values in times.items()}
    found = {"responses": responses, "trl_batch": batch, "response_tokens": tokens, "losses": losses}
    for what in ("step", "reference"):
        ours, theirs = medians["sppo", what], medians["TRL", what]
        print(
            f"K={responses} {what}: sppo {tokens / ours:.0f}, TRL {tokens / theirs:.0f} response tokens/s:"
            f" {theirs / ours:.2f}x  (seconds: {ours:.2f}, {theirs:.2f}; batch size {batch})"
        )
        found[what] = {"sppo": tokens / ours, "trl": tokens / theirs, "ratio": theirs / ours}
    rate = matmul_rate(args)
    flops = model_flops(args, rows) / medians["sppo", "step"]
    print(f"K={responses} sppo: {flops / rate:.0%} of the matmul rate of {rate / 1e12:.2f} TFLOP/s")
    return found | {"flops": flops, "matmul_rate": rate, "share_of_matmul_rate": flops / rate}


def peak_over_state(args, name, batch):
    """Bytes that one step takes over the weights and the optimiser's state; in a process of its own."""
    rows = draw(args, 2)
    with tempfile.TemporaryDirectory() as folder:
        contender = Ours(args, rows, folder) if name == "sppo" else Theirs(args, rows, folder, batch)
        step(contender)
        gc.collect()
        if args.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            step(contender)
            return torch.cuda.max_memory_allocated() - before
        return peak_on_the_cpu(lambda: step(contender))[0]


def peak_on_the_cpu(function):
    """The bytes that a function takes over what is held before it, and the peak of the whole process."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins again at what is held now
    before = resident("VmRSS")
    function()
    peak = resident("VmHWM")
    return peak - before, peak


def resident(name):
    with open("/proc/self/status") as file:
        (line,) = [line for line in file if line.startswith(name)]
    return int(line.split()[1]) * 1024


def precision_row(args, folder):
    """Our step and reference pass in bfloat16 beside float32, and how far their log-probabilities are apart."""
    rows = draw(args, 4)
    tokens = sum(sum(map(len, of_prompt)) for _, of_prompt in rows)
    both = {name: Ours(args, rows, folder / name, name) for name in ("no", "bf16")}
    apart = [
        abs(one - other) / len(response)
        for one, other, response in zip(
            *(contender.reference() for contender in both.values()),
            [response for _, of_prompt in rows for response in of_prompt],
            strict=True,
        )
    ]
    print(
        f"log pi(y|x) per token, bfloat16 - float32: mean {np.mean(apart):.1e}, worst {max(apart):.1e} nats"
    )
    found = {"apart_mean": float(np.mean(apart)), "apart_worst": max(apart)}
    work = {"step": step, "reference": Ours.reference}
    times = {(name, what): [] for name in both for what in work}
    for contender in both.values():
        step(contender)
    for _ in range(args.repeats):
        for (name, contender), (what, do) in itertools.product(both.items(), work.items()):
            times[name, what].append(seconds(lambda do=do, contender=contender: do(contender), args))
    for what in work:
        slow, fast = (statistics.median(times[name, what]) for name in both)
        print(
            f"K=4 {what}: {tokens / slow:.0f} and {tokens / fast:.0f} response tokens/s: {slow / fast:.2f}x"
        )
        found[what] = slow / fast
    return found


def memory_row(args):
    found = {}
    for name in ("sppo", "TRL"):
        command = [sys.executable, __file__, *sys.argv[1:], "--peak-of", name]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        if run.returncode:
            raise RuntimeError(run.stderr[-2000:])
        found[name] = json.loads(run.stdout.splitlines()[-1])
    print(
        f"peak memory of a step over weights and optimiser state: sppo {found['sppo'] / 2**20:.0f} MiB,"
        f" TRL {found['TRL'] / 2**20:.0f} MiB: {found['sppo'] / found['TRL']:.2f}x"
    )
    return found


def parse_arguments(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="58m")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--attention", default=None, help="transformers' attn_implementation, of both")
    parser.add_argument(
        "--rows", nargs="+", default=["2", "5", "memory"], choices=["2", "5", "memory", "precision"]
    )
    parser.add_argument("--prompts", type=int, default=8, help="of a step")
    parser.add_argument("--prompt-tokens", type=float, default=180)
    parser.add_argument("--response-tokens", type=float, default=300)
    parser.add_argument("--max-tokens", type=int, default=2048, help="of a prompt and a response")
    parser.add_argument("--layers", type=int, help="of the model, if not its own number")
    parser.add_argument("--gradient-checkpointing", action=argparse.BooleanOptionalAction, default=None)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--pack-tokens", type=int, default=None)
    parser.add_argument("--trl-batches", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--memory-batch", type=int, default=1, help="TRL's batch size in the memory row")
    parser.add_argument("--optimizer", default="adamw_torch_fused", help="a name of transformers' `optim`")
    parser.add_argument("--liger", action="store_true", help="TRL with Liger's layers, on a GPU")
    parser.add_argument("--eta", type=float, default=10.0)
    parser.add_argument("--cpu-time", action="store_true", help="for a machine with other work to do")
    parser.add_argument("--json", help="a file for the figures")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.pack_tokens is None:
        args.pack_tokens = 16384 if args.device == "cuda" else 1024
    if args.gradient_checkpointing is None:
        args.gradient_checkpointing = args.device == "cuda"
    return args


def main():
    args = parse_arguments()
    transformers.utils.logging.set_verbosity_error()
    os.environ["TQDM_DISABLE"] = "1"
    warnings.simplefilter("ignore")
    if args.peak_of:
        print(peak_over_state(args, args.peak_of, args.memory_batch))
        return
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for row in args.rows:
            if row == "memory":
                found[row] = memory_row(args)
            elif row == "precision":
                found[row] = precision_row(args, Path(folder) / row)
            else:
                found[row] = time_row(args, int(row), Path(folder) / row)
    if args.json:
        Path(args.json).write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
