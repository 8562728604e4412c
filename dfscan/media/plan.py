"""Choose the frames to scan and the key frames to decode them from. Pure functions on timestamps.

Short videos are sampled evenly. Longer ones are sampled in bursts of four frames a quarter of a second apart, so that
faces can be linked by motion. The bursts are spread over the whole duration. They start at key frames, so that seeking
to them is cheap. ::

    10 s, 32 frames        | | | | | | | | | | | | | | | |      every 0.31 s
    10 min, 32 frames      ||||    ||||    ||||    ||||          8 bursts, one in each eighth
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dfscan.arrays import BoolArray
from dfscan.config import of_checkpoints

Streams = Literal["all", "main"] | int
"""Video streams of a file: all, the main one, or the one with this number."""

BURST_FRAMES = 4
BURST_STEP_S = 0.25
MAX_EVEN_STEP_S = 0.5
"""Maximum step of even sampling; a larger step means bursts. At half a second, faces still overlap in most footage."""
BURST_GAP_S = 0.75
"""Samples further apart than this belong to different bursts."""
DECODE_ALL_FRAMES = 900
"""Streams with up to this many frames (30 s at 30 fps) are decoded completely: it is cheap and reveals all damage."""
MIN_SEEK_GAIN_FRAMES = 12
"""A seek costs about as much as decoding this many frames; shorter distances are decoded."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """Sampling density of a video."""

    num_frames: int = of_checkpoints("num_frames")
    """Samples spread over the whole duration; ignored when `every_s` is given."""
    every_s: float | None = None
    """Seconds between samples."""
    max_frames: int | None = None
    """Maximum number of samples with `every_s`; a video that would need more is reported as partial."""
    streams: Streams = "all"
    """Video streams to scan; each gets its own samples."""


@dataclass(frozen=True, slots=True, eq=False)
class Timeline:
    """The frames of a stream in presentation order, according to its packets."""

    pts: NDArray[np.int64]
    """(N,) presentation timestamps in units of `time_base_s`, ascending."""
    is_key: BoolArray
    """(N,) True if decoding can start at this frame."""
    time_base_s: float

    @property
    def duration_s(self) -> float:
        """Seconds from the first frame to the end of the last, which is assumed to have the median duration."""
        return float(self.pts[-1] - self.pts[0]) * self.time_base_s + self.frame_s

    @property
    def frame_s(self) -> float:
        """Median time from one frame to the next, in seconds."""
        steps = np.diff(self.pts)
        steps = steps[steps > 0]
        return float(np.median(steps)) * self.time_base_s if len(steps) else 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """The frames to emit, and whether to decode the frames between them."""

    wanted: NDArray[np.intp]
    """Positions in the timeline, ascending, without repeats."""
    decode_all: bool
    is_cut_short: bool
    """True if `max_frames` removed frames."""


def plan_samples(timeline: Timeline, sampling: Sampling) -> Plan:
    """Choose the frames of a stream to scan."""
    limit = None
    if sampling.every_s is not None:
        # The frames on screen at 0, `every_s`, 2 `every_s`, ..., in time proportional to the number of frames. With a
        # step of 0.5 s, a frame from 0.9 s to 1.3 s is wanted, as the first multiple after 0.9 is 1.0 < 1.3.
        # Half a tick early, so that rounding of 0.3 s / (1/90000) does not pick the frame before.
        begin_s = ((timeline.pts - timeline.pts[0]) - 0.5) * timeline.time_base_s
        end_s = np.append(begin_s[1:], max(timeline.duration_s, timeline.time_base_s))
        first_s = np.ceil(np.maximum(begin_s, 0.0) / sampling.every_s) * sampling.every_s
        wanted, limit = np.flatnonzero(first_s < end_s), sampling.max_frames
    elif sampling.num_frames < len(timeline.pts):
        wanted = _spread(timeline, sampling.num_frames)
    else:
        wanted = np.arange(len(timeline.pts))
    kept = wanted[:limit]
    return Plan(kept, len(timeline.pts) <= DECODE_ALL_FRAMES, len(kept) < len(wanted))


def _spread(timeline: Timeline, size: int) -> NDArray[np.intp]:
    """Return `size` positions spread over the whole duration: evenly or, if they would be too far apart, in bursts.

    Long gaps between frames are shortened first. Otherwise an hour without a frame, or one stray timestamp, would take
    samples from the parts that have frames. ::

        0.0  0.5  1.0  3600.0  3600.5        becomes        0.0  0.5  1.0  1.5  2.0
    """
    longest = max(1, round(MAX_EVEN_STEP_S / timeline.time_base_s))
    pts = np.concatenate([[0], np.cumsum(np.clip(np.diff(timeline.pts), 0, longest))])
    timeline = replace(timeline, pts=pts)
    step_s = timeline.duration_s / size
    if step_s <= MAX_EVEN_STEP_S:
        times_s = (np.arange(size, dtype=np.float64) + 0.5) * step_s
        # Half a tick late, so that rounding of 0.3 s / (1/90000) does not pick the frame before.
        shown = np.searchsorted(pts, times_s / timeline.time_base_s + 0.5, side="right") - 1
        wanted = np.unique(np.clip(shown, 0, len(pts) - 1))
    else:
        num_bursts = math.ceil(size / BURST_FRAMES)
        borders = np.searchsorted(pts, np.linspace(0, pts[-1] + 1, num_bursts + 1))  # of segments of equal duration
        sizes = [size // num_bursts + (i < size % num_bursts) for i in range(num_bursts)]
        picked = [_burst(timeline, borders[i], borders[i + 1], each) for i, each in enumerate(sizes)]
        wanted = np.unique(np.concatenate(picked))
    # If frames are missing, add some that are spread evenly among those not wanted yet.
    rest = np.setdiff1d(np.arange(len(pts)), wanted, assume_unique=True)
    added = rest[np.linspace(0, len(rest) - 1, size - len(wanted)).round().astype(np.intp)]
    return np.union1d(wanted, added)


def _burst(timeline: Timeline, first: int, end: int, size: int) -> NDArray[np.intp]:
    """Return `size` positions in [first, end) about `BURST_STEP_S` apart, starting at a key frame if there is one.

    The burst starts at the key frame nearest to the middle that leaves room for it, or else in the middle. If it does
    not fit there either, it starts at `first`. If the segment is too short, the positions are closer together.
    """
    if end <= first:
        return np.empty(0, dtype=np.intp)
    step = BURST_STEP_S / timeline.time_base_s
    middle = (timeline.pts[first] + timeline.pts[end - 1]) / 2
    last_start = timeline.pts[end - 1] - (size - 1) * BURST_STEP_S / timeline.time_base_s
    keys = first + np.flatnonzero(timeline.is_key[first:end])
    keys = keys[timeline.pts[keys] <= last_start]
    if len(keys):
        best = int(keys[np.argmin(np.abs(timeline.pts[keys] - middle))])
    else:
        best = int(min(np.searchsorted(timeline.pts, middle), end - 1))
    for start in (best, first):
        picked = [start]
        while len(picked) < size and picked[-1] < end:
            following = int(np.searchsorted(timeline.pts, timeline.pts[picked[-1]] + step - 0.5))
            picked.append(max(picked[-1] + 1, following))
        if len(picked) == size and picked[-1] < end:
            return np.array(picked, dtype=np.intp)
    return np.unique(np.linspace(first, end - 1, min(size, end - first)).round().astype(np.intp))


def seek_target(timeline: Timeline, *, wanted: int, position: int) -> int | None:
    """Return the key frame to seek to in order to reach a frame.

    Args:
        timeline: frames of the stream.
        wanted: position of the frame to emit next.
        position: position of the frame that the decoder would return next.

    Returns:
        Position of the last key frame at or before `wanted`, or None if decoding without a seek is cheaper.
    """
    nearest = position + MIN_SEEK_GAIN_FRAMES
    keys = np.flatnonzero(timeline.is_key[nearest : wanted + 1])
    return nearest + int(keys[-1]) if len(keys) else None
