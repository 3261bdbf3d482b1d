"""The sample of responses, its statistics, and the data of the browser."""

import json

import numpy as np
import pytest
from run_folders import repeat_shard, write_run

from sppo.report import browser, samples

HOSTILE = "</script><script>1</script><img src=x> & \u2028 ${1+1}"


def test_agreement_cycles_and_disagreement_by_hand(run):
    found = samples.compared(run, 1, [])
    assert found.matrix.shape == (6, 3, 3)
    # the panel's Anna is the whole; Ben says 1 > 2 > 3 of the cycles 1 > 2 > 3 > 1 too: two of three pairs
    assert found.agreement() == {"anna": 1.0, "ben": pytest.approx((1 + 2 / 3) / 2)}
    by_prompt = dict(zip(found.responses.prompt_ids, zip(found.cycles, found.disagreement)))
    assert by_prompt["train-1-0"] == (1.0, pytest.approx(1 / 3))
    assert by_prompt["train-1-1"] == (0.0, 0.0)
    assert found.responses.tokens[0] == [4, 5, 6]
    np.testing.assert_allclose(
        found.win_rates[found.responses.prompt_ids.index("train-1-1")], [2.2 / 3, 1.3 / 3, 1 / 3]
    )


def test_pairs_that_were_not_compared_are_no_numbers(run):
    of = samples.compared(run, 1, [])
    gaps = of.matrix.copy()
    gaps[:, 0, 1] = gaps[:, 1, 0] = np.nan
    found = samples.ComparedResponses(of.responses, gaps, {})
    assert not found.is_whole and np.isnan(found.cycles).all() and np.isnan(found.disagreement).all()
    assert len(found.margins()) == 2 * 6
    items = browser.browse({1: found}, {}, 100_000)["trained"]
    assert items[0]["matrix"][0][1] is None and items[0]["cycles"] is None


def test_a_part_that_lacks_a_pair_does_not_disagree_about_it(run):
    of = samples.compared(run, 1, [])
    ben = of.components["ben"].copy()
    ben[:, 0, 2] = ben[:, 2, 0] = np.nan  # the one pair of three about which he and Anna differ in a cycle
    found = samples.ComparedResponses(of.responses, of.matrix, {**of.components, "ben": ben})
    assert set(np.nan_to_num(found.disagreement, nan=0.0)) == {0.0}


def test_a_sample_is_drawn_of_many_shards_and_says_so(tmp_path, monkeypatch):
    run = write_run(tmp_path / "run", iterations=1)
    for name in ("responses", "preferences"):
        for number in range(1, 8):
            folder = run / "iter-1" / name
            repeat_shard(folder / "part-00000.parquet", folder / f"part-{number:05d}.parquet")
    monkeypatch.setattr(samples, "PROMPTS", 15)
    found = samples.compared(run, 1, [])
    assert (len(found.matrix), found.responses.total) == (15, 48)


def test_json_in_a_script_cannot_end_it():
    text = str(browser.embedded({"text": HOSTILE}))
    assert not set(text) & set("<>&\u2028")
    assert json.loads(text) == {"text": HOSTILE}


def test_controls_do_not_blow_up_what_is_shown():
    assert len(browser.shown("\U000e0001" * 100_000)) < browser.LONGEST + 200
    assert browser.shown("short") == "short"
