"""The engine of vLLM: a process of its own, which can be given another policy of the same shape while it runs.

Starting an engine takes far longer than loading weights: about half a minute on a CPU, minutes for a large model. A run
samples from a new policy in every iteration, so where there is no GPU an engine is kept when its sampler is closed, and
the next sampler of this process puts its policy's weights into it. On a machine with a GPU the engine ends instead,
because training needs the memory. It also ends where keeping it would leave less than half of the memory free.
"""

import atexit
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from sppo.policy.model_files import digest, tensor_shapes
from sppo.rundir.shards import file_digest
from sppo.sampling import SamplingError
from sppo.sampling.memory import has_room_to_keep

# How long the process may take to end by itself before it is killed.
_GRACE_SECONDS = 20.0
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


class VllmEngine:
    """A process with vLLM in it.

    Args:
        arguments: arguments of `vllm.EngineArgs`, without `model`.
        model: the folder of the model.

    Attributes:
        on_cpu: whether it computes on a CPU.
        rows: the number of responses that it decodes side by side.
        is_idle: whether it has no requests in progress.
        weights: the digest of the files that its weights come from; None on a GPU, where no other policy follows.

    Raises:
        SamplingError: vLLM does not start; the message ends with its last output.
    """

    def __init__(self, arguments: Mapping[str, Any], model: Path) -> None:
        self.is_idle = True
        self.arguments = dict(arguments)
        self.shape = model_shape(model, bool(arguments.get("trust_remote_code")))
        self._log = tempfile.NamedTemporaryFile(prefix="sppo-vllm-", suffix=".log")  # noqa: SIM115
        ours, theirs = socket.socketpair()
        environment = {
            # vLLM stays in the one process that end() ends, and all its memory with it.
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_NO_USAGE_STATS": "1",
            **os.environ,
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "sppo.sampling.vllm_worker", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # a Ctrl-C reaches only this process, which then ends the engine
        )
        theirs.close()
        self._connection = Connection(ours.detach())
        try:
            self.send({**self.arguments, "model": str(model)})
            self.on_cpu, self.rows = self.receive()
            self.weights = digest(model) if self.on_cpu else None
        except BaseException:
            self.end()
            raise

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
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(_GRACE_SECONDS)
            raise SamplingError(
                f"sampling.engine: vllm has ended with exit code {self.process.poll()}; its last output:\n"
                f"{self._last_output()}"
            ) from None
        if kind == "failed":
            raise SamplingError(f"sampling.engine: vllm: {value}\nIts last output:\n{self._last_output()}")
        return value

    def load_weights(self, model: Path) -> None:
        """Put a model's weights in the place of those that are loaded, if they are others, and forget all cached prefixes.

        Raises:
            SamplingError: the process has failed or ended.
        """
        weights = digest(model)
        self.send(("load_weights", None if weights == self.weights else str(model)))
        self.receive()
        self.weights = weights

    def end(self) -> None:
        """End the process; all its memory is free when this returns."""
        with contextlib.suppress(OSError):
            self._connection.close()  # the process ends when it notices this
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(_GRACE_SECONDS)
        # With tensor parallelism vLLM starts further processes, which may outlive the first.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._log.close()

    def _last_output(self) -> str:
        lines = Path(self._log.name).read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(line[:300] for line in lines[-30:])


_kept: VllmEngine | None = None
"""The engine that no sampler of this process uses at the moment."""


def start_engine(arguments: Mapping[str, Any], model: Path) -> VllmEngine:
    """The kept engine with a model's weights in it, or else a new engine.

    Args:
        arguments: arguments of `vllm.EngineArgs`, without `model`.
        model: the folder of the model.

    Raises:
        SamplingError: vLLM does not start.
    """
    global _kept
    engine, _kept = _kept, None
    if engine is None:
        return VllmEngine(arguments, model)
    shape = model_shape(model, bool(arguments.get("trust_remote_code")))
    if engine.arguments == dict(arguments) and engine.shape == shape:
        with contextlib.suppress(SamplingError):  # it has died since: a new one takes its place
            engine.load_weights(model)
            return engine
    engine.end()
    return VllmEngine(arguments, model)


def keep_engine(engine: VllmEngine) -> None:
    """Keep an engine for the next sampler where nothing else needs its memory; end it elsewhere."""
    global _kept
    if _kept is None and engine.is_idle and engine.on_cpu and has_room_to_keep():
        _kept = engine
    else:
        engine.end()


def end_kept_engine() -> None:
    """End the engine that is kept, if there is one."""
    global _kept
    engine, _kept = _kept, None
    if engine is not None:
        engine.end()


atexit.register(end_kept_engine)


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
