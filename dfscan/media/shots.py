"""Number the shots of a video: detect cuts and dissolves during decoding.

A hard cut changes the whole frame from one frame to the next; a fast camera changes it over many frames. Therefore each
frame is compared with its predecessor, and a change several times as large as the recent changes is a cut (adaptive
thresholding, as in PySceneDetect's ``AdaptiveDetector``). In a dissolve all frames are mixtures of its first and last
frame, which does not hold for a moving camera (Alattar 1993, "Detecting and compressing dissolve regions in video
sequences with a DVI multimedia image compression algorithm"). This is tested in windows that slide over each shot. A
blank frame also separates shots.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from dfscan.arrays import Float32Array
from dfscan.types import Dissolve

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
WINDOWS = (20, 32, 64)
"""Number of frames in each window that is searched for dissolves, not counting the first. A shorter shot is one window
if it has at least `MIN_WINDOW`."""
MIN_WINDOW = 8
WINDOW_STRIDE = 4
"""Number of frames from one window to the next."""
MIN_DISSOLVE = 5.0
"""Minimum change of a dissolve, in mean levels, from the first to the last frame of a window."""
MAX_RESIDUE = 0.13
"""Maximum mean distance of the frames of a dissolve from a mixture of the first and the last, as a proportion of the
distance between these two."""
PURE = 0.1
"""Maximum share of another shot in a frame that counts as a frame of one shot."""
MAX_KEPT = 512
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
        self._num_frames = 0
        self._samples: list[int] = []
        """Position of each sample among the added frames."""
        self._kept: list[Float32Array] = []
        """The last frames of the shot."""
        self._spans: list[_Span] = []

    def add(self, frame: VideoFrame) -> None:
        """Add the next frame."""
        cells = self._brightness(frame)
        is_blank = float(cells.max() - cells.min()) < BLANK
        if self._last is not None:
            change = float(np.abs(cells - self._last).sum()) / cells.size
            min_cut = min(SURE_CUT, max(MIN_CUT, CUT_RATIO * max(self._recent, default=SURE_CUT)))
            if change > min_cut or (self._is_blank and not is_blank):
                self._begin_shot()
            self._recent.append(change)
        self._last, self._is_blank = cells, is_blank
        self._kept.append(cells)
        self._num_frames += 1
        if len(self._kept) > MAX_KEPT:
            self._find_dissolves(len(self._kept) - WINDOWS[-1])
            del self._kept[: -2 * WINDOWS[-1]]

    def skip(self) -> None:
        """Start a new shot because the next frame does not follow the last one; skipped frames may contain cuts."""
        self._begin_shot()
        self._last = None
        self._recent.clear()

    def sample(self) -> int:
        """Mark the last frame as a sample and return the number of its shot, in which dissolves do not count yet."""
        self._samples.append(self._num_frames - 1)
        return self._number

    def dissolves(self, first_sample: int = 0) -> list[Dissolve]:
        """Return all dissolves after the last frame was added.

        Args:
            first_sample: position of the first sample of the stream in the samples of the video.
        """
        self._begin_shot()
        at = first_sample + np.searchsorted(self._samples, np.array(self._spans, np.int64).reshape(-1, 3))
        return [Dissolve(*each) for each in dict.fromkeys(map(tuple, at.tolist()))]

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
        self._find_dissolves(len(self._kept))
        self._kept.clear()

    def _find_dissolves(self, stop: int) -> None:
        """Search the kept frames for dissolves; of those that overlap, the one with the largest change counts.

        Args:
            stop: kept frame from which on no dissolve may have its middle, because more frames may belong to it.
        """
        if len(self._kept) <= MIN_WINDOW:
            return
        start = self._num_frames - len(self._kept)
        found = self._spans[-1:]
        for span in _mixtures(np.stack(self._kept).reshape(len(self._kept), -1)):
            first, middle, end = (start + at for at in span)
            if span.middle < stop and all(end <= other.first or other.end <= first for other in found):
                found.append(_Span(first, middle, end))
        self._spans[-1:] = sorted(found)


class _Span(NamedTuple):
    """Positions of frames in a dissolve."""

    first: int
    """First frame that shows both shots."""
    middle: int
    """First frame that mainly shows the new shot."""
    end: int
    """First frame that shows only the new shot."""


def _mixtures(frames: Float32Array) -> list[_Span]:
    """Return the dissolves among the frames of one shot, (N, 256), largest change first; they may overlap."""
    found = []
    for length in WINDOWS if len(frames) > WINDOWS[0] else (len(frames) - 1,):
        last = len(frames) - 1 - length
        starts = np.append(np.arange(0, last, WINDOW_STRIDE), last)[: max(0, last + 1)]
        ways = frames[starts + length] - frames[starts]
        changes = np.abs(ways).mean(axis=1)
        for start, way, change in zip(starts.tolist(), ways, changes.tolist(), strict=True):
            if change >= MIN_DISSOLVE and (span := _mixture(frames[start : start + length + 1], way)):
                found.append((change, _Span(*(start + at for at in span))))
    return [span for _, span in sorted(found, key=lambda each: -each[0])]


def _mixture(window: Float32Array, way: Float32Array) -> _Span | None:
    """Return the dissolve in a window, (L, 256), if all its frames are mixtures of the first and the last."""
    between = window - window[0]
    length = float(np.linalg.norm(way))
    shares = (between @ way / length**2).clip(0, 1)
    residues = np.linalg.norm(between - shares[:, None] * way, axis=1)
    if float(residues[1:-1].mean()) >= MAX_RESIDUE * length:
        return None
    middle = int(np.argmax(shares >= 0.5))
    first = middle - int(np.argmax(shares[middle::-1] <= PURE)) + 1
    return _Span(first, middle, middle + int(np.argmax(shares[middle:] >= 1 - PURE)))


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
