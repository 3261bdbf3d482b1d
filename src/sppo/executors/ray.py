"""A Ray cluster as the place where shards are computed, in a streaming pipeline of Ray Data; Ray Train trains.

Every node sees the run's folder, and the folder that the command is started in, under the same path. Workers publish
their shards there, so only the numbers of shards travel through Ray.
"""

import contextlib
import dataclasses
import logging
import os
import secrets
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self, get_args

from sppo.executors import Executor, missing_shards
from sppo.executors.local import computes_with_a_model, count_workers, devices_of_an_engine
from sppo.executors.ray_engines import NodeEngines
from sppo.progress import Advance, Terminal
from sppo.recipe import ANSWERS, Recipe, RecipeError, keep_answers_in
from sppo.rundir import storage
from sppo.rundir.folder import RunError, write_text
from sppo.sampling.engine_keepers import BorrowedEngines, use_keeper
from sppo.stages.jobs import Kind, ShardJob
from sppo.stages.models import Models
from sppo.training import TrainingJob

RETRIES = 1
"""How often a shard or a training is retried after its worker has crashed."""
_MARKER = ".cluster"
_CONNECT_SECONDS = 10.0


class ClusterError(RunError):
    """A Ray cluster cannot be used or has given up; the message says what to do."""


class RayCluster(Executor):
    """A Ray cluster; `address` is `HOST:PORT` of its head, or `auto` on one of its nodes.

    Every node sees the run's folder.
    """

    def __init__(self, recipe: Recipe, run: Path | None = None, address: str | None = None) -> None:
        folder = (run or Path()).resolve()
        super().__init__(recipe, folder, address)
        self.use(recipe)
        self.place = _Place(folder, Path.cwd(), secrets.token_hex(8))
        self._connection = contextlib.ExitStack()
        self._engines = NodeEngines()

    def use(self, recipe: Recipe) -> None:
        """See :meth:`Executor.use`. Judges' answers are kept in the run's folder, which every node sees."""
        assert self.run_folder is not None
        self.recipe = keep_answers_in(recipe, self.run_folder / ANSWERS)

    def __enter__(self) -> Self:
        """Connect to the cluster.

        Raises:
            ClusterError: Ray is not installed, or no cluster answers at the address.
        """
        address = self.address or "auto"
        if address.startswith("ray://"):
            raise ClusterError(
                f"--on ray:{address}: this address is for Ray clients; start sppo on a node of the cluster and give the"
                " head's own address, e.g. 10.0.0.1:6379, or auto"
            )
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # important messages arrive as exceptions
        try:
            import ray
            import ray.data
            import ray.train.torch
        except ImportError as error:
            raise ClusterError(f"--on ray needs Ray ({error}); pip install 'sppo[ray]'") from error
        if address != "auto":
            _check_that_something_answers(address)
        try:
            ray.init(address=address, logging_level="error", log_to_driver=False, configure_logging=False)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ClusterError(
                f"--on ray:{address}: no Ray cluster answers there ({error}); `ray start --head` on one machine and"
                " `ray start --address=HEAD:6379` on the others make one"
            ) from error
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)
        self._connection.enter_context(_last_words(_lost(address)))
        self._connection.callback(ray.shutdown)
        self._connection.callback(self._engines.end)
        return self

    def __exit__(self, *error: object) -> None:
        """Disconnect from the cluster."""
        self._connection.close()

    def check(self) -> None:
        """Refuse a node that does not see the run's folder, and more workers or devices than the cluster has."""
        for kind in get_args(Kind):
            self._workers(kind)
        self.training_devices()
        self.place.mark()
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        task = ray.remote(_why_unusable)
        answers = [
            task.options(
                num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ).remote(self.place)
            for node in _nodes()
        ]
        reasons = sorted({reason for reason in ray.get(answers) if reason is not None})
        if reasons:
            raise ClusterError("\n".join(reasons))

    def run(
        self,
        jobs: Sequence[ShardJob],
        models: Models,
        terminal: Terminal,
        on_made: Callable[[ShardJob], None],
    ) -> None:
        """Make the missing shards; each shard passes to the next job as soon as the job before has made it."""
        for together in [jobs] if self._fit_together(jobs) else [[job] for job in jobs]:
            title = " + ".join([together[0].title, *(job.kind for job in together[1:])])
            with terminal.bar(title, len(together[0].shards), "shards") as advance:
                missing = sorted({number for job in together for number in missing_shards(job)})
                advance(len(together[0].shards) - len(missing))
                if missing:
                    self._stream(together, missing, advance)
            for job in together:
                on_made(job)

    def training_devices(self) -> int:
        """The number of processes that `training.devices` stands for on the cluster, which must have as many devices."""
        asked, gpus = self.recipe.training.devices, _resources("GPU")
        if asked == "auto":
            return max(1, gpus)
        devices, name = (gpus, "GPUs") if gpus else (_resources("CPU"), "CPUs")
        if asked > devices:
            raise RecipeError(
                f"training.devices: {asked}, but the cluster has {devices} {name}; lower it, or use `auto`"
            )
        return asked

    def train(self, job: TrainingJob, on_step: Advance, say: Callable[[str], None]) -> None:
        """Train pi_{t+1} in the workers of Ray Train."""
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer

        from sppo.training.launch import steps_reported

        self._engines.make_room()
        gpus, workers = bool(_resources("GPU")), self.training_devices()
        where, storage_filesystem = storage.arrow_location(Path(job.work)) or (
            str(Path(job.work).resolve()),
            None,
        )
        trainer = TorchTrainer(
            _train,
            train_loop_config={
                "job": job.to_json(),
                "base": self.recipe if Path(job.policy) == Models(self.recipe).base else None,
                "place": self.place,
                # the same numbers of threads that training on one machine gives its processes
                "threads": _threads() if workers == 1 else max(1, (os.cpu_count() or 1) // workers),
            },
            torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
            scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpus),
            run_config=RunConfig(
                name="ray",
                storage_path=where,
                storage_filesystem=storage_filesystem,
                failure_config=FailureConfig(max_failures=RETRIES),
            ),
        )
        with steps_reported(job, on_step):
            try:
                trainer.fit()
            except Exception as error:
                raise _own_error(error, "training") from error
        storage.fetch(Path(job.output))

    def _stream(self, jobs: Sequence[ShardJob], missing: Sequence[int], advance: Advance) -> None:
        import ray.data
        from ray.data import ActorPoolStrategy, DataContext

        context = DataContext.get_current()
        context.enable_progress_bars = False
        # With the default threshold a pool whose actors have no queue never grows.
        context.autoscaling_config.actor_pool_util_upscaling_threshold = 1.0
        keepers = self._keepers()
        data = ray.data.from_items(
            [{"shard": number} for number in missing], override_num_blocks=len(missing)
        )
        for job in jobs:
            workers = min(self._workers(job.kind), len(missing))
            data = data.map_batches(
                _Worker,
                fn_constructor_kwargs={
                    "recipe": self.recipe,
                    "job": job,
                    "place": self.place,
                    "threads": _threads(),
                    "attempts": self._attempts,
                    "keepers": keepers,
                },
                batch_size=1,
                # One task at a time: if tasks waited in an actor, its crash would be charged to shards not yet begun.
                compute=ActorPoolStrategy(min_size=1, max_size=workers, max_tasks_in_flight_per_actor=1),
                **self._share(job.kind),
            )
        try:
            for _ in data.iter_rows():
                advance(1)
        except Exception as error:
            raise _own_error(error, jobs[0].title) from error
        del data  # the actors end
        self._engines.wait_for_returns()

    def _keepers(self) -> dict[str, BorrowedEngines]:
        """Where the workers of each node borrow their engines. On GPUs an engine ends with its worker, as on one machine."""
        if not self.recipe.sampling.keeps_engines or _resources("GPU"):
            return {}
        return self._engines.keepers([node["NodeID"] for node in _nodes()])

    @cached_property
    def _attempts(self) -> Any:
        """The actor that counts attempts. It runs on this machine for as long as this process does."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        return ray.remote(_Attempts).options(num_cpus=0, scheduling_strategy=here).remote()

    def _fit_together(self, jobs: Sequence[ShardJob]) -> bool:
        """Whether one worker of each job fits on the cluster at the same time."""
        for name, resource in (("num_cpus", "CPU"), ("num_gpus", "GPU")):
            if sum(self._share(job.kind)[name] for job in jobs) > _resources(resource):
                return False
        return True

    def _share(self, kind: Kind) -> dict[str, Any]:
        """The CPUs and GPUs that Ray reserves for one worker of a stage."""
        with_a_model = computes_with_a_model(self.recipe, kind)
        gpus = devices_of_an_engine(self.recipe, kind) if _resources("GPU") and with_a_model else 0
        return {"num_cpus": (with_a_model and self.recipe.cpu_threads) or 1, "num_gpus": gpus}

    def cores(self) -> int:
        """See :meth:`Executor.cores`. Every node may be given every process, so the smallest node counts."""
        return max(1, min(super().cores(), *(int(node["Resources"].get("CPU", 0)) for node in _nodes())))

    def _workers(self, kind: Kind) -> int:
        count = count_workers(self.recipe, kind, _resources("GPU"), machines=len(_nodes()))
        cpus = self._share(kind)["num_cpus"] * count
        if getattr(self.recipe.workers, kind) != "auto" and cpus > _resources("CPU"):
            raise RecipeError(
                f"workers.{kind}: {count} models on {cpus} CPUs, but the cluster has {_resources('CPU')}; lower it, or"
                " cpu_threads"
            )
        return count


class _Place:
    """The run's folder and the working folder. A marker file shows whether a node sees the same run folder."""

    def __init__(self, run: Path, working_folder: Path, token: str) -> None:
        self.run, self.working_folder, self.token = run, working_folder, token
        self.address = storage.address_of(run)

    def mark(self) -> None:
        write_text(self.run / _MARKER, self.token)

    def why_unusable(self) -> str | None:
        """Why this node cannot work on the run; None if it can."""
        with contextlib.suppress(OSError):
            if self.address is not None:
                try:
                    storage.adopt(self.run, self.address)
                    storage.fetch(self.run / _MARKER)
                except storage.StorageError as error:
                    return f"the node {socket.gethostname()} does not reach the run: {error}"
            if (self.run / _MARKER).read_text(encoding="utf-8") == self.token:
                return None
        return (
            f"the node {socket.gethostname()} does not see the run folder {self.address or self.run}; put it on storage that all"
            " nodes share under the same path or address (--run-dir)"
        )

    def enter(self) -> None:
        """Change to the driver's working folder, where relative paths and the oracle's modules are found."""
        if (reason := self.why_unusable()) is not None:
            raise ClusterError(reason)
        with contextlib.suppress(OSError):
            os.chdir(self.working_folder)


class _Worker:
    """An actor of the pipeline, which makes the shards whose numbers it receives."""

    def __init__(
        self,
        recipe: Recipe,
        job: ShardJob,
        place: _Place,
        threads: int,
        attempts: Any,
        keepers: Mapping[str, BorrowedEngines],
    ) -> None:
        self.models = Models(recipe, threads)
        self.job, self.place, self.attempts, self.keepers = job, place, attempts, keepers
        self.entered = False

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        if not self.entered:  # not in the constructor, because Ray retries it after an error
            self.place.enter()
            self._borrow_engines()
            self.entered = True
        for number in batch["shard"]:
            if not self.job.shards[int(number)].is_whole():
                self._count_attempt(int(number))
                self.job.make(int(number), self.models)
        return batch

    def __del__(self) -> None:
        """Give back what was borrowed. Ray calls this before it ends an actor that it needs no longer."""
        self.models.release()

    def _borrow_engines(self) -> None:
        import ray

        keeper = self.keepers.get(ray.get_runtime_context().get_node_id())
        if keeper is not None:
            use_keeper(keeper)

    def _count_attempt(self, number: int) -> None:
        import ray

        if ray.get(self.attempts.count.remote(self.job.title, number)) > RETRIES + 1:
            raise ClusterError(_crashed(self.job.title))


class _Attempts:
    """An actor that counts the attempts at each shard, because Ray Data would retry a shard for ever after crashes."""

    def __init__(self) -> None:
        self.times: Counter[tuple[str, int]] = Counter()

    def count(self, title: str, shard: int) -> int:
        """Records an attempt at a shard and returns the number of attempts so far."""
        self.times[title, shard] += 1
        return self.times[title, shard]


def _train(config: dict[str, Any]) -> None:
    """Train in a worker of Ray Train, which has set RANK and WORLD_SIZE and made the process group."""
    import torch

    from sppo.training.checkpoints import resumed
    from sppo.training.interruption import Interruption
    from sppo.training.worker import run

    config["place"].enter()
    job = TrainingJob.from_json(config["job"])
    for path in (job.policy, *job.shards, job.work, job.metrics):
        storage.fetch(Path(path))
    torch.set_num_threads(config["threads"])
    if config["base"] is not None:  # each machine finds the base policy's folder itself
        job = dataclasses.replace(job, policy=str(Models(config["base"]).base))
    # After the crash of another worker, training continues from the latest checkpoint.
    run(resumed(job, lambda text: None), Interruption.for_worker())
    if os.environ["RANK"] == "0":
        storage.publish(Path(job.output))


def _why_unusable(place: _Place) -> str | None:
    return place.why_unusable()


def _own_error(error: BaseException, what: str) -> BaseException:
    """The error of this program that Ray has wrapped, or an error that says that workers have crashed."""
    import ray.exceptions

    # Ray wraps errors in several ways, which are searched breadth first.
    waiting: list[Any] = [error]
    seen: set[int] = set()
    crashed = False
    while waiting:
        cause = waiting.pop(0)
        if not isinstance(cause, BaseException) or id(cause) in seen:
            continue
        seen.add(id(cause))
        if type(cause).__module__.split(".")[0] == "sppo":
            return cause
        crashed |= isinstance(cause, ray.exceptions.RayActorError | ray.exceptions.WorkerCrashedError)
        waiting += [getattr(cause, "cause", None), cause.__cause__, cause.__context__]
        failures = getattr(cause, "worker_failures", None)
        waiting += list(failures.values()) if isinstance(failures, dict) else []
    if crashed:
        return ClusterError(f"{_crashed(what)}. Ray says: {error}")
    return ClusterError(f"{what}: Ray has given up: {error}")


@contextlib.contextmanager
def _last_words(text: str) -> Iterator[None]:
    """Have another process write a text to standard error if this process ends within the block.

    Ray ends a process at once, with exit code 1, if the head or the process's own node is lost, so no exception can say it.
    """
    program = "import sys; sys.stdin.buffer.read() or sys.stderr.write(sys.argv[1])"
    witness = subprocess.Popen(
        [sys.executable, "-S", "-c", program, text], stdin=subprocess.PIPE, start_new_session=True
    )
    try:
        yield
    finally:
        witness.communicate(b"The block was left.")


def _lost(address: str) -> str:
    return (
        f"\nerror: --on ray:{address}: this process was ended, as Ray does with all that is connected to a cluster whose head, or"
        " whose node on this machine, is lost. Every finished shard is kept: the same command continues the run once a"
        " cluster is up again (`ray start --head`), and without --on it continues on this machine\n"
    )


def _crashed(what: str) -> str:
    return (
        f"{what}: a worker has crashed {RETRIES + 1} times; every finished shard is kept. The kernel, or Ray itself,"
        " kills a worker that takes too much memory: lower what one engine takes (sampling.batch_tokens,"
        " training.pack_tokens, an oracle's batch), then the same command continues"
    )


def _check_that_something_answers(address: str) -> None:
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdigit():
        raise ClusterError(
            f"--on ray:{address}: give the address of the cluster's head as HOST:PORT, or auto"
        )
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        raise ClusterError(
            f"--on ray:{address}: nothing answers there ({error}); is the cluster up, and is this its head's address?"
        ) from error


def _nodes() -> list[dict[str, Any]]:
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


def _resources(name: str) -> int:
    import ray

    return int(ray.cluster_resources().get(name, 0))


def _threads() -> int:
    """The number of torch's threads in this process. Workers use as many, so that their sums round as they do here."""
    import torch

    return torch.get_num_threads()
