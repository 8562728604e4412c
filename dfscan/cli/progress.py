"""Progress bar of a scan, shown on terminals only."""

from __future__ import annotations

import logging
import time
from collections import Counter
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.text import Text

from dfscan.text import display_path, printable

if TYPE_CHECKING:
    from dfscan.types import VideoResult

log = logging.getLogger("dfscan")


class ScanProgressBar:
    """Show files done, faces per second, verdicts and remaining time; a context manager and a scan listener."""

    def __init__(self, *, is_quiet: bool) -> None:
        self._console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
        is_shown = self._console.is_terminal and not is_quiet
        self._bar = RichProgress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            TimeRemainingColumn(),
            console=self._console,
            disable=not is_shown,
            transient=True,
        )
        self._task = self._bar.add_task("videos", total=None, note="loading")
        self._labels: Counter[str] = Counter()
        self._num_faces = 0
        self._start_s = self._first_s = time.monotonic()
        self.seconds = 0.0
        self.log_handler = _ConsoleHandler(self._console) if is_shown else None

    def set_total(self, num_videos: int) -> None:
        """Set the number of videos."""
        self._bar.update(self._task, total=num_videos)

    def faces_scored(self, count: int) -> None:
        """Count scored faces; see `ScanListener.faces_scored`."""
        if not self._num_faces:
            self._first_s = time.monotonic()
        self._num_faces += count
        self._note()

    def video_done(self, result: VideoResult) -> None:
        """Count and log a result; see `ScanListener.video_done`."""
        self._labels[result.verdict.label] += 1
        if result.verdict.label == "error":
            log.warning("%s: %s", display_path(result.path), result.verdict.reason)
        else:
            log.info("%s: %s %s", display_path(result.path), result.verdict.label, result.verdict.reason or "")
        self._note(advance=1)

    def _note(self, *, advance: int = 0) -> None:
        rate = self._num_faces / max(time.monotonic() - self._first_s, 1e-3) if self._num_faces > 1 else 0.0
        counts = " ".join(f"{count} {label}" for label, count in sorted(self._labels.items()))
        self._bar.update(self._task, advance=advance, note=f"{rate:.1f} faces/s  {counts}")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.seconds = time.monotonic() - self._start_s
        self._bar.stop()


class _ConsoleHandler(logging.Handler):
    """Print log lines above the bar, without interpreting file names as markup."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        self._console.print(Text(printable(f"dfscan: {record.levelname.lower()}: {record.getMessage()}")))
