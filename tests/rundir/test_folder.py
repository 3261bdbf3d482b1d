import json
import os
import signal
import subprocess
import sys

import pytest

from sppo.rundir import shards, tables
from sppo.rundir.folder import RunError, RunFolder, fingerprint, publish_folder, write_json, write_text
from sppo.rundir.shards import read_shard, write_shard

SHARDS = 3


def _table(number: int, salt: str = "") -> object:
    rows = [{"prompt_id": f"{salt}{number}-{row}", "matrix": [[0.5]]} for row in range(4)]
    return shards.table(rows, tables.PREFERENCES)


class Work:
    """Makes shards and remembers which."""

    def __init__(self, salt: str = "") -> None:
        self.salt = salt
        self.made = []

    def __call__(self, number):
        self.made.append(number)
        return _table(number, self.salt)


@pytest.fixture
def run(tmp_path):
    return RunFolder(tmp_path / "run")


@pytest.mark.parametrize("mask", [0o002, 0o027, 0o077])
def test_the_files_of_a_run_have_the_modes_that_the_umask_says(run, mask):
    before = os.umask(mask)
    try:
        with run.locked():
            write_text(run.path / "recipe.yaml", "seed: 1")
            run.log(1, {"step": 1})
    finally:
        os.umask(before)
    files = [path for path in run.path.rglob("*") if path.is_file()]
    assert {path.stat().st_mode & 0o777 for path in files} == {0o666 & ~mask} and len(files) == 3


def _stage(run, settings=None, upstream=("u",), **more):
    return run.stage("sample", 1, settings or {"k": 5}, upstream, folder="responses", **more)


def _play(stage, sources=None, work=None):
    work = work or Work()
    stage.publish(stage.run_shards(sources or [[]] * SHARDS, work), prompts=12)
    return work.made


# fingerprints


def test_a_fingerprint_covers_the_name_the_settings_and_what_is_upstream():
    prints = {
        fingerprint("sample", {"k": 5}, ["u"]),
        fingerprint("annotate", {"k": 5}, ["u"]),
        fingerprint("sample", {"k": 6}, ["u"]),
        fingerprint("sample", {"k": 5, "seed": None}, ["u"]),
        fingerprint("sample", {"k": 5}, ["v"]),
        fingerprint("sample", {"k": 5}, ["u", "v"]),
        fingerprint("sample", {"k": 5}, []),
    }
    assert len(prints) == 7


def test_a_fingerprint_does_not_depend_on_the_order_of_keys():
    assert fingerprint("s", {"a": 1, "b": {"c": 2, "d": 3}}, []) == fingerprint(
        "s", {"b": {"d": 3, "c": 2}, "a": 1}, []
    )


def test_what_changes_upstream_changes_everything_below(run):
    def chain(k: int) -> list[str]:
        prints = []
        for name in ("sample", "annotate", "select"):
            stage = run.stage(name, 1, {"k": k} if name == "sample" else {}, prints[-1:], folder=name)
            prints.append(stage.fingerprint)
        return prints

    assert all(one != other for one, other in zip(chain(5), chain(6), strict=True))
    assert chain(5) == chain(5)


# done, stale, neither


def test_a_stage_is_done_when_it_was_published_and_is_whole(run):
    stage = _stage(run)
    assert not stage.is_done()
    assert not stage.is_stale()
    with pytest.raises(RunError, match="iteration 1: sample is not done; run it first"):
        stage.shards()
    shards = stage.run_shards([[]] * SHARDS, Work())
    assert not stage.is_done()
    stage.publish(shards, prompts=12)
    assert stage.is_done()
    assert not stage.is_stale()
    assert [path.name for path in stage.shards()] == [
        "part-00000.parquet",
        "part-00001.parquet",
        "part-00002.parquet",
    ]
    assert stage.read_record()["prompts"] == 12
    assert [read_shard(path).num_rows for path in stage.shards()] == [4, 4, 4]


def test_the_record_of_another_stage_or_iteration_is_as_good_as_none(run):
    stages = [
        run.stage(name, t, {}, (), folder=name) for name, t in (("select", 1), ("train", 1), ("select", 2))
    ]
    for stage in stages:
        stage.folder.mkdir(parents=True)
        stage.publish([])
    for other in stages[1:]:
        stages[0].record.write_bytes(other.record.read_bytes())
        assert not stages[0].is_done() and not stages[0].is_stale()
        assert "another stage or of another iteration" in stages[0].damage()


def test_a_finished_stage_without_its_line_has_lost_metrics(run):
    stage = _stage(run)
    stage.publish(stage.run_shards([[]] * SHARDS, Work()))
    run.log(1, {"stage": "sample", "seconds": 1.5})
    assert run.lost_metrics(1) == 0
    run.metrics(1).unlink()
    assert run.lost_metrics(1) == 1


def test_another_recipe_makes_it_stale(run):
    _play(_stage(run))
    other = _stage(run, {"k": 6})
    assert other.is_stale()
    assert not other.is_done()
    with pytest.raises(RunError, match="is not done"):
        other.read_record()
    assert _stage(run, upstream=("v",)).is_stale()


def test_shards_of_another_recipe_are_stale_before_they_are_published(run):
    _stage(run).run_shards([[]], Work())
    assert not _stage(run).is_stale()
    assert _stage(run, {"k": 6}).is_stale()


def test_shards_of_another_recipe_are_never_kept(run):
    _play(_stage(run))
    other = _stage(run, {"k": 6})
    assert _play(other, work=Work("other ")) == [0, 1, 2]
    assert read_shard(other.shard(0))["prompt_id"].to_pylist()[0] == "other 0-0"
    assert other.is_done()


def test_clear_removes_all_of_it(run):
    stage = _stage(run)
    _play(stage)
    stage.clear()
    assert not stage.folder.exists()
    assert not stage.record.exists()
    stage.clear()


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '"x"', "{}", '{"fingerprint": 3}', b"\xff\xfe"])
def test_a_damaged_record_is_a_stage_that_is_not_done(run, content):
    stage = _stage(run)
    _play(stage)
    stage.record.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert not stage.is_done()
    assert _play(stage) == []
    assert stage.is_done()


# shards, one by one


def test_shards_that_are_there_are_kept(run):
    stage = _stage(run)
    seen = []
    stage.run_shards([[]] * SHARDS, Work(), lambda number, kept: seen.append((number, kept)))
    assert seen == [(0, False), (1, False), (2, False)]
    before = [path.stat().st_mtime_ns for path in sorted(stage.folder.iterdir())]
    seen.clear()
    stage.run_shards([[]] * SHARDS, Work(), lambda number, kept: seen.append((number, kept)))
    assert seen == [(0, True), (1, True), (2, True)]
    assert [path.stat().st_mtime_ns for path in sorted(stage.folder.iterdir())] == before


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-10])


def _alter(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 8 : len(content) // 4] = bytes(len(content) // 4 - len(content) // 8)
    path.write_bytes(content)


def _replace(path):
    write_shard(path, _table(7), shards.shard_metadata(path))


def _empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("published", [True, False])
@pytest.mark.parametrize("damage", [_truncate, _alter, _empty, os.unlink])
def test_a_damaged_shard_alone_is_made_again(run, damage, published):
    stage = _stage(run)
    if published:
        _play(stage)
    else:
        stage.run_shards([[]] * SHARDS, Work())
    whole = [stage.shard(number).read_bytes() for number in range(SHARDS)]
    damage(stage.shard(1))
    assert not stage.is_done()
    assert _play(stage) == [1]
    assert [stage.shard(number).read_bytes() for number in range(SHARDS)] == whole
    assert stage.is_done()


def test_a_published_shard_that_was_replaced_by_another_whole_one_is_made_again(run):
    stage = _stage(run)
    _play(stage)
    whole = stage.shard(1).read_bytes()
    _replace(stage.shard(1))
    assert not stage.is_done()
    assert _play(stage) == [1]
    assert stage.shard(1).read_bytes() == whole


def test_a_shard_whose_source_changed_is_made_again(run, tmp_path):
    sources = [[tmp_path / f"{number}"] for number in range(SHARDS)]
    for number, (path,) in enumerate(sources):
        path.write_text(f"{number}")
    stage = _stage(run)
    assert _play(stage, sources) == [0, 1, 2]
    sources[2][0].write_text("changed")
    assert _play(stage, sources) == [2]


def test_shards_beyond_the_last_are_removed(run):
    stage = _stage(run)
    _play(stage, [[]] * 5)
    _play(stage, [[]] * 2)
    assert [path.name for path in sorted(stage.folder.iterdir())] == [
        "part-00000.parquet",
        "part-00001.parquet",
    ]
    assert stage.is_done()


def test_a_failure_keeps_the_shards_before_it(run):
    stage = _stage(run)

    def fails(number):
        if number == 2:
            raise RuntimeError("out of luck")
        return _table(number)

    with pytest.raises(RuntimeError, match="out of luck"):
        stage.run_shards([[]] * SHARDS, fails)
    assert not stage.is_done()
    assert _play(stage) == [2]


KILLED = """
import os, signal, sys
from pathlib import Path
import pyarrow.parquet as pq
from sppo.rundir import shards
from sppo.rundir import tables
from sppo.rundir.folder import RunFolder

run, at = RunFolder(Path(sys.argv[1])), int(sys.argv[2])
stage = run.stage("sample", 1, {"k": 5}, ["u"], folder="responses")
write = pq.write_table

def killed_in_the_middle(table, file, **options):
    write(table, file, **options)
    if stage.shard(at).name in str(file.name):
        file.flush()
        file.truncate(100)
        os.kill(os.getpid(), signal.SIGKILL)

pq.write_table = killed_in_the_middle

def work(number):
    rows = [{"prompt_id": f"{number}-{row}", "matrix": [[0.5]]} for row in range(4)]
    return shards.table(rows, tables.PREFERENCES)

stage.publish(stage.run_shards([[]] * 3, work), prompts=12)
"""


def _subprocess(code: str, *arguments: str, **options) -> subprocess.Popen:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **options)


@pytest.mark.parametrize("at", [0, 1])
def test_a_kill_in_the_middle_of_a_shard_costs_that_shard_alone(run, tmp_path, at):
    with _subprocess(KILLED, str(run.path), str(at)) as process:
        process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    stage = _stage(run)
    leftovers = [path.name for path in stage.folder.iterdir() if path.name.startswith(".")]
    assert leftovers == [f".part-{at:05d}.parquet.{process.pid}.tmp"]
    assert not stage.is_done()
    assert not stage.is_stale()
    assert _play(stage) == list(range(at, SHARDS))
    alone = _stage(RunFolder(tmp_path / "alone"))
    _play(alone)
    for number in range(SHARDS):
        assert stage.shard(number).read_bytes() == alone.shard(number).read_bytes()


# one process at a time


HOLDS = """
import sys
from pathlib import Path
from sppo.rundir.folder import RunFolder
with RunFolder(Path(sys.argv[1])).locked():
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.mark.parametrize("end", ["properly", "killed"])
def test_a_second_process_is_kept_out_and_let_in_afterwards(run, end):
    with _subprocess(HOLDS, str(run.path)) as process:
        assert process.stdout.readline().strip() == "held"
        with (
            pytest.raises(RunError, match="another sppo is at work in this run; wait for it, or stop it"),
            run.locked(),
        ):
            pass
        if end == "killed":
            process.kill()
        process.communicate("\n", timeout=60)
    with run.locked():
        pass


def test_the_lock_is_given_back_after_an_error(run):
    with pytest.raises(RuntimeError, match="inside"), run.locked():
        raise RuntimeError("inside")
    with run.locked():
        pass


# files that are there whole or not at all


def test_text_and_json(tmp_path):
    write_json(tmp_path / "deep" / "x.json", {"caf\u00e9": [1, None]})
    assert json.loads((tmp_path / "deep" / "x.json").read_text(encoding="utf-8")) == {"caf\u00e9": [1, None]}
    write_text(tmp_path / "x.txt", "one\n")
    write_text(tmp_path / "x.txt", "two\n")
    assert (tmp_path / "x.txt").read_text() == "two\n"


def test_a_file_that_fails_to_be_written_leaves_the_old_one_and_nothing_else(tmp_path, monkeypatch):
    write_text(tmp_path / "x.txt", "old")

    def no_space(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="No space left"):
        write_text(tmp_path / "x.txt", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["x.txt"]
    assert (tmp_path / "x.txt").read_text() == "old"


def test_a_folder_takes_its_final_name_at_once(tmp_path):
    for content in ("first", "second"):
        temporary = tmp_path / "policy.tmp"
        (temporary / "inner").mkdir(parents=True)
        (temporary / "inner" / "file").write_text(content)
        publish_folder(temporary, tmp_path / "policy")
        assert (tmp_path / "policy" / "inner" / "file").read_text() == content
        assert not temporary.exists()


# metrics


def test_metrics_are_kept_by_iteration_and_stage(run):
    run.log(1, {"stage": "train", "loss": 1.0})
    run.log(1, {"stage": "sample", "tokens": 2})
    run.log(2, {"stage": "train", "loss": 3.0})
    run.forget_metrics(1, "train")
    assert run.read_metrics(1) == [{"stage": "sample", "tokens": 2}]
    assert run.read_metrics(2) == [{"stage": "train", "loss": 3.0}]
    assert run.read_metrics(3) == []
    run.forget_metrics(3, "train")


def test_a_line_cut_short_by_a_kill_is_left_out(run):
    run.log(1, {"stage": "train", "loss": 1.0})
    with run.metrics(1).open("a") as file:
        file.write('{"stage": "train", "lo')
    assert run.read_metrics(1) == [{"stage": "train", "loss": 1.0}]


# the same stage in another run


def test_a_finished_stage_is_taken_from_another_run(run, tmp_path):
    donor = RunFolder(tmp_path / "donor")
    _play(_stage(donor))
    stage = _stage(run)
    assert stage.adopt(run, donor)
    assert stage.is_done()
    assert stage.read_record() == _stage(donor).read_record()
    assert [path.read_bytes() for path in stage.shards()] == [p.read_bytes() for p in _stage(donor).shards()]
    assert not stage.adopt(run, donor)  # it is done
    stage.clear()
    assert _stage(donor).is_done()


def test_what_is_made_again_in_one_run_leaves_the_other_as_it_was(run, tmp_path):
    donor = RunFolder(tmp_path / "donor")
    _play(_stage(donor))
    stage = _stage(run)
    stage.adopt(run, donor)
    other = _stage(run, {"k": 6})
    _play(other, work=Work("other"))
    assert _stage(donor).is_done()


@pytest.mark.parametrize(
    "what", ["unfinished", "other settings", "other upstream", "another iteration", "damaged"]
)
def test_nothing_else_is_taken(run, tmp_path, what):
    donor = RunFolder(tmp_path / "donor")
    theirs = _stage(
        donor,
        {"k": 6} if what == "other settings" else None,
        ("v",) if what == "other upstream" else ("u",),
    )
    if what == "another iteration":
        theirs = donor.stage("sample", 2, {"k": 5}, ("u",), folder="responses")
    _play(theirs)
    if what == "unfinished":
        theirs.record.unlink()
    if what == "damaged":
        path = theirs.shards()[1]
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert not _stage(run).adopt(run, donor)
    assert not _stage(run).folder.exists()


def test_what_is_stale_is_not_replaced_in_silence(run, tmp_path):
    donor = RunFolder(tmp_path / "donor")
    _play(_stage(donor))
    _play(_stage(run, {"k": 7}))
    assert not _stage(run).adopt(run, donor)
    assert _stage(run, {"k": 7}).is_done()


def test_where_files_cannot_be_linked_they_are_copied(run, tmp_path, monkeypatch):
    def refuse(*arguments):
        raise OSError("another disk")

    donor = RunFolder(tmp_path / "donor")
    _play(_stage(donor))
    monkeypatch.setattr("os.link", refuse)
    assert _stage(run).adopt(run, donor)
    assert _stage(run).is_done()
