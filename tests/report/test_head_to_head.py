"""The matrix of a run's policies, and the results of benchmarks."""

import json

import numpy as np
import pytest
from run_folders import write_run

from sppo.report import benchmark_results, head_to_head, page, run_figures
from sppo.rundir.folder import write_json


def test_the_matrix_has_what_was_measured_and_says_what_was_not(run):
    found = head_to_head.of_run(run_figures.read(run), [])
    assert found.names == ["base", "iteration 1", "iteration 2"]
    means = [[None if entry is None else round(entry["mean"], 6) for entry in row] for row in found.entries]
    assert means == [[None, 0.4, 0.3], [0.6, None, 0.45], [0.7, 0.55, None]]
    assert found.entries[0][2]["low"] == pytest.approx(0.28)
    assert found.is_whole
    longer = head_to_head.HeadToHead(["a", "b"], [[None, None], [None, None]])
    assert not longer.is_whole


def test_the_missing_pairs_are_asked_of_the_oracle(tmp_path):
    run = write_run(tmp_path / "run")
    figures = run_figures.read(run)
    head_to_head.compare_all(figures)
    kept = json.loads((run / head_to_head.FILE).read_text())
    assert np.shape(kept["mean"]) == (3, 3)
    # what the run has measured stands; evaluations that have changed make the rest void
    assert head_to_head.of_run(figures, []).entries[2][0]["mean"] == 0.7
    write_json(run / head_to_head.FILE, kept | {"low": [[]]})
    assert head_to_head.of_run(figures, notes := []).entries[2][0]["mean"] == 0.7
    assert f"because another version wrote it: {run / head_to_head.FILE}" in notes[0]
    record = json.loads((run / "iter-1" / "evaluation.json").read_text())
    write_json(run / "iter-1" / "evaluation.json", {**record, "fingerprint": "other"})
    assert head_to_head._kept(run_figures.read(run)) is None


@pytest.mark.slow
def test_benchmarks_of_the_runs_policies_stand_beside_the_published_rows(tmp_path):
    run = write_run(tmp_path / "run")
    row = {
        "name": "mine",
        "win_rate": 12.345,
        "standard_error": 1.0,
        "avg_length": 99,
        "n_total": 805,
        "unjudged": 0,
        "judge": {"model": "j"},
    }
    results = [
        {**row, "policy": {"path": str(run / "iter-2" / "policy")}},
        {**row, "name": "stranger", "policy": {"path": str(tmp_path / "another")}},
    ]
    write_json(run / "evaluations" / "alpaca-eval" / "alpaca-eval.json", {"results": results})
    write_json(run / "evaluations" / "mt-bench.json", {"results": [{"policy": {"path": str(run)}}]})
    played = {"policies": [{"name": "a", "path": str(run / "iter-1" / "policy")}, {"name": "b", "path": "x"}]}
    played |= {"oracle": {"type": "panel"}, "prompts": 7, "von_neumann_winner": [1.0, 0.0]}
    played |= {
        "win_rates": [[0.5, 0.876], [0.124, 0.5]],
        "low": [[0.5, 0.8], [0.1, 0.5]],
        "high": [[0.5, 0.9], [0.2, 0.5]],
    }
    write_json(tmp_path / "evaluations" / "head-to-head" / "head-to-head.json", played)
    page.write([run], tmp_path / "report.html", evaluations=[tmp_path / "evaluations"])
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "12.35" in text or "12.34" in text
    assert "stranger" not in text
    assert "28.53" in text and "arXiv:2405.00675" in text  # Mistral-7B SPPO, iteration 3
    assert "The results of mt-bench are left out, because another version wrote them" in text
    assert "0.876" in text and "von Neumann winner" in text


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("von_neumann_winner", [1.0]),
        ("von_neumann_winner", ["<b>", 0.0]),
        ("von_neumann_winner", 1),
        ("low", [[0.5, "x"], [0.1, 0.5]]),
        ("high", [[0.5]]),
        ("win_rates", [[0.5, 10**400], [0.1, 0.5]]),
    ],
)
def test_a_matrix_of_another_form_is_named(tmp_path, name, value):
    run = write_run(tmp_path / "run", iterations=1, prompts=1, held_out=1)
    rates = [[0.5, 0.9], [0.1, 0.5]]
    played = {
        "policies": [{"name": "a", "path": str(run / "iter-1" / "policy")}, {"name": "b", "path": "x"}],
        **dict.fromkeys(("win_rates", "low", "high"), rates),
        "oracle": {"type": "panel"},
        "prompts": 7,
        "von_neumann_winner": [1.0, 0.0],
    }
    write_json(run / "head-to-head.json", played)
    assert len(benchmark_results.matrices(run, [run], notes := [])) == 1 and not notes
    write_json(run / "head-to-head.json", played | {name: value})
    assert benchmark_results.matrices(run, [run], notes) == []
    assert "is left out" in notes[0]
