"""What measurements/gpu.py measures; each row is a function that writes its figures as soon as it has them.

On a GPU the models have the shape of a 7B model and random weights, which do not matter for the speed; without one the
same code runs on tiny models. torch and transformers are imported in the rows, so that the driver starts at once.
"""

import importlib.util
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))  # jobs of training

WRONG = 1e-3
"""A sampler that is right has a smaller p-value in one of a thousand runs."""


@dataclass(frozen=True)
class Place:
    """Where a row is measured.

    Attributes:
        device: `cuda` or `cpu`.
        write: adds figures to the row's file.
    """

    device: str
    write: Callable[..., None]

    @property
    def is_small(self) -> bool:
        return self.device == "cpu"

    def choose(self, large: Any, small: Any) -> Any:
        return small if self.is_small else large


@dataclass(frozen=True)
class Row:
    """A row, with its limit in seconds and the packages and devices that it cannot do without."""

    make: Callable[[Place, Path], None]
    seconds: float
    packages: tuple[str, ...] = ()
    devices: int = 1

    def why_not(self, place: Place) -> str | None:
        """Why this machine cannot make the row; None if it can."""
        import torch

        missing = [name for name in self.packages if importlib.util.find_spec(name) is None]
        if missing:
            return f"{', '.join(missing)} is not installed"
        if not place.is_small and torch.cuda.device_count() < self.devices:
            return f"it needs {self.devices} GPUs, and there is {torch.cuda.device_count()}"
        return None


# Is it right?


FAILURES = (RuntimeError, NotImplementedError, ValueError)
"""What a method of attention raises where it does not fit, such as the mask of a long row."""


def attention_methods(place: Place) -> list[Any]:
    """The methods of attention, first a row for each response, which is right for every model; flex has no backward on a CPU."""
    return ["rows", "mask", "pieces", *place.choose(["flex"], [])]


def log_probs_agree(place: Place, work: Path) -> None:
    """log pi(y|x) of trees on this device, by every method of attention, beside the CPU's in float32."""
    import torch

    from sppo.policy import load as policies
    from sppo.tinyworld import POLICY
    from sppo.training.log_probs import Capabilities, log_probs, measure_capabilities, small_trees
    from sppo.training.tree_attention import IMPLEMENTATIONS

    exact = policies.load(POLICY, dtype="float32", device="cpu")
    trees = small_trees(exact, 8)
    tokens = torch.tensor([len(response) for tree in trees for response in tree.responses])
    expected = flat(log_probs(exact, trees, pack_tokens=4096, capabilities=Capabilities("rows", None)))
    for dtype, allowed in (("float32", 1e-4), ("bfloat16", 0.1)):
        model = policies.load(POLICY, dtype=dtype, device=place.device)
        own, chosen = model.config._attn_implementation, measure_capabilities(model)
        figures: dict[str, Any] = {"chosen": chosen.attention}
        for method in attention_methods(place):
            model.set_attn_implementation(IMPLEMENTATIONS.get(method, own))
            capabilities = Capabilities(method, chosen.logits)
            try:
                values = flat(log_probs(model, trees, pack_tokens=4096, capabilities=capabilities))
            except FAILURES as error:
                assert method != chosen.attention
                figures[method] = f"{type(error).__name__}: {error}"[:300]
                continue
            figures[method] = float(((values - expected).abs() / tokens).max())
        place.write(**{f"log_probs_{dtype}": figures})
        used = {name: figures[name] for name in ("rows", chosen.attention)}  # what is not right is not chosen
        assert max(used.values()) < allowed, f"{dtype}: apart from the CPU's, in nats per token: {used}"


def flat(values: list[list[float]]) -> Any:
    import torch

    return torch.tensor([value for of_prompt in values for value in of_prompt])


def sampler_draws_right(place: Place, work: Path) -> None:
    """The first two tokens of many responses beside their probabilities by the CPU, by a chi-square test."""
    import torch
    from scipy.stats import chisquare

    from sppo.policy import load as policies
    from sppo.sampling.decoding import TransformersSampler
    from sppo.sampling.transformers import TransformersSampling
    from sppo.tinyworld import POLICY

    prompt, count = [7, 50, 90, 130, 11, 8], place.choose(20_000, 1000)
    model = policies.load(POLICY, dtype="float32", device=place.device)
    sampler = TransformersSampler(model, TransformersSampling(max_new_tokens=2), [])
    (drawn,) = sampler.sample([prompt], [(1,)], count)
    exact = policies.load(POLICY, dtype="float32", device="cpu")
    with torch.no_grad():
        logits = exact(torch.tensor([prompt])).logits[0, -1]
    first = logits.double().softmax(0).numpy()
    common = int(first.argmax())
    with torch.no_grad():
        logits = exact(torch.tensor([[*prompt, common]])).logits[0, -1]
    second = logits.double().softmax(0).numpy()
    counted = [response.token_ids[0] for response in drawn]
    continued = [response.token_ids[1] for response in drawn if response.token_ids[0] == common]
    for name, tokens, probabilities in (("first", counted, first), ("second", continued, second)):
        expected = probabilities * len(tokens)
        seen = np.bincount(tokens, minlength=len(probabilities))
        often = expected >= 5
        pooled = [[*values[often], values[~often].sum()] for values in (seen, expected)]
        p = float(chisquare(*pooled).pvalue)
        place.write(**{f"chi_square_{name}_token": {"draws": len(tokens), "cells": len(pooled[0]), "p": p}})
        assert p > WRONG, f"the {name} token is drawn with other probabilities: p = {p:.1e}"


def resumed_step_agrees(place: Place, work: Path) -> None:
    """The weights of a training of two steps, beside those of one that goes on from its checkpoint after the first."""
    import dataclasses

    from training_jobs import jobs_on, weights
    from transformers import AutoModelForCausalLM

    from sppo.tinyworld import POLICY
    from sppo.training import train
    from sppo.training.checkpoints import resumed

    whole = jobs_on(POLICY, work)(count=4, batch_prompts=2, epochs=1, checkpoint_steps=1, devices=1)
    train(whole)
    again = dataclasses.replace(whole, output=f"{whole.output}-again", metrics=f"{whole.metrics}-again")
    again = resumed(again, lambda text: None)
    assert again.begun == 1, f"resumed after step {again.begun}"
    train(again)
    one, two = weights(whole), weights(again)
    before = AutoModelForCausalLM.from_pretrained(POLICY).state_dict()
    apart = sum(float((one[name] - two[name]).square().sum()) for name in one) ** 0.5
    moved = sum(float((one[name] - before[name]).square().sum()) for name in one) ** 0.5
    # Adam takes whole steps along gradients that are nothing but rounding, so single weights may differ on a GPU.
    place.write(resumed_step={"apart": apart, "moved": moved})
    assert apart < 1e-2 * moved, (
        f"a resumed training ends {apart:.1e} away, of {moved:.1e} that the weights move"
    )


def correctness(place: Place, work: Path) -> None:
    for check in (log_probs_agree, sampler_draws_right, resumed_step_agrees):
        check(place, work)


# How fast is it?


def training_arguments(place: Place, *further: str) -> Any:
    """The arguments of measurements/training.py: a step of a 7B model, which both contenders hold at once."""
    import torch
    import training

    if place.is_small:
        small = ["--model", "tiny", "--prompts", "2", "--repeats", "1", "--trl-batches", "1"]
        return training.parse_arguments(
            [*small, "--max-tokens", "256", "--response-tokens", "60", "--prompt-tokens", "40", *further]
        )
    # Two sets of weights and optimiser states and one set of gradients, 14.5 GB each, must fit.
    room = torch.cuda.get_device_properties(0).total_memory
    optimizer = "rmsprop" if room > 120e9 else "sgd"
    large = ["--model", "mistral-7b", "--device", "cuda", "--prompts", "16", "--repeats", "3"]
    liger = ["--liger"] if importlib.util.find_spec("liger_kernel") else []
    return training.parse_arguments(
        [*large, "--optimizer", optimizer, "--trl-batches", "2", *liger, *further]
    )


def training_row(responses: int) -> Callable[[Place, Path], None]:
    """Our step and reference pass beside TRL's, and our share of the rate of matrix products and of the data sheet's."""

    def make(place: Place, work: Path) -> None:
        import torch
        import training

        from sppo import cost

        args = training_arguments(place)
        place.write(optimizer=args.optimizer, liger=args.liger)
        figures = training.time_row(args, responses, work)
        if not place.is_small:
            name = torch.cuda.get_device_name().lower()
            peak = next((peak for gpu, peak in cost.PEAKS.items() if gpu in name), None)
            figures["mfu"] = None if peak is None else figures["flops"] / peak
        place.write(**figures)

    return make


def memory_row(contender: str) -> Callable[[Place, Path], None]:
    """The bytes that a step takes over weights and optimiser state; a row for each contender, which need a process each."""

    def make(place: Place, work: Path) -> None:
        import training

        args = training_arguments(place)
        place.write(bytes_over_state=training.peak_over_state(args, contender, args.memory_batch))

    return make


def attention(place: Place, work: Path) -> None:
    """A forward and backward pass of a pack by each method of attention, beside a row for each response."""
    import training

    from sppo.training.log_probs import Capabilities, Tree, measure_capabilities, response_log_probs
    from sppo.training.tree_attention import IMPLEMENTATIONS

    args = training_arguments(place)
    args.model = place.choose("smollm2", "tiny")
    model = training.make_model(args)
    model.config._attn_implementation = model.config._attn_implementation or "sdpa"
    own = model.config._attn_implementation
    logits = measure_capabilities(model).logits
    for k in (2, 5):
        args.prompts = place.choose(8, 1)
        trees = [Tree(prompt, responses) for prompt, responses in training.draw(args, k)]
        tokens = sum(len(response) for tree in trees for response in tree.responses)
        for method in attention_methods(place):
            model.set_attn_implementation(IMPLEMENTATIONS.get(method, own))
            capabilities = Capabilities(method, logits)

            def compute(capabilities: Any = capabilities, trees: Any = trees) -> None:
                response_log_probs(model, trees, capabilities).sum().backward()
                model.zero_grad()

            name = f"K={k}, {method}"
            try:
                compute()  # compiles
                seconds = [training.seconds(compute, args) for _ in range(place.choose(5, 1))]
            except FAILURES as error:
                place.write(**{name: {"failed": f"{type(error).__name__}: {error}"[:300]}})
            else:
                place.write(**{name: {"response_tokens_per_second": tokens / statistics.median(seconds)}})


def pairrm(place: Place, work: Path) -> None:
    """PairRM's ordered pairs per second beside transformers' own encoder with a pair at a time."""
    import oracles

    small = ["--shape", "xsmall", "--prompts", "1", "--k", "2", "--tokens", "60", "--dtypes", "float32"]
    large = ["--shape", "large", "--prompts", "8", "--vocabulary", "127995", "--device", "cuda"]
    large += ["--baseline", "bfloat16", "--batch-pairs", "1", "8", "32"]
    chosen = place.choose([*large, "--repeats", "3"], [*small, "--repeats", "1"])
    arguments = oracles.parse_arguments(chosen)
    pairs = arguments.prompts * arguments.k * (arguments.k - 1)
    place.write(
        ordered_pairs_per_second={name: pairs / taken for name, taken in oracles.measure(arguments).items()}
    )


def sharding(place: Place, work: Path) -> None:
    """A training whose weights are divided over two devices (FSDP2) beside one that each holds all of."""
    import json

    from training_jobs import jobs_on

    from sppo.tinyworld import POLICY
    from sppo.training import train

    folder = POLICY if place.is_small else random_policy(place, work / "policy", "smollm2")
    make = jobs_on(folder, work)
    lines = {}
    for name, settings in (("one", {"devices": 1}), ("two", {"devices": 2, "sharding": "fsdp2"})):
        job = make(name, count=place.choose(32, 4), batch_prompts=place.choose(8, 2), epochs=1, **settings)
        begin = time.perf_counter()
        train(job)
        lines[name] = [json.loads(line) for line in Path(job.metrics).read_text().splitlines()]
        place.write(**{name: {"seconds": time.perf_counter() - begin, "steps": lines[name]}})
    losses = [[line["loss"] for line in of] for of in lines.values()]
    apart = max(abs(one - two) / max(abs(one), 1e-6) for one, two in zip(*losses, strict=True))
    place.write(losses_apart=apart)
    assert apart < 1e-2, f"the losses of two devices are {apart:.1e} from those of one, relatively"


def random_policy(place: Place, folder: Path, shape: str) -> Path:
    """The folder of a model of random weights, with a shape of measurements/training.py, and with a tokenizer's files."""
    import shutil

    import torch
    import training

    from sppo.tinyworld import POLICY

    args = training_arguments(place, "--model", shape)
    training.make_model(args).save_pretrained(folder)
    if not place.is_small:
        torch.cuda.empty_cache()
    for file in POLICY.glob("*token*"):
        shutil.copy(file, folder)
    return folder


def engine(place: Place, work: Path) -> None:
    """vLLM's tokens per second with and without seeds of its own, the swap of a policy, and the memory it leaves."""
    import engine_swap

    from sppo.sampling.vllm_engine import EngineRequest, VllmEngine

    policy = random_policy(place, work / "policy", place.choose("mistral-7b", "tiny"))
    arguments = {
        "dtype": place.choose("bfloat16", "float32"),
        "skip_tokenizer_init": True,
        "enable_prefix_caching": True,
        "logprobs_mode": "raw_logprobs",
        "max_model_len": 1024,
        **place.choose(
            {"gpu_memory_utilization": 0.45}, {"enforce_eager": True, "kv_cache_memory_bytes": 1 << 28}
        ),
    }
    begin = time.perf_counter()
    running = VllmEngine(EngineRequest.of(arguments, policy))
    place.write(start_seconds=time.perf_counter() - begin, memory_while_it_runs=memory_of(place))
    rates: dict[str, list[float]] = {"with seeds of its own": [], "without": []}
    for turn in range(place.choose(3, 1)):
        for number, (name, taken) in enumerate(rates.items()):
            has_seeds = name == "with seeds of its own"
            taken.append(tokens_per_second(place, running, 2 * turn + number, has_seeds=has_seeds))
            place.write(tokens_per_second={who: statistics.median(of) for who, of in rates.items() if of})
    swaps = []
    for _ in range(2):  # the same weights take as long as others
        swaps.append(engine_swap.swap(running, policy))
        place.write(swap_seconds=swaps)
    begin = time.perf_counter()
    running.end()
    place.write(end_seconds=time.perf_counter() - begin, memory_after_it_has_ended=memory_of(place))


def tokens_per_second(place: Place, running: Any, turn: int, *, has_seeds: bool) -> float:
    """Sample from an engine, with prompts that it has not seen yet, and with a seed for each of them or with none."""
    from sppo import randomness
    from sppo.sampling.transformers import TransformersSampling
    from sppo.sampling.vllm import request_parameters

    count, limit, k = place.choose((64, 512, 5), (2, 8, 2))
    prompts = np.random.default_rng(turn).integers(100, 1000, (count, 180)).tolist()
    request = request_parameters(TransformersSampling(max_new_tokens=limit), []) | {"detokenize": False}
    named = [
        (f"{turn}:{number}", prompt, randomness.wide_seed(turn, number) if has_seeds else None)
        for number, prompt in enumerate(prompts)
    ]
    begin = time.perf_counter()
    running.send(("sample", (request, named, k)))
    drawn = [running.receive() for _ in prompts]
    tokens = sum(len(fields[0]) for _, responses in drawn for fields in responses)
    return tokens / (time.perf_counter() - begin)


def memory_of(place: Place) -> dict[str, int] | None:
    """The bytes of the GPU that are free, and all of them; None without one."""
    import torch

    if place.is_small:
        return None
    free, total = torch.cuda.mem_get_info()
    return {"free": free, "total": total}


ROWS = {
    "correctness": Row(correctness, 90),
    "training-2": Row(training_row(2), 150, packages=("trl",)),
    "engine": Row(engine, 240, packages=("vllm",)),
    "attention": Row(attention, 120),
    "pairrm": Row(pairrm, 60),
    "training-5": Row(training_row(5), 120, packages=("trl",)),
    "memory-sppo": Row(memory_row("sppo"), 60),
    "memory-trl": Row(memory_row("TRL"), 60, packages=("trl",)),
    "fsdp2": Row(sharding, 120, devices=2),
}
"""The rows in the order in which they are made, so that a call that is cut off has the most telling ones."""
