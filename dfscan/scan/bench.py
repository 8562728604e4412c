"""What a scan costs, stage by stage, on this machine and these videos."""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Sequence
from typing import Any

from dfscan.config import ScanSettings
from dfscan.media.discover import discover
from dfscan.scan.pipeline import scan_videos
from dfscan.scan.setup import find_checkpoint, load_engine, with_checkpoint
from dfscan.scan.timing import Timings

STAGES = ("start", "decode", "detect", "crop", "classify")


def run_bench(inputs: Sequence[str], settings: ScanSettings) -> dict[str, Any]:
    """Scan without writing anything and say what each stage cost.

    Decoding runs in child processes, which tell their CPU seconds only; its wall time overlaps with the rest.

    Raises:
        ConfigError: an input or option is unusable.
        CheckpointError: there is no usable checkpoint.
    """
    timings = Timings()
    start_s, start_cpu_s = time.perf_counter(), _cpu_s()
    paths = discover(inputs, include=settings.include, exclude=settings.exclude).paths
    checkpoint = find_checkpoint(settings)
    with timings.stage("start"):
        engine = load_engine(with_checkpoint(settings, checkpoint), checkpoint)
    video_s = sum(result.info.duration_s or 0.0 for result, _ in scan_videos(paths, engine, timings=timings))
    wall_s, cpu_s = time.perf_counter() - start_s, _cpu_s() - start_cpu_s
    return {
        "videos": len(paths),
        "video_minutes": video_s / 60,
        "device": engine.runtime.device,
        "cpus": os.cpu_count(),
        "wall_s": wall_s,
        "cpu_s": cpu_s,
        "videos_per_hour": len(paths) / wall_s * 3600,
        "wall_s_per_video_minute": wall_s / (video_s / 60) if video_s else None,
        "peak_rss_bytes": _peak_rss_bytes(),
        "peak_decoder_rss_bytes": timings.peak_child_rss_bytes,
        "stages": {name: _stage(timings, name, cpu_s) for name in STAGES},
    }


def _stage(timings: Timings, name: str, total_cpu_s: float) -> dict[str, float | int]:
    stage = timings.stages[name]
    return {"count": stage.count, "wall_s": stage.wall_s, "cpu_s": stage.cpu_s, "cpu_share": stage.cpu_s / total_cpu_s}


def _cpu_s() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _peak_rss_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
