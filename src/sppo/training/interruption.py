"""Ctrl-C and the like while training: the step is finished and a checkpoint written before they take effect."""

import contextlib
import signal
from collections.abc import Callable, Iterator, Sequence
from types import FrameType

NOTICE = "a checkpoint is written when this step is over; interrupt again to end at once"


class Interruption:
    """Whether this process has been asked to end, and by which signal.

    Args:
        signals: that are noted instead of taking effect.
        say: told at the first that the step is finished first.
        at_once: whether a second signal ends the process where it stands.
    """

    def __init__(
        self, signals: Sequence[signal.Signals], say: Callable[[str], None], *, at_once: bool
    ) -> None:
        self.number: int | None = None
        self._signals = signals
        self._say = say
        self._at_once = at_once
        self._before: dict[signal.Signals, object] = {}

    @classmethod
    def of_the_only_process(cls, say: Callable[[str], None]) -> "Interruption":
        """Ctrl-C and SIGTERM, unless whoever started the process has them ignored."""
        asked = (signal.SIGINT, signal.SIGTERM)
        return cls([each for each in asked if signal.getsignal(each) != signal.SIG_IGN], say, at_once=True)

    @classmethod
    def of_one_of_several(cls) -> "Interruption":
        """SIGINT, by which the launcher passes an interruption on; SIGTERM is for what cannot be saved."""
        return cls([signal.SIGINT], lambda text: None, at_once=False)

    @contextlib.contextmanager
    def noted(self) -> Iterator[None]:
        """Signals are noted within; outside of the main thread there are none."""
        try:
            with contextlib.suppress(ValueError):
                for each in self._signals:
                    self._before[each] = signal.signal(each, self._note)
            yield
        finally:
            self._restore()

    def end(self) -> None:
        """What the signal would have done."""
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
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, handler)  # type: ignore[arg-type]
