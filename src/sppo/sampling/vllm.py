"""Sampling with vLLM, in a process of its own.

A policy's K responses to a prompt are one request, so that the prompt's keys and values are computed once. The process
is started with the policy and ended by :meth:`VllmSampler.close`; with it goes all memory that it had, of the
accelerator too. Random numbers: each request has a seed of its own, and vLLM gives response i the seed + i
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
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from sppo import randomness
from sppo.policy import adapter as adapters
from sppo.sampling import Key, Response, SamplingError, SamplingSettings
from sppo.sampling.stop_strings import StopStrings, kept

# How long the process may take to let go of everything before it is killed.
_GRACE_SECONDS = 20.0


class VllmSampler:
    """Draws responses with vLLM.

    Args:
        policy: a transformers folder; an adapter's is merged into its base first.
        settings: temperature, truncation and lengths; vLLM decides by itself how much it decodes side by side.
        stop_ids: tokens that end a response; they belong to it.
        dtype: of the weights.
        engine_args: of `vllm.EngineArgs`, e.g. `tensor_parallel_size`.
        trust_remote_code: run Python that comes with the model.
        decode: token ids to text, for `settings.stop`.

    Raises:
        SamplingError: vLLM is not installed, or does not start.
    """

    def __init__(
        self,
        policy: Path,
        settings: SamplingSettings,
        stop_ids: Sequence[int],
        *,
        dtype: str,
        engine_args: Mapping[str, Any] | None = None,
        trust_remote_code: bool = False,
        decode: Callable[[Sequence[int]], str] | None = None,
    ) -> None:
        check_installed()
        self.settings = settings
        self.stop_ids = sorted(stop_ids)
        self.stop_strings = StopStrings(tuple(settings.stop), decode or (lambda ids: ""))
        self._merged = _merged(policy, dtype, trust_remote_code)
        self._log = tempfile.NamedTemporaryFile(prefix="sppo-vllm-", suffix=".log")  # noqa: SIM115
        ours, theirs = socket.socketpair()
        environment = {
            # one process, and with it all memory, is what close() ends
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
            start_new_session=True,  # Ctrl-C is this process's affair; it closes
        )
        theirs.close()
        self._connection = Connection(ours.detach())
        arguments = {
            "enable_prefix_caching": True,
            "disable_log_stats": True,
            **(engine_args or {}),
            "model": self._merged.name if self._merged else str(policy),
            "dtype": dtype,
            "trust_remote_code": trust_remote_code,
            # log pi at temperature 1 and without truncation, as all samplers give it
            "logprobs_mode": "raw_logprobs",
        }
        try:
            self._connection.send(arguments)
            self._receive()  # it has started
        except BaseException:
            self.close()
            raise

    def _request_settings(self) -> dict[str, Any]:
        of = self.settings
        return {
            # vLLM raises other temperatures below 0.01 to it
            "temperature": of.temperature if of.temperature >= 0.01 else 0.0,
            "top_p": of.top_p,
            "top_k": of.top_k,
            "min_p": of.min_p,
            "max_tokens": of.max_new_tokens,
            "stop_token_ids": self.stop_ids,
            "stop": list(of.stop) or None,
            "include_stop_str_in_output": bool(of.stop),
            "detokenize": bool(of.stop),
            "logprobs": 0,  # of the token that was drawn alone
        }

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        keys: Sequence[Key],
        k: int,
        on_response: Callable[[int], None] = lambda count: None,
    ) -> list[list[Response]]:
        """As :meth:`sppo.sampling.Sampler.sample`."""
        seeds = [randomness.wide_seed(*key) for key in keys]
        ids = [list(map(int, prompt)) for prompt in prompts]
        with contextlib.suppress(OSError):  # if it has ended, receiving says what it said last
            self._connection.send((self._request_settings(), ids, seeds, k))
        found: list[list[Response]] = [[] for _ in prompts]
        for _ in prompts:
            index, drawn = self._receive()
            found[index] = [kept(Response(*parts), self.stop_strings) for parts in drawn]
            on_response(k)
        return found

    def close(self) -> None:
        """End the process; all its memory is free when this returns."""
        with contextlib.suppress(OSError):
            self._connection.close()  # it ends when it sees this
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_GRACE_SECONDS)
        # with tensor parallelism it has processes of its own, which may outlive it
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
                f"sampling.engine: vllm has ended with exit code {code}; the last that it said:\n{self._said()}"
            ) from None
        if kind == "failed":
            raise SamplingError(f"sampling.engine: vllm: {value}\nThe last that it said:\n{self._said()}")
        return value

    def _said(self) -> str:
        lines = Path(self._log.name).read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(line[:300] for line in lines[-30:])


def _merged(policy: Path, dtype: str, trust_remote_code: bool) -> "tempfile.TemporaryDirectory[str] | None":
    """An adapter's policy as an ordinary folder: vLLM's own adapters are limited in rank and in what they adapt."""
    from sppo.policy import load as policies

    if not adapters.is_adapter(policy):
        return None
    from transformers import AutoTokenizer

    folder = tempfile.TemporaryDirectory(prefix="sppo-merged-")
    with policies.quiet():
        policies.load_merged(policy, dtype=dtype, trust_remote_code=trust_remote_code).save_pretrained(
            folder.name
        )
    tokenizer = policies.tokenizer_folder(policy, trust_remote_code=trust_remote_code)
    AutoTokenizer.from_pretrained(tokenizer, trust_remote_code=trust_remote_code).save_pretrained(folder.name)
    return folder


def check_installed() -> None:
    """Refuse where vLLM is missing.

    Raises:
        SamplingError: it is.
    """
    if importlib.util.find_spec("vllm") is None:
        raise SamplingError(
            "sampling.engine: vllm is not installed here; pip install 'sppo[vllm]', or use the engine transformers"
        )
