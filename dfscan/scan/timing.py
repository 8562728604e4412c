"""Wall and CPU seconds of each stage, for `dfscan bench`."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class StageTime:
    """Cost of one stage so far."""

    wall_s: float = 0.0
    cpu_s: float = 0.0
    count: int = 0
    """Number of processed items: videos, frames, faces or rows, depending on the stage."""


@dataclass
class Timings:
    """Accumulates the cost of stages; may be used from any thread."""

    stages: dict[str, StageTime] = field(default_factory=lambda: defaultdict(StageTime))
    peak_child_rss_bytes: int = 0
    gpu_s: float = 0.0
    """Wall seconds for which a GPU was busy."""
    video_s: float = 0.0
    """Duration of all judged videos together."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def stage(self, name: str, *, count: int = 1) -> Iterator[None]:
        """Time the block; CPU seconds are those of the calling thread."""
        wall_s, cpu_s = time.perf_counter(), time.thread_time()
        try:
            yield
        finally:
            self.add(name, wall_s=time.perf_counter() - wall_s, cpu_s=time.thread_time() - cpu_s, count=count)

    def add(self, name: str, *, wall_s: float = 0.0, cpu_s: float, count: int = 1) -> None:
        """Add a cost that was measured elsewhere, such as in a decoding process."""
        with self._lock:
            stage = self.stages[name]
            stage.wall_s += wall_s
            stage.cpu_s += cpu_s
            stage.count += count

    def note_child_rss(self, peak_bytes: int) -> None:
        """Update the peak memory of the decoding processes."""
        self.peak_child_rss_bytes = max(self.peak_child_rss_bytes, peak_bytes)
