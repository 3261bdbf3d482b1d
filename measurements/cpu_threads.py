"""The number of threads that a run would choose for a policy, beside the seconds of real work with each number.

    python measurements/cpu_threads.py POLICY [POLICY ...] [--threads 1,2] [--turns 2]

Its figures stand in docs/experiments.md under "How many threads". The work is that of a run: sampling 4 responses of 24 tokens
to each of 8 prompts, and two packs of 512 tokens forward and backward. The numbers of threads take turns.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch

from sppo.policy import cpu_threads
from sppo.policy import load as policies
from sppo.sampling.decoding import TransformersSampler
from sppo.sampling.transformers import TransformersSampling
from sppo.training.log_probs import Tree, measure_capabilities, response_log_probs


def work_on(policy: Path) -> dict[str, object]:
    """The functions that sample and train with a policy."""
    model = policies.load(policy, dtype="float32", device="cpu")
    vocabulary = model.config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(3, vocabulary, (8, 64), generator=generator).tolist()
    sampler = TransformersSampler(model, TransformersSampling(max_new_tokens=24), [])
    keys = [(number,) for number in range(len(prompts))]
    trees = [Tree(prompt, [prompt, prompt[::-1]]) for prompt in prompts[:3]]
    capabilities = measure_capabilities(model)

    def train() -> None:
        for _ in range(2):
            response_log_probs(model, trees, capabilities).sum().backward()
        model.zero_grad()

    return {"sampling": lambda: sampler.sample(prompts, keys, 4), "training": train}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("policy", type=Path, nargs="+")
    parser.add_argument("--threads", default=f"1,{cpu_threads.cores()}")
    parser.add_argument("--turns", type=int, default=2)
    options = parser.parse_args()
    numbers = [int(number) for number in options.threads.split(",")]
    for policy in options.policy:
        policies.text_config(policy)  # importing transformers is not part of it
        begin = time.perf_counter()
        seconds = cpu_threads.measure(policy, "float32", max(numbers))
        taken = time.perf_counter() - begin
        milliseconds = ", ".join(f"{1000 * value:.0f} with {number}" for number, value in seconds.items())
        chosen = cpu_threads.fewest_near_the_fastest(seconds)
        print(
            f"{policy.name}: {chosen} chosen in {taken:.1f} s (ms: {milliseconds}); {options.turns} turns of work"
        )
        for name, do in work_on(policy).items():
            times: dict[int, list[float]] = {number: [] for number in numbers}
            for _ in range(options.turns):
                for number in numbers:
                    torch.set_num_threads(number)
                    begin = time.perf_counter()
                    do()
                    times[number].append(time.perf_counter() - begin)
            medians = {number: statistics.median(values) for number, values in times.items()}
            print(
                f"  {name}: " + ", ".join(f"{value:.2f} s with {n}" for n, value in medians.items()),
                flush=True,
            )


if __name__ == "__main__":
    main()
