"""Hostile recipes and hostile prompts."""

import csv
import io
import json
import math
import random
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attack
import hostile_inputs as inputs
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from hostile_case import WRONG, Case, Materials, at_the_edge

RECIPE = {
    "seed": 3,
    "iterations": 2,
    "policy": {"model": "tinyworld", "dtype": "float32"},
    "prompts": {
        "train": [{"source": "tinyworld/train", "limit": 8}],
        "held_out": {"source": "tinyworld/held-out", "limit": 4},
        "system": "template",
    },
    "sampling": {"k": 2, "max_new_tokens": 12, "temperature": 0.9, "stop": ["\n"]},
    "oracle": {
        "type": "judge",
        "endpoint": {"url": "http://127.0.0.1:9/v1", "model": "judge", "api_key_env": "HOSTILE_KEY"},
    },
    "algorithm": {"type": "sppo", "eta": 10},
    "training": {"learning_rate": 1e-4, "batch_prompts": 2, "adapter": {"type": "lora", "r": 2}},
    "evaluation": {"responses": 1, "resamples": 100, "oracle": {"type": "panel"}},
    "guard": {"on_failure": "keep", "max_kl": 3.5},
    "workers": {"sample": 1},
}
_ALIASES = "\n".join(
    ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 14)]
)
RECIPES = {
    "an alias bomb": _ALIASES,
    "an alias of itself": "policy: &p\n  model: *p\n",
    "a mapping of itself": "&a [*a]",
    "merge keys": "a: &a {x: 1}\npolicy: {<<: [*a, *a], model: m}\n",
    "a tag of Python": f"policy: !!python/object/apply:os.system ['touch {inputs.CANARY}']\n",
    "a tag of a module": f"!!python/object/new:subprocess.Popen [[touch, {inputs.CANARY}]]\n",
    "a tag of binary": "policy: !!binary aGVsbG8=\n",
    "a tag of a set": "policy: !!set {a, b}\n",
    "a tag of time": "seed: 2026-13-45\npolicy: 2026-11-26\n",
    "a tag of int": "seed: !!int x\n",
    "a tag of float": "seed: !!float abc\n",
    "a tag of bool": "seed: !!bool maybe\n",
    "a tag of a pair": "policy: !!pairs [a: b]\nseed: !!omap 3\n",
    "a huge integer": f"seed: {'9' * 5000}\n",
    "a huge hexadecimal": f"seed: 0x{'f' * 5000}\n",
    "a huge sexagesimal": f"seed: {':'.join(['59'] * 3000)}\n",
    "a huge octal": f"seed: 0{'7' * 5000}\n",
    "deep brackets": "policy: " + "[" * 20_000,
    "deep braces": "{a: " * 5000 + "1" + "}" * 5000,
    "deep indents": "\n".join(" " * n + f"k{n}:" for n in range(2000)),
    "many documents": "---\na: 1\n" * 2000,
    "many keys": "\n".join(f"k{n}: {n}" for n in range(100_000)),
    "unhashable keys": "? [a, b]\n: 1\n? {a: 1}\n: 2\n",
    "two of a key": "seed: 1\nseed: 2\n",
    "a key that is null": "~: 1\ntrue: 2\n1.5: 3\n",
    "a directive": "%YAML 9.9\n---\na: 1\n",
    "a directive of tags": "%TAG ! tag:yaml.org,2002:python/\n--- !object/apply:os.getcwd []\n",
    "a tab": "policy:\n\tmodel: m\n",
    "a long line": f"policy: {{model: '{'x' * 3_000_000}'}}\n",
    "an escape": 'policy: {model: "\\uD800\\x00\\e[2J"}\n',
    "NUL": "policy: {model: a\x00b}\n",
    "a list": "[1, 2, 3]",
    "a text": "just words",
    "nothing": "",
    "a comment": "# nothing\n",
}


def recipes(folder: Path, draw: random.Random, materials: Materials) -> Case:
    """A recipe that was changed, or one of the nasty ones, resolved or tried with --dry-run."""
    path = folder / "recipe.yaml"
    chance = draw.random()
    if chance < 0.3:
        what = draw.choice(list(RECIPES))
        path.write_bytes(RECIPES[what].encode("utf-8", "surrogatepass"))
    elif chance < 0.4:
        what = inputs.hostile_file(path, draw)
    elif chance < 0.8:
        what = "values changed"
        path.write_bytes(inputs.to_json(inputs.changed(RECIPE, draw), draw))
    else:
        what = "bytes changed"
        path.write_bytes(inputs.broken(yaml.safe_dump(RECIPE).encode(), draw))
    if draw.random() < 0.3:
        return Case(f"{what}, dry run", attack.command("run", "recipe.yaml", "--dry-run"))
    return Case(what, at_the_edge(lambda: _compare_recipe(path)))


def _compare_recipe(path: Path) -> None:
    from sppo.recipe import load

    read = load(path).model_dump(mode="json")
    written = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    for place in _lost(written, read):
        print(f"{WRONG}: {place}")


def _lost(written: Any, read: Any, place: str = "recipe") -> list[str]:
    """The places where a recipe that was read says something else than was written."""
    if isinstance(written, Mapping) and isinstance(read, Mapping):
        return [line for key in written for line in _lost(written[key], read.get(key), f"{place}.{key}")]
    if isinstance(written, list) and isinstance(read, list) and len(written) == len(read):
        return [
            line
            for n, pair in enumerate(zip(written, read, strict=True))
            for line in _lost(*pair, f"{place}[{n}]")
        ]
    if isinstance(read, Mapping):  # a short form, such as the name of a source alone
        return (
            []
            if written is None or written in read.values()
            else [f"{place}: {written!r:.50} as {read!r:.200}"]
        )
    same = written == read and isinstance(written, bool) == isinstance(read, bool)
    if isinstance(read, float) and isinstance(written, str):  # YAML reads 1e-4 as a text
        same = not math.isnan(read) and float(written) == read
    return [] if same else [f"{place}: {written!r:.50} was read as {read!r:.50}"]


PROMPTS = [
    {"prompt": "Describe a fox."},
    {"messages": [{"role": "user", "content": "Hello?"}]},
    {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hello, who are you?"},
            {"role": "assistant", "content": "A fox."},
            {"role": "user", "content": "And now?"},
        ]
    },
]


def prompts(folder: Path, draw: random.Random, materials: Materials) -> Case:
    """A file of prompts, read and tokenised as a run does it."""
    rows = (
        [dict(draw.choice(PROMPTS[:1])) for _ in range(4)]
        if draw.random() < 0.5
        else draw.choices(PROMPTS[1:], k=4)
    )
    rows = [row | {"id": n} if draw.random() < 0.3 else row for n, row in enumerate(rows)]
    ending = draw.choice(["jsonl", "jsonl", "jsonl", "json", "csv", "parquet", "txt"])
    path = folder / f"prompts.{ending}"
    what = _write_prompts(path, rows, draw)
    normalises = draw.random() < 0.4
    model = folder / "model"
    shutil.copytree(materials.model, model)
    if normalises:
        _normalise(model / "tokenizer.json", draw)
        what += " with a normaliser"
    recipe = {
        "iterations": 1,
        "policy": {"model": str(model)},
        "prompts": {"train": str(path), "held_out": 1, "invalid": draw.choice(["error", "error", "skip"])},
        "oracle": {"type": "function", "function": "os:system"},
        "sampling": {"max_new_tokens": 8},
    }
    return Case(f"{ending}: {what}", at_the_edge(lambda: _read_prompts(recipe)))


def _normalise(path: Path, draw: random.Random) -> None:
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    tokenizer["normalizer"] = {"type": draw.choice(["NFKC", "NFC", "Lowercase"])}
    path.write_text(json.dumps(tokenizer), encoding="utf-8")


def _write_prompts(path: Path, rows: list[Any], draw: random.Random) -> str:
    way = draw.random()
    if way < 0.12:
        return inputs.hostile_file(path, draw)
    if way < 0.5:  # hostile text as an ordinary prompt
        rows[0] = {
            "prompt": draw.choice(inputs.TEXTS)
            + draw.choice(["", " Describe it.", draw.choice(inputs.TEXTS)])
        }
        what = "hostile text"
    else:
        number = draw.randrange(len(rows))
        rows[number] = inputs.changed(rows[number], draw)
        what = "values changed"
    lines = [inputs.to_json(row, draw) for row in rows]
    if path.suffix == ".jsonl":
        path.write_bytes(b"\n".join(lines) + b"\n")
    elif path.suffix == ".json":
        path.write_bytes(b"[" + b",\n".join(lines) + b"]")
    else:
        _write_columns(path, rows)
    if draw.random() < 0.2:
        path.write_bytes(inputs.broken(path.read_bytes(), draw))
        what += ", bytes changed"
    return what


def _write_columns(path: Path, rows: list[Any]) -> None:
    texts = [str(row.get("prompt", row)) if isinstance(row, dict) else str(row) for row in rows]
    texts = [text.encode("utf-8", "replace").decode() for text in texts]
    if path.suffix == ".csv":
        written = io.StringIO()
        csv.writer(written).writerows([["prompt"], *([text] for text in texts)])
        path.write_text(written.getvalue(), encoding="utf-8")
    elif path.suffix == ".parquet":
        try:
            table = pa.Table.from_pylist([row for row in rows if isinstance(row, dict)])
        except (pa.ArrowException, OverflowError, UnicodeError, TypeError):
            table = pa.table({"prompt": texts})
        pq.write_table(table, path)
    else:
        path.write_text("\n".join(text.replace("\n", " ") for text in texts), encoding="utf-8")


def _read_prompts(recipe: dict[str, Any]) -> None:
    from sppo.executors.local import Local
    from sppo.progress import Terminal
    from sppo.recipe import parse
    from sppo.rundir.folder import RunFolder
    from sppo.stages.run import Run

    values = parse(recipe)
    run = Run(values, RunFolder(Path("run")), Terminal(), Local(values))
    split = run.split_prompts
    tokenizer = run.models.chat.tokenizer
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    for table in (*split.iterations, split.held_out):
        for row in table.to_pylist():
            plain = [{**message, "content": "x"} for message in row["messages"]]
            least = sum(token in special for token in run.models.chat.render(plain).token_ids)
            count = sum(token in special for token in row["prompt_token_ids"])
            if count != least:
                print(f"{WRONG}: {count} special tokens instead of {least} in {row['messages']!r:.300}")
    read = split.counts.read - split.counts.skipped.total()
    kept = sum(table.num_rows for table in split.iterations) + split.held_out.num_rows
    if kept > read:
        print(f"{WRONG}: {kept} prompts of {read} rows")
