"""Number the shots of a video: detect cuts and dissolves during decoding.

A hard cut changes the whole frame from one frame to the next; a fast camera changes it over many frames. Therefore each
frame is compared with its predecessor, and a change several times as large as the recent changes is a cut (adaptive
thresholding, as in PySceneDetect's ``AdaptiveDetector``). In a dissolve all frames are mixtures of its first and last
frame, which does not hold for a moving camera (Alattar 1993, "Detecting and compressing dissolve regions in video
sequences with a DVI multimedia image compression algorithm"). A blank frame also separates shots.

Measured on every frame of 73 clips of 1 to 30 s: 99.3 % of 2,500 synthetic hard cuts between two clips are detected,
and nearly all missed ones lead to another take of the same scene. About nine in ten synthetic dissolves of 0.3 to 1 s
are detected. A false cut does little harm, because tracks are joined again by similarity.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from dfscan.arrays import Float32Array

"""(16, 16) mean levels, 0 to 255."""

NUM_CELLS = 16
"""Number of cells along each side of a frame."""
NUM_SAMPLED = (2, 4)
"""Pixels along y and x that are averaged per cell; reading all of them would cost as much as decoding."""
SUM_ROWS: Float32Array = np.repeat(np.eye(NUM_CELLS, dtype=np.float32), NUM_SAMPLED[0], axis=1)
SUM_COLUMNS: Float32Array = np.repeat(np.eye(NUM_CELLS, dtype=np.float32), NUM_SAMPLED[1], axis=0)
"""Matrices that sum the samples of each cell."""
NUM_RECENT = 6
"""Number of preceding changes that a change is compared with."""
MIN_CUT, CUT_RATIO = 3.0, 3.0
"""Minimum change of a cut, in mean levels, and minimum ratio of it to the largest recent change."""
SURE_CUT = 25.0
"""A change of more than this many mean levels is always a cut."""
MIN_DISSOLVE = 8.0
"""Minimum change of a dissolve, in mean levels, over two steps from sample to sample."""
MAX_RESIDUE = 0.17
"""Maximum mean distance of the frames of a dissolve from a mixture of the first and the last, as a proportion of the
distance between these two."""
MAX_KEPT = 128
"""Maximum number of frames that are kept to detect dissolves."""
BLANK = 8.0
"""A frame whose levels have a smaller range than this is blank, as in a fade through black."""


class ShotCounter:
    """Counts the shots of one stream from its decoded frames, which must be added in order."""

    def __init__(self) -> None:
        self._number = 0
        self._last: Float32Array | None = None
        self._is_blank = False
        self._kind: tuple[str, int, int] | None = None
        self._layout: _Layout
        self._recent: deque[float] = deque(maxlen=NUM_RECENT)
        self._kept: deque[Float32Array] = deque(maxlen=MAX_KEPT)
        """Frames since the second to last sample."""
        self._num_new = 0
        """Number of these frames after the last sample."""

    def add(self, frame: VideoFrame) -> None:
        """Add the next frame."""
        cells = self._brightness(frame)
        is_blank = float(cells.max() - cells.min()) < BLANK
        if self._last is not None:
            change = float(np.abs(cells - self._last).sum()) / cells.size
            if change > self._min_cut() or (self._is_blank and not is_blank):
                self._begin_shot()
            self._recent.append(change)
        self._last, self._is_blank = cells, is_blank
        self._kept.append(cells)
        self._num_new += 1

    def skip(self) -> None:
        """Start a new shot because the next frame does not follow the last one; skipped frames may contain cuts."""
        self._begin_shot()
        self._last = None
        self._recent.clear()

    def sample(self) -> int:
        """Mark the last frame as a sample and return the number of its shot."""
        if self._kept and _is_dissolve(np.stack(self._kept)):
            last = self._kept[-1]
            self._begin_shot()
            self._kept.append(last)
        while len(self._kept) > self._num_new + 1:
            self._kept.popleft()
        self._num_new = 0
        return self._number

    def _brightness(self, frame: VideoFrame) -> Float32Array:
        """Return the mean luma of each cell."""
        kind = frame.format.name, frame.width, frame.height
        if kind != self._kind:
            self._kind, self._layout = kind, _Layout.of(frame)
        if not self._layout.is_readable:
            return self._brightness(frame.reformat(format="gray", threads=1))
        plane = frame.planes[0]
        pixels = np.frombuffer(memoryview(plane), self._layout.dtype).reshape(plane.height, -1)
        sampled = pixels.take(self._layout.rows, axis=0).take(self._layout.columns, axis=1)
        return np.asarray(
            SUM_ROWS @ sampled.astype(np.float32) @ SUM_COLUMNS * np.float32(self._layout.scale), np.float32
        )

    def _begin_shot(self) -> None:
        self._number += 1
        self._kept.clear()
        self._num_new = 0

    def _min_cut(self) -> float:
        return min(SURE_CUT, max(MIN_CUT, CUT_RATIO * max(self._recent, default=SURE_CUT)))


def _is_dissolve(frames: Float32Array) -> bool:
    """Return whether all frames, (N, 16, 16), are mixtures of the first and the last, and these two differ."""
    way, between = frames[-1] - frames[0], frames[1:-1] - frames[0]
    if len(frames) < 3 or float(np.abs(way).mean()) < MIN_DISSOLVE:
        return False
    length = float(np.linalg.norm(way))
    shares = (between * way).sum(axis=(1, 2)) / length**2
    residues = between - shares.clip(0, 1)[:, None, None] * way
    return float(np.linalg.norm(residues, axis=(1, 2)).mean()) < MAX_RESIDUE * length


@dataclass(frozen=True, slots=True)
class _Layout:
    """Positions and types of the pixels to read from frames of one format and size."""

    is_readable: bool
    """True if the first plane holds luma in bytes or in words of native byte order."""
    dtype: np.dtype[Any]
    scale: float
    """Factor from the sum of a cell's samples to its mean level, 0 to 255."""
    rows: NDArray[np.intp]
    columns: NDArray[np.intp]

    @classmethod
    def of(cls, frame: VideoFrame) -> _Layout:
        """Derive the layout from the format and size of a frame."""
        component = frame.format.components[0]
        rows, columns = (
            np.arange(NUM_CELLS * num_sampled) * size // (NUM_CELLS * num_sampled)
            for num_sampled, size in zip(NUM_SAMPLED, (frame.height, frame.width), strict=True)
        )
        return cls(
            component.is_luma and not frame.format.is_bit_stream and not frame.format.is_big_endian,
            np.dtype(np.uint8 if component.bits == 8 else np.uint16),
            1 / (NUM_SAMPLED[0] * NUM_SAMPLED[1] << component.bits - 8),
            rows,
            columns,
        )
