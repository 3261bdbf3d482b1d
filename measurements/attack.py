"""What the attacks in faults.py and hostile.py share: cases in processes of their own, their outcomes, and the ledger.

Each case runs in a fork of a process that has imported the package already, so that it costs no imports, and has limits on
its time and memory. The ledger is a file of JSON lines with one line for each case, which lets an attack that was
stopped go on where it was.
"""

import contextlib
import ctypes
import gc
import json
import os
import re
import resource
import select
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

TRACEBACK = "Traceback (most recent call last)"
_MEMORY_LIMIT = 8 * 2**30
"""Bytes of address space for a case; torch reserves several gigabytes of it without using them."""
_END_WITH_PARENT = 1
"""PR_SET_PDEATHSIG of prctl(2): a case ends with the attack that has started it."""


@dataclass(frozen=True)
class Outcome:
    """What became of a case.

    Attributes:
        code: the exit code; minus the number of the signal that ended the case; None after the time limit.
        text: what the case wrote to standard output and standard error.
        seconds: the seconds that the case took, without those in which it waited for a processor.
        memory: the largest resident memory of the case, in bytes.
    """

    code: int | None
    text: str
    seconds: float
    memory: int

    @property
    def fault(self) -> str | None:
        """Why this outcome is wrong whatever the case was; None if nothing is wrong with it as such."""
        if self.code is None:
            return "hang"
        if self.code < 0:
            return f"died of signal {-self.code}"
        if TRACEBACK in self.text or self.code > 3:
            return "traceback"
        if self.code and "rror" not in self.text:
            return "failed without a message"
        return None


class Forked:
    """A function that runs in a fork of this process, in a session of its own.

    Args:
        function: what to run; an integer that it returns is the exit code.
        folder: the working directory of the fork.
        environment: environment variables to set in the fork.
    """

    def __init__(
        self, function: Callable[[], Any], folder: Path, environment: dict[str, str] | None = None
    ) -> None:
        self._output = tempfile.TemporaryFile()  # noqa: SIM115
        self._begun, self._waited = time.perf_counter(), _times(os.getpid())[1]
        self._family: dict[int, tuple[float, float]] = {}
        sys.stdout.flush()
        self.pid = os.fork()
        if not self.pid:
            self._be_the_child(function, folder, environment or {})
        self._handle = os.pidfd_open(self.pid)

    def wait(self, seconds: float) -> bool:
        """Wait until the fork has ended, for so many seconds at most, and say whether it has."""
        return bool(select.select([self._handle], [], [], max(seconds, 0))[0])

    def finish(self, limit: float) -> None:
        """Wait until the fork has ended or has taken so many seconds."""
        while not self.wait(min(limit, 1)) and self.seconds() < limit:
            pass

    def seconds(self) -> float:
        """The seconds that the fork has taken, without those in which it or a process of its own waited for a processor.

        Processes that wait side by side are subtracted together, so the result is never less than the processor time of any.
        """
        self._family |= {pid: _times(pid) for pid in _family(self.pid)}
        waited = sum(wait for _, wait in self._family.values()) + _times(os.getpid())[1] - self._waited
        elapsed = time.perf_counter() - self._begun
        return max(elapsed - waited, *(ran for ran, _ in self._family.values()))

    def kill(self) -> None:
        """Send SIGKILL to the fork's own process alone."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def end(self, children: bool = True) -> Outcome:
        """End the fork if it still runs, and usually its children as well, and return what became of it."""
        ended, seconds = self.wait(0), self.seconds()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            (os.killpg if children else os.kill)(self.pid, signal.SIGKILL)
        _, status, usage = os.wait4(self.pid, 0)
        os.close(self._handle)
        self._output.seek(0)
        text = self._output.read().decode("utf-8", "backslashreplace")
        self._output.close()
        code = os.waitstatus_to_exitcode(status) if ended else None
        return Outcome(code, text, seconds, usage.ru_maxrss * 1024)

    def _be_the_child(self, function: Callable[[], Any], folder: Path, environment: dict[str, str]) -> None:
        code: Any = 99
        try:
            os.setsid()
            ctypes.CDLL(None).prctl(_END_WITH_PARENT, signal.SIGKILL)
            for descriptor in (1, 2):
                os.dup2(self._output.fileno(), descriptor)
            sys.stdout, sys.stderr = (os.fdopen(os.dup(number), "w", buffering=1) for number in (1, 2))
            resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_LIMIT, _MEMORY_LIMIT))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            os.environ.update(environment)
            os.chdir(folder)
            code = function() or 0
        except SystemExit as leaving:
            code = leaving.code or 0
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(BaseException):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code if isinstance(code, int) else 1)


def _family(pid: int) -> Iterator[int]:
    """A process and all that descend from it."""
    yield pid
    with contextlib.suppress(OSError):
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            for child in children.read_text().split():
                yield from _family(int(child))


def _times(pid: int) -> tuple[float, float]:
    """The seconds in which a process had a processor, and those in which it was ready to run and had none."""
    with contextlib.suppress(OSError, ValueError):
        ran, waited, _ = Path(f"/proc/{pid}/schedstat").read_text().split()
        return int(ran) / 1e9, int(waited) / 1e9
    return 0.0, 0.0


def attempt(
    function: Callable[[], Any], folder: Path, limit: float, environment: dict[str, str] | None = None
) -> Outcome:
    """Run a function in a fork, within a limit on its seconds."""
    fork = Forked(function, folder, environment)
    fork.finish(limit)
    return fork.end()


def command(*arguments: str) -> Callable[[], None]:
    """The `sppo` command with these arguments, as a function to run in a fork."""

    def run() -> None:
        from sppo.cli.main import main

        sys.argv = ["sppo", *arguments]
        main()

    return run


def import_everything() -> None:
    """Import what the cases need, so that no fork does; nothing is computed, so no threads are started."""
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    os.environ |= {"COLUMNS": "200", "NO_COLOR": "1"}
    import accelerate  # noqa: F401
    import datasets  # noqa: F401
    import matplotlib.backends.backend_svg  # noqa: F401
    import openai  # noqa: F401
    import starlette.testclient  # noqa: F401
    import torch
    import transformers
    from transformers import Qwen2ForCausalLM, Qwen2Tokenizer, Trainer  # noqa: F401

    import sppo.api
    import sppo.arena.server
    import sppo.cli.main
    import sppo.endpoint.client
    import sppo.policy.load
    import sppo.report.page
    import sppo.sampling.transformers
    import sppo.selfplay
    import sppo.training.trainer  # noqa: F401

    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()  # a collection in a fork would copy every page


class Ledger:
    """The cases that an attack has tried so far, as JSON lines in its folder.

    Args:
        path: the file; its folder is made if it is missing.
        again: whether cases that have failed are tried again.
    """

    def __init__(self, path: Path, again: bool = False) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        self.cases: dict[str, dict[str, Any]] = {}
        for line in lines:
            with contextlib.suppress(ValueError):  # a kill has interrupted this line
                case = json.loads(line)
                self.cases[case["case"]] = case
        if again:
            self.cases = {
                name: case for name, case in self.cases.items() if not case["verdict"].startswith("FAILED")
            }

    def add(self, name: str, verdict: str, outcome: Outcome | None = None, **more: Any) -> None:
        """Keep a case's verdict; the text of an outcome is kept where the verdict is a failure."""
        case = {"case": name, "verdict": verdict, **more}
        if outcome is not None:
            case |= asdict(outcome)
            case["text"] = outcome.text[-6000:] if verdict.startswith("FAILED") else outcome.text[-300:]
        self.cases[name] = case
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(case) + "\n")
        if verdict.startswith("FAILED"):
            print(f"{name}: {verdict}", flush=True)

    def report(self, by: str | None = None) -> int:
        """Print the number of cases by verdict, and by another key with it; return the number of failures."""
        groups: dict[str, Counter[str]] = {}
        for case in self.cases.values():
            verdict = re.sub(r":.*", "", case["verdict"], flags=re.DOTALL)
            groups.setdefault(str(case.get(by, "")) if by else "", Counter())[verdict] += 1
        total: Counter[str] = Counter()
        for name, verdicts in sorted(groups.items()):
            if by:
                print(f"{name:24}", ", ".join(f"{verdict} {n}" for verdict, n in verdicts.most_common()))
            total.update(verdicts)
        print(f"{len(self.cases)} cases:", ", ".join(f"{verdict} {n}" for verdict, n in total.most_common()))
        slowest = max((case.get("seconds", 0) for case in self.cases.values()), default=0)
        largest = max((case.get("memory", 0) for case in self.cases.values()), default=0)
        print(f"slowest case {slowest:.1f} s, largest {largest / 1e9:.2f} GB")
        return total["FAILED"]


@contextlib.contextmanager
def served(server: Callable[[Callable[[str], None]], None]) -> Iterator[str]:
    """Run a server in a fork; it is given a function to call with its address once it listens."""
    reading, writing = os.pipe()

    def serve() -> None:
        os.close(reading)
        server(lambda address: os.write(writing, f"{address}\n".encode()) and None)

    fork = Forked(serve, Path.cwd())
    os.close(writing)
    with os.fdopen(reading) as pipe:
        address = pipe.readline().strip()
    try:
        yield address
    finally:
        fork.end()
