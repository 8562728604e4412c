"""Measure the cost of a scan per stage, and compare it with a lower bound."""

from __future__ import annotations

import dataclasses
import os
import resource
import sys
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from dfscan.config import ScanSettings
from dfscan.detector.checkpoint import Checkpoint
from dfscan.detector.runtime import Runtime
from dfscan.errors import ConfigError
from dfscan.media.discover import discover
from dfscan.media.isolate import Ended, decode_videos
from dfscan.scan.classify import stage_of
from dfscan.scan.cluster import Cluster, cluster_address, for_workers
from dfscan.scan.cluster_worker import Job
from dfscan.scan.cores import Run, can_confine, measured
from dfscan.scan.pipeline import Engine, scan_videos
from dfscan.scan.run import run_scan
from dfscan.scan.setup import ResolvedSettings, load_engine, resolve
from dfscan.scan.timing import Timings

STAGES = ("start", "open", "decode", "detect", "crop", "classify", "explain", "write")
CHILDREN_STAGES = frozenset({"open", "decode"})
"""Stages that run in child processes; their wall time overlaps with all other stages."""
FLOOR_S = 2.0
"""Minimum time spent on classifying noise to measure the cost per face."""


def run_bench(inputs: Sequence[str], settings: ScanSettings) -> dict[str, Any]:
    """Scan into a temporary folder, measure the cost of each stage, then measure a lower bound.

    Decoding runs in child processes, which report only their CPU seconds; its wall time overlaps with the other
    stages. The lower bound ("floor") is decoding alone plus classification alone. No scan of these frames with this
    network can be cheaper.

    Raises:
        ConfigError: an input or option is unusable.
        CheckpointError: there is no usable checkpoint.
    """
    timings = Timings()
    start_s, start_cpu_s = time.perf_counter(), _cpu_s()
    with tempfile.TemporaryDirectory(prefix="dfscan-") as folder:
        outputs: dict[str, Any] = {"out": (str(Path(folder) / "report.csv"),), "ledger": None, "resume": False}
        outputs |= {
            "frames_out": None,
            "html": None,
            "annotate": None,
            "explain": Path(folder) / "dumps" if settings.explain else None,
        }
        run_scan(inputs, dataclasses.replace(settings, **outputs), timings=timings)
    wall_s, cpu_s = time.perf_counter() - start_s, _cpu_s() - start_cpu_s
    peak_rss_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    peak_gpu_bytes = None
    if (torch := sys.modules.get("torch")) and torch.cuda.is_initialized():
        peak_gpu_bytes = sum(torch.cuda.max_memory_allocated(i) for i in range(torch.cuda.device_count()))
    engine = load_engine(*resolve(settings))
    names = [*STAGES, *(map(stage_of, engine.classifiers) if len(engine.classifiers) > 1 else [])]
    stages = {}
    for name in names:
        stage = timings.stages[name]
        wall = None if name in CHILDREN_STAGES else stage.wall_s
        share = stage.cpu_s / cpu_s
        stages[name] = {"count": stage.count, "wall_s": wall, "cpu_s": stage.cpu_s, "cpu_share": share}
    num_videos, num_frames = timings.stages["open"].count, timings.stages["decode"].count
    num_faces = timings.stages["classify"].count
    floor = _floor(inputs, settings, engine, num_faces)
    return {
        "videos": num_videos,
        "video_minutes": timings.video_s / 60,
        "frames": num_frames,
        "faces": num_faces,
        "device": engine.runtime.device,
        "cpus": os.cpu_count(),
        "wall_s": wall_s,
        "cpu_s": cpu_s,
        "videos_per_hour": num_videos / wall_s * 3600,
        "frames_per_s": num_frames / wall_s,
        "faces_per_s": num_faces / wall_s,
        "wall_s_per_video_minute": wall_s / (timings.video_s / 60) if timings.video_s else None,
        "peak_rss_bytes": peak_rss_bytes,
        "peak_decoder_rss_bytes": timings.peak_child_rss_bytes,
        "peak_all_rss_bytes": peak_rss_bytes + engine.num_workers * timings.peak_child_rss_bytes,
        "gpu_share": timings.gpu_s / wall_s,
        "peak_gpu_bytes": peak_gpu_bytes,
        "stages": stages,
        "floor": floor,
        "ratio_to_floor": cpu_s / floor["cpu_s"] if floor["cpu_s"] else None,
        "wall_ratio_to_floor": wall_s / floor["wall_s"] if floor["wall_s"] else None,
    }


def run_cluster_bench(inputs: Sequence[str], settings: ScanSettings) -> dict[str, Any]:
    """Judge the same videos here, with one worker of a Ray cluster, and with all its workers.

    Costs are those from the first path to the last result, without the time in which models are loaded. Nothing is
    written. One worker can use more cores than it has threads, because its decoders are other processes; with several
    workers these cores are taken. Therefore each run is confined to as many cores as its workers have threads, if the
    cluster is a temporary one on this machine.

    Raises:
        ConfigError: an input or option is unusable, or the cluster cannot be reached.
        CheckpointError: there is no usable checkpoint.
        MissingExtraError: Ray is not installed.
    """
    resolved, checkpoints = resolve(for_workers(settings))
    paths = discover(inputs, include=settings.include, exclude=settings.exclude).paths
    if not paths:
        raise ConfigError("nothing to measure: the inputs contain no videos; check the paths")
    not_confined = None
    if cluster_address() != "local":
        not_confined = "the cluster in RAY_ADDRESS is not a temporary one on this machine"
    elif not can_confine():
        not_confined = "this system cannot confine processes"
    is_confined = not_confined is None
    facts, one = _judge_on_cluster(
        paths, dataclasses.replace(resolved, max_workers=1), checkpoints, is_confined=is_confined
    )
    engine = load_engine(dataclasses.replace(resolved, threads=facts["threads"]), checkpoints)
    with (
        measured(facts["threads"] if is_confined else None) as local,
        closing(scan_videos(paths, engine)) as judged,
    ):
        deque(judged, maxlen=0)
    all_facts, every = _judge_on_cluster(paths, resolved, checkpoints, is_confined=is_confined)
    figures: dict[str, Any] = {
        "videos": len(paths),
        "device": resolved.device,
        "threads": facts["threads"],
        "workers": all_facts["workers"],
        "start_s": all_facts["start_s"],
        "not_confined": not_confined,
    }
    for name, run in (("local", local), ("one_worker", one), ("all_workers", every)):
        figures |= {f"{name}_s": run.wall_s, f"{name}_cpu_s": run.cpu_s, f"{name}_cores": run.cores}
    return figures | {
        "overhead_s_per_video": (one.wall_s - local.wall_s) / len(paths),
        "overhead": one.wall_s / local.wall_s - 1,
        "efficiency": one.wall_s / (all_facts["workers"] * every.wall_s),
        "videos_per_hour": len(paths) / every.wall_s * 3600,
    }


def _judge_on_cluster(
    paths: Sequence[str], settings: ResolvedSettings, checkpoints: Sequence[Checkpoint], *, is_confined: bool
) -> tuple[dict[str, Any], Run]:
    start_s = time.perf_counter()
    with closing(Cluster(Job.of(settings, checkpoints, paths))) as cluster:
        num_workers = cluster.warm_up(len(paths))
        facts = {
            "workers": num_workers,
            "threads": cluster.facts()["threads"],
            "start_s": time.perf_counter() - start_s,
        }
        with (
            measured(num_workers * facts["threads"] if is_confined else None) as run,
            closing(cluster.results(paths)) as judged,
        ):
            deque(judged, maxlen=0)
    return facts, run


def _floor(inputs: Sequence[str], settings: ScanSettings, engine: Engine, num_faces: int) -> dict[str, float]:
    """Return CPU and wall seconds, with all classifiers.

    Decoding and classification can overlap, but they share the available cores.
    """
    paths = discover(inputs, include=settings.include, exclude=settings.exclude).paths
    start_s, start_cpu_s = time.perf_counter(), time.process_time()
    events = decode_videos(paths, sampling=engine.sampling, num_workers=engine.num_workers, limits=engine.limits)
    with closing(events):
        children_cpu_s = sum(event.cpu_s for event in events if isinstance(event, Ended))
    decode = time.perf_counter() - start_s, time.process_time() - start_cpu_s + children_cpu_s
    costs = [_classify_only(each.runtime, each.preprocessing.input_size_px) for each in engine.classifiers]
    classify = [num_faces * sum(cost) for cost in zip(*costs, strict=True)]
    cpu_s = decode[1] + classify[1]
    return {
        "decode_wall_s": decode[0],
        "decode_cpu_s": decode[1],
        "classify_wall_s": classify[0],
        "classify_cpu_s": classify[1],
        "cpu_s": cpu_s,
        "wall_s": max(decode[0], classify[0], cpu_s / (os.cpu_count() or 1)),
    }


def _classify_only(runtime: Runtime, size_px: int) -> tuple[float, float]:
    """Return wall and CPU seconds per face, measured with full batches on all threads."""
    shape = (runtime.threads, runtime.batch_size, 3, size_px, size_px)
    noise = np.random.default_rng(0).standard_normal(shape, np.float32)
    num_faces, wall_s, cpu_s = 0, 0.0, 0.0
    with ThreadPoolExecutor(runtime.threads) as pool:
        list(pool.map(runtime.predict, noise))  # warm-up: the first batch on a GPU takes longer
        while wall_s < FLOOR_S:
            start_s, start_cpu_s = time.perf_counter(), time.process_time()
            list(pool.map(runtime.predict, noise))
            wall_s += time.perf_counter() - start_s
            cpu_s += time.process_time() - start_cpu_s
            num_faces += runtime.threads * runtime.batch_size
    return wall_s / num_faces, cpu_s / num_faces


def _cpu_s() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)
