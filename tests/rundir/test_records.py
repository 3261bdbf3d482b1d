"""Records that are read back are the ones that were written, or they are refused."""

import json
import random

import pytest

from sppo.rundir.records import (
    DamagedRecord,
    append_line,
    holds_digest,
    load_record,
    read_lines,
    read_record,
    with_digest,
    write_record,
)

RECORD = {
    "stage": "select",
    "trained_prompts": 24,
    "sampler_deviation": {"mean": 1.25e-7, "max": float("inf")},
    "settings": {"seed": 0, "name": "caf\u00e9", 7: [1, None, True]},
    "shards": [{"name": "part-00000.parquet", "bytes": 118, "sha256": "0f" * 32}],
}


def test_a_record_comes_back_as_it_was_written(tmp_path):
    write_record(tmp_path / "deep" / "select.json", RECORD)
    expected = json.loads(json.dumps(RECORD))
    assert load_record(tmp_path / "deep" / "select.json") == expected
    assert read_record(tmp_path / "missing.json") is None
    assert load_record(tmp_path / "deep" / "select.json" / "below a file.json") is None


def test_any_changed_digit_of_a_record_is_noticed(tmp_path):
    path = tmp_path / "select.json"
    write_record(path, RECORD)
    whole = path.read_text(encoding="utf-8")
    digits = [place for place, character in enumerate(whole) if character.isdigit()]
    assert len(digits) > 40
    for place in digits:
        other = str((int(whole[place]) + 1) % 10)
        path.write_text(whole[:place] + other + whole[place + 1 :], encoding="utf-8")
        with pytest.raises(DamagedRecord, match=r"select\.json is damaged: "):
            load_record(path)
        assert read_record(path) is None


def test_any_flipped_bit_of_a_record_is_noticed_or_changes_nothing(tmp_path):
    path = tmp_path / "select.json"
    write_record(path, RECORD)
    whole, expected = path.read_bytes(), load_record(path)
    generator = random.Random(0)
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[generator.randrange(len(whole))] ^= 1 << generator.randrange(8)
        path.write_bytes(damaged)
        found = read_record(path)
        without_digest = b'"digest"' not in damaged  # the name of the digest itself was hit
        assert found is None or found == expected or without_digest


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000])
def test_what_is_no_record_is_damaged(tmp_path, content):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(DamagedRecord, match=r"x\.json is damaged"):
        load_record(tmp_path / "x.json")


def test_records_of_earlier_versions_have_no_digest_and_are_read(tmp_path):
    (tmp_path / "x.json").write_text('{"trained_prompts": 24}')
    assert load_record(tmp_path / "x.json") == {"trained_prompts": 24}


def test_a_changed_digit_in_a_line_costs_that_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for step in range(3):
        append_line(path, {"stage": "train", "step": step, "loss": 0.5})
    assert read_lines(path) == ([{"stage": "train", "step": step, "loss": 0.5} for step in range(3)], 0)
    path.write_text(path.read_text().replace('"step": 1', '"step": 7'))
    records, damaged = read_lines(path)
    assert [record["step"] for record in records] == [0, 2]
    assert damaged == 1
    assert read_lines(tmp_path / "missing.jsonl") == ([], 0)


def test_a_line_that_a_kill_has_interrupted_does_not_cost_the_next_one(tmp_path):
    path = tmp_path / "metrics.jsonl"
    append_line(path, {"step": 1})
    with path.open("a") as file:
        file.write('{"step": 2, "lo')
    append_line(path, {"step": 3})
    records, damaged = read_lines(path)
    assert [record["step"] for record in records] == [1, 3]
    assert damaged == 1


def test_lines_that_stand_twice_or_come_from_another_iteration_are_left_out(tmp_path):
    for name in ("iter-1", "iter-2"):
        for step in range(2):
            append_line(tmp_path / name / "metrics.jsonl", {"step": step})
    first, second = (tmp_path / name / "metrics.jsonl" for name in ("iter-1", "iter-2"))
    first.write_bytes(first.read_bytes() + first.read_bytes().splitlines(keepends=True)[0])
    assert read_lines(first) == ([{"step": 0}, {"step": 1}], 1)
    second.write_bytes(first.read_bytes())
    assert read_lines(second) == ([], 3)


def test_a_text_notices_that_it_was_changed_or_truncated():
    text = with_digest("# sppo 1\nseed: 3\n")
    assert text.splitlines()[-1].startswith("# digest ")
    assert holds_digest(text)
    for changed in (text.replace("3", "4"), text[:-5], text.rpartition("# ")[0], text + text, ""):
        assert not holds_digest(changed)
    assert holds_digest(with_digest("<html>\n", "<!-- {} -->"))
