"""The seconds of a whole iteration: this package beside the steps of SPPO's released pipeline on the same machine.

    OMP_NUM_THREADS=2 python measurements/iteration.py SMOLLM2 --vllm-python .venv-vllm/bin/python --llm-blender VENV/bin/python

Its figures stand in docs/experiments.md under "A whole iteration". Both sides answer the same prompts (UltraFeedback's, from
../shared) with K responses, compare all ordered pairs of them by a PairRM with random weights, which do not matter for the speed, and
train one epoch on the best and the worst response with the same number of optimiser steps.

The released pipeline starts a process for each step: vLLM, which generates K times with one response to a prompt; llm-blender with
one pair at a time, in its own environment (measurements/llm_blender_worker.py says how to make it); and a trainer, here TRL's
DPOTrainer with the loss `sppo_hard`, which computes the reference's log-probabilities as it goes. Its processes start as they do
there, so that the seconds of each part hold the start. This package plays a recipe by `sppo run`; its seconds are those of its stages, and
"start" is what the command took beyond them. The evaluation, which the released pipeline does not have, is left out: one held-out
prompt is answered, and its seconds are not counted.

vLLM and both trainers compute in bfloat16, llm-blender in float32, since it has no other precision on a CPU. Both sides draw at
temperature 1, where the released code has 0.7 and top_p 0.9.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trl_peer
from oracles import SHAPES, Original, make_checkpoint

HERE = Path(__file__).resolve().parent
SHARED = HERE.parents[1] / "shared"
BATCH_PROMPTS, LEARNING_RATE, ETA = 8, 5e-7, 1e3
PARTS = ("sample", "annotate", "train", "start")

GENERATE = """
import json, sys
from vllm import LLM, SamplingParams
case = json.loads(sys.stdin.read())
llm = LLM(model=case["policy"], dtype="bfloat16", enforce_eager=True, kv_cache_memory_bytes=1 << 30, max_model_len=case["context"])
prompts = [{"prompt_token_ids": ids} for ids in case["prompts"]]
drawn = []
for number in range(case["k"]):
    sampling = SamplingParams(temperature=1.0, max_tokens=case["max_new_tokens"], seed=50 * number)
    drawn.append([list(found.outputs[0].token_ids) for found in llm.generate(prompts, sampling)])
print("drawn " + json.dumps(drawn))
"""
"""What the process of the released pipeline does that samples; its prompts and its answer are JSON."""


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result


def run(command: list[Any], given: Any = None) -> str:
    """The output of a process that is given JSON; the program ends with what it wrote if it fails."""
    done = subprocess.run(
        list(map(str, command)),
        input=json.dumps(given),
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        check=False,
    )
    if done.returncode:
        sys.exit(f"{command[:3]} ended with exit code {done.returncode}:\n{done.stderr[-3000:]}")
    return done.stdout


class Prompts:
    """UltraFeedback's prompts of at most --prompt-tokens tokens, as texts and as the policy's token ids."""

    def __init__(self, options: argparse.Namespace) -> None:
        from sppo.policy import chat_format

        form = chat_format.load(str(options.policy))
        self.texts: list[str] = []
        self.ids: list[list[int]] = []
        self.end_of_turn = form.end_of_turn
        self.decode = form.tokenizer.decode
        lines = (SHARED / "data/prompts/ultrafeedback/prompts.jsonl").read_text(encoding="utf-8").splitlines()
        for line in lines:
            text = json.loads(line)["prompt"]
            ids = form.render([{"role": "user", "content": text}]).token_ids
            if len(ids) <= options.prompt_tokens and text not in self.texts:
                self.texts.append(text)
                self.ids.append(ids)
        self.held_out = self.texts[options.prompts]
        del self.texts[options.prompts :], self.ids[options.prompts :]


def released(options: argparse.Namespace, prompts: Prompts, folder: Path) -> dict[str, float]:
    """The seconds of the steps of the released pipeline."""
    spent = dict.fromkeys(PARTS, 0.0)
    case = {"policy": str(options.policy), "prompts": prompts.ids, "k": options.k}
    case |= {
        "max_new_tokens": options.max_new_tokens,
        "context": options.prompt_tokens + options.max_new_tokens,
    }
    spent["sample"], output = timed(lambda: run([options.vllm_python, "-c", GENERATE], case))
    (line,) = (line for line in output.splitlines() if line.startswith("drawn "))
    drawn = [list(of_prompt) for of_prompt in zip(*json.loads(line.removeprefix("drawn ")), strict=True)]

    def rank() -> Any:
        blender = Original(options.llm_blender, folder / "pairrm", options.threads)
        texts = [
            [prompts.decode(ids, skip_special_tokens=True) or " " for ids in of_prompt] for of_prompt in drawn
        ]
        scores = blender.scores(prompts.texts, texts, False)[1]
        blender.process.stdin.close()
        blender.process.wait()
        return scores

    spent["annotate"], scores = timed(rank)
    pairs = []
    for ids, of_prompt, of_scores in zip(prompts.ids, drawn, scores, strict=True):
        ranked = sorted(range(options.k), key=of_scores.__getitem__)
        closed = [
            of_prompt[place] if of_prompt[place][-1] == prompts.end_of_turn else [*of_prompt[place], prompts.end_of_turn]
            for place in (ranked[-1], ranked[0])
        ]  # fmt: skip
        pairs.append((ids, *closed))
    command = [
        sys.executable,
        __file__,
        options.policy,
        "--train",
        folder / "trl",
        "--threads",
        options.threads,
    ]
    given = {"pairs": pairs, "eos": prompts.end_of_turn}
    spent["train"], _ = timed(lambda: run(command, given))
    tokens = sum(len(ids) for of_prompt in drawn for ids in of_prompt)
    print(f"  released: {tokens} tokens sampled", file=sys.stderr)
    return spent


def train_released(policy: Path, folder: Path, threads: int) -> None:
    """The process of the released pipeline that trains: the pairs are read from standard input."""
    import torch
    from transformers import AutoModelForCausalLM

    given = json.loads(sys.stdin.read())
    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(policy, dtype=torch.bfloat16)  # as in the released code
    trainer = trl_peer.trainer(
        model,
        [tuple(pair) for pair in given["pairs"]],
        folder,
        eos=given["eos"],
        loss_type="sppo_hard",
        beta=1 / ETA,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="linear",
        num_train_epochs=1,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=BATCH_PROMPTS,
        bf16=True,
        optim="rmsprop",
        use_cpu=True,
    )
    trainer.train()
    trainer.save_model(str(folder / "policy"))


def ours(options: argparse.Namespace, prompts: Prompts, folder: Path) -> dict[str, float]:
    """The seconds of the stages of `sppo run`."""
    import yaml

    from sppo.rundir.reader import RunReader
    from sppo.rundir.summary import seconds
    from sppo.rundir.tables import ResponsesRow, read_rows

    folder.mkdir()
    for name, texts in (("train", prompts.texts), ("held-out", [prompts.held_out])):
        rows = "".join(json.dumps({"prompt": text}) + "\n" for text in texts)
        (folder / f"{name}.jsonl").write_text(rows, encoding="utf-8")
    recipe = {
        "iterations": 1,
        "cpu_threads": options.threads,
        "policy": {"model": str(options.policy)},
        "prompts": {
            "train": str(folder / "train.jsonl"),
            "held_out": str(folder / "held-out.jsonl"),
            "parts": 1,
        },
        "sampling": {"k": options.k, "max_new_tokens": options.max_new_tokens, "temperature": 1.0},
        "oracle": {"type": "pairrm", "model": str(folder.parent / "pairrm"), "dtype": options.pairrm_dtype},
        "evaluation": {"responses": 1},
        "selection": "best_worst",
        "algorithm": {"type": "sppo", "eta": ETA},
        "training": {
            "learning_rate": LEARNING_RATE,
            "batch_prompts": BATCH_PROMPTS,
            "epochs": 1,
            "mixed_precision": "bf16",
            "truncated_responses": "train",
        },
        "guard": {"on_failure": "keep"},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    command = [sys.executable, "-m", "sppo", "run", folder / "recipe.yaml", "--run-dir", folder / "run"]
    whole, _ = timed(lambda: run(command))
    reader = RunReader(folder / "run")
    of_stages = seconds(reader.folder, 1)
    evaluation = of_stages["evaluate"] + sum(seconds(reader.folder, 0).values())
    tokens = sum(
        len(response.token_ids)
        for shard in reader.table(1, "responses")
        for row in read_rows(shard, ResponsesRow)
        for response in row.responses
    )
    print(f"  sppo: {tokens} tokens sampled", file=sys.stderr)
    counted = {
        "sample": of_stages["sample"],
        "annotate": of_stages["annotate"],
        "train": of_stages["select"] + of_stages["train"],
    }
    return {**counted, "start": whole - evaluation - sum(counted.values())}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("policy", type=Path)
    parser.add_argument("--vllm-python", type=Path)
    parser.add_argument("--llm-blender", metavar="PYTHON")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--prompt-tokens", type=int, default=512, help="longer prompts are left out")
    parser.add_argument("--k", type=int, default=5)
    parser.add_argument("--max-new-tokens", type=int, default=256)
    parser.add_argument("--shape", choices=SHAPES, default="large", help="of PairRM, which is `large`")
    parser.add_argument("--pairrm-dtype", choices=("float32", "bfloat16"), default="bfloat16", help="ours")
    parser.add_argument("--threads", type=int, default=int(os.environ.get("OMP_NUM_THREADS", "2")))
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--train", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train is not None:
        train_released(options.policy, options.train, options.threads)
        return
    prompts = Prompts(options)
    spent: dict[str, list[dict[str, float]]] = {"released": [], "sppo": []}
    with tempfile.TemporaryDirectory() as holder:
        home = Path(holder)
        (home / "pairrm").mkdir()
        make_checkpoint(home / "pairrm", options.shape)
        for repeat in range(options.repeats):
            spent["sppo"].append(ours(options, prompts, home / f"sppo-{repeat}"))
            print(f"  sppo: {spent['sppo'][-1]}", file=sys.stderr)
            spent["released"].append(released(options, prompts, home))
            print(f"  released: {spent['released'][-1]}", file=sys.stderr)
    show(options, spent)


def show(options: argparse.Namespace, spent: dict[str, list[dict[str, float]]]) -> None:
    """Print the medians of each part and of the whole, and their ratios."""
    print(
        f"{options.policy.name}, {options.prompts} prompts, K = {options.k}, at most {options.max_new_tokens} new tokens,"
        f" PairRM's shape {options.shape}, {options.threads} thread(s), {options.repeats} repeat(s)"
    )
    print(f"{'':10} {'sppo, s':>9} {'released, s':>12} {'ratio':>7}")
    for part in (*PARTS, "all"):
        values = {
            who: statistics.median(sum(times.values()) if part == "all" else times[part] for times in of)
            for who, of in spent.items()
        }
        ratio = f"{values['released'] / values['sppo']:.2f}" if values["released"] else "-"
        print(f"{part:10} {values['sppo']:9.1f} {values['released']:12.1f} {ratio:>7}")


if __name__ == "__main__":
    main()
