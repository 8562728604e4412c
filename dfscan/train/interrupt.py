"""Graceful interruption: after a signal, the current step finishes and the state is saved before the run stops."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupt:
    """Records a request to stop."""

    def __init__(self) -> None:
        self._signal: int | None = None

    @property
    def is_asked(self) -> bool:
        """True if this process received a signal."""
        return self._signal is not None

    def leave(self) -> NoReturn:
        """Exit as the signal would have; a signal to another process counts as SIGTERM."""
        if self._signal == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + signal.SIGTERM)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Record the first signal; a second one ends the process immediately, without saving."""
        before = {number: signal.getsignal(number) for number in SIGNALS}

        def note(number: int, _: FrameType | None) -> None:
            self._signal = number
            for each, handler in before.items():
                signal.signal(each, handler)

        for number in SIGNALS:
            signal.signal(number, note)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
