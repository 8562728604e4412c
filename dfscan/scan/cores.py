"""Confine this process and all its descendants to some cores, and count their CPU seconds. Needs Linux's ``/proc``."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
CPU_FIELDS = slice(11, 15)
"""Fields of ``/proc/PID/stat`` after the name: CPU time of the process and of its ended children, user and system."""
ENDED = (FileNotFoundError, ProcessLookupError)
"""Errors of a process or thread that has ended meanwhile."""


@dataclass
class Run:
    """Cost of a block of code. See `measured`."""

    wall_s: float = 0.0
    cpu_s: float | None = None
    """CPU seconds of this process and all its descendants; None if unknown."""
    cores: int | None = None
    """Number of cores that they were confined to; None if they were not."""


@contextmanager
def measured(num_cores: int | None) -> Iterator[Run]:
    """Measure a block, in which this process and all its present and new descendants use only some cores.

    The cost is known when the block ends.

    Args:
        num_cores: maximum number of cores; None: confine nothing, and count only wall seconds.
    """
    run = Run()
    if num_cores is None:
        start_s = time.perf_counter()
        yield run
        run.wall_s = time.perf_counter() - start_s
        return
    before = os.sched_getaffinity(0)
    cores = set(sorted(before)[:num_cores])
    try:
        _confine(cores)
        start_s, start_cpu_s = time.perf_counter(), _cpu_s()
        yield run
        run.wall_s, run.cpu_s, run.cores = time.perf_counter() - start_s, _cpu_s() - start_cpu_s, len(cores)
    finally:
        _confine(before)


def can_confine() -> bool:
    """Return whether `measured` can confine processes on this system."""
    return (PROC / "thread-self" / "children").exists()


def _processes(pid: int) -> Iterator[Path]:
    """Yield the folders in `PROC` of a process and all its descendants."""
    yield PROC / str(pid)
    for thread in _threads(PROC / str(pid)):
        with suppress(*ENDED):
            for child in (thread / "children").read_text().split():
                yield from _processes(int(child))


def _threads(process: Path) -> list[Path]:
    with suppress(*ENDED):
        return list((process / "task").iterdir())
    return []


def _confine(cores: set[int]) -> None:
    for process in _processes(os.getpid()):
        for thread in _threads(process):
            with suppress(*ENDED):
                os.sched_setaffinity(int(thread.name), cores)


def _cpu_s() -> float:
    """Return the CPU seconds so far of this process, of its descendants, and of their ended children."""
    ticks = 0
    for process in _processes(os.getpid()):
        with suppress(*ENDED):
            fields = (process / "stat").read_text().rpartition(")")[2].split()
            ticks += sum(map(int, fields[CPU_FIELDS]))
    return ticks / os.sysconf("SC_CLK_TCK")
