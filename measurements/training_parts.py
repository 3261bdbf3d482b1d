"""Where the time of a training step goes, part by part: this package's step and reference pass beside TRL's.

    OMP_NUM_THREADS=2 python measurements/training_parts.py --model smollm2 --prompts 4 --responses 5

Its figures stand in docs/experiments.md under "The parts of a step". It takes the models, prompts and contenders of
measurements/training.py. torch's profiler says how long each operation took by itself, and from the operation, its shapes and those
that called it follows the part that it belongs to:

- products: the matrix products of the layers;
- attention: scaled_dot_product_attention and its backward pass;
- head: the output head with its log-softmax, whichever way it is computed;
- embedding: the lookup of the tokens and its backward pass;
- optimiser: the step, and the clipping of the gradient's norm;
- elementwise: every other operation: norms, rotations, activations, copies, sums of gradients;
- Python: what the clock says beyond all operations.

The rate is that of a square product in the same run. At the end of a line stands what share of it a pass would reach in which the useful
products took what they take at this rate, attention and the optimiser took what they take, and nothing else took any time.
"""

import argparse
import collections
import tempfile
import time
from pathlib import Path

import torch
import training
from torch.profiler import ProfilerActivity, profile

PARTS = ("products", "attention", "head", "embedding", "optimiser", "elementwise", "Python")
_PRODUCTS = {"aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::linear"}


def part_of(event, vocabulary):
    """The part that an operation belongs to, from itself outwards to the operations that called it."""
    chain, caller = [], event
    while caller is not None:
        chain.append(caller)
        caller = caller.cpu_parent
    names = " ".join(each.name for each in chain)
    if "Optimizer." in names or "_foreach_norm" in names or "linalg_vector_norm" in names:
        return "optimiser"
    if "embedding" in names.lower():
        return "embedding"
    if "_TokenLogProbs" in names:
        return "head"
    if "scaled_dot_product" in names or "ScaledDotProduct" in names:
        return "attention"
    shapes = [shape for each in chain for shape in each.input_shapes or [] if isinstance(shape, list)]
    if any(vocabulary in shape for shape in shapes) and "AccumulateGrad" not in names:
        return "head"
    return "products" if event.name in _PRODUCTS else "elementwise"


def seconds_by_part(work, vocabulary):
    """The seconds of each part of one call, and of the whole by the clock."""
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as found:
        begin = time.perf_counter()
        work()
        whole = time.perf_counter() - begin
    spent = collections.Counter()
    for event in found.events():
        spent[part_of(event, vocabulary)] += event.self_cpu_time_total / 1e6
    spent["Python"] = whole - sum(spent.values())
    return spent, whole


def show(name, what, spent, whole, useful):
    """Print the parts of a pass whose useful products would take `useful` seconds at the rate."""
    shares = "  ".join(f"{part} {spent[part]:.2f}" for part in PARTS)
    most = useful / (useful + spent["attention"] + spent["optimiser"])
    print(
        f"{name} {what}: {whole:.2f} s, {useful / whole:.0%} of the rate: {shares}; at most {most:.0%}",
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=training.MODELS, default="58m")
    parser.add_argument("--prompts", default="4", help="of a step")
    parser.add_argument("--responses", type=int, nargs="+", default=[2, 5], help="to a prompt")
    parser.add_argument("--trl-batches", default="1", help="TRL's batch size")
    parser.add_argument("--only", choices=("sppo", "TRL"))
    parser.add_argument("--mixed-precision", choices=("no", "bf16"), default="no", help="of this package")
    options = parser.parse_args()
    args = training.parse_arguments(
        ["--model", options.model, "--prompts", options.prompts, "--trl-batches", options.trl_batches]
    )
    vocabulary = training.MODELS[args.model]["vocab_size"]
    for responses in options.responses:
        rows = training.draw(args, responses)
        rate = training.matmul_rate(args)
        flops = training.model_flops(args, rows)
        with tempfile.TemporaryDirectory() as holder:
            folder = Path(holder)
            contenders = (
                [training.Ours(args, rows, folder / "ours", options.mixed_precision)]
                if options.only != "TRL"
                else []
            )
            if options.only != "sppo":
                contenders.append(training.Theirs(args, rows, folder / "theirs", args.trl_batches[0]))
            print(
                f"{args.model}, {args.prompts} prompts, K = {responses}, {torch.get_num_threads()} thread(s)",
                end="",
            )
            print(f", {rate / 1e9:.0f} GFLOP/s")
            for contender in contenders:
                training.step(contender)  # warms up
                # Forward and backward take 6 operations for each weight and token, the forward pass alone takes 2.
                for what, work, share in (
                    ("step", lambda c=contender: training.step(c), 1),
                    ("reference", contender.reference, 1 / 3),
                ):
                    spent, whole = seconds_by_part(work, vocabulary)
                    show(contender.name, what, spent, whole, share * flops / rate)


if __name__ == "__main__":
    main()
