"""Random damage to single files of run folders: `python measurements/faults.py damage`.

A state is a run folder that is finished, or that a kill has left half done. Each case copies a state, damages one file,
reads the folder as a notebook would, runs `sppo run` again, and compares everything with what the undamaged state becomes.
"""

import contextlib
import hashlib
import json
import random
import re
import shutil
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import attack
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

SMALLEST = {
    "seed": 3,
    "iterations": 2,
    "cpu_threads": 1,
    "shard_prompts": 2,
    "policy": {"model": "tinyworld"},
    "prompts": {
        "train": {"source": "tinyworld/train", "limit": 8},
        "held_out": {"source": "tinyworld/held-out", "limit": 4},
    },
    "sampling": {"k": 2, "max_new_tokens": 12},
    "oracle": {"type": "panel"},
    "algorithm": {"type": "sppo", "eta": 10},
    "training": {"learning_rate": 1e-4, "batch_prompts": 2, "truncated_responses": "train"},
    "evaluation": {"responses": 1, "resamples": 100},
    "guard": {"on_failure": "keep"},
}
"""The smallest recipe that has every stage and two iterations; it is played in about two seconds."""
CHECKPOINTS = {"training": SMALLEST["training"] | {"checkpoint_steps": 1}}
ADAPTER = {"training": SMALLEST["training"] | {"adapter": {"type": "lora", "r": 2}}}
LIMIT = 120.0


@dataclass(frozen=True)
class State:
    """A run folder to damage, and what it becomes without damage.

    Attributes:
        name: the state's name.
        folder: holds recipe.yaml, the run as it is to be damaged (`run`), and what it becomes (`end`).
    """

    name: str
    folder: Path

    def files(self) -> list[Path]:
        """The files of the run, relative to its folder."""
        return sorted(
            path.relative_to(self.folder / "run")
            for path in (self.folder / "run").rglob("*")
            if path.is_file()
        )


def kind(path: Path) -> str:
    """The kind of a file of a run folder."""
    if ".training" in path.parts or ".policy" in path.parts:
        return "checkpoint"
    if path.suffix == ".safetensors":
        return "weights"
    if "policy" in path.parts:
        return "tokenizer and configuration"
    names = {"summary.json": "summary", "recipe.yaml": "recipe", "report.html": "report"}
    names |= {".lock": "lock", ".cluster": "lock"}  # the latter names the command that uses a cluster
    suffixes = {".parquet": "table", ".jsonl": "metrics", ".json": "record", ".sqlite": "answers"}
    return names.get(path.name) or suffixes.get(path.suffix, "other")


# States


def build(folder: Path, judge_url: str, names: list[str] | None) -> list[State]:
    """The states, made anew since the judge has another address each time."""
    judge = {"oracle": {"type": "judge", "endpoint": {"url": judge_url, "model": "judge"}}}
    wanted: dict[str, tuple[dict[str, Any], str | None]] = {
        "finished": ({}, None),
        "judge": (judge, None),
        "adapter": (ADAPTER, None),
        "training": (CHECKPOINTS, "iter-2/.training/checkpoint-1/sppo.json"),
        "sampling": ({}, "iter-2/responses/part-00000.parquet"),
        "judging": (judge, "iter-2/preferences/part-00000.parquet"),
    }
    return [
        _build(folder / name, changes, until)
        for name, (changes, until) in wanted.items()
        if name in (names or wanted)
    ]


def _build(folder: Path, changes: Mapping[str, Any], until: str | None) -> State:
    state = State(folder.name, folder)
    for _ in range(30):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / "recipe.yaml").write_text(yaml.safe_dump(SMALLEST | changes), encoding="utf-8")
        fork = attack.Forked(attack.command("run", "recipe.yaml", "--run-dir", "run"), folder)
        while until and not (folder / "run" / until).exists() and not fork.wait(0.001):
            pass
        if until is None:
            fork.finish(LIMIT)
        ended = fork.wait(0)
        outcome = fork.end()
        if until is None:
            assert outcome.code == 0, outcome.text
        if ended == (until is None):
            break
    else:
        raise AssertionError(f"{folder.name}: the run was always over before it was killed")
    _at(folder, "end", folder / "run")
    return state


def _at(folder: Path, target: str, source: Path) -> None:
    """Continue a copy of a run to its end, under the name `run`, and keep it under another name."""
    work = folder / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    shutil.copytree(source, work / "run")
    shutil.copy(folder / "recipe.yaml", work)
    outcome = attack.attempt(attack.command("run", "recipe.yaml", "--run-dir", "run"), work, LIMIT)
    assert outcome.code == 0, outcome.text
    shutil.move(work / "run", folder / target)


# Damage


def _bit(content: bytes, draw: random.Random) -> bytes:
    changed = bytearray(content)
    changed[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def _digit(content: bytes, draw: random.Random) -> bytes:
    places = [place for place, byte in enumerate(content[: 1 << 20]) if 48 <= byte <= 57]
    changed = bytearray(content)
    place = draw.choice(places)
    changed[place] = draw.choice([digit for digit in b"0123456789" if digit != content[place]])
    return bytes(changed)


def _block(content: bytes, draw: random.Random) -> bytes:
    start = draw.randrange(len(content))
    length = min(draw.choice([1, 16, 512, 4096]), len(content) - start)
    changed = content[:start] + bytes(length) + content[start + length :]
    return changed if changed != content else _bit(content, draw)


def _rows(content: bytes, draw: random.Random) -> bytes:
    if content[:4] == b"PAR1":
        table = pq.read_table(pa.BufferReader(content))
        row = draw.randrange(table.num_rows)
        sink = pa.BufferOutputStream()
        doubled = pa.concat_tables([table, table.slice(row, 1)])
        pq.write_table(doubled, sink, compression="zstd", write_page_checksum=True)
        return sink.getvalue().to_pybytes()
    lines = content.splitlines(keepends=True)
    number = draw.randrange(len(lines))
    return b"".join([*lines[: number + 1], lines[number], *lines[number + 1 :]])


DAMAGES: dict[str, Callable[[bytes, random.Random], bytes | None]] = {
    "bit flipped": _bit,
    "digit changed": _digit,
    "truncated": lambda content, draw: content[: draw.randrange(len(content))],
    "emptied": lambda content, draw: b"",
    "removed": lambda content, draw: None,
    "zeros": _block,
    "rows duplicated": _rows,
    "bytes appended": lambda content, draw: content + draw.randbytes(draw.randint(1, 64)),
}


def damage(run: Path, path: Path, draw: random.Random) -> str:
    """Damage a file of a run in a random way, and say how."""
    content = (run / path).read_bytes()
    names = ["swapped", *DAMAGES] if content else ["bytes appended", "removed"]
    while True:
        name = draw.choice(names)
        if name == "swapped":
            others = [
                other
                for other in sorted(run.rglob(f"*{path.suffix}"))
                if other.is_file() and kind(other.relative_to(run)) == kind(path)
            ]
            other = draw.choice(others)
            if other.read_bytes() != content:
                (run / path).write_bytes(other.read_bytes())
                other.write_bytes(content)
                return f"swapped with {other.relative_to(run)}"
            continue
        try:
            changed = DAMAGES[name](content, draw)
        except IndexError:  # there is no digit, or no row
            continue
        if changed == content:
            continue
        if changed is None:
            (run / path).unlink()
        else:
            (run / path).write_bytes(changed)
        return name


# Reading and comparing


def readings(run: Path) -> dict[str, str]:
    """What a notebook reads of a run: a digest of each result, or `refused`."""
    from sppo.api import load_run
    from sppo.rundir.reader import RunReader

    found = {}

    def read(name: str, value: Callable[[], Any]) -> None:
        try:
            content = value()
        except (ValueError, OSError) as error:
            if not type(error).__module__.startswith("sppo"):
                raise
            content = None
        text = json.dumps(content, sort_keys=True, default=str)
        found[name] = "refused" if content in (None, []) else hashlib.sha256(text.encode()).hexdigest()

    reader = RunReader(run)
    read("summary", lambda: reader.summary)
    for number in range(3):
        for stage in ("prompts", "sample", "annotate", "select", "train", "evaluate"):
            read(f"record of {stage} {number}", lambda n=number, s=stage: reader.record(n, s))
        read(f"steps {number}", lambda n=number: None if reader.folder.lost_metrics(n) else reader.steps(n))
        read(f"held-out responses {number}", lambda n=number: load_run(run).responses(n, held_out=True)[:])
        read(f"responses {number}", lambda n=number: load_run(run).responses(n)[:])
        read(f"preferences {number}", lambda n=number: load_run(run).preferences(n)[:])
        read(f"policy {number}", lambda n=number: str(reader.named_policy(n).folder).removeprefix(str(run)))
    return found


def snapshot(run: Path) -> dict[str, Any]:
    """What a run folder holds, without times: a digest of each file, or its content where parts of it may differ."""
    found: dict[str, Any] = {}
    for path in sorted(run.rglob("*")):
        name = str(path.relative_to(run))
        if not path.is_file() or kind(Path(name)) in ("lock", "checkpoint", "report"):
            continue
        if path.suffix == ".jsonl":
            found[name] = Counter(map(_line, path.read_bytes().splitlines()))
        elif path.suffix == ".sqlite":
            found[name] = _answers(path)
        elif path.name == "summary.json":
            content = json.loads(path.read_text(encoding="utf-8"))
            content.pop("metrics", None)  # a digest of lines that hold times
            found[name] = _timeless(content)
        elif (
            kind(Path(name)) == "record"
        ):  # its digest is of the content: a line that stands there twice changes nothing
            with contextlib.suppress(ValueError):
                found[name] = json.loads(path.read_bytes())
        else:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


_TIMES = {"seconds", "digest", "peak_memory_gb", "response_tokens_per_second"}
_COSTS = {
    "requests",
    "cached",
    "prompt_tokens",
    "completion_tokens",
}  # a shard that is made again costs no requests


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(item) for key, item in value.items() if key not in _TIMES | _COSTS}
    return [_timeless(item) for item in value] if isinstance(value, list) else value


def _line(line: bytes) -> str:
    try:
        return json.dumps(_timeless(json.loads(line)), sort_keys=True)
    except ValueError:
        return "damaged"


def _answers(path: Path) -> set[tuple[Any, ...]] | str:
    try:
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as file:
            rows = file.execute("SELECT question, answer, digest FROM checked_answers").fetchall()
    except sqlite3.Error as error:
        return str(error)
    # what does not fit its digest is as good as none
    return {row for row in rows if hashlib.sha256(f"{row[0]}\n{row[1]}".encode()).hexdigest() == row[2]}


def _leave_out_counts(wanted: dict[str, Any], found: dict[str, Any]) -> None:
    """Where a summary knows no counts of an oracle, since their lines are damaged, compare them no more."""
    for one, other in zip(
        wanted["summary.json"]["iterations"], found["summary.json"]["iterations"], strict=False
    ):
        if other.get("oracle") == {}:
            one["oracle"] = {}


def differences(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """The names of the files that differ; metrics may hold more times, and answers may be fewer."""
    names = []
    for name in sorted(wanted.keys() | found.keys()):
        one, other = wanted.get(name), found.get(name)
        if isinstance(one, Counter) and isinstance(other, Counter):
            more = [line for line in other - one if '"finished"' not in line]
            same = not (one - other) and all('"annotate"' in line and line in one for line in more)
        elif isinstance(
            one, set
        ):  # answers are fewer if some are damaged, and none if the file cannot be read
            same = isinstance(other, str) or (other is not None and other <= one)
        else:
            same = one == other
        if not same:
            names.append(name)
    return names


def judged(state: State, damaged: Path, content: bytes | None, text: str, end: Path) -> str:
    """The verdict on a run that went on after damage, given the damaged content and what the terminal said."""
    wanted, found = snapshot(state.folder / "end"), snapshot(end)
    noticed = "note: " in text and damaged.name in text
    if noticed and kind(damaged) == "metrics":
        _leave_out_counts(wanted, found)
    wrong = [
        name
        for name in differences(wanted, found)
        if not (name.endswith((".jsonl", ".sqlite")) and Path(name).name in text)
        and not (noticed and kind(damaged) == "recipe" and name == "recipe.yaml")  # it is the recipe given
        and not (
            content is None and kind(damaged) == "answers" and name == str(damaged)
        )  # nothing asks for them
    ]
    if kind(damaged) == "report" and "The report is" in text:
        page = (end / damaged).read_bytes()
        whole = re.search(rb"</html>\s*<!-- digest \w+ -->\s*$", page) and page != content
        return "redone" if whole else "FAILED: the report stays"
    if wrong:
        return f"FAILED: differs {', '.join(wrong)}"
    if noticed:
        return "noticed"
    before = state.folder / "run" / damaged
    return "identical" if before.is_file() and (end / damaged).is_file() else "redone"


def run_case(state: State, number: int, seed: int, folder: Path, ledger: attack.Ledger) -> None:
    """Damage a copy of a state, read it, run it again, and keep the verdict."""
    draw = random.Random(f"{seed} {number}")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    shutil.copy(state.folder / "recipe.yaml", folder)
    run = folder / "run"
    shutil.copytree(state.folder / "run", run)
    by_kind: dict[str, list[Path]] = {}
    for path in state.files():
        by_kind.setdefault(kind(path), []).append(path)
    path = draw.choice(by_kind[draw.choice(sorted(by_kind))])
    what = damage(run, path, draw)
    content = (run / path).read_bytes() if (run / path).is_file() else None
    case = {"state": state.name, "kind": kind(path), "file": str(path), "damage": what}
    name = f"{seed}-{number}"
    found = folder / "readings.json"
    reading = read_apart(run, found)
    wrong = _wrong_readings(reading, found, state)
    if wrong:
        ledger.add(name, f"FAILED: read {wrong}", reading, **case)
        return
    by_folder = draw.random() < 0.25 and (run / "recipe.yaml").is_file()
    arguments = ["run", "run"] if by_folder else ["run", "recipe.yaml", "--run-dir", "run"]
    if draw.random() < 0.9 and kind(path) != "report":
        arguments.append("--no-report")
    outcome = attack.attempt(attack.command(*arguments), folder, LIMIT)
    if outcome.fault:
        verdict = f"FAILED: {outcome.fault}"
    elif outcome.code:
        named = path.name in outcome.text or path.stem in outcome.text or str(path.parent) in outcome.text
        verdict = "refused" if named else "FAILED: the message does not name the file"
    else:
        verdict = judged(state, path, content, outcome.text, run)
    ledger.add(name, verdict, outcome, **case, command=" ".join(arguments))


def read_apart(run: Path, target: Path) -> attack.Outcome:
    """Read a run in a fork, which writes what it has read into a file: libraries write to its output as well."""
    return attack.attempt(lambda: target.write_text(json.dumps(readings(run))) and 0, target.parent, LIMIT)


def _wrong_readings(reading: attack.Outcome, found: Path, state: State) -> str | None:
    """The names of results that were read and are not those of the undamaged state."""
    undamaged = state.folder / "readings.json"
    if not undamaged.is_file():
        plain = read_apart(state.folder / "run", undamaged)
        assert plain.code == 0, f"the undamaged run cannot be read, code {plain.code}: {plain.text}"
    if reading.code:
        return None if "recipe.yaml" in reading.text else f"with an error: {reading.text[-300:]}"
    right, read = (json.loads(path.read_text(encoding="utf-8")) for path in (undamaged, found))
    return ", ".join(name for name in right if read[name] not in ("refused", right[name])) or None


def attack_files(
    ledger: attack.Ledger, count: int, seconds: float, seed: int, judge_url: str, names: list[str] | None
) -> int:
    """Try damages until there are `count` or the time is over; return the number of failures."""
    folder = ledger.path.parent
    states = build(folder / "states", judge_url, names)
    end = time.monotonic() + seconds
    for number in range(count):
        if f"{seed}-{number}" not in ledger.cases and time.monotonic() < end:
            run_case(states[number % len(states)], number, seed, folder / "case", ledger)
    shutil.rmtree(folder / "case", ignore_errors=True)
    return ledger.report(by="kind")
