"""Scan any number of files on Ray with an engine that opens none, then resume; print times, memory and sizes.

Usage: python -m tests.simulate_cluster NUM_FILES FOLDER

It shows what the driver costs: listing, sharing out, ledger and report. The folder may be in memory, such as /dev/shm.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dfscan.config import ScanSettings, build_settings
from dfscan.media.source import FileIdentity
from dfscan.scan import run
from dfscan.scan.cluster_worker import Dumps, Job, JudgedVideo, JudgeVideos
from dfscan.scan.pipeline import ScanListener
from dfscan.types import Verdict, VideoInfo, VideoResult

FILES_PER_FOLDER = 1000
NUM_REPORTS = 10


@dataclass(frozen=True)
class QuickJob(Job):
    """Finds no face in any file."""

    def open(self, threads: int, dumps: Dumps, listener: ScanListener) -> tuple[JudgeVideos, int]:
        return self.judge, 2

    def judge(self, paths: Iterable[str]) -> Iterator[JudgedVideo]:
        for path in paths:
            info = VideoInfo(1, codec="h264", sha256="0" * 64)
            yield VideoResult(path, "ok", Verdict("no_face"), info), FileIdentity.of(path)


class MemoryListener:
    """Prints the memory of this process from time to time."""

    def __init__(self, num_files: int) -> None:
        self._num_done, self._interval, self._start_s = 0, max(1, num_files // NUM_REPORTS), time.monotonic()

    def faces_scored(self, count: int) -> None:
        pass

    def video_done(self, result: VideoResult) -> None:
        self._num_done += 1
        if self._num_done % self._interval == 0:
            elapsed_s = time.monotonic() - self._start_s
            print(f"{self._num_done} files, {elapsed_s:.0f} s, {resident_mib():.0f} MiB", file=sys.stderr)


def resident_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def make_files(folder: Path, count: int) -> None:
    """Make sparse files of one byte."""
    for number in range(count):
        path = folder / f"{number // FILES_PER_FOLDER:04}" / f"{number % FILES_PER_FOLDER:03}.mp4"
        if number % FILES_PER_FOLDER == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            file.truncate(1)


def main() -> None:
    count, folder = int(sys.argv[1]), Path(sys.argv[2])
    make_files(folder / "videos", count)
    report, ledger = folder / "r.csv", folder / "r.ledger"
    run.Job = QuickJob  # type: ignore[misc]
    for resume in (False, True):
        report.unlink(missing_ok=True)
        options = {"out": [str(report)], "ledger": ledger, "on": "ray", "max_workers": 1, "threads": 1}
        settings = build_settings(ScanSettings, {**options, "resume": resume, "exit_zero": True})
        start_s = time.monotonic()
        summary = run.run_scan([str(folder / "videos")], settings, listener=MemoryListener(count))
        print(f"{'resumed' if resume else 'scanned'} in {time.monotonic() - start_s:.0f} s: {summary.summary()}")
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peak {peak_mib:.0f} MiB; {os.path.getsize(ledger) / count:.0f} bytes a row in the ledger")


if __name__ == "__main__":
    main()
