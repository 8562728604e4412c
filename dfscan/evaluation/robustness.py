"""Degraded copies of videos, to simulate messaging apps, platforms and bad cameras."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from av.container import OutputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from dfscan.arrays import UInt8Image
from dfscan.errors import OutputError
from dfscan.forgery.degrade import blur, compress_jpeg
from dfscan.media.isolate import Decoded, Ended, Limits, Opened, decode_videos
from dfscan.media.plan import Sampling
from dfscan.types import Reason

MAX_COPIED_FRAMES = 1500
"""Maximum frames per copy (a minute at 25 frames per second); longer videos are cut."""
ALL_FRAMES_EVERY_S = 1e-3
TICKS_A_SECOND = 90_000
MIN_SIDE_PX = 16
"""Minimum frame side that the encoder accepts."""
BEST_CRF = 10
"""Rate factor at which compression adds almost nothing to the other changes."""


@dataclass(frozen=True, slots=True)
class Condition:
    """The H.264 rate factor of a copy and an optional change of its frames."""

    name: str
    crf: int = BEST_CRF
    change: Callable[[UInt8Image], UInt8Image] | None = None


def shrink(pixels: UInt8Image, *, factor: float) -> UInt8Image:
    """Shrink a frame by area averaging, without enlarging it again."""
    height, width = (max(MIN_SIDE_PX, round(side * factor)) for side in pixels.shape[:2])
    return np.asarray(cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA), np.uint8)


CONDITIONS = (
    Condition("CRF 23", 23),
    Condition("CRF 32", 32),
    Condition("CRF 40", 40),
    Condition("half size", change=partial(shrink, factor=1 / 2)),
    Condition("quarter size", change=partial(shrink, factor=1 / 4)),
    Condition("blur 2 px", change=partial(blur, sigma_px=2.0)),
    Condition("JPEG 30", change=partial(compress_jpeg, quality=30)),
)


@dataclass(slots=True)
class Copies:
    """The copies of a set of videos."""

    paths: dict[str, str] = field(default_factory=dict)
    """Path of each copy, by path of the original."""
    failures: dict[str, Reason] = field(default_factory=dict)
    """Reasons for missing copies, by path of the original."""
    num_cut_short: int = 0
    """Number of videos with more than `max_frames` frames."""


def write_copies(
    paths: Iterable[str],
    condition: Condition,
    folder: Path,
    *,
    num_workers: int,
    limits: Limits,
    max_frames: int = MAX_COPIED_FRAMES,
) -> Copies:
    """Write a degraded copy of each video as H.264 in MP4, keeping the time of every frame.

    If compression is the condition, the encoder uses its default preset, as platforms do.

    Args:
        paths: the originals; decoded as in a scan, so upright and with square pixels.
        condition: degradation to apply.
        folder: existing, empty output folder.
        num_workers: number of videos decoded in parallel.
        limits: limits of each decoding process.
        max_frames: maximum number of frames copied per video.

    Raises:
        OutputError: a copy cannot be written.
    """
    sampling = Sampling(every_s=ALL_FRAMES_EVERY_S, max_frames=max_frames, streams="main")
    writers: dict[str, _Writer] = {}
    copies = Copies()
    with closing(decode_videos(paths, sampling=sampling, num_workers=num_workers, limits=limits)) as events:
        numbers = itertools.count()
        for event in events:
            if isinstance(event, Opened) and event.path in writers:  # a retry starts from the beginning
                writers.pop(event.path).close()
            elif isinstance(event, Decoded):
                if event.path not in writers:
                    writers[event.path] = _Writer(folder / f"{next(numbers):06d}.mp4", condition)
                    copies.paths[event.path] = str(writers[event.path].path)
                writers[event.path].add(event.frame.pixels, event.frame.time_s)
            elif isinstance(event, Ended):
                copies.num_cut_short += event.is_cut_short
                if event.path in writers:
                    writers.pop(event.path).close()
                if event.failure:
                    copies.failures[event.path] = event.failure
    copies.paths = {path: copy for path, copy in copies.paths.items() if path not in copies.failures}
    return copies


class _Writer:
    """Writes one copy with the size of its first frame."""

    def __init__(self, path: Path, condition: Condition) -> None:
        self.path = path
        self._condition = condition
        self._container: OutputContainer | None = None
        self._stream: VideoStream | None = None
        self._last_tick = -1

    def add(self, pixels: UInt8Image, time_s: float) -> None:
        pixels = self._condition.change(pixels) if self._condition.change else pixels
        try:
            if self._stream is None:
                self._stream = self._open(*pixels.shape[:2])
            # The encoder rejects an odd row or column, which is cropped. Frames of another size than the first are
            # resized.
            height, width = self._stream.height, self._stream.width
            if pixels.shape[0] - height not in (0, 1) or pixels.shape[1] - width not in (0, 1):
                pixels = np.asarray(cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
            frame = VideoFrame.from_ndarray(np.ascontiguousarray(pixels[:height, :width]), format="rgb24")
            self._last_tick = max(self._last_tick + 1, round(time_s * TICKS_A_SECOND))
            frame.pts, frame.time_base = self._last_tick, Fraction(1, TICKS_A_SECOND)
            self._mux(self._stream.encode(frame))
        except (av.error.FFmpegError, OSError) as error:
            raise self._failure(error) from error

    def _open(self, height: int, width: int) -> VideoStream:
        self._container = av.open(str(self.path), "w")
        stream = self._container.add_stream("libx264", rate=25)
        assert isinstance(stream, VideoStream)
        stream.height, stream.width = (max(MIN_SIDE_PX, side // 2 * 2) for side in (height, width))
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, TICKS_A_SECOND)
        stream.codec_context.thread_count = 1
        speed = {"preset": "veryfast"} if self._condition.change else {}
        stream.codec_context.options = {"crf": str(self._condition.crf), **speed}
        return stream

    def _mux(self, packets: Any) -> None:
        assert self._container is not None
        self._container.mux(packets)

    def close(self) -> None:
        if self._container is None or self._stream is None:
            return
        try:
            self._mux(self._stream.encode(None))
            self._container.close()
        except (av.error.FFmpegError, OSError) as error:
            raise self._failure(error) from error

    def _failure(self, error: Exception) -> OutputError:
        cause = getattr(error, "strerror", None) or error
        return OutputError(
            f"{self.path}: a copy for --robustness cannot be written ({cause}); free some space there, or set TMPDIR "
            "to another folder for temporary files"
        )
