"""SPPO and its rivals on a real model: the same samples, oracle answers and optimiser steps, one iteration, over seeds.

    sppo inputs                                                  # once
    python measurements/real_comparison.py [--seeds 3] [--output compare/real] [--set KEY=VALUE ...]

Its table stands in docs/experiments.md once it has been run. The arms of this package are played by `sppo compare`, whose
runs adopt each other's samples and answers. The arm `trl` is TRL's DPOTrainer, fed with the token ids of the pairs that
the arm `dpo` trains on (measurements/trl_peer.py), with the same optimiser, learning rate, steps and beta. In the end all
policies of a seed meet the base on the held-out prompts, by the held-out oracle and by the oracle that was trained on, with
the responses that the evaluations of the runs have sampled.

The same command again goes on where it was interrupted: finished stages and policies are kept.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import trl_peer

ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "sppo": ("sppo", {}),
    "sppo-all": ("sppo", {"selection": "all"}),
    "sppo-1e3": ("sppo", {"algorithm.eta": 1e3}),
    "sppo-10": ("sppo", {"algorithm.eta": 10}),
    "dpo": ("dpo", {}),
    "ipo": ("ipo", {}),
    "inpo": ("inpo", {}),
    "rspo": ("rspo", {"algorithm.eta": 30}),
}
"""The arms that this package plays: the algorithm and the values that differ from the recipe's."""

ORACLES = ("held-out", "trained-on")


def sppo(*arguments: object) -> None:
    """Run a command of the package; an error ends this program with its exit code."""
    done = subprocess.run([sys.executable, "-m", "sppo", *map(str, arguments)], check=False)
    if done.returncode:
        sys.exit(done.returncode)


def play(options: argparse.Namespace) -> None:
    """Play the arms of this package."""
    changes = [f"{name}.{key}={value}" for name in options.arms for key, value in ARMS[name][1].items()]
    # twelve steps of the recipe's 1e-5 would hardly move a policy
    values = [
        "iterations=1",
        "prompts.per_iteration=96",
        "training.learning_rate=4e-5",
        *changes,
        *options.set,
    ]
    sppo(
        "compare",
        options.recipe,
        "--algorithms",
        ",".join(f"{name}={ARMS[name][0]}" for name in options.arms),
        *("--seeds", options.seeds, "--output", options.output),
        *(part for value in values for part in ("--set", value)),
    )


def pairs_of(run: Path) -> list[tuple[list[int], list[int], list[int]]]:
    """The prompts with their best and worst responses, as token ids, that a run's first iteration was trained on."""
    from sppo.rundir.reader import RunReader
    from sppo.rundir.tables import TrainingRow, read_rows

    pairs = []
    for shard in RunReader(run).table(1, "training"):
        for row in read_rows(shard, TrainingRow):
            if len(row.responses) == 2:
                worst, best = sorted(row.responses, key=lambda response: response.win_rate)
                pairs.append((row.prompt_token_ids, best.token_ids, worst.token_ids))
    return pairs


def train_with_trl(run: Path, folder: Path) -> None:
    """Train the base of a run by TRL's DPOTrainer on the pairs of the run's first iteration, with its settings."""
    import torch

    from sppo.policy import chat_format, saving
    from sppo.policy import load as policies
    from sppo.policy.tokenizer_files import copy_tokenizer
    from sppo.recipe import load
    from sppo.training import mixed_precision
    from sppo.training.schedule import plan

    recipe: Any = load(run / "recipe.yaml")
    torch.set_num_threads(recipe.cpu_threads or torch.get_num_threads())
    base = policies.folder(recipe.policy.model, revision=recipe.policy.revision)
    end_of_turn = chat_format.load(str(base)).end_of_turn
    # TRL ends every response with this token. It is what a truncated response, which lacks it, is given by TRL.
    pairs = [
        (prompt, *([*ids, end_of_turn] if ids[-1] != end_of_turn else ids for ids in responses))
        for prompt, *responses in pairs_of(run)
    ]
    model = policies.load(base, dtype=recipe.policy.dtype)
    settings = recipe.training
    keys = {"batch_prompts", "epochs", "keep_epochs", "warmup_ratio"}
    steps = plan(len(pairs), **settings.model_dump(include=keys))
    trainer = trl_peer.trainer(
        model,
        pairs,
        folder.with_name(folder.name + "-work"),
        eos=end_of_turn,
        beta=recipe.algorithm.beta,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.schedule,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=settings.batch_prompts,
        max_steps=steps.kept,
        warmup_steps=steps.warmup,
        bf16=mixed_precision(settings) == "bf16",
        optim=settings.optimizer,
        use_cpu=not torch.cuda.is_available(),
        seed=recipe.seed,
        logging_steps=1,
    )
    trainer.train()
    made = folder.with_name(folder.name + "-unfinished")
    saving.save_model(trainer.model, made, base)
    copy_tokenizer(base, made, recipe.policy.chat_template)
    made.rename(folder)  # so that an interrupted run never leaves half a policy


def compare_all(options: argparse.Namespace, seed: int) -> None:
    """All policies of a seed and the base, head to head on the held-out prompts, by both oracles."""
    from sppo.recipe import dump, load
    from sppo.rundir.environment import multiplies_bfloat16

    runs = {name: options.output / "runs" / f"{name}-seed-{seed}" for name in options.arms}
    first = next(iter(runs.values()))
    recipe = load(first / "recipe.yaml")
    # one folder for both oracles, so that TRL's policy responds once
    folder = options.output / f"head-to-head-seed-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    given = [
        outputs(first, 0, "base", folder),
        *(outputs(run, 1, name, folder) for name, run in runs.items()),
    ]
    if "dpo" in runs:
        trl = options.output / f"trl-seed-{seed}"
        if not trl.is_dir():
            train_with_trl(runs["dpo"], trl)
        given.append(f"trl={trl}")
    dtype = "bfloat16" if multiplies_bfloat16() else "float32"
    asked = recipe.needed_held_out_oracle("this measurement"), recipe.oracle
    for name, oracle in zip(ORACLES, asked, strict=True):
        file = options.output / f"oracle-{name}.yaml"
        file.write_text(dump(oracle), encoding="utf-8")
        print(f"seed {seed}, by the {name} oracle", flush=True)
        sppo(
            *("evaluate", "head-to-head", *given, "--oracle", file, "--seed", seed),
            *("--sampling", first / "recipe.yaml", "--dtype", dtype, "--output", folder),
        )
        (folder / "head-to-head.json").replace(folder / f"{name}.json")


def outputs(run: Path, iteration: int, name: str, folder: Path) -> str:
    """Write the first response of a run's evaluation to each prompt as a file of outputs; return NAME=PATH for the command line."""
    from sppo.benchmarks.outputs import write_outputs
    from sppo.rundir.reader import RunReader

    rows = [
        {"instruction": prompt.messages[-1]["content"], "output": prompt.texts[0], "generator": name}
        for prompt in RunReader(run).held_out(iteration)
    ]
    write_outputs(folder / f"{name}.json", rows)
    return f"{name}={folder / f'{name}.json'}"


def show_all(options: argparse.Namespace) -> None:
    """Each policy's figures: the mean over the seeds, and each seed's.

    They are the win rate against the base by both oracles, and for the arms of this package the tokens per response and the KL.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from sppo.rundir.reader import RunReader

    found: dict[str, dict[str, list[float]]] = {}
    for folder in sorted(options.output.glob("head-to-head-seed-*")):
        for oracle in ORACLES:
            game = json.loads((folder / f"{oracle}.json").read_text())
            for policy, rates in zip(game["policies"], game["win_rates"], strict=True):
                found.setdefault(policy["name"], {}).setdefault(oracle, []).append(rates[0])
    del found["base"]
    columns = dict.fromkeys(ORACLES, 3) | {
        "response_tokens": 1,
        "kl_to_base": 1,
    }  # with their decimals
    for name in options.arms:
        for run in sorted((options.output / "runs").glob(f"{name}-seed-*")):
            summary = RunReader(run).summary
            assert summary is not None  # `sppo compare` has ended
            for key in ("response_tokens", "kl_to_base"):
                found[name].setdefault(key, []).append(summary["iterations"][-1][key])
    table = Table("", *columns, box=box.MARKDOWN)
    for name, figures in found.items():
        cells = (
            f"{statistics.mean(figures[key]):.{decimals}f} ({', '.join(f'{value:.{decimals}f}' for value in figures[key])})"
            for key, decimals in columns.items()
            if key in figures
        )
        table.add_row(name, *cells)
    Console(width=160).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", default="real")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("compare/real"))
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    play(options)
    for run in sorted((options.output / "runs").glob(f"{options.arms[0]}-seed-*")):
        compare_all(options, int(run.name.rpartition("-")[2]))
    show_all(options)


if __name__ == "__main__":
    main()
