"""The comparisons of the evaluation are shards like those of any other stage."""

import json
import shutil

import numpy as np
import pytest
from small_runs import digests, play, rows, small

from sppo.rundir.folder import RunFolder, StaleRun
from sppo.rundir.tables import EvaluationRow, read_rows

CHANGES = {
    "iterations": 2,
    "prompts.train.limit": 8,
    "oracle": {"type": "panel", "weights": [1, 0, 0]},
    "evaluation.oracle": {"type": "panel"},
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "evaluated"
    return folder, play(small(**CHANGES), folder)


@pytest.fixture
def copied(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    return tmp_path / "run"


def comparisons(run, iteration):
    shards = sorted((run / f"iter-{iteration}" / "comparisons").glob("part-*.parquet"))
    return [row for path in shards for row in read_rows(path, EvaluationRow)]


def test_a_row_for_each_held_out_prompt_holds_what_the_measures_are_made_of(finished):
    folder, summary = finished
    for iteration, opponents in ((1, {"base"}), (2, {"base", "previous"})):
        compared = comparisons(folder, iteration)
        drawn = rows(folder / f"iter-{iteration}" / "evaluation")
        assert [row.prompt_id for row in compared] == [row["prompt_id"] for row in drawn]
        for row in compared:
            assert {(rate.opponent, rate.oracle) for rate in row.win_rates} == {
                (opponent, oracle) for opponent in opponents for oracle in ("oracle", "held_out")
            }
        record = summary["iterations"][iteration - 1]
        for measures, oracle in ((record, "held_out"), (record["by_oracle"], "oracle")):
            for opponent in opponents:
                values = [
                    rate.win_rate
                    for row in compared
                    for rate in row.win_rates
                    if (rate.opponent, rate.oracle) == (opponent, oracle)
                ]
                assert measures[f"win_rate_vs_{opponent}"]["mean"] == pytest.approx(np.mean(values))
        divergences = [
            response["log_prob"] - value
            for row, compared_row in zip(drawn, compared, strict=True)
            for response, value in zip(row["responses"], compared_row.base_log_probs, strict=True)
        ]
        assert record["kl_to_base"] == pytest.approx(np.mean(divergences))
        by_prompt = np.reshape(divergences, (len(drawn), -1)).mean(axis=1)
        resampled = np.random.default_rng(0).choice(by_prompt, (4000, len(by_prompt))).mean(axis=1)
        assert record["kl_interval"]["mean"] == pytest.approx(record["kl_to_base"])
        low, high = np.quantile(resampled, (0.025, 0.975))
        width = high - low
        assert record["kl_interval"]["low"] == pytest.approx(low, abs=0.15 * width)
        assert record["kl_interval"]["high"] == pytest.approx(high, abs=0.15 * width)
    assert not (folder / "iter-0" / "comparisons").exists(), "the base has nobody to be compared with"


def test_a_lost_shard_of_comparisons_is_made_again_and_no_other(copied):
    home = copied / "iter-2" / "comparisons"
    before = digests(copied)
    kept = {path: path.stat().st_mtime_ns for path in home.glob("*.parquet")}
    assert len(kept) == 3
    lost = home / "part-00001.parquet"
    lost.unlink()
    play(small(**CHANGES), copied)
    assert digests(copied) == before
    again = {path for path in kept if path.stat().st_mtime_ns != kept[path]}
    assert again == {lost}


@pytest.mark.slow
def test_workers_compare_as_one_process_does(finished, tmp_path):
    play(small(**CHANGES, **{"workers.evaluate": 2}), tmp_path / "run")
    assert digests(tmp_path / "run") == digests(finished[0])


def test_another_held_out_oracle_keeps_the_responses(copied):
    changed = small(**{**CHANGES, "evaluation.oracle": {"type": "near_tie", "oracle": {"type": "panel"}}})
    with pytest.raises(StaleRun) as error:
        play(changed, copied)
    stale = [line.strip() for line in str(error.value).splitlines() if line.startswith("  iteration")]
    assert stale == [f"iteration {number}: evaluate" for number in (0, 1, 2)]


def test_a_run_of_an_earlier_version_is_told_apart(copied):
    for path in copied.glob("iter-*/*.json"):
        record = json.loads(path.read_text())
        del record["format"], record["digest"]  # that version wrote neither
        path.write_text(json.dumps({**record, "fingerprint": "0" * 64}))
    with pytest.raises(StaleRun, match=r"another version of sppo.*`sppo report .*` still shows it"):
        play(small(**CHANGES), copied)
    assert RunFolder(copied).read_metrics(1), "nothing is removed"
