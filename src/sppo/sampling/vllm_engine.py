"""The engine of vLLM: a process of its own, which can be given another policy of the same shape while it runs.

Starting an engine takes far longer than loading weights: about half a minute on a CPU, minutes for a large model. A run
samples from a new policy in every iteration, so an engine can outlive its sampler
(:mod:`sppo.sampling.engine_keepers`).
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self

from sppo.policy.model_files import digest, tensor_shapes
from sppo.rundir.shards import file_digest
from sppo.sampling import SamplingError

# How long the process may take to end by itself before it is killed.
GRACE_SECONDS = 20.0
# Keys of a configuration that say how its file was written; they change nothing about the model.
_ABOUT_THE_FILE = {
    "_name_or_path",
    "transformers_version",
    "dtype",
    "torch_dtype",
    "use_cache",
    "architectures",
}
# What vLLM reads beside the weights, once, when it starts.
_READ_AT_START = ("generation_config.json", "tokenizer.json", "tokenizer_config.json")


@dataclass(frozen=True)
class EngineRequest:
    """The engine that a sampler asks for, as plain values: another process on the same machine can start it as well.

    Attributes:
        arguments: arguments of `vllm.EngineArgs`, without `model`.
        model: the folder of the model, an absolute path.
        shape: the folder's :func:`model_shape`.
        environment: the environment variables of the process that asks; they say how many threads an engine takes.
        working_folder: the folder that the process that asks is in.
    """

    arguments: Mapping[str, Any]
    model: Path
    shape: Any
    environment: Mapping[str, str]
    working_folder: Path

    @classmethod
    def of(cls, arguments: Mapping[str, Any], model: Path) -> Self:
        """The request of this process for an engine with a model in it."""
        shape = model_shape(model, bool(arguments.get("trust_remote_code")))
        return cls(dict(arguments), model.absolute(), shape, dict(os.environ), Path.cwd())


class Engine(ABC):
    """An engine that runs, as its sampler sees it.

    Args:
        connection: the connection to the process.

    Attributes:
        pid: the id of the process.
        on_cpu: whether it computes on a CPU.
        rows: the number of responses that it decodes side by side.
        is_idle: whether it has no requests in progress.
    """

    pid: int
    on_cpu: bool
    rows: int

    def __init__(self, connection: Connection) -> None:
        self.is_idle = True
        self._connection = connection

    def send(self, request: Any) -> None:
        """Hand a request to the process."""
        with contextlib.suppress(OSError):  # the process has ended: receiving reports its last output
            self._connection.send(request)

    def receive(self) -> Any:
        """Wait for the next answer of the process.

        Raises:
            SamplingError: the process has failed or ended; the message ends with its last output.
        """
        try:
            kind, value = self._connection.recv()
        except (EOFError, OSError):
            code, output = self.last_words()
            raise SamplingError(
                f"sampling.engine: vllm has ended with exit code {code}; its last output:\n{output}"
            ) from None
        if kind == "failed":
            raise SamplingError(f"sampling.engine: vllm: {value}\nIts last output:\n{self.last_words()[1]}")
        return value

    @abstractmethod
    def last_words(self) -> tuple[int | None, str]:
        """Wait for the end of a process that has failed, and return its exit code, if it is known, and its last output."""

    @abstractmethod
    def end(self) -> None:
        """End the process; all its memory is free when this returns."""


class VllmEngine(Engine):
    """An engine that this process has started; it ends at the latest when this process ends.

    Args:
        request: what is asked for.

    Attributes:
        request: what was asked for when it was started.
        process: the process.
        weights: the digest of the files that its weights come from; None on a GPU, where no other policy follows.

    Raises:
        SamplingError: vLLM does not start; the message ends with its last output.
    """

    def __init__(self, request: EngineRequest) -> None:
        self.request = request
        self._log = tempfile.NamedTemporaryFile(prefix="sppo-vllm-", suffix=".log")  # noqa: SIM115
        ours, theirs = socket.socketpair()
        environment = {
            # vLLM stays in the one process that end() ends, and all its memory with it.
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_NO_USAGE_STATS": "1",
            **request.environment,
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "sppo.sampling.vllm_worker", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=request.working_folder,
            start_new_session=True,  # a Ctrl-C reaches only this process, which then ends the engine
        )
        theirs.close()
        self.pid = self.process.pid
        super().__init__(Connection(ours.detach()))
        try:
            self.send({**request.arguments, "model": str(request.model)})
            self.on_cpu, self.rows = self.receive()
            self.weights = digest(request.model) if self.on_cpu else None
        except BaseException:
            self.end()
            raise

    def fits(self, request: EngineRequest) -> bool:
        """Whether only the weights differ between this engine and the one that is asked for."""
        return self.request.arguments == request.arguments and self.request.shape == request.shape

    def fileno(self) -> int:
        """The descriptor of the connection, by which another process can use the engine."""
        return self._connection.fileno()

    def load_weights(self, model: Path) -> None:
        """Put a model's weights in the place of those that are loaded, if they are others, and forget all cached prefixes.

        Raises:
            SamplingError: the process has failed or ended.
        """
        weights = digest(model)
        self.send(("load_weights", None if weights == self.weights else str(model)))
        self.receive()
        self.weights = weights

    def last_words(self) -> tuple[int | None, str]:
        """See :meth:`Engine.last_words`."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(GRACE_SECONDS)
        lines = Path(self._log.name).read_text(encoding="utf-8", errors="replace").splitlines()
        return self.process.poll(), "\n".join(line[:300] for line in lines[-30:])

    def end(self) -> None:
        """See :meth:`Engine.end`."""
        with contextlib.suppress(OSError):
            self._connection.close()  # the process ends when it notices this
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(GRACE_SECONDS)
        # With tensor parallelism vLLM starts further processes, which may outlive the first.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._log.close()


def model_shape(model: Path, trust_remote_code: bool) -> Any:
    """Everything about a model's folder that an engine depends on, except the values of the weights.

    Two models of equal shape can take each other's place in an engine: their configurations, their tensors' names and
    shapes, and their tokenizers are equal.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code).to_dict()
    return (
        {key: value for key, value in config.items() if key not in _ABOUT_THE_FILE},
        tensor_shapes(model),
        {name: file_digest(model / name) for name in _READ_AT_START if (model / name).is_file()},
    )
