"""Runs with files that are damaged or of another version."""

import json

import pyarrow as pa
import pytest
from run_folders import RECIPE, write_run

from sppo.report import page, samples
from sppo.rundir.folder import write_json
from sppo.rundir.shards import read_shard, table, write_shard
from sppo.rundir.tables import RESPONSES


def test_damaged_files_are_named_and_the_rest_is_shown(tmp_path):
    run = write_run(tmp_path / "run")
    (run / "summary.json").write_text('{"iterations": [')
    with (run / "iter-1" / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "train", "st')
    shard = run / "iter-1" / "preferences" / "part-00000.parquet"
    shard.write_bytes(shard.read_bytes()[:-20])
    page.write([run], tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "0.700<small>0.680 to 0.720</small>" in text
    assert f"This file is left out: {shard}" in text


def test_records_and_responses_of_a_strange_shape_are_named_and_the_rest_is_shown(tmp_path):
    run = write_run(tmp_path / "run")
    (run / "iter-2" / "annotate.json").write_text('{"shards": 3}')
    held_out = run / "iter-1" / "evaluation" / "part-00000.parquet"
    write_shard(held_out, read_shard(held_out).drop_columns(["responses"]), {})
    page.write([run], tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert f"damaged or another version wrote it: {run / 'iter-2' / 'annotate.json'}" in text
    assert f"{held_out}: it has no responses" in text and "0.700<small>0.680 to 0.720</small>" in text


def _answer(table, **changes):
    rows = table.to_pylist()
    rows[0]["responses"][1] |= changes
    return pa.Table.from_pylist(rows, schema=table.schema)


def _preference(table, **changes):
    rows = table.to_pylist()
    rows[0] |= changes
    return pa.Table.from_pylist(rows)


@pytest.mark.parametrize(
    ("name", "change", "note"),
    [
        ("responses", lambda table: _answer(table, text=None), "no text, tokens or finish_reason"),
        ("responses", lambda table: _answer(table, token_ids=None), "no text, tokens or finish_reason"),
        ("responses", lambda table: table.set_column(0, "prompt_id", [[7] * len(table)]), "7 is no text"),
        ("preferences", lambda table: _preference(table, matrix=[[0.5, 0.9], [0.5, 0.5]]), "not 1"),
        ("preferences", lambda table: _preference(table, matrix=[[0.5, 0.9], [0.1]]), "inhomogeneous"),
        ("preferences", lambda table: _preference(table, matrix=None), "square"),
        (
            "preferences",
            lambda table: _preference(
                table, components=[{"oracle": "anna", "matrix": [[0.5, 0.5], [0.5, 0.5]]}]
            ),
            "other responses than the whole",
        ),
    ],
)
def test_entries_of_a_strange_shape_are_named_and_the_rest_is_shown(tmp_path, name, change, note):
    run = write_run(tmp_path / "run")
    shard = run / "iter-1" / name / "part-00000.parquet"
    write_shard(shard, change(read_shard(shard)), {})
    notes = []
    assert samples.compared(run, 1, notes) is None and len(samples.compared(run, 2, notes).matrix) == 6
    (said,) = notes
    assert (
        said.startswith(f"This file is left out, because another version wrote it: {shard}") and note in said
    )


def test_a_run_of_another_version_says_so(tmp_path):
    run = write_run(
        tmp_path / "run",
        versions="# sppo 9.9.9, torch 1.0\n",
        recipe={**RECIPE, "of_the_future": {"<b>": 1}},
        measures={2: {"win_rate_vs_base": None, "kl_to_base": None, "repetition": "new"}},
    )
    old = read_shard(run / "iter-2" / "responses" / "part-00000.parquet").to_pylist()
    schema = pa.schema([field for field in RESPONSES if field.name != "prompt_token_ids"])
    write_shard(run / "iter-2" / "responses" / "part-00000.parquet", table(old, schema), {})
    page.write([run], tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "made by sppo 9.9.9" in text and "cannot read the run" in text and "of_the_future" in text
    assert "0.600<small>0.580 to 0.620</small>" in text and "<b>" not in text


def test_figures_that_are_none_are_left_out(tmp_path):
    run = write_run(tmp_path / "run")
    record = json.loads((run / "iter-1" / "evaluation.json").read_text())
    record |= {"win_rate_vs_base": {"mean": float("nan"), "low": 0, "high": 1}, "response_tokens": "<b>"}
    write_json(run / "iter-1" / "evaluation.json", record | {"kl_to_base": float("inf")})
    cost = json.loads((run / "iter-1" / "sample.json").read_text())
    write_json(run / "iter-1" / "sample.json", cost | {"responses_drawn": "many"})
    write_json(run / "iter-2" / "sample.json", cost | {"responses_drawn": 10**400})
    base = json.loads((run / "iter-0" / "evaluation.json").read_text())
    write_json(run / "iter-0" / "evaluation.json", base | {"repetition": 10**400})
    with (run / "iter-2" / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"stage": "sample", "seconds": 10**400}) + "\n")
    with (run / "iter-1" / "metrics.jsonl").open("a") as file:
        file.write(
            '{"stage": "train", "step": 4, "loss": NaN, "kl": Infinity, "log_ratio_winners": "x"}\n[]\n'
        )
        file.write('{"stage": "sample", "seconds": "x"}\n{"stage": "annotate", "shard": 1, "oracle": 5}\n')
    page.write([run], tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "its evaluation lacks response_tokens, kl_to_base, win_rate_vs_base." in text
    assert "0.700<small>0.680 to 0.720</small>" in text and "<b>" not in text
