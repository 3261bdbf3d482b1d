"""The speed of the sampler, side by side with a plain `model.generate` loop and, if its Python is named, with vLLM.

    OMP_NUM_THREADS=1 python measurements/sampling.py [--vllm-python .venv-vllm/bin/python] [--repeats 3]
    python measurements/sampling.py --policy FOLDER --dtype bfloat16 --prompts 24    a policy of one's own, such as SmolLM2
    python measurements/sampling.py --batch-sizes       the responses that another batch size changes, in fp32 and bf16
    python measurements/sampling.py --deviations        the sampler's log-probabilities against the trainer's
    python measurements/sampling.py --draw              the CPU seconds that drawing a token for each of 96 rows takes

Its figures stand in docs/experiments.md under "Sampling". There are two inputs: instruct-6m with AlpacaEval's instructions
(../shared, beside the checkout), and a random Llama of 58M parameters with prompts and responses of lengths like
UltraFeedback's. With `--policy` there is one, AlpacaEval's instructions for that policy. All samplers run in turn in one process. It prints medians of useful tokens (up to the end of turn) per
second of the clock and of processor time; on a machine with other work, processor time is the one to compare.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
SHARED = HERE.parents[1] / "shared"
BATCH, K = 64, 4
EOS_58M = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--vllm-python", type=Path, help="of an environment with vLLM, e.g. of make test-vllm"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=32, help="of instruct-6m; of 58M half as many")
    parser.add_argument("--only", choices=["instruct-6m", "58M"])
    parser.add_argument(
        "--policy", type=Path, help="a folder with a chat template, in the place of the two inputs"
    )
    parser.add_argument("--max-new-tokens", type=int, default=256, help="of --policy")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument(
        "--no-generate", action="store_true", help="leave out the plain loop, which takes longest"
    )
    parser.add_argument("--batch-sizes", action="store_true")
    parser.add_argument("--deviations", action="store_true")
    parser.add_argument("--draw", action="store_true")
    options = parser.parse_args()
    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    if options.draw:
        draw()
        return
    with tempfile.TemporaryDirectory() as folder:
        if options.batch_sizes or options.deviations:
            case = instruct_6m(options.prompts) if options.policy is None else of_folder(options)
            for measure, wanted in ((batch_sizes, options.batch_sizes), (deviations, options.deviations)):
                if wanted:
                    measure(case)
            return
        cases: dict[str, Callable[[], Any]] = {
            "instruct-6m": lambda: instruct_6m(options.prompts),
            "58M": lambda: llama_58m(Path(folder), max(1, options.prompts // 2)),
        }
        if options.policy is not None:
            cases = {options.policy.name: lambda: of_folder(options)}
        for name, make in cases.items():
            if options.only in (None, name):
                compare(name, make(), options)


class Case:
    """A model with prompts: what every contestant is given."""

    def __init__(self, policy: Path, prompts: list[list[int]], stop: int, max_new_tokens: int) -> None:
        self.policy, self.prompts, self.stop, self.max_new_tokens = policy, prompts, stop, max_new_tokens


def instruct_6m(count: int) -> Case:
    import pyarrow.parquet as pq

    from sppo.policy import chat_format as chat

    if not SHARED.is_dir():
        sys.exit(f"{SHARED} is not there: this measurement needs its model and instructions")
    policy = SHARED / "models/instruct-6m"
    unseen = set(json.loads((policy / "unseen_instructions.json").read_text()))
    form = chat.load(str(policy))
    rows = pq.read_table(SHARED / "data/alpacaeval/common/instructions.parquet").to_pylist()
    prompts = [
        form.render([{"role": "user", "content": row["instruction"]}]).token_ids
        for row in rows
        if row["index"] in unseen
    ]
    return Case(
        policy, [prompt for prompt in prompts if len(prompt) <= 1024 - 384][:count], form.end_of_turn, 384
    )


def of_folder(options: argparse.Namespace) -> Case:
    """The first of AlpacaEval's instructions for a policy of one's own."""
    import pyarrow.parquet as pq

    from sppo.policy import chat_format as chat

    form = chat.load(str(options.policy))
    rows = pq.read_table(SHARED / "data/alpacaeval/common/instructions.parquet").to_pylist()
    texts = [row["instruction"] for row in rows[: options.prompts]]
    prompts = [form.render([{"role": "user", "content": text}]).token_ids for text in texts]
    return Case(options.policy, prompts, form.end_of_turn, options.max_new_tokens)


def llama_58m(folder: Path, count: int) -> Case:
    """Random weights, but for the end of turn, whose probability makes lengths of 300 tokens on average.

    Prompts have log-normal lengths, median 130 tokens, as UltraFeedback's.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=32000, hidden_size=512, intermediate_size=1536, num_hidden_layers=8,
        num_attention_heads=8, num_key_value_heads=4, max_position_embeddings=2048,
        tie_word_embeddings=False, eos_token_id=EOS_58M, bos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    # small random logits: each token has about 1/32000; a final norm of one direction lifts the end of turn's to 1/300
    with torch.no_grad():
        model.model.embed_tokens.weight[:, 0] = 4.0
        model.lm_head.weight[:, 0] = 0.0
        model.lm_head.weight[EOS_58M, :] = 0.0
        state = model.model(torch.arange(10, 200)[None]).last_hidden_state[0, :, 0].mean()
        model.lm_head.weight[EOS_58M, 0] = float(np.log(32000 / 300) / state)
    policy = folder / "58M"
    model.save_pretrained(policy)
    print(f"58M: {sum(p.numel() for p in model.parameters()) / 1e6:.1f}M parameters")
    generator = np.random.default_rng(0)
    lengths = np.clip(np.exp(generator.normal(np.log(130), 0.8, count)), 10, 900).astype(int)
    return Case(policy, [generator.integers(3, 32000, n).tolist() for n in lengths], EOS_58M, 768)


# the contestants; each gives the number of useful tokens that it draws when called


def ours(case: Case, dtype: str = "float32", **settings: Any) -> Callable[[int], int]:
    from sppo.policy import load as policies
    from sppo.sampling.decoding import TransformersSampler
    from sppo.sampling.transformers import TransformersSampling

    sampler = TransformersSampler(
        policies.load(case.policy, dtype=dtype, device="cpu"),
        TransformersSampling(max_new_tokens=case.max_new_tokens, **settings),
        [case.stop],
    )

    def draw(seed: int) -> int:
        keys = [(seed, number) for number in range(len(case.prompts))]
        drawn = sampler.sample(case.prompts, keys, K)
        return sum(len(response.token_ids) for of_prompt in drawn for response in of_prompt)

    return draw


def plain_generate(case: Case, dtype: str) -> Callable[[int], int]:
    """What a script without a sampler does: batches of 64, padded, each until its longest has ended."""
    import torch

    from sppo.policy import load as policies

    model = policies.load(case.policy, dtype=dtype, device="cpu")

    def draw(seed: int) -> int:
        torch.manual_seed(seed)
        every = [prompt for prompt in case.prompts for _ in range(K)]
        tokens = 0
        for start in range(0, len(every), BATCH):
            part = every[start : start + BATCH]
            width = max(map(len, part))
            with torch.inference_mode():
                found = model.generate(
                    input_ids=torch.tensor([[0] * (width - len(p)) + p for p in part]),
                    attention_mask=torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in part]),
                    do_sample=True, top_k=0, max_new_tokens=case.max_new_tokens,
                    eos_token_id=case.stop, pad_token_id=0,
                )  # fmt: skip
            for row in found[:, width:].tolist():
                tokens += row.index(case.stop) + 1 if case.stop in row else len(row)
        return tokens

    return draw


_VLLM = """
import json, resource, sys, time
from pathlib import Path
from sppo.sampling import SampledPolicy
from sppo.sampling.vllm import VllmSampler, VllmSampling
case = json.loads(sys.argv[1])
# copied without a check, since a recipe may not leave out the tokenizer
settings = VllmSampling(max_new_tokens=case["max_new_tokens"]).model_copy(update={"engine_args": {"enforce_eager": True,
    "kv_cache_memory_bytes": 1 << 30, "max_model_len": case["context"], "skip_tokenizer_init": True}})
sampler = VllmSampler(settings, SampledPolicy(Path(case["policy"]), [case["stop"]], str, case["dtype"]))
pid = sampler.engine.process.pid
def busy():
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / 100
print("ready", flush=True)
for line in sys.stdin:
    seed = int(line)
    begin, worked = time.perf_counter(), busy()
    drawn = sampler.sample(case["prompts"], [(seed, n) for n in range(len(case["prompts"]))], case["k"])
    tokens = sum(len(r.token_ids) for of in drawn for r in of)
    print("drawn", tokens, time.perf_counter() - begin, busy() - worked, flush=True)
sampler.close()
"""


class Vllm:
    """vLLM in its own environment, driven through the same sampler class as in a run."""

    def __init__(self, python: Path, case: Case, dtype: str) -> None:
        context = max(map(len, case.prompts)) + case.max_new_tokens
        values = {"policy": str(case.policy), "prompts": case.prompts, "stop": case.stop, "k": K}
        values |= {"max_new_tokens": case.max_new_tokens, "context": context, "dtype": dtype}
        environment = {**os.environ, "PYTHONPATH": str(HERE.parent / "src"), "HF_HUB_OFFLINE": "1"}
        self.process = subprocess.Popen(
            [python, "-c", _VLLM, json.dumps(values)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        self._line("ready")

    def __call__(self, seed: int) -> tuple[int, float, float]:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{seed}\n")
        self.process.stdin.flush()
        _, tokens, seconds, busy = self._line("drawn").split()
        return int(tokens), float(seconds), float(busy)

    def close(self) -> None:
        self.process.communicate()

    def _line(self, word: str) -> str:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(word):
                return line
        raise RuntimeError(f"vLLM ended with exit code {self.process.wait()}")


def timed(draw: Callable[[int], int]) -> Callable[[int], tuple[int, float, float]]:
    def run(seed: int) -> tuple[int, float, float]:
        begin, busy = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
        tokens = draw(seed)
        after = resource.getrusage(resource.RUSAGE_SELF)
        worked = after.ru_utime + after.ru_stime - busy.ru_utime - busy.ru_stime
        return tokens, time.perf_counter() - begin, worked

    return run


def compare(name: str, case: Case, options: argparse.Namespace) -> None:
    lengths = [len(prompt) for prompt in case.prompts]
    print(
        f"\n{name}: {len(lengths)} prompts of {min(lengths)} to {max(lengths)} tokens (mean {np.mean(lengths):.0f}),"
        f" K = {K}, at most {case.max_new_tokens} new tokens, {options.dtype}, {os.environ.get('OMP_NUM_THREADS', 1)} thread(s)"
    )
    contestants: dict[str, Any] = {"ours": timed(ours(case, options.dtype))}
    if not options.no_generate:
        contestants["model.generate"] = timed(plain_generate(case, options.dtype))
    if options.vllm_python is not None:
        contestants["vLLM"] = Vllm(options.vllm_python, case, options.dtype)
    rates: dict[str, list[tuple[float, float]]] = {who: [] for who in contestants}
    for turn in range(options.repeats):
        for who, draw in contestants.items():
            tokens, seconds, worked = draw(turn)
            rates[who].append((tokens / seconds, tokens / worked))
            print(
                f"  turn {turn + 1}  {who:15} {tokens:7} tokens  {seconds:7.1f} s  {worked:7.1f} s of processor",
                flush=True,
            )
    middle = {
        who: [statistics.median(column) for column in zip(*of, strict=True)] for who, of in rates.items()
    }
    print(
        "  medians           tokens/s   tokens per processor second   ours over it: by the clock, by the processor"
    )
    for who, (clock, processor) in middle.items():
        over = [mine / theirs for mine, theirs in zip(middle["ours"], (clock, processor), strict=True)]
        print(f"  {who:15} {clock:10.0f} {processor:29.0f} {over[0]:28.2f} {over[1]:18.2f}")
    if "vLLM" in contestants:
        contestants["vLLM"].close()


def batch_sizes(case: Case) -> None:
    """How many responses change when more or fewer are decoded side by side."""
    print(f"\nresponses of {len(case.prompts)} prompts x {K} that differ from those of batch_tokens 65536")
    for dtype in ("float32", "bfloat16"):
        found = {}
        for tokens in (65536, 16384, 2048):
            found[tokens] = _responses(case, dtype, tokens)
        for tokens in (16384, 2048):
            differ = sum(a.token_ids != b.token_ids for a, b in zip(found[65536], found[tokens], strict=True))
            print(f"  {dtype:9} batch_tokens {tokens:6}: {differ} of {len(found[tokens])}", flush=True)


def deviations(case: Case) -> None:
    """|log pi by the sampler - log pi by the trainer's code| per token of the same response."""
    from sppo.policy import load as policies
    from sppo.training.log_probs import Tree, log_probs

    print("\ndeviation of log pi(y|x) per token, sampler against trainer, nats")
    for sampled_in, trained_in in (("float32", "float32"), ("bfloat16", "bfloat16"), ("bfloat16", "float32")):
        drawn = _responses(case, sampled_in, 65536)
        trees = [
            Tree(prompt, [r.token_ids for r in drawn[n * K : n * K + K]])
            for n, prompt in enumerate(case.prompts)
        ]
        model = policies.load(case.policy, dtype=trained_in, device="cpu")
        theirs = [value for of in log_probs(model, trees, pack_tokens=4096) for value in of]
        apart = np.array([(r.log_prob - t) / len(r.token_ids) for r, t in zip(drawn, theirs, strict=True)])
        parts = np.quantile(np.abs(apart), [0.5, 0.9, 0.99, 1.0])
        print(
            f"  sampled in {sampled_in}, trained in {trained_in}: mean {apart.mean():+.2e}, absolute: mean"
            f" {np.abs(apart).mean():.2e}, median {parts[0]:.2e}, 90% {parts[1]:.2e}, 99% {parts[2]:.2e}, worst"
            f" {parts[3]:.2e} ({len(drawn)} responses)",
            flush=True,
        )


def draw() -> None:
    """CPU seconds of one call of the function that draws tokens, for 96 rows over SmolLM2's vocabulary."""
    import torch

    from sppo.sampling.drawing import choose
    from sppo.sampling.transformers import TransformersSampling

    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(96, 49152, generator=generator)
    uniform = torch.rand(96, dtype=torch.float64, generator=generator)
    seconds = []
    for _ in range(9):
        begin = time.process_time()
        choose(logits, uniform, TransformersSampling())
        seconds.append(time.process_time() - begin)
    print(f"96 rows, 49,152 tokens: median {1000 * statistics.median(seconds):.1f} CPU ms")


def _responses(case: Case, dtype: str, batch_tokens: int) -> Sequence[Any]:
    from sppo.policy import load as policies
    from sppo.sampling.decoding import TransformersSampler
    from sppo.sampling.transformers import TransformersSampling

    model = policies.load(case.policy, dtype=dtype, device="cpu")
    settings = TransformersSampling(max_new_tokens=case.max_new_tokens, batch_tokens=batch_tokens)
    keys = [(number,) for number in range(len(case.prompts))]
    drawn = TransformersSampler(model, settings, [case.stop]).sample(case.prompts, keys, K)
    return [response for of_prompt in drawn for response in of_prompt]


if __name__ == "__main__":
    main()
