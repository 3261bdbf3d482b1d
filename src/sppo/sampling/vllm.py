"""Sampling with vLLM, in a process of its own.

A policy's K responses to a prompt are one request, so that the prompt's keys and values are computed once. The process
is started with the policy and ended by :meth:`VllmSampler.close`, which frees all the memory that it held, on the
accelerator too. Each request has a seed of its own, and vLLM gives response i the seed + i
(`vllm.v1.engine.parallel_sampling`), so that draws depend on what shares the batch only through rounding.
"""

import contextlib
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from sppo import randomness
from sppo.policy import adapter as adapters
from sppo.sampling import Key, Response, SampledPolicy, Sampler, Sampling, SamplingError
from sppo.sampling.memory import check_weights
from sppo.sampling.stop_strings import StopStrings

# How long the process may take to end by itself before it is killed.
_GRACE_SECONDS = 20.0
# The engine's arguments that sppo sets itself, and the recipe's key to use in their place.
_SET_BY_SPPO = {
    "model": "policy.model",
    "dtype": "sampling.dtype",
    "trust_remote_code": "policy.trust_remote_code",
    "tokenizer": "policy.model",
    "seed": "seed",
    "logprobs_mode": None,
    "skip_tokenizer_init": None,
    "enable_lora": None,
}


class VllmSampling(Sampling):
    """The engine `vllm`: vLLM in a process of its own."""

    engine: Literal["vllm"] = "vllm"
    engine_args: dict[str, Any] = Field(
        default_factory=dict, description="arguments of vllm.EngineArgs, e.g. tensor_parallel_size"
    )

    @field_validator("engine_args")
    @classmethod
    def _can_be_set(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name in _SET_BY_SPPO.keys() & value.keys():
            way_out = f"use {_SET_BY_SPPO[name]}" if _SET_BY_SPPO[name] else "remove it"
            raise ValueError(f"{name!r} is set by sppo; {way_out}")
        for name in ("tensor_parallel_size", "pipeline_parallel_size", "max_model_len"):
            number = value.get(name, 1)
            if type(number) is not int or number < 1:
                raise ValueError(f"{name}: must be a whole number of at least 1 (got {number!r})")
        return value

    @property
    def devices(self) -> int:
        """The number of GPUs that one engine spans: its tensor and pipeline parallel sizes, multiplied."""
        return int(
            self.engine_args.get("tensor_parallel_size", 1)
            * self.engine_args.get("pipeline_parallel_size", 1)
        )

    @property
    def engine_context(self) -> int | None:
        """`max_model_len`, if it is given."""
        return self.engine_args.get("max_model_len")

    def check(self) -> None:
        """See :meth:`Sampling.check`."""
        if importlib.util.find_spec("vllm") is None:
            raise SamplingError(
                "sampling.engine: vllm is not installed here; pip install 'sppo[vllm]', or use the engine transformers"
            )

    def load(self, policy: SampledPolicy) -> Sampler:
        """See :meth:`Sampling.load`."""
        check_weights(policy.folder, policy.dtype, self.engine_args, self.devices)
        self.check()
        return VllmSampler(self, policy)


class VllmSampler:
    """Draws responses with vLLM, which decides by itself how many it decodes side by side.

    Args:
        settings: the section of the recipe.
        policy: the policy; an adapter is merged into its base first.

    Raises:
        SamplingError: vLLM does not start.
    """

    def __init__(self, settings: VllmSampling, policy: SampledPolicy) -> None:
        self.settings = settings
        self.stop_ids = sorted(policy.stop_ids)
        self.stop_strings = StopStrings(tuple(settings.stop), policy.decode)
        self._merged = _merged(policy)
        self._log = tempfile.NamedTemporaryFile(prefix="sppo-vllm-", suffix=".log")  # noqa: SIM115
        ours, theirs = socket.socketpair()
        environment = {
            # vLLM stays in the one process that close() ends, and all its memory with it.
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_NO_USAGE_STATS": "1",
            **os.environ,
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "sppo.sampling.vllm_worker", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # a Ctrl-C reaches only this process, which then calls close()
        )
        theirs.close()
        self._connection = Connection(ours.detach())
        arguments = {
            "enable_prefix_caching": True,
            "disable_log_stats": True,
            **settings.engine_args,
            "model": self._merged.name if self._merged else str(policy.folder),
            "dtype": policy.dtype,
            "trust_remote_code": policy.trust_remote_code,
            # All samplers report log pi at temperature 1 and without truncation.
            "logprobs_mode": "raw_logprobs",
        }
        try:
            self._connection.send(arguments)
            self._receive()  # the engine has started
        except BaseException:
            self.close()
            raise

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        keys: Sequence[Key],
        k: int,
        on_response: Callable[[int], None] = lambda count: None,
    ) -> list[list[Response]]:
        """See :meth:`sppo.sampling.Sampler.sample`."""
        seeds = [randomness.wide_seed(*key) for key in keys]
        ids = [list(map(int, prompt)) for prompt in prompts]
        request = request_parameters(self.settings, self.stop_ids) | {"detokenize": bool(self.settings.stop)}
        with contextlib.suppress(OSError):  # the process has ended: receiving reports its last output
            self._connection.send((request, ids, seeds, k))
        responses: list[list[Response]] = [[] for _ in prompts]
        for _ in prompts:
            index, drawn = self._receive()
            responses[index] = [self.stop_strings.shortened(Response(*fields)) for fields in drawn]
            on_response(k)
        return responses

    def close(self) -> None:
        """End the process; all its memory is free when this returns."""
        with contextlib.suppress(OSError):
            self._connection.close()  # the process ends when it notices this
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_GRACE_SECONDS)
        # With tensor parallelism vLLM starts further processes, which may outlive the first.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._log.close()
        if self._merged:
            self._merged.cleanup()

    def _receive(self) -> Any:
        try:
            kind, value = self._connection.recv()
        except (EOFError, OSError):
            code = self._process.wait()
            raise SamplingError(
                f"sampling.engine: vllm has ended with exit code {code}; its last output:\n{self._last_output()}"
            ) from None
        if kind == "failed":
            raise SamplingError(f"sampling.engine: vllm: {value}\nIts last output:\n{self._last_output()}")
        return value

    def _last_output(self) -> str:
        lines = Path(self._log.name).read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(line[:300] for line in lines[-30:])


def request_parameters(settings: Sampling, stop_ids: Sequence[int]) -> dict[str, Any]:
    """The parameters of a request by vLLM's names, which its server takes as well."""
    return {
        "max_tokens": settings.max_new_tokens,
        # vLLM would raise other temperatures below 0.01 to 0.01.
        "temperature": settings.temperature if settings.temperature >= 0.01 else 0.0,
        "top_p": settings.top_p,
        "top_k": settings.top_k,
        "min_p": settings.min_p,
        "stop_token_ids": list(stop_ids),
        "stop": list(settings.stop) or None,
        "include_stop_str_in_output": bool(settings.stop),
        "logprobs": 0,  # log-probabilities of the sampled tokens, and of no alternatives
    }


def _merged(policy: SampledPolicy) -> "tempfile.TemporaryDirectory[str] | None":
    """Merge an adapter into an ordinary folder; None if the policy is no adapter."""
    # vLLM could load adapters itself, but it limits their rank and which layers they may adapt.
    from sppo.policy import load as policies

    if not adapters.is_adapter(policy.folder):
        return None
    from transformers import AutoTokenizer

    remote_code = {"trust_remote_code": policy.trust_remote_code}
    folder = tempfile.TemporaryDirectory(prefix="sppo-merged-")
    with policies.quiet():
        model = policies.load_merged(policy.folder, dtype=policy.dtype, **remote_code)
        model.save_pretrained(folder.name)
    tokenizer = policies.tokenizer_folder(policy.folder, **remote_code)
    AutoTokenizer.from_pretrained(tokenizer, **remote_code).save_pretrained(folder.name)
    return folder
