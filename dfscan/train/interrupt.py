"""Asking a run to stop: the signal is noted, the step under way ends, the state is saved, and only then it stops."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupt:
    """Whether somebody asked to stop, and how."""

    def __init__(self) -> None:
        self._signal: int | None = None

    @property
    def is_asked(self) -> bool:
        """Whether this process was asked."""
        return self._signal is not None

    def leave(self) -> NoReturn:
        """End as the signal would have ended it; another process's signal counts as SIGTERM."""
        if self._signal == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + signal.SIGTERM)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Note the first signal; a second one ends the process at once, with what was saved before."""
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
