import hashlib
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sppo.rundir import shards, tables
from sppo.rundir.shards import DamagedShard, read_shard, shard_metadata, write_shard

ROWS = [
    {
        "prompt_id": f"p{number}",
        "messages": [{"role": "user", "content": f"Hello \U0001f98a {number}"}],
        "prompt_token_ids": [1, 2, number],
        "demonstration": {"text": "x", "token_ids": [5]} if number % 2 else None,
        "responses": [
            {
                "token_ids": [3, number, 4],
                "text": "x",
                "finish_reason": "stop",
                "log_prob": -1.5 * number,
                "token_log_probs": [-0.5 * number] * 3,
            },
            {
                "token_ids": [],
                "text": "",
                "finish_reason": "length",
                "log_prob": 0.0,
                "token_log_probs": None,
            },
        ],
    }
    for number in range(20)
]
METADATA = {"fingerprint": "f" * 64, "sources": "\u00e4,b"}


@pytest.fixture
def shard(tmp_path):
    path = tmp_path / "new" / "part-00000.parquet"
    write_shard(path, shards.table(ROWS, tables.RESPONSES), METADATA)
    return path


def test_what_is_written_is_read(shard):
    found = read_shard(shard)
    assert found.to_pylist() == ROWS
    assert found.schema.names == tables.RESPONSES.names
    assert shard_metadata(shard) == METADATA
    assert read_shard(shard, ["prompt_id"]).to_pylist() == [{"prompt_id": row["prompt_id"]} for row in ROWS]


def test_other_programs_read_it(shard):
    assert pq.read_table(shard).to_pylist() == ROWS


def test_an_empty_shard(tmp_path):
    for schema in (tables.PROMPTS, tables.RESPONSES, tables.PREFERENCES, tables.TRAINING):
        write_shard(tmp_path / "x.parquet", shards.table([], schema), {})
        assert read_shard(tmp_path / "x.parquet").num_rows == 0


def test_the_same_rows_give_the_same_bytes(tmp_path, shard):
    again = write_shard(tmp_path / "again.parquet", shards.table(ROWS, tables.RESPONSES), METADATA)
    assert again == shards.file_digest(shard) == hashlib.sha256(shard.read_bytes()).hexdigest()


def test_numbers_come_back_to_the_last_bit(tmp_path):
    matrix = [[0.5, 0.1 + 0.2], [5e-324, 1 / 3]]
    write_shard(
        tmp_path / "x.parquet", shards.table([{"prompt_id": "p", "matrix": matrix}], tables.PREFERENCES), {}
    )
    assert read_shard(tmp_path / "x.parquet")["matrix"].to_pylist() == [matrix]


def test_a_row_that_does_not_fit_the_schema_is_refused():
    with pytest.raises(pa.ArrowException):
        shards.table([{"prompt_id": "p", "matrix": "none"}], tables.PREFERENCES)


def _read(path):
    """The rows and what they were computed from; None where damage is found."""
    try:
        return read_shard(path).to_pylist(), shard_metadata(path)
    except DamagedShard:
        return None


def test_every_altered_byte_is_found_or_makes_no_difference(tmp_path):
    path = tmp_path / "x.parquet"
    matrix = [[0.5, 0.3], [0.7, 0.5]]
    table = shards.table([{"prompt_id": f"p{n}", "matrix": matrix} for n in range(9)], tables.PREFERENCES)
    write_shard(path, table, METADATA)
    content = path.read_bytes()
    found = 0
    for position in range(0, len(content), 2):
        altered = bytearray(content)
        altered[position] ^= 1 << position % 8
        path.write_bytes(altered)
        read = _read(path)
        found += read is None
        # what the metadata says is compared with what it should be by the run folder
        assert read is None or read[0] == table.to_pylist()
    assert found > len(content) // 8


def test_every_truncation_is_found(shard):
    content = shard.read_bytes()
    for length in [*range(0, len(content), 7), *range(len(content) - 16, len(content))]:
        shard.write_bytes(content[:length])
        with pytest.raises(DamagedShard, match=r"part-00000\.parquet: not a whole shard"):
            read_shard(shard)
        with pytest.raises(DamagedShard, match=r"part-00000\.parquet: not a whole shard"):
            shard_metadata(shard)


def test_a_missing_shard_a_folder_and_another_file_are_damaged(tmp_path):
    (tmp_path / "folder.parquet").mkdir()
    (tmp_path / "text.parquet").write_text("hello")
    for name in ("none.parquet", "folder.parquet", "text.parquet"):
        for read in (read_shard, shard_metadata):
            with pytest.raises(DamagedShard, match=f"{name}: not a whole shard"):
                read(tmp_path / name)


def test_a_shard_that_fails_to_be_written_leaves_the_old_one_and_nothing_else(shard, monkeypatch):
    before = shard.read_bytes()

    def no_space(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "write_table", no_space)
    with pytest.raises(OSError, match="No space left"):
        write_shard(shard, shards.table(ROWS[:1], tables.RESPONSES), METADATA)
    assert shard.read_bytes() == before
    assert [path.name for path in shard.parent.iterdir()] == [shard.name]


def test_a_shard_interrupted_before_its_rename_is_not_there(tmp_path, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_shard(tmp_path / "x.parquet", shards.table(ROWS, tables.RESPONSES), METADATA)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "other", ["iter-1/responses/part-00000", "iter-2/responses/part-00001", "iter-2/evaluation/part-00000"]
)
def test_a_shard_in_the_place_of_another_is_refused_without_any_record(tmp_path, other):
    place = tmp_path / "run" / "iter-2" / "responses" / "part-00000.parquet"
    swapped = tmp_path / "run" / f"{other}.parquet"
    for path in (place, swapped):
        write_shard(path, shards.table(ROWS, tables.RESPONSES), METADATA)
    renamed = (tmp_path / "run").rename(tmp_path / "renamed")  # a whole run may be moved
    place, swapped = (renamed / path.relative_to(tmp_path / "run") for path in (place, swapped))
    assert read_shard(place).to_pylist() == ROWS
    swapped.replace(place)
    for read in (read_shard, shard_metadata):
        with pytest.raises(DamagedShard, match=f"was written as {other}.parquet, so it belongs elsewhere"):
            read(place)


def test_shards_outside_of_iterations_may_be_renamed(shard):
    assert read_shard(shard.rename(shard.with_name("part-00007.parquet"))).to_pylist() == ROWS
