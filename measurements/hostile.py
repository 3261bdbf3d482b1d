"""Attacks whatever reads foreign input with hostile files and answers, and counts what gets through.

    python measurements/hostile.py [--count 2000] [--seconds 3600] [--seed 0] [--kind KIND] [--folder FOLDER]

The inputs are prompts, folders of models, recipes, answers of judges, evaluation files and votes: valid ones that are changed
at random, and nasty ones by hand. An input fails the package if it ends in a traceback, takes more than 5 seconds
(without those in which other programs have the processor), is taken for something else than it says, runs code, follows a redirection, reads /etc/passwd, or shows the API
key in the output or in a file. The attack is seeded, keeps what it has tried in FOLDER, and goes on from there. The figures
stand in docs/reliability.md.
"""

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))  # tiny models

import attack
import hostile_server
import yaml
from faults_damage import SMALLEST
from hostile_case import WRONG, Case, Kind, Materials
from hostile_inputs import CANARY, SECRET
from hostile_measures import evaluation_files, judge_answers, votes
from hostile_models import model_folders
from hostile_recipes import prompts, recipes

KINDS: dict[str, Kind] = {
    "recipes": recipes,
    "prompts": prompts,
    "model folders": model_folders,
    "judge answers": judge_answers,
    "evaluation files": evaluation_files,
    "votes": votes,
}
SECONDS = 5.0
"""The time that an input may take, besides the time in which other programs have the processor."""


def materials(folder: Path, judge: str) -> Materials:
    """The valid inputs, made anew."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)

    def make() -> None:
        import tiny_models

        tiny_models.make("qwen2", folder / "model")

    (folder / "recipe.yaml").write_text(yaml.safe_dump(SMALLEST | {"iterations": 1}), encoding="utf-8")
    play = attack.command("run", "recipe.yaml", "--run-dir", "run")
    for step in (make, play):
        outcome = attack.attempt(step, folder, 300)
        assert outcome.code == 0, outcome.text
    return Materials(folder / "model", folder / "run", judge)


def try_case(case: Case, folder: Path, visits: Path) -> tuple[str, attack.Outcome]:
    """Run a case and return its verdict and its outcome."""
    environment = {
        "HOSTILE_KEY": SECRET,
        "OPENAI_ORG_ID": "org-nobody-asked-for",
        "XDG_CACHE_HOME": str(folder / "cache"),
        "HF_HOME": str(folder / "hub"),
    }
    outcome = attack.attempt(case.run, folder, case.limit, environment)
    if (folder / CANARY).exists():
        return "FAILED: code was executed", outcome
    if visits.exists():
        visits.unlink()
        return "FAILED: a redirection was followed", outcome
    if "root:x:0:0" in outcome.text:
        return "FAILED: /etc/passwd was read", outcome
    if SECRET in outcome.text or _is_stored(folder, SECRET.encode()):
        return "FAILED: the key is shown or stored", outcome
    if outcome.fault:
        return f"FAILED: {outcome.fault}", outcome
    if outcome.seconds > SECONDS:
        return "FAILED: slow", outcome
    if WRONG in outcome.text:
        return "FAILED: silent wrong", outcome
    if len(outcome.text) > 100_000:
        return "FAILED: a message of megabytes", outcome
    if "\x1b]" in outcome.text or "\x1b[2J" in outcome.text:
        return "FAILED: the terminal is controlled", outcome
    return ("refused" if outcome.code else "accepted"), outcome


def _is_stored(folder: Path, secret: bytes) -> bool:
    return any(
        secret in path.read_bytes() for path in folder.rglob("*") if path.is_file() and not path.is_symlink()
    )


def attack_inputs(ledger: attack.Ledger, count: int, seconds: float, seed: int, kinds: list[str]) -> int:
    """Try inputs until there are `count` or the time is over; return the number of failures."""
    folder = ledger.path.parent
    visits = folder / "visits"
    end = time.monotonic() + seconds
    with attack.served(lambda announce: hostile_server.serve(announce, visits)) as judge:
        valid = materials(folder / "materials", judge)
        home = folder / "case"
        for number in range(count):
            kind = kinds[number % len(kinds)]
            name = f"{kind} {seed}-{number}"
            if name in ledger.cases or time.monotonic() > end:
                continue
            shutil.rmtree(home, ignore_errors=True)
            home.mkdir(parents=True)
            case = KINDS[kind](home, random.Random(name), valid)
            verdict, outcome = try_case(case, home, visits)
            ledger.add(name, verdict, outcome, kind=kind, what=case.what)
            if verdict.startswith("FAILED"):
                kept = folder / "failed" / name.replace(" ", "-")
                shutil.rmtree(kept, ignore_errors=True)
                shutil.copytree(home, kept, symlinks=True, copy_function=_copy, dirs_exist_ok=True)
        shutil.rmtree(home, ignore_errors=True)
    return ledger.report(by="kind")


def _copy(source: str, target: str) -> None:
    if os.path.isfile(source) and os.path.getsize(source) < 10_000_000:  # no FIFO
        shutil.copy2(source, target, follow_symlinks=False)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=3600.0, help="stop after this time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=list(KINDS), default=None, help="attack with this kind alone")
    parser.add_argument("--folder", type=Path, default=None, help="keep verdicts and failed inputs here")
    parser.add_argument("--again", action="store_true", help="try the inputs that have failed again")
    arguments = parser.parse_args()
    folder = (arguments.folder or Path(tempfile.mkdtemp(prefix="hostile-"))).resolve()
    attack.import_everything()
    kinds = [arguments.kind] if arguments.kind else list(KINDS)
    ledger = attack.Ledger(folder / "hostile.jsonl", arguments.again)
    failures = attack_inputs(ledger, arguments.count, arguments.seconds, arguments.seed, kinds)
    print(f"verdicts: {folder}")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
