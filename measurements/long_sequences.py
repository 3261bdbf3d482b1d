r"""The memory and time of a training step and of the reference pass on sequences of 2k to 32k tokens, beside TRL's DPOTrainer.

    OMP_NUM_THREADS=1 python measurements/long_sequences.py --layers 4 --shapes 8k-prompt 8k-responses
    OMP_NUM_THREADS=1 python measurements/long_sequences.py --shapes 8k-prompt --contenders sppo-checkpointed
    OMP_NUM_THREADS=1 python measurements/long_sequences.py --model long --shapes 32k-prompt 32k-responses
    OMP_NUM_THREADS=1 python measurements/long_sequences.py --blocks 256 512 1024 2048 --shapes 8k-prompt 8k-responses

Its figures stand in docs/experiments.md under "Long sequences". Each row is one prompt with two responses, in a process of its
own: random weights of the shape of SmolLM2-135M (`--layers` takes fewer of its 30), or of a small model with a context of 32,768
tokens. The step is forward and backward of SPPO's loss, without the optimiser. Memory is the high-water mark that Linux keeps
for the process, and how far it lies above what is held before; time is that of the processor, which the load of the machine
changes least. A row that needs more than `--most-gigabytes` says so. `--blocks` times a layer's attention alone, with so many
queries in each call that has a mask.

The two responses are of different lengths, as sampled ones are, so that TRL pads and makes a mask; with `--equal` they are
not, and it needs none. `liger-loss` is Liger's fused DPO loss (plain torch, with the loss type `sppo_hard`) on TRL's batch; its
package, liger-kernel, is not among the dependencies.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

SHAPES = {  # tokens of the prompt and of its two responses
    "2k": (1536, (512, 448)),
    "8k-prompt": (7168, (1024, 896)),
    "8k-responses": (192, (8000, 7000)),
    "32k-prompt": (28_672, (4096, 3584)),
    "32k-responses": (768, (32_000, 28_000)),
}
CONTENDERS: dict[str, dict[str, Any]] = {
    "sppo": {},
    "sppo-checkpointed": {"checkpointing": True},
    "trl": {"peer": {}},
    "trl-checkpointed": {"peer": {}, "checkpointing": True},
    "trl-padding-free": {"peer": {"padding_free": True}},
    "trl-liger": {"peer": {"use_liger_kernel": True}},
    "liger-loss": {"peer": {}, "liger_loss": True},
}


def make_rows(shape: str, vocabulary: int, equal: bool) -> list[tuple[list[int], list[list[int]]]]:
    """One prompt with its responses, of random tokens."""
    import numpy as np
    from training import EOS

    generator: Any = np.random.default_rng(0)
    prompt_tokens, responses = SHAPES[shape]
    lengths = [max(responses)] * len(responses) if equal else responses
    draw = lambda count: generator.integers(3, vocabulary, count).tolist()  # noqa: E731
    return [(draw(prompt_tokens), [[*draw(length - 1), EOS] for length in lengths])]


def make_contender(name: str, shape: str, arguments: argparse.Namespace, folder: Path) -> Any:
    """A contender of measurements/training.py, which can take a step and make the reference pass."""
    import training

    options = CONTENDERS[name]
    prompt, responses = SHAPES[shape]
    args = training.parse_arguments(
        ["--model", arguments.model, "--max-tokens", str(prompt + max(responses))]
    )
    args.layers, args.pack_tokens = arguments.layers, 1 << 20  # one pack: what one example takes is measured
    args.gradient_checkpointing = options.get("checkpointing", False)
    rows = make_rows(shape, training.MODELS[args.model]["vocab_size"], arguments.equal)
    if "peer" not in options:
        return training.Ours(args, rows, folder)
    contender = training.Theirs(args, rows, folder, 1, **options["peer"])
    if options["peer"].get("use_liger_kernel"):  # the Trainer does so when it begins to train
        from transformers.integrations.liger import apply_liger_kernel

        apply_liger_kernel(contender.model, contender.trainer.args.liger_kernel_config)
    return contender


def step(contender: Any, liger_loss: bool) -> None:
    """The forward and backward passes of all batches."""
    trainer = contender.trainer
    if trainer.args.gradient_checkpointing:
        contender.model.gradient_checkpointing_enable(trainer.args.gradient_checkpointing_kwargs)
    for batch in contender.batches:
        if liger_loss:
            _liger_step(contender.model.train(), batch, trainer.beta)
        else:
            trainer.training_step(contender.model, batch)


def _liger_step(model: Any, batch: Any, beta: float) -> None:
    """Liger's fused loss behind the body of the model; references are left out, which costs it nothing."""
    from liger_kernel.chunked_loss import LigerFusedLinearDPOLoss

    loss = LigerFusedLinearDPOLoss(beta=beta, loss_type="sppo_hard", compiled=False, use_ref_model=False)
    hidden = model.model(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
    )[0]
    targets = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    value, _ = loss(model.lm_head.weight, hidden[:, :-1].contiguous(), targets[:, 1:].contiguous())
    value.backward()


def measure(name: str, shape: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """The figures of a row, in this process."""
    import torch
    import training
    import transformers

    transformers.utils.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        contender = make_contender(name, shape, arguments, Path(folder))
        liger_loss = CONTENDERS[name].get("liger_loss", False)
        work = {"reference": contender.reference, "step": lambda: step(contender, liger_loss)}
        for what in arguments.passes:
            begin = time.process_time()
            over, peak = training.peak_on_the_cpu(work[what])
            figures[what] = {
                "seconds": time.process_time() - begin,
                "gigabytes_over": over / 1e9,
                "gigabytes": peak / 1e9,
            }
        figures["threads"] = torch.get_num_threads()
    return figures


def limited(name: str, shape: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """The figures of a row, or why it has none."""
    # The limit counts private memory that can be written, so that what is only mapped, such as libraries, does not count.
    limit = int(arguments.most_gigabytes * 1e9)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    try:
        return measure(name, shape, arguments)
    except (RuntimeError, MemoryError, ImportError, ValueError) as error:
        text = str(error).strip().splitlines() or [""]
        if isinstance(error, MemoryError) or "allocate memory" in str(error):
            return {"failed": f"needs more than {arguments.most_gigabytes:g} GB"}
        return {"failed": f"{type(error).__name__}: {text[0]}"}


def time_blocks(shape: str, blocks: list[int]) -> None:
    """The seconds of attention with the heads of SmolLM2, forward and backward, by the number of queries in a call."""
    import torch

    from sppo.training import tree_attention
    from sppo.training.forest import Tree
    from sppo.training.layout import Layout

    prompt, responses = SHAPES[shape]
    layout = Layout([Tree([1] * prompt, [[2] * length for length in responses])], in_one_row=True)
    mask, columns = tree_attention._pieces(layout, None), layout.ids.shape[1]
    for block in blocks:
        tree_attention._BLOCK = block
        tree_attention._strip.cache_clear()
        query, key, value = (torch.randn(1, heads, columns, 64).requires_grad_() for heads in (9, 3, 3))
        begin = time.process_time()
        output, _ = tree_attention._attend(None, query, key, value, mask)
        middle = time.process_time()
        output.sum().backward()
        print(
            f"{shape:14} {block:5} queries: {middle - begin:.2f} s forward, {time.process_time() - middle:.2f} s backward",
            flush=True,
        )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2", help="a shape of measurements/training.py")
    parser.add_argument("--layers", type=int, help="of the model, if not its own number")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["2k"])
    parser.add_argument(
        "--contenders",
        nargs="+",
        choices=CONTENDERS,
        default=["sppo", "sppo-checkpointed", "trl", "trl-checkpointed"],
    )
    parser.add_argument("--passes", nargs="+", choices=["reference", "step"], default=["reference", "step"])
    parser.add_argument("--equal", action="store_true", help="responses as long as the longest")
    parser.add_argument("--most-gigabytes", type=float, default=9.0, help="of a row's process")
    parser.add_argument(
        "--json", type=Path, help="a file to which the figures are appended, a line for each row"
    )
    parser.add_argument(
        "--blocks", nargs="+", type=int, help="time attention alone, by the queries in a call"
    )
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    if arguments.one:
        name, shape = arguments.one
        print(json.dumps(limited(name, shape, arguments)))
        return
    if arguments.blocks:
        for shape in arguments.shapes:
            time_blocks(shape, arguments.blocks)
        return
    for shape in arguments.shapes:
        for name in arguments.contenders:
            command = [sys.executable, *sys.argv, "--one", name, shape]
            run = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
            )
            if run.returncode:
                figures = {"failed": f"exit code {run.returncode}: {run.stderr[-500:]}"}
            else:
                figures = json.loads(run.stdout.splitlines()[-1])
            load = os.getloadavg()[0]
            texts = [
                f"{what} {of['seconds']:.1f} s, {of['gigabytes']:.2f} GB ({of['gigabytes_over']:.2f} on top)"
                for what in arguments.passes
                if (of := figures.get(what)) is not None
            ]
            line = "; ".join(texts) or figures["failed"]
            print(f"{shape:14} {name:18} {line}; load {load:.1f}", flush=True)
            if arguments.json:
                row = {"shape": shape, "contender": name, "layers": arguments.layers, **figures}
                with arguments.json.open("a") as file:
                    file.write(json.dumps(row | {"load": load, "equal": arguments.equal}) + "\n")


if __name__ == "__main__":
    main()
