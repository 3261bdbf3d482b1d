"""Who keeps the engines of vLLM that no sampler uses: this process, or a process that lends them to others.

A sampler takes an engine with :func:`start_engine` and hands it back with :func:`keep_engine`. The keeper is this process
(:class:`OwnEngines`), unless this process is one of many that come and go, such as the actors of a stage on Ray: then one
process on the machine outlives them, starts the engines as their parent (:class:`EngineLender`) and lends them
(:class:`BorrowedEngines`). The rules are the same. An engine whose arguments and shape of model are those that are asked for
gets the weights of the policy; where none fits, the idle ones end and a new one starts. On a machine with a GPU an engine
ends when its sampler is closed, because training needs the memory; elsewhere it ends where keeping it would leave less than
half of the memory free.
"""

import atexit
import contextlib
import os
import threading
from collections.abc import Mapping
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener
from multiprocessing.reduction import recv_handle, send_handle
from pathlib import Path
from typing import Any, Protocol

from sppo.sampling import SamplingError
from sppo.sampling.memory import has_room_to_keep
from sppo.sampling.vllm_engine import Engine, EngineRequest, VllmEngine


class EngineKeeper(Protocol):
    """Starts engines, and keeps them while no sampler uses them."""

    def start(self, request: EngineRequest) -> Engine:
        """A kept engine with the asked-for weights in it, or else a new engine.

        Raises:
            SamplingError: vLLM does not start.
        """
        ...

    def keep(self, engine: Engine) -> None:
        """Take back an engine: keep it for the next sampler where nothing else needs its memory; end it elsewhere."""
        ...

    def end(self) -> None:
        """End the engines that are kept."""
        ...


class OwnEngines:
    """The keeper that starts engines as children of this process. Its methods may be called by several threads."""

    def __init__(self) -> None:
        self._idle: list[VllmEngine] = []
        self._lock = threading.Lock()

    def start(self, request: EngineRequest) -> VllmEngine:
        """See :meth:`EngineKeeper.start`."""
        while (engine := self._take(request)) is not None:
            try:
                engine.load_weights(request.model)
            except SamplingError:  # it has died since
                engine.end()
            else:
                return engine
        self.end()
        return VllmEngine(request)

    def _take(self, request: EngineRequest) -> VllmEngine | None:
        with self._lock:
            engine = next((engine for engine in self._idle if engine.fits(request)), None)
            if engine is not None:
                self._idle.remove(engine)
            return engine

    def keep(self, engine: Engine) -> None:
        """See :meth:`EngineKeeper.keep`."""
        assert isinstance(engine, VllmEngine)
        if engine.is_idle and engine.on_cpu and has_room_to_keep():
            with self._lock:
                self._idle.append(engine)
        else:
            engine.end()

    def end(self) -> None:
        """See :meth:`EngineKeeper.end`."""
        with self._lock:
            engines, self._idle = self._idle, []
        for engine in engines:
            engine.end()


_keeper: EngineKeeper = OwnEngines()


def use_keeper(keeper: EngineKeeper) -> None:
    """Have the samplers of this process take their engines from a keeper from now on."""
    global _keeper
    _keeper.end()
    _keeper = keeper


def start_engine(arguments: Mapping[str, Any], model: Path) -> Engine:
    """An engine with a model's weights in it, from the keeper of this process.

    Args:
        arguments: arguments of `vllm.EngineArgs`, without `model`.
        model: the folder of the model.

    Raises:
        SamplingError: vLLM does not start.
    """
    return _keeper.start(EngineRequest.of(arguments, model))


def keep_engine(engine: Engine) -> None:
    """Hand an engine back to the keeper of this process."""
    _keeper.keep(engine)


def end_kept_engines() -> None:
    """End the engines that are kept for this process alone."""
    _keeper.end()


atexit.register(end_kept_engines)


class EngineLender:
    """Lends engines to other processes on this machine; they are children of this process and end at the latest with it.

    A loan is a connection of the borrower's to this process. It begins with an :class:`EngineRequest`; the answer is the
    engine, with the descriptor of its connection, over which the borrower talks to it directly. The borrower may ask for an
    engine's last words, and gives the engine back by saying whether it is idle. If the borrower dies first, the engine is left
    in the middle of its work, and ends.

    Args:
        key: what a process has to know to borrow.
    """

    def __init__(self, key: bytes) -> None:
        self._engines = OwnEngines()
        self._loans = 0
        self._changed = threading.Condition()
        self._listener = Listener(family="AF_UNIX", backlog=64, authkey=key)
        threading.Thread(target=self._listen, daemon=True).start()

    def address(self) -> str:
        """The address of the socket that borrowers connect to."""
        return str(self._listener.address)

    def wait_for_returns(self, seconds: float) -> bool:
        """Wait until nothing is lent, at most for the given time; whether everything is back."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._loans, seconds)

    def make_room(self) -> None:
        """End the idle engines where they leave too little memory to whatever comes next, such as training."""
        if not has_room_to_keep():
            self._engines.end()

    def end(self) -> None:
        """End the idle engines."""
        self._engines.end()

    def _listen(self) -> None:
        while True:
            # A borrower may have died meanwhile, or not know the key.
            with contextlib.suppress(OSError, EOFError, AuthenticationError):
                threading.Thread(target=self._lend, args=(self._listener.accept(),), daemon=True).start()

    def _lend(self, borrower: Connection) -> None:
        self._count(1)
        try:
            with borrower, contextlib.suppress(OSError, EOFError):  # the borrower has died
                try:
                    engine = self._engines.start(borrower.recv())
                except SamplingError as error:
                    borrower.send(("failed", str(error)))
                    return
                try:
                    self._serve(borrower, engine)
                finally:
                    self._engines.keep(engine)
        finally:
            self._count(-1)

    def _serve(self, borrower: Connection, engine: VllmEngine) -> None:
        """Hand an engine over, and return when it has been given back.

        Raises:
            OSError, EOFError: the borrower has died. The engine counts as idle only if it was not handed over yet.
        """
        borrower.send(("lent", (engine.pid, engine.on_cpu, engine.rows)))
        engine.is_idle = False
        send_handle(borrower, engine.fileno(), None)
        while (said := borrower.recv()) == "last words":
            borrower.send(engine.last_words())
        engine.is_idle = said == "idle"

    def _count(self, more: int) -> None:
        with self._changed:
            self._loans += more
            self._changed.notify_all()


class LentEngine(Engine):
    """An engine of an :class:`EngineLender`'s, as the process that has borrowed it sees it.

    Args:
        loan: the connection to the lender, whose answer is read as far as the descriptor.
        pid: see :class:`Engine`.
        on_cpu: see :class:`Engine`.
        rows: see :class:`Engine`.
    """

    def __init__(self, loan: Connection, pid: int, on_cpu: bool, rows: int) -> None:
        self.pid, self.on_cpu, self.rows = pid, on_cpu, rows
        self._loan = loan
        descriptor = recv_handle(loan)
        # A child process that held the descriptor would keep the engine from noticing the end of this one.
        os.set_inheritable(descriptor, False)
        super().__init__(Connection(descriptor))

    def last_words(self) -> tuple[int | None, str]:
        """See :meth:`Engine.last_words`."""
        try:
            self._loan.send("last words")
            words: tuple[int | None, str] = self._loan.recv()
        except (OSError, EOFError):
            return None, "(unknown, because the process that had started it has ended as well)"
        return words

    def end(self) -> None:
        """See :meth:`Engine.end`."""
        self.is_idle = False
        self.give_back()

    def give_back(self) -> None:
        """Give the engine back; the lender has kept or ended it when this returns."""
        self._connection.close()
        # The lender answers by closing the connection; or it has died, and so has the engine.
        with contextlib.suppress(OSError, EOFError):
            self._loan.send("idle" if self.is_idle else "busy")
            self._loan.recv()
        self._loan.close()


class BorrowedEngines:
    """The keeper that borrows engines from the :class:`EngineLender` of this machine.

    If the lender cannot be reached, because it was killed, engines are children of this process and end when it closes them.

    Args:
        address: the lender's address.
        key: the lender's key.
    """

    def __init__(self, address: str, key: bytes) -> None:
        self._address, self._key = address, key

    def start(self, request: EngineRequest) -> Engine:
        """See :meth:`EngineKeeper.start`."""
        try:
            loan = Client(self._address, authkey=self._key)
            loan.send(request)
            kind, content = loan.recv()
            if kind == "failed":
                loan.close()
                raise SamplingError(content)
            return LentEngine(loan, *content)
        except (OSError, EOFError):
            return VllmEngine(request)

    def keep(self, engine: Engine) -> None:
        """See :meth:`EngineKeeper.keep`."""
        if isinstance(engine, LentEngine):
            engine.give_back()
        else:
            engine.end()

    def end(self) -> None:
        """See :meth:`EngineKeeper.end`. This keeper keeps nothing itself."""
