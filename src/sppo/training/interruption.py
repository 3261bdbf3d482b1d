"""Defer Ctrl-C and other signals during training until the step is finished and a checkpoint is written."""

import contextlib
import signal
from collections.abc import Callable, Iterator, Sequence
from types import FrameType

NOTICE = "a checkpoint is written when this step is finished; interrupt again to end at once"


class Interruption:
    """Records the signal that asked this process to end.

    Args:
        signals: the signals to defer.
        say: called with a message when the first signal arrives.
        at_once: whether a second signal ends the process without waiting for the step.
    """

    def __init__(
        self, signals: Sequence[signal.Signals], say: Callable[[str], None], *, at_once: bool
    ) -> None:
        self.number: int | None = None
        self._signals = signals
        self._say = say
        self._at_once = at_once
        self._handlers: dict[signal.Signals, object] = {}

    @classmethod
    def for_single_process(cls, say: Callable[[str], None]) -> "Interruption":
        """Defer Ctrl-C and SIGTERM, except a signal that the parent process has set to be ignored."""
        numbers = (signal.SIGINT, signal.SIGTERM)
        handled = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]
        return cls(handled, say, at_once=True)

    @classmethod
    def for_worker(cls) -> "Interruption":
        """Defer SIGINT only, with which the launcher interrupts its workers; SIGTERM ends a worker without saving."""
        return cls([signal.SIGINT], lambda text: None, at_once=False)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Defer the signals within the block; outside the main thread, where no handler can be set, do nothing."""
        try:
            with contextlib.suppress(ValueError):
                for number in self._signals:
                    self._handlers[number] = signal.signal(number, self._note)
            yield
        finally:
            self._restore()

    def end(self) -> None:
        """Do what the deferred signal would have done."""
        assert self.number is not None
        self._restore()
        if self.number == signal.SIGINT:
            raise KeyboardInterrupt
        signal.raise_signal(self.number)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.number is None:
            self.number = number
            self._say(NOTICE)
        elif self._at_once:
            self.number = number
            self.end()

    def _restore(self) -> None:
        while self._handlers:
            number, handler = self._handlers.popitem()
            signal.signal(number, handler)  # type: ignore[arg-type]
