"""Pipes, devices and JSON that no reader may wait for, or break at."""

import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sppo import prompts, recipe
from sppo.benchmarks.ifeval import constraints
from sppo.benchmarks.judge_prompts import read_text
from sppo.benchmarks.outputs import read_outputs
from sppo.game.tables import read_table
from sppo.oracle import check, judge_template
from sppo.policy import chat_format
from sppo.reading import parse, read_mapping
from sppo.rundir import votes
from sppo.rundir.shards import file_digest, read_shard
from sppo.tinyworld import POLICY


def prompts_of(path):
    return list(prompts.sources.read_rows(str(path), columns=lambda known: ["prompt"], split="train"))


READERS = {
    "recipe": (recipe.load, "x.yaml"),
    "prompts": (prompts_of, "x.jsonl"),
    "chat template": (lambda path: chat_format.load(str(POLICY), chat_template=str(path)), "x.jinja"),
    "judge's template": (lambda path: judge_template.source(str(path), "letter"), "x.jinja"),
    "judge's prompt": (read_text, "x.txt"),
    "outputs": (read_outputs, "x.json"),
    "parquet outputs": (read_outputs, "x.parquet"),
    "responses": (lambda path: check.of_file(path, 10), "x.jsonl"),
    "constraints": (constraints.read_prompts, "x.jsonl"),
    "game": (read_table, "x.csv"),
    "votes": (votes.read, "votes.parquet"),
    "shard": (read_shard, "x.parquet"),
    "digest": (file_digest, "x"),
    "JSON": (read_mapping, "x.json"),
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("target", ["pipe", "/dev/zero", "/dev/urandom"])
@pytest.mark.parametrize("reader", READERS)
def test_pipes_and_devices_are_refused_by_every_reader(tmp_path, reader, target):
    read, name = READERS[reader]
    if target == "pipe":
        os.mkfifo(tmp_path / name)
    else:
        (tmp_path / name).symlink_to(target)
    with pytest.raises((OSError, ValueError), match=r"a pipe, a socket or a device|neither a file here"):
        read(tmp_path / name)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 100_000, "1" * 5000, "-" + "9" * 301, b'"\xed\xa0\x80"', "{", "", "nul"]
)
def test_json_that_cannot_be_read_is_always_a_value_error(text):
    with pytest.raises(ValueError, match=r"\w"):
        parse(text)


def far_dates(path):
    """A table with dates that Python does not know, in a column that nobody asked for and in one that is asked for."""
    far = pa.array([1 << 62, 0], pa.timestamp("us"))
    table = {"instruction": ["a", "b"], "output": ["x", "y"], "prompt": ["a", "b"], "seen": far}
    pq.write_table(pa.table(table), path)


def test_dates_out_of_range_in_a_column_that_nobody_asked_for_are_no_matter(tmp_path):
    far_dates(tmp_path / "x.parquet")
    assert [row.value for row in prompts_of(tmp_path / "x.parquet")] == [{"prompt": "a"}, {"prompt": "b"}]
    assert read_outputs(tmp_path / "x.parquet").texts == {"a": "x", "b": "y"}


def test_dates_out_of_range_in_a_column_of_prompts_are_a_malformed_row(tmp_path):
    far_dates(tmp_path / "x.parquet")
    rows = prompts.sources.read_rows(
        str(tmp_path / "x.parquet"), columns=lambda known: ["seen"], split="train"
    )
    first, second = (row.value for row in rows)
    assert "malformed" in str(first)
    assert second["seen"].year == 1970


def test_an_image_column_of_a_data_set_opens_no_file(tmp_path):
    import datasets

    secret = tmp_path / "secret.png"
    secret.write_bytes(b"not an image")
    rows = {"prompt": [{"bytes": None, "path": str(secret)}]}
    described = datasets.Features({"prompt": datasets.Image(decode=False)})
    data = datasets.Dataset.from_dict(rows, features=described)
    data.save_to_disk(tmp_path / "data")
    table = pa.table({"prompt": pa.array(rows["prompt"], data.data.schema.field("prompt").type)})
    (file,) = (tmp_path / "data").glob("*.arrow")
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    info = tmp_path / "data" / "dataset_info.json"
    info.write_text(info.read_text().replace('"decode": false', '"decode": true'))
    opened = datasets.load_from_disk(str(tmp_path / "data"))
    with pytest.raises(Exception, match=r"secret\.png|cannot identify|Pillow"):
        _ = opened[0]  # datasets itself opens the file
    assert prompts_of(tmp_path / "data")[0].value == {"prompt": rows["prompt"][0]}
