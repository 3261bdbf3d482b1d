import io
import threading
from pathlib import Path

import pytest
from rich.console import Console
from toy_jobs import Toy, recipe

from sppo.executors.local import Local, _Follower
from sppo.oracle import OracleError
from sppo.progress import Terminal
from sppo.rundir.folder import RunFolder
from sppo.stages.jobs import ShardJob
from sppo.stages.models import Models

FUNCTION = {"oracle": {"type": "function", "function": "my_oracle:prefer"}}
SHARDS = 6


def jobs(folder, **options):
    """A job of samples, and one of annotations that reads its shards; `options` are those of the second's work."""
    run = RunFolder(folder)
    numbers = [folder / str(number) for number in range(SHARDS)]
    (folder / "sampled").mkdir(parents=True)
    (folder / "annotated").mkdir()
    sources = [[path] for path in numbers]
    for path in numbers:
        path.touch()
    sampled = run.stage("sample", 1, {}, [], folder="sampled").plan_shards(sources)
    annotated = run.stage("annotate", 1, {}, [], folder="annotated").plan_shards(
        [[shard.path, source] for shard, (source,) in zip(sampled, sources, strict=True)]
    )
    return [
        ShardJob("sample", "halves", "sample", Toy(folder / "sampled", seconds=0.05), sampled, [2] * SHARDS),
        ShardJob(
            "annotate",
            "halves",
            "annotate",
            Annotations(folder / "annotated", **options),
            annotated,
            [2] * SHARDS,
        ),
    ]


class Annotations(Toy):
    """Toy annotations, whose second source says the number; the first must be there."""

    def __call__(self, models, sources, advance):
        assert sources[0].exists()
        (
            self.folder / f"thread-{sources[1].name}-{threading.current_thread() is threading.main_thread()}"
        ).touch()
        return super().__call__(models, [sources[1]], advance)


def make(jobs, changes=FUNCTION):
    finished = []
    of = recipe(**changes)
    Local(of).run(jobs, Models(of), Terminal(Console(file=io.StringIO())), finished.append)
    return [job.title for job in finished]


def begun(folder: Path):
    return {path.name.split("-")[1]: path.stat().st_mtime_ns for path in folder.glob("begun-*")}


def test_annotation_goes_on_beside_sampling_where_it_needs_no_model(tmp_path):
    both = jobs(tmp_path / "run")
    assert make(both) == ["sample", "annotate"]
    assert all(shard.is_whole() for job in both for shard in job.shards)
    sampled, annotated = begun(tmp_path / "run" / "sampled"), begun(tmp_path / "run" / "annotated")
    assert min(annotated.values()) < max(sampled.values())
    assert all(sampled[number] < annotated[number] for number in sampled)
    assert len(list((tmp_path / "run" / "annotated").glob("thread-*-False"))) == SHARDS


def test_an_oracle_with_a_model_waits_until_everything_is_sampled(tmp_path):
    assert make(jobs(tmp_path / "run"), {"oracle": {"type": "pairrm", "model": "tinyworld/pairrm"}}) == [
        "sample",
        "annotate",
    ]
    sampled, annotated = begun(tmp_path / "run" / "sampled"), begun(tmp_path / "run" / "annotated")
    assert min(annotated.values()) > max(sampled.values())
    assert not list((tmp_path / "run" / "annotated").glob("thread-*-False"))


@pytest.mark.parametrize(
    ("missing_samples", "missing_annotations"), [({2}, {1, 2}), (set(), {0, 5}), ({3}, set())]
)
def test_only_what_is_missing_is_made(tmp_path, missing_samples, missing_annotations):
    both = jobs(tmp_path / "run")
    make(both)
    for job, numbers in zip(both, (missing_samples, missing_annotations), strict=True):
        for number in numbers:
            job.shards[number].path.unlink()
    for path in (tmp_path / "run").rglob("begun-*"):
        path.unlink()
    assert make(both) == ["sample", "annotate"]
    assert all(shard.is_whole() for job in both for shard in job.shards)
    assert set(begun(tmp_path / "run" / "sampled")) == {str(number) for number in missing_samples}
    assert set(begun(tmp_path / "run" / "annotated")) == {
        str(number) for number in missing_samples | missing_annotations
    }


def test_an_error_of_the_oracle_ends_the_sampling_and_keeps_what_is_finished(tmp_path):
    both = jobs(tmp_path / "run", fail=1)
    with pytest.raises(OracleError, match="the oracle's answer is nonsense"):
        make(both)
    sampled, annotated = both
    assert annotated.shards[0].is_whole()
    assert not annotated.shards[1].is_whole()
    assert sampled.shards[1].is_whole()
    assert not sampled.shards[SHARDS - 1].is_whole()
    assert not [thread for thread in threading.enumerate() if isinstance(thread, _Follower)]
