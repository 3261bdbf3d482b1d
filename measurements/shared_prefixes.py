r"""The time that prompts save by sharing what they begin with, beside the same packs' trees each for itself.

    OMP_NUM_THREADS=1 python measurements/shared_prefixes.py POLICY --mt-bench FOLDER --sets turns system
    OMP_NUM_THREADS=1 python measurements/shared_prefixes.py POLICY --mt-bench FOLDER --sets 8 16 32 64 128
    OMP_NUM_THREADS=1 python measurements/shared_prefixes.py POLICY --mt-bench FOLDER --memory --document-tokens 500

Its figures stand in docs/experiments.md under "Prompts that begin alike". FOLDER has MT-Bench's `question.jsonl` and
`model_answer/`. `turns` are MT-Bench's questions: the first turn with the answers of two models, and for each of them the second
turn, whose prompt contains its answer, with both models' second answers. `system` are the first turns below one system message
of about 200 tokens. A number is a set of short prompts that have so many random tokens in common, and so are told apart from the
rest by nothing else. Repeats alternate, so that both see the same machine; ratios are ratios of medians.
"""

import argparse
import itertools
import json
import random
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pack_memory import kept_bytes

from sppo.policy import load as policies
from sppo.policy.model_files import load_tokenizer
from sppo.training.forest import SHARED_WITH_NONE, Forest, Tree
from sppo.training.log_probs import Capabilities, log_probs, measure_capabilities, packs, response_log_probs

SYSTEM = """You are the assistant of a small public library. Answer in plain words that a visitor who is in a hurry can follow,
in at most three short paragraphs, and never in the form of a table. If a question is about a book, name its author and the year
in which it first appeared; if you are not certain of either, say so rather than guess. If a question is about opening hours,
fees or the catalogue, say that the desk in the entrance hall knows them, because they change more often than you are told of.
Do not give legal, medical or financial advice: name the shelf where the visitor finds introductions to the subject instead. If
a visitor asks for an opinion, give the strongest reasons on both sides before you say which you find more convincing. Mathematics
is worked out step by step, and the result is repeated at the end. Programs are written in the language that the visitor asks for,
with a sentence on how to run them. Questions in other languages than English are answered in the language of the question. Be
friendly, but leave out greetings, apologies and compliments, and do not repeat the question."""


def mt_bench(folder: Path, models: list[str], questions: int) -> list[tuple[list[str], list[list[str]]]]:
    """The two questions, and each model's two answers, of some conversations, evenly over the categories."""
    lines = (folder / "question.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines][:: max(1, len(lines) // questions)][:questions]
    answers = []
    for model in models:
        answered = (folder / "model_answer" / f"{model}.jsonl").read_text().splitlines()
        answers.append({row["question_id"]: row["choices"][0]["turns"] for row in map(json.loads, answered)})
    return [(row["turns"], [of_model[row["question_id"]] for of_model in answers]) for row in rows]


class Sets:
    """The trees of each set, in a policy's own tokens and chat template."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._tokenizer = load_tokenizer(args.policy)
        self._most = args.response_tokens
        self._conversations = mt_bench(args.mt_bench, args.models, args.questions)
        self._random = random.Random(0)

    def make(self, name: str) -> list[Tree]:
        if name == "turns":
            return [
                tree for questions, answers in self._conversations for tree in self._turns(questions, answers)
            ]
        if name == "system":
            system = {"role": "system", "content": SYSTEM}
            return [
                Tree(
                    self._ids([system, {"role": "user", "content": questions[0]}]),
                    [self._response(answer[0]) for answer in answers],
                )
                for questions, answers in self._conversations
            ]
        common = self._draw(int(name))
        return [Tree(common + self._draw(40), [self._draw(60), self._draw(60)]) for _ in range(8)]

    def _turns(self, questions: list[str], answers: list[list[str]]) -> list[Tree]:
        first = self._ids([{"role": "user", "content": questions[0]}])
        empty = [{"role": "user", "content": "x"}]
        # What the template writes between a response and the next one.
        between = self._ids(
            [*empty, {"role": "assistant", "content": "x"}, {"role": "user", "content": questions[1]}]
        )[len(self._ids(empty)) + len(self._text("x")) + 1 :]
        trees = [Tree(first, [self._response(answer[0]) for answer in answers])]
        seconds = [self._response(answer[1]) for answer in answers]
        return trees + [Tree(first + self._response(answer[0]) + between, seconds) for answer in answers]

    def _ids(self, messages: list[dict[str, str]]) -> list[int]:
        ids: list[int] = self._tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=False
        )
        return ids

    def _text(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _response(self, text: str) -> list[int]:
        return [*self._text(text)[: self._most], self._tokenizer.eos_token_id]

    def _draw(self, count: int) -> list[int]:
        return [self._random.randrange(10, len(self._tokenizer)) for _ in range(count)]


def reference(model: Any, trees: list[Tree], capabilities: Capabilities, pack_tokens: int) -> list[float]:
    """log pi(y|x) of all responses, without gradients."""
    values = log_probs(model, trees, pack_tokens=pack_tokens, capabilities=capabilities)
    return [value for of_tree in values for value in of_tree]


def step(model: Any, trees: list[Tree], capabilities: Capabilities, pack_tokens: int) -> list[float]:
    """The forward and backward passes of a step, without the optimiser's update, which sharing does not concern."""
    values = []
    for pack in packs(trees, pack_tokens, capabilities):
        computed = response_log_probs(model, pack.trees, capabilities)
        computed.square().mean().backward()
        values += computed.tolist()
    model.zero_grad()
    return values


def time_set(model: Any, name: str, trees: list[Tree], args: argparse.Namespace) -> dict[str, Any]:
    found = replace(
        measure_capabilities(model),
        least_shared=min(args.least_shared, 8 if name.isdigit() else SHARED_WITH_NONE),
    )
    ways = {"shared": found, "alone": replace(found, least_shared=SHARED_WITH_NONE)}
    tokens = {way: Forest(trees, of.least_shared).tokens for way, of in ways.items()}
    work = {"reference": reference, "step": step}
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in itertools.product(work, ways)}
    values = {way: reference(model, trees, of, args.pack_tokens) for way, of in ways.items()}
    for _ in range(args.repeats):
        for what, way in seconds:
            begin = time.process_time()
            work[what](model, trees, ways[way], args.pack_tokens)
            seconds[what, way].append(time.process_time() - begin)
    medians = {key: statistics.median(taken) for key, taken in seconds.items()}
    apart = max(abs(one - other) / abs(other) for one, other in zip(*values.values(), strict=True))
    print(
        f"{name}: {len(trees)} prompts, {tokens['alone']} tokens, {tokens['shared']} with shared ones once:"
        f" {tokens['alone'] / tokens['shared']:.2f}x; apart by {apart:.1e} of log pi(y|x) at most"
    )
    if args.profile:
        for way, of in ways.items():
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
                step(model, trees, of, args.pack_tokens)
            print(way, profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=8))
    for what in work:
        alone, shared = medians[what, "alone"], medians[what, "shared"]
        print(f"    {what}: {alone:.2f} s alone, {shared:.2f} s shared: {alone / shared:.2f}x", flush=True)
    return {
        "tokens": tokens,
        "apart": apart,
        "seconds": {f"{what}, {way}": s for (what, way), s in medians.items()},
    }


def memory(model: Any, args: argparse.Namespace) -> None:
    """What autograd keeps for a pack, per token that the pack counts: short prompts below a document, and each for itself."""
    draw = random.Random(0)
    ids = lambda count: [draw.randrange(1000, 10_000) for _ in range(count)]  # noqa: E731
    document = ids(args.document_tokens)
    trees = [Tree(document + ids(20), [ids(20), ids(20)]) for _ in range(4)]
    found = measure_capabilities(model)
    for name, capabilities in (("alone", replace(found, least_shared=SHARED_WITH_NONE)), ("shared", found)):
        for count in (1, 2, 4):
            kept = kept_bytes(model, trees[:count], capabilities)
            counted, through = (
                capabilities.tokens(trees[:count]),
                Forest(trees[:count], capabilities.least_shared).tokens,
            )
            print(
                f"{name}, {count} prompts: {through} tokens, counted as {counted}; {kept / 2**20:.0f} MiB,"
                f" {kept / counted / 2**10:.0f} KiB for each that is counted, {kept / through / 2**10:.0f} KiB for each",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("policy", type=Path)
    parser.add_argument("--mt-bench", type=Path, required=True)
    parser.add_argument("--models", nargs="+", default=["gpt-3.5-turbo", "vicuna-7b-v1.3"])
    parser.add_argument("--questions", type=int, default=4)
    parser.add_argument("--response-tokens", type=int, default=128)
    parser.add_argument("--sets", nargs="*", default=[])
    parser.add_argument("--least-shared", type=int, default=32)
    parser.add_argument("--pack-tokens", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--profile", action="store_true", help="the operations of a step as well")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--document-tokens", type=int, default=1000)
    args = parser.parse_args()
    model = policies.load(args.policy, dtype="float32", device="cpu")
    sets = Sets(args)
    for name in args.sets:
        time_set(model, name, sets.make(name), args)
    if args.memory:
        memory(model, args)


if __name__ == "__main__":
    main()
