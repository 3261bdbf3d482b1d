"""What an iteration left out or did not finish, in sentences."""

import pytest

from sppo.rundir.folder import RunFolder
from sppo.rundir.records import write_record
from sppo.rundir.summary import oracle_counts, remarks, shards_without_counts


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({}, []),
        ({"sampled": {}, "oracle": {"texts": 5, "texts_truncated": 0}, "missing_end_of_turn": 0}, []),
        (
            {"sampled": {"unfinished_thoughts": 1200}},
            ["1,200 responses that it learns from ended within a thought"],
        ),
        ({"unfinished_thoughts": 1}, ["1 held-out response ended within a thought"]),
        ({"missing_end_of_turn": 2}, ["2 held-out responses ended without the template's end of turn"]),
        ({"prompts_left_out": 4}, ["4 held-out prompts without a win rate"]),
        (
            {"oracle": {"pairs_left_out": 5, "one_order_pairs": 6, "texts": 9, "texts_truncated": 7}},
            [
                "5 pairs of the responses that it learns from left out",
                "6 pairs of the responses that it learns from judged in one order only",
                "7 of 9 texts exceeded the oracle's limit and were truncated there",
            ],
        ),
    ],
)
def test_remarks(row, expected):
    found = remarks(row)
    assert len(found) == len(expected)
    assert all(remark.startswith(start) for remark, start in zip(found, expected, strict=True))


def test_the_oracles_counts_are_whole_or_unknown(tmp_path):
    run, names = RunFolder(tmp_path), ["part-00000.parquet", "part-00001.parquet"]
    (tmp_path / "iter-1").mkdir()
    for name in names:
        run.log(1, {"stage": "annotate", "shard": name, "oracle": {"requests": 4}})
    assert oracle_counts(run, 1) == {"requests": 8}
    shards = [{"name": name, "bytes": 0, "sha256": ""} for name in names]
    write_record(tmp_path / "iter-1" / "annotate.json", {"shards": shards})
    assert oracle_counts(run, 1) == {"requests": 8} and not shards_without_counts(run, 1)
    lines = run.metrics(1).read_text().splitlines()
    run.metrics(1).write_text(lines[0] + "\n" + lines[1].replace("4", "5") + "\n")
    assert oracle_counts(run, 1) == {} and shards_without_counts(run, 1) == names[1:]
