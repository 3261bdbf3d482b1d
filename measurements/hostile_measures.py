"""Hostile answers of judges, hostile files for evaluations, and hostile votes."""

import json
import math
import random
import shutil
from pathlib import Path
from typing import Any

import attack
import hostile_inputs as inputs
import hostile_server
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from hostile_case import WRONG, Case, Materials, at_the_edge

QUESTIONS = [
    {"prompt": "Describe a fox.", "responses": ["A fox.", "It is a red animal."]},
    {"prompt": "Hello?", "responses": ["Hi.", "Hello!"]},
]


def judge_answers(folder: Path, draw: random.Random, materials: Materials) -> Case:
    """A judge's server that answers in a hostile manner, asked by `sppo oracle check`."""
    number = draw.randrange(len(hostile_server.MANNERS))
    manner = hostile_server.MANNERS[number]
    oracle = {
        "type": "judge",
        "verdict": draw.choice(["logprobs", "logprobs", "samples"]),
        "parse_retries": 0,
        "endpoint": {
            "url": f"{materials.judge}/{number}/{draw.randrange(10**9)}/v1",
            "model": "judge",
            "api_key_env": "HOSTILE_KEY",
            "timeout_seconds": 1.5,
            "retries": 0,
            "concurrency": 4,
            "cache": "answers.sqlite",
        },
    }
    (folder / "responses.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in QUESTIONS), encoding="utf-8"
    )
    (folder / "oracle.yaml").write_text(yaml.safe_dump(oracle), encoding="utf-8")

    def check() -> int:
        code = 0
        try:
            attack.command("oracle", "check", "oracle.yaml", "--responses", "responses.jsonl", "--json")()
        except SystemExit as leaving:
            code = leaving.code or 0
        if (
            not code
            and manner in ("NaN", "positive", "no choices", "HTML", "redirects", "refuses")
            and (oracle["verdict"] == "logprobs" or manner not in ("NaN", "positive"))
        ):
            print(f"{WRONG}: an answer in the manner {manner!r} was believed")
        return code

    return Case(f"{oracle['verdict']}: {manner}", check)


def _outputs(name: str, texts: list[str]) -> list[dict[str, str]]:
    return [
        {"instruction": f"Question {n}?", "output": text, "generator": name} for n, text in enumerate(texts)
    ]


def evaluation_files(folder: Path, draw: random.Random, materials: Materials) -> Case:
    """A file that a benchmark or `sppo game` reads, changed."""
    kinds = {
        "outputs": _evaluate_outputs,
        "annotations": _evaluate_annotations,
        "a matrix": _solve_matrix,
        "an array": _solve_array,
        "responses": _check_responses,
        "questions": _ask_questions,
    }
    name = draw.choice(list(kinds))
    what, arguments = kinds[name](folder, draw)
    return Case(f"{name}: {what}", attack.command(*arguments))


def _json_file(path: Path, value: Any, draw: random.Random) -> str:
    path.write_text(json.dumps(value), encoding="utf-8")
    return inputs.changed_file(path, draw)


def _evaluate_outputs(folder: Path, draw: random.Random) -> tuple[str, list[str]]:
    (folder / "b.json").write_text(json.dumps(_outputs("b", ["It is red.", "x", "y"])), encoding="utf-8")
    what = _json_file(folder / "a.json", _outputs("a", ["A fox.", "Hello", "z"]), draw)
    return what, ["evaluate", "head-to-head", "A=a.json", "B=b.json", "--oracle", "panel", "-o", "out"]


def _evaluate_annotations(folder: Path, draw: random.Random) -> tuple[str, list[str]]:
    (folder / "b.json").write_text(json.dumps(_outputs("b", ["It is red.", "x"])), encoding="utf-8")
    rows = [
        {
            "instruction": f"Question {n}?",
            "output_1": text,
            "generator_1": "b",
            "output_2": "A fox",
            "generator_2": "a",
            "annotator": "judge",
            "preference": 1.25,
        }
        for n, text in enumerate(["It is red.", "x"])
    ]
    what = _json_file(folder / "annotations.json", rows, draw)
    options = ["--baseline", "b.json", "--no-length-control", "-o", "out"]
    return what, ["evaluate", "alpaca-eval", "--annotations", "annotations.json", *options]


def _solve_matrix(folder: Path, draw: random.Random) -> tuple[str, list[str]]:
    rows = [["", "a", "b", "c"], ["a", 0.5, 0.9, 0.2], ["b", 0.1, 0.5, 0.7], ["c", 0.8, 0.3, 0.5]]
    if draw.random() < 0.5:
        rows = [row[1:] for row in rows[1:]]
    if draw.random() < 0.6:
        row = draw.choice(rows)
        row[draw.randrange(len(row))] = draw.choice(
            [*inputs.TEXTS[:30], *inputs.VALUES[:18], 0.500001, 1.0000001]
        )
    path = folder / "game.csv"
    text = "\n".join(",".join(map(str, row)) for row in rows) + "\n"
    path.write_bytes(text.encode("utf-8", "replace"))
    what = inputs.changed_file(path, draw) if draw.random() < 0.5 else "a cell changed"
    return what, ["game", draw.choice(["solve", "inspect"]), "game.csv"]


def _solve_array(folder: Path, draw: random.Random) -> tuple[str, list[str]]:
    path = folder / "game.npy"
    arrays = [
        np.array([[0.5, 0.9], [0.1, 0.5]]),
        np.array([[0.5, math.nan], [0.1, 0.5]]),
        np.full((2, 3, 3), 0.5),
        np.full((2, 3), 0.5),
        np.zeros((0, 0)),
        np.array(0.5),
        np.array([["a", "b"]]),
        np.full((3, 3), 0.5 + 0j),
        np.full((1, 1), 0.5),
        np.full((3, 3), 1, dtype=np.int64),
        np.array([[0.5, np.inf], [-np.inf, 0.5]]),
    ]
    if draw.random() < 0.15:
        np.save(path, np.array([inputs.Bomb()], dtype=object), allow_pickle=True)
        return "a pickle in an array", ["game", "solve", "game.npy"]
    np.save(path, draw.choice(arrays))
    what = inputs.changed_file(path, draw) if draw.random() < 0.7 else "a strange array"
    return what, ["game", draw.choice(["solve", "inspect"]), "game.npy"]


def _check_responses(folder: Path, draw: random.Random) -> tuple[str, list[str]]:
    path = folder / "responses.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS), encoding="utf-8")
    what = inputs.changed_file(path, draw)
    return what, ["oracle", "check", "panel", "--responses", "responses.jsonl"]


def _ask_questions(folder: Path, draw: random.Random) -> tuple[str, list[str]]:
    (folder / "b.json").write_text(json.dumps(_outputs("b", ["It is red.", "x"])), encoding="utf-8")
    (folder / "a.json").write_text(json.dumps(_outputs("a", ["A fox.", "z"])), encoding="utf-8")
    path = folder / "prompts.jsonl"
    path.write_text(
        "".join(json.dumps({"prompt": f"Question {n}?"}) + "\n" for n in range(2)), encoding="utf-8"
    )
    what = inputs.changed_file(path, draw)
    return what, [
        *("evaluate", "head-to-head", "A=a.json", "B=b.json", "--oracle", "panel"),
        *("--prompts", "prompts.jsonl", "-o", "out"),
    ]


def _vote(number: int, label: str) -> dict[str, Any]:
    return {
        "vote_id": f"v{number}",
        "time": "2026-01-01T00:00:00Z",
        "voter": f"person {number % 3}",
        "prompt_id": f"p{number}",
        "prompt": f"Question {number}?",
        "policy_a": "base",
        "policy_b": "iteration 1",
        "response_a": "A fox.",
        "response_b": "It is red.",
        "label": label,
        "both_bad": False,
        "oracle": 0.6,
    }


def votes(folder: Path, draw: random.Random, materials: Materials) -> Case:
    """A file of votes, changed, read by an evaluation, a training of an oracle, or a run's page; or a hostile request."""
    if draw.random() < 0.3:
        return _arena_requests(folder, draw)
    rows = [_vote(n, draw.choice(["a", "b", "tie", "skip"])) for n in range(6)]
    path = folder / "votes.parquet"
    what = "values changed"
    if draw.random() < 0.6:
        rows = inputs.changed(rows, draw)
    try:
        pq.write_table(pa.Table.from_pylist([row for row in rows if isinstance(row, dict)]), path)
    except (pa.ArrowException, OverflowError, UnicodeError, TypeError, ValueError):
        pq.write_table(
            pa.Table.from_pylist([{"vote_id": str(row)[:99].encode("utf-8", "replace")} for row in rows]),
            path,
        )
    if draw.random() < 0.4:
        what = inputs.changed_file(path, draw)
    reader = draw.choice(["evaluate", "train", "report"])
    if reader == "evaluate":
        return Case(f"{what}, evaluated", at_the_edge(lambda: _recount(path)))
    if reader == "train":
        settings = {"pairs": {"source": str(path)}}
        return Case(f"{what}, as pairs", at_the_edge(lambda: _read_pairs(settings["pairs"])))
    run = folder / "run"
    shutil.copytree(materials.run, run)
    (run / "arena").mkdir()
    path.rename(run / "arena" / "votes.parquet")
    return Case(f"{what}, on a page", attack.command("report", "run"))


def _recount(path: Path) -> None:
    from sppo.benchmarks.head_to_head.play import of_votes
    from sppo.rundir import votes as vote_files

    found = of_votes([path])
    if np.isinf(found.payoff).any() or not ((found.payoff >= 0) | np.isnan(found.payoff)).all():
        print(f"{WRONG}: {found.payoff}")
    rows = vote_files.read(path)
    written = pq.read_table(path).to_pylist()
    if len(rows) != len({row["vote_id"] for row in written}) or any(not row["vote_id"] for row in written):
        print(f"{WRONG}: {len(rows)} votes of {len(written)} rows")


def _read_pairs(columns: dict[str, Any]) -> None:
    from sppo.oracle.training import pairs
    from sppo.recipe.oracle_training import Pairs

    found = pairs.read(Pairs.model_validate(columns))
    if not all(0 <= pair.probability <= 1 for pair in found):
        print(f"{WRONG}: a probability outside of [0, 1]")
    print(pairs)


def _arena_requests(folder: Path, draw: random.Random) -> Case:
    """Twenty hostile requests to the arena's server, after which its votes must be those of the valid requests."""

    def run() -> None:
        import arena_votes
        from starlette.testclient import TestClient

        from sppo.arena.ballot import Ballot
        from sppo.arena.matches import Matches
        from sppo.arena.server import Arena, access_key

        host, key = "127.0.0.1:8765", arena_votes.KEY
        matches = Matches(arena_votes.responses(), ["base", "iteration 1"], key)
        arena = Arena("run", matches, Ballot(folder), key, {host})
        client = TestClient(arena.app(), base_url=f"http://{host}", follow_redirects=False)
        client.get("/", params={"key": access_key(key)})
        headers = {
            "origin": f"http://{host}",
            "x-sppo-token": arena.token,
            "content-type": "application/json",
        }
        counted = 0
        for _ in range(20):
            shown = client.post("/pair", json={"voter": "ann"}, headers=headers).json()
            valid = {"seal": shown.get("seal"), "choice": "left"}
            body = inputs.to_json(inputs.changed(valid, draw), draw)
            path = draw.choice(["/vote", "/vote", "/undo", "/pair", "/results"])
            sent = dict(headers)
            if draw.random() < 0.3:
                name = draw.choice(list(sent))
                sent[name] = draw.choice(
                    [text for text in inputs.TEXTS if text.isascii() and text.isprintable()]
                )[:500]
            reply = client.post(path, content=body, headers=sent)
            if reply.status_code >= 500:
                raise RuntimeError(f"{path} {body[:200]!r}: {reply.status_code}")
            counted += reply.json() == {"counted": True} if reply.status_code == 200 else 0
        kept = len(arena.ballot.votes())
        if kept > counted:
            print(f"{WRONG}: {kept} votes are kept, {counted} were counted")

    return Case("requests to the arena", run)
