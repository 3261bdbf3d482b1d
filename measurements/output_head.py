"""Time and memory of the output head with its log-softmax: ours, torch's, checkpointed chunks, and all logits at once.

    OMP_NUM_THREADS=2 python measurements/output_head.py --tokens 800

Its figures stand in docs/experiments.md under "Which fused head". The tokens of one pack meet a vocabulary of 32k; forward
and backward together and forward alone are timed. Repeats alternate, and medians are printed.
"""

import argparse
import statistics
import time

import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from sppo.training.output_head import token_log_probs


def ways(hidden, weight, targets, chunk=256):
    def at_once():
        return -F.cross_entropy(F.linear(hidden, weight), targets, reduction="none")

    def part(rows, of_rows):
        return -F.cross_entropy(F.linear(rows, weight), of_rows, reduction="none")

    def checkpointed():
        parts = zip(hidden.split(chunk), targets.split(chunk), strict=True)
        return torch.cat([checkpoint(part, *pair, use_reentrant=False) for pair in parts])

    found = {
        "sppo, tiles of the vocabulary": lambda: token_log_probs(hidden, weight, None, targets),
        "all logits at once": at_once,
        f"checkpointed chunks of {chunk} tokens": checkpointed,
    }
    if hasattr(F, "linear_cross_entropy"):  # torch 2.13
        for name, options in (
            ("auto", torch.nn.LinearCrossEntropyOptions()),
            (chunk, torch.nn.LinearCrossEntropyOptions(batch_chunk_size=chunk, chunking_method=None)),
        ):
            found[f"torch's linear_cross_entropy, {name}"] = lambda options=options: (
                -F.linear_cross_entropy(hidden, weight, targets, reduction="none", options=options)
            )
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--tokens", type=int, default=800)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--vocabulary", type=int, default=32_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--cpu-time", action="store_true", help="for a machine with other work to do")
    args = parser.parse_args()
    clock = time.process_time if args.cpu_time else time.perf_counter
    torch.manual_seed(0)
    dtype = torch.float32 if args.device == "cpu" else torch.bfloat16
    place = {"device": args.device, "dtype": dtype, "requires_grad": True}
    hidden = torch.randn(args.tokens, args.width, **place)
    weight = (torch.randn(args.vocabulary, args.width, **place) * 0.02).detach().requires_grad_()
    targets = torch.randint(0, args.vocabulary, (args.tokens,), device=args.device)
    upstream = torch.randn(args.tokens, device=args.device)
    times = {}
    for repeat in range(args.repeats + 1):
        for name, compute in ways(hidden, weight, targets).items():
            for what in ("forward and backward", "forward"):
                with torch.set_grad_enabled(what != "forward"):
                    start = clock()
                    values = compute()
                    if what != "forward":
                        values.backward(upstream.to(values.dtype))
                    if args.device != "cpu":
                        torch.cuda.synchronize()
                if repeat:  # the first is for warming up
                    times.setdefault((name, what), []).append(clock() - start)
                hidden.grad = weight.grad = None
    for (name, what), values in times.items():
        print(f"{name}: {what}: {1000 * statistics.median(values):.0f} ms (least {1000 * min(values):.0f})")


if __name__ == "__main__":
    main()
