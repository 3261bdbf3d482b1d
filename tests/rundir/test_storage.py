"""Runs whose folder is an address: a file system's, memory, and an S3 server on this machine (moto's)."""

import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import pytest
import yaml
from small_runs import RAY as SMALL
from small_runs import digests
from typer.testing import CliRunner

from sppo.cli.main import app
from sppo.rundir import storage
from sppo.rundir.folder import RunError, RunFolder, publish_folder, write_text
from sppo.rundir.records import append_line

RECIPE = SMALL | {"training": SMALL["training"] | {"checkpoint_steps": 1}}


@pytest.fixture(params=["file", "memory", pytest.param("s3", marks=pytest.mark.slow)])
def address(request, tmp_path):
    if request.param == "s3":
        return f"{request.getfixturevalue('s3')}/{uuid.uuid4().hex}/mine"
    return f"file://{tmp_path}/store/mine" if request.param == "file" else f"memory://{uuid.uuid4().hex}/mine"


@pytest.fixture
def copies(address, tmp_path):
    """Working copies on two machines."""
    for name in ("here", "there"):
        storage.adopt(tmp_path / name, address)
    return tmp_path / "here", tmp_path / "there"


def test_what_is_published_is_fetched_elsewhere_also_when_it_is_replaced(copies):
    here, there = copies
    for text in ("first", "other", "and a longer one"):
        write_text(here / "iter-1" / "sample.json", text)
        storage.fetch(there / "iter-1")
        assert (there / "iter-1" / "sample.json").read_text() == text
    storage.fetch(there / "iter-2")
    assert not (there / "iter-2").exists()


def test_what_is_fetched_already_is_not_fetched_again_unless_it_was_altered_here(copies):
    here, there = copies
    write_text(here / "a", "text")
    storage.fetch(there)
    written = (there / "a").stat().st_mtime_ns
    storage.fetch(there)
    assert (there / "a").stat().st_mtime_ns == written
    (there / "a").write_text("damaged")
    storage.fetch(there)
    assert (there / "a").read_text() == "text"


def test_what_is_removed_is_removed_everywhere_and_work_in_progress_stays(copies):
    here, there = copies
    write_text(here / "iter-1" / "a", "a")
    write_text(here / "b", "b")
    storage.fetch(there)
    (there / "work").write_text("never published")
    storage.remove(here / "iter-1")
    storage.fetch(there)
    assert sorted(path.name for path in there.iterdir() if not path.name.startswith(".")) == [
        "b",
        "iter-1",
        "work",
    ]
    assert not list((there / "iter-1").iterdir())


def test_a_folder_is_published_in_the_place_of_the_one_before(copies):
    here, there = copies
    for name, text in (("old", "1"), ("new", "22")):
        temporary = here / ".policy"
        (temporary / "deeper").mkdir(parents=True)
        (temporary / "config").write_text(text)
        (temporary / "deeper" / name).write_text(text)
        storage.publish(temporary)  # as a worker on another machine does
        publish_folder(temporary, here / "policy")
        storage.fetch(there)
        files = {str(p.relative_to(there)): p.read_text() for p in there.glob("*policy/**/*") if p.is_file()}
        assert files == {"policy/config": text, f"policy/deeper/{name}": text}


def test_a_file_that_is_not_written_to_its_end_is_never_seen(copies, monkeypatch):
    here, there = copies
    write_text(here / "a", "before")

    def fails(*arguments, **settings):
        raise OSError("the line is down")

    monkeypatch.setattr(storage._copy_of(here).storage, "put_file", fails)
    with pytest.raises(
        storage.StorageError, match=r"mine/a: the storage refuses \(OSError: the line is down\)"
    ):
        write_text(here / "a", "after")
    monkeypatch.undo()
    assert (here / "a").read_text() == "before"
    assert not list(here.glob(".a*"))
    storage.fetch(there)
    assert (there / "a").read_text() == "before"


def test_lines_that_two_machines_append_in_turn_are_all_kept(copies):
    for number in range(4):
        append_line(copies[number % 2] / "iter-1" / "metrics.jsonl", {"step": number})
    assert [line["step"] for line in RunFolder(copies[1]).read_metrics(1)] == [0, 1, 2, 3]


def test_one_run_at_a_time(copies, monkeypatch):
    here, there = map(RunFolder, copies)
    monkeypatch.setattr(storage, "_RENEWAL_SECONDS", 0.05)
    monkeypatch.setattr(storage, "_SILENCE_SECONDS", 2.0)
    with here.locked():
        with (
            pytest.raises(storage.StorageLocked, match="mine: another sppo is at work in this run"),
            there.locked(),
        ):
            pass
        with (
            pytest.raises(RunError, match="mine: another sppo is at work in this run"),
            RunFolder(copies[0]).locked(),
        ):
            pass
    with there.locked():
        pass


def test_the_lock_of_a_killed_run_is_taken_over(copies, monkeypatch):
    monkeypatch.setattr(storage, "_SILENCE_SECONDS", 0.5)
    here = storage._copy_of(copies[0])
    here.take_lock(f"{here.name}:killed")
    begin = time.monotonic()
    with RunFolder(copies[0]).locked():  # by the machine itself, at once
        assert time.monotonic() - begin < 5
    here.take_lock(f"{here.name}:killed")
    with RunFolder(copies[1]).locked():
        assert storage._copy_of(copies[1])._read_lock()["owner"].startswith(storage._copy_of(copies[1]).name)


def test_a_clock_that_moves_changes_nothing_about_the_lock(copies, monkeypatch):
    """The date of the holder, or of the other machine, goes back or forward by a year."""
    here, there = map(RunFolder, copies)
    monkeypatch.setattr(storage, "_RENEWAL_SECONDS", 0.05)
    monkeypatch.setattr(storage, "_SILENCE_SECONDS", 1.0)
    now = time.time
    for shift in (-3e7, 3e7):
        with here.locked():
            monkeypatch.setattr(time, "time", lambda shift=shift: now() + shift)
            with pytest.raises(storage.StorageLocked, match="another sppo is at work"), there.locked():
                pass
        with there.locked():
            pass
        monkeypatch.setattr(time, "time", now)


def test_who_was_suspended_does_not_write_into_a_run_that_was_taken_over(copies, monkeypatch):
    """As after a machine has slept: the holder's thread has not renewed the lock, and another machine has taken it."""
    here, there = copies
    monkeypatch.setattr(storage, "_SILENCE_SECONDS", 0.3)
    with RunFolder(here).locked():
        write_text(here / "a", "before")
        with RunFolder(there).locked():
            write_text(there / "a", "theirs")
            with pytest.raises(storage.StorageLocked, match="another sppo has taken this run over"):
                write_text(here / "a", "ours")
    storage.fetch(there)
    assert (there / "a").read_text() == "theirs"
    with RunFolder(here).locked():
        write_text(here / "a", "ours")


def test_of_two_that_begin_at_the_same_moment_one_is_refused(copies):
    held = []

    def begin(copy):
        try:
            storage._copy_of(copy)._write_lock("someone", 0, "create")
            held.append(copy)
        except FileExistsError:
            pass

    threads = [threading.Thread(target=begin, args=(copy,)) for copy in copies * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(held) == 1


def test_addresses_and_paths(tmp_path, monkeypatch):
    monkeypatch.setenv("SPPO_WORKING_COPIES", str(tmp_path / "copies"))
    assert storage.located(Path("runs/mine")) == Path("runs/mine")
    for given in (
        f"memory://{tmp_path.name}/mine",
        f"file://{tmp_path}/store/mine",
        f"local://{tmp_path}/x/mine",
    ):
        copy = storage.located(Path(given))  # which takes a slash away
        assert copy.parent == tmp_path / "copies" and copy.name.startswith("mine-")
        assert storage.address_of(copy) == given
        assert storage.shown(copy / "iter-1") == f"{given}/iter-1"
        assert storage.located(Path(given + "/")) == copy


def test_a_folder_whose_name_ends_with_a_colon_is_no_address(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert storage.is_address("ab:/run"), (
        "a protocol that is misspelt is refused instead of becoming a folder"
    )
    (tmp_path / "ab:").mkdir()
    assert not storage.is_address("ab:/run")
    assert storage.is_address("ab://run")
    assert storage.is_address("s3:/run")


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("nonsense://bucket/run", "nonsense://bucket/run: no storage that fsspec can use"),
        ("ab:/run", "give its whole path, or make the folder ab: first"),
        ("file:///proc/nothing/run", "file:///proc/nothing/run: the storage refuses"),
    ],
)
def test_storage_that_cannot_be_used_is_said(tmp_path, monkeypatch, address, said):
    monkeypatch.setenv("SPPO_WORKING_COPIES", str(tmp_path / "copies"))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(RECIPE))
    found = CliRunner().invoke(app, ["run", str(recipe), "--run-dir", address])
    assert found.exit_code == 1
    assert said in found.output


@pytest.mark.slow
def test_a_bucket_that_is_not_there_is_said(s3, tmp_path, monkeypatch):
    monkeypatch.setenv("SPPO_WORKING_COPIES", str(tmp_path / "copies"))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(RECIPE))
    found = CliRunner().invoke(app, ["run", str(recipe), "--run-dir", "s3://nowhere/run"])
    assert found.exit_code == 1
    assert "s3://nowhere/run: the storage refuses" in found.output


def sppo(folder, *arguments, copies="copies"):
    # nobody waits a minute here for the sign of life of a run that was killed
    program = "import sppo.rundir.storage as storage; storage._SILENCE_SECONDS = 2; from sppo.cli.main import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "SPPO_WORKING_COPIES": str(folder / copies)},
    )


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_run_on_s3_that_is_killed_goes_on_elsewhere_to_the_same_bytes(s3, tmp_path):
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    run = f"{s3}/killed/mine"
    for reached in ("iter-1/responses/part-00001.parquet", "iter-1/.training/checkpoint-2/sppo.json"):
        process = sppo(tmp_path, "run", "recipe.yaml", "--run-dir", run, copies="here")
        while not list((tmp_path / "here").glob(f"mine-*/{reached}")):
            assert process.poll() is None, process.stdout.read()
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    done = sppo(tmp_path, "run", "recipe.yaml", "--run-dir", run, copies="there")
    local = sppo(tmp_path, "run", "recipe.yaml", "--run-dir", "local")
    output, said = done.communicate()[0], local.communicate()[0]
    assert done.returncode == 0, output
    assert local.returncode == 0, said
    assert "training resumes from the checkpoint after step 2" in output
    assert f"talk to it with: sppo chat {run}" in output
    finished = storage_of(tmp_path / "elsewhere", run)
    assert digests(finished) == digests(tmp_path / "local")
    assert not list(finished.glob("iter-1/.training/*"))


def storage_of(folder, address):
    """The paths of all objects at an address."""
    storage.adopt(folder, address)
    storage.fetch(folder)
    return folder
