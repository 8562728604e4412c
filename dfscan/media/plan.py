"""Which pictures to look at, and from which key frames to decode them. Pure functions on timestamps.

Short videos are sampled evenly. Longer ones are sampled in bursts: four pictures a quarter of a second apart, in
which faces can be linked by motion, spread over the whole duration and started at key frames, so that reaching
each costs little. ::

    10 s, 32 frames        | | | | | | | | | | | | | | | |      every 0.31 s
    10 min, 32 frames      ||||    ||||    ||||    ||||          8 bursts, one in each eighth
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Streams = Literal["all", "main"] | int
"""Which video streams of a file: all, the main one, or the one with this number."""

BURST_FRAMES = 4
BURST_STEP_S = 0.25
MAX_EVEN_STEP_S = 0.5
"""Faces half a second apart still overlap in most footage; further apart they are sampled in bursts."""
BURST_GAP_S = 0.75
"""Samples further apart than this belong to different bursts."""
DECODE_ALL_FRAMES = 900
"""Up to here (30 s at 30 fps) everything is decoded: it is cheap, and it shows all the damage there is."""
MIN_SEEK_GAIN_FRAMES = 12
"""A seek costs about as much as decoding this many frames; a shorter way is decoded through."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How densely a video is looked at."""

    num_frames: int = 32
    """Samples spread over the whole duration; ignored when `every_s` is given."""
    every_s: float | None = None
    """Seconds from one sample to the next."""
    max_frames: int | None = None
    """At most so many samples with `every_s`; a video with more is reported as partial."""
    streams: Streams = "all"
    """The video streams that are looked at; each gets its own samples."""


@dataclass(frozen=True, slots=True, eq=False)
class Timeline:
    """The pictures of a stream as its packets announce them, in the order in which they are shown."""

    pts: NDArray[np.int64]
    """(N,) presentation timestamps in units of `time_base_s`, ascending."""
    is_key: NDArray[np.bool_]
    """(N,) whether decoding can start at this picture."""
    time_base_s: float

    @property
    def duration_s(self) -> float:
        """From the first picture to the end of the last, which is taken to last as long as the median one."""
        return float(self.pts[-1] - self.pts[0]) * self.time_base_s + self.frame_s

    @property
    def frame_s(self) -> float:
        """Median time from one picture to the next, in seconds."""
        steps = np.diff(self.pts)
        steps = steps[steps > 0]
        return float(np.median(steps)) * self.time_base_s if len(steps) else 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """Which pictures to emit and whether to skip what lies between."""

    wanted: NDArray[np.intp]
    """Positions in the timeline, ascending, without repeats."""
    decode_all: bool
    is_cut_short: bool
    """`max_frames` left pictures out."""


def plan_samples(timeline: Timeline, sampling: Sampling) -> Plan:
    """Choose the pictures of a video that are looked at."""
    wanted = _wanted(timeline, sampling)
    limit = sampling.max_frames if sampling.every_s is not None else None
    kept = wanted[:limit]
    return Plan(kept, len(timeline.pts) <= DECODE_ALL_FRAMES, len(kept) < len(wanted))


def _wanted(timeline: Timeline, sampling: Sampling) -> NDArray[np.intp]:
    if sampling.every_s is not None:
        return _every(timeline, sampling.every_s)
    if sampling.num_frames >= len(timeline.pts):
        return np.arange(len(timeline.pts))
    timeline = _without_stills(timeline)
    step_s = timeline.duration_s / sampling.num_frames
    if step_s <= MAX_EVEN_STEP_S:
        wanted = _at_times(timeline, (np.arange(sampling.num_frames, dtype=np.float64) + 0.5) * step_s)
    else:
        wanted = _bursts(timeline, sampling.num_frames)
    return _filled_up(wanted, sampling.num_frames, len(timeline.pts))


def _without_stills(timeline: Timeline) -> Timeline:
    """The same frames on a clock that stops while one of them stays on screen for long.

    So an hour without a frame, or one stray timestamp, takes no samples from the parts that have frames. ::

        0.0  0.5  1.0  3600.0  3600.5        becomes        0.0  0.5  1.0  1.5  2.0
    """
    longest = max(1, round(MAX_EVEN_STEP_S / timeline.time_base_s))
    steps = np.clip(np.diff(timeline.pts), 0, longest)
    return replace(timeline, pts=np.concatenate([[0], np.cumsum(steps)]))


def _filled_up(wanted: NDArray[np.intp], size: int, num_frames: int) -> NDArray[np.intp]:
    """Add frames until there are `size`, spread evenly over those that are not wanted yet."""
    rest = np.setdiff1d(np.arange(num_frames), wanted, assume_unique=True)
    added = rest[np.linspace(0, len(rest) - 1, size - len(wanted)).round().astype(np.intp)]
    return np.union1d(wanted, added)


def _every(timeline: Timeline, step_s: float) -> NDArray[np.intp]:
    """Pictures that are on screen at 0, `step_s`, 2 `step_s`, ...; never more work than there are pictures.

    A picture from 0.9 s to 1.3 s is wanted every 0.5 s: the first multiple from 0.9 on is 1.0, and 1.0 < 1.3.
    """
    # Half a tick early: 0.3 s / (1/90000) must not fall just short of its own picture.
    begin_s = ((timeline.pts - timeline.pts[0]) - 0.5) * timeline.time_base_s
    end_s = np.append(begin_s[1:], max(timeline.duration_s, timeline.time_base_s))
    return np.flatnonzero(np.ceil(np.maximum(begin_s, 0.0) / step_s) * step_s < end_s)


def _at_times(timeline: Timeline, times_s: NDArray[np.float64]) -> NDArray[np.intp]:
    """Position of the picture on screen at each time after the first picture."""
    ticks = timeline.pts[0] + times_s / timeline.time_base_s if timeline.time_base_s else times_s
    # Half a tick: 0.3 s / (1/90000) must not fall just short of its own picture.
    shown = np.searchsorted(timeline.pts, ticks + 0.5, side="right") - 1
    return np.unique(np.clip(shown, 0, len(timeline.pts) - 1))


def _bursts(timeline: Timeline, num_frames: int) -> NDArray[np.intp]:
    num_bursts = math.ceil(num_frames / BURST_FRAMES)
    borders = _at_border(timeline, num_bursts)
    sizes = [num_frames // num_bursts + (i < num_frames % num_bursts) for i in range(num_bursts)]
    picked = [_burst(timeline, borders[i], borders[i + 1], size) for i, size in enumerate(sizes)]
    return np.unique(np.concatenate(picked))


def _at_border(timeline: Timeline, num_segments: int) -> NDArray[np.intp]:
    """Positions that cut the timeline into segments of equal duration, both ends included."""
    ticks = np.linspace(timeline.pts[0], timeline.pts[-1] + 1, num_segments + 1)
    return np.searchsorted(timeline.pts, ticks)


def _burst(timeline: Timeline, first: int, end: int, size: int) -> NDArray[np.intp]:
    """`size` pictures about `BURST_STEP_S` apart within positions [first, end), from a key frame if there is one."""
    if end <= first:
        return np.empty(0, dtype=np.intp)
    for start in (_burst_start(timeline, first, end, size), first):
        picked = _run(timeline, start, end, size)
        if len(picked) == size:
            return picked
    return np.unique(np.linspace(first, end - 1, min(size, end - first)).round().astype(np.intp))


def _run(timeline: Timeline, start: int, end: int, size: int) -> NDArray[np.intp]:
    """Up to `size` positions before `end`, the first at `start`, each next one `BURST_STEP_S` later or more."""
    step = BURST_STEP_S / timeline.time_base_s
    picked = [start]
    while len(picked) < size and picked[-1] < end:
        following = int(np.searchsorted(timeline.pts, timeline.pts[picked[-1]] + step - 0.5))
        picked.append(max(picked[-1] + 1, following))
    return np.array([position for position in picked if position < end], dtype=np.intp)


def _burst_start(timeline: Timeline, first: int, end: int, size: int) -> int:
    """The key frame nearest to the middle of the segment that leaves room for a burst, else the middle itself."""
    middle = (timeline.pts[first] + timeline.pts[end - 1]) / 2
    last_start = timeline.pts[end - 1] - (size - 1) * BURST_STEP_S / timeline.time_base_s
    keys = first + np.flatnonzero(timeline.is_key[first:end])
    keys = keys[timeline.pts[keys] <= last_start]
    if len(keys):
        return int(keys[np.argmin(np.abs(timeline.pts[keys] - middle))])
    return int(min(np.searchsorted(timeline.pts, middle), end - 1))


def seek_target(timeline: Timeline, *, wanted: int, position: int) -> int | None:
    """Where to seek on the way to a picture.

    Args:
        timeline: the stream's pictures.
        wanted: position of the picture that is to be emitted next.
        position: position of the picture that the decoder would give next.

    Returns:
        Position of the last key frame at or before `wanted`, or None where decoding on is cheaper.
    """
    nearest = position + MIN_SEEK_GAIN_FRAMES
    keys = np.flatnonzero(timeline.is_key[nearest : wanted + 1])
    return nearest + int(keys[-1]) if len(keys) else None
