"""Fingerprints of videos, by which a copy is found although it was encoded again, scaled, cropped or letter-boxed.

Like vPDQ (https://github.com/facebook/ThreatExchange/tree/main/vpdq) it starts from small grey pictures of sampled
frames. It does not hash each of them: two takes of one person in front of one wall, and a face swap and its source,
differ less in PDQ's 256 bits per frame than a frame and its crop. A fingerprint holds three things instead:

- the mean picture. Two mean pictures are aligned (Evangelidis and Psarakis 2008, "Parametric image alignment using
  enhanced correlation coefficient maximization"). What is left in one place shows an edit, such as another face.
- the changes: the differences of each frame from the mean. The standing background cancels out, and the movements of
  two takes do not agree.
- the mean face, aligned by its landmarks, so that a swapped face shows although the head moves.

Black bars at the edges are removed first. A video in which nothing moves, or that is too dark, has no fingerprint.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from dfscan.arrays import Float32Array, UInt8Image
from dfscan.faces.descriptor import INNER_PX
from dfscan.types import Fingerprint

NUM_SKETCHES = 12
"""Number of frames in a fingerprint, spread evenly over the sampled ones."""
MIN_FRAMES = 4
MAX_HELD_SKETCHES = 96
"""Maximum number of small pictures held per video; in longer videos only every second, fourth, ... frame is held."""
SKETCH_EVERY = 2
"""Number of sampled frames from one sketch to the next; each costs about a millisecond."""
SKETCH_PX = 128
MEAN_PX = 64
SKETCH_CELLS = 8
"""Number of cells along each side in which the changes are measured."""
MEAN_JPEG_QUALITY = 90
BLACK = 28
"""Rows and columns at the edges whose pixels never exceed this level are bars."""
MIN_MOVEMENT = 0.3
"""Minimum root mean square change of the cells, in levels; less is the noise of an encoder."""
MIN_CONTRAST = 4.0
"""Minimum standard deviation of the mean picture, in levels."""
MIN_AGREEMENT = 0.6
"""Minimum correlation of the changes of two copies."""
MAX_DIFFERENCE, MAX_DIFFERENCE_WITHOUT_FACES = 3.0, 2.4
"""Maximum difference of two aligned mean pictures, averaged over any square of `PART_PX`, in levels."""
MAX_FACE_DIFFERENCE = 3.5
"""Maximum root mean square difference of two mean faces, in levels.

The limits were selected on other clips than those whose results the design notes report.
"""
MIN_FACES = 3
FACE_BLUR_PX, FACE_MARGIN_PX = 1.5, 3
PART_PX = 9
BLUR_PX = 1.0
SCALES = (1.0, 1 / 0.95, 1 / 0.9, 0.95, 0.9)
"""Scales at which the alignment starts: uncropped, and cropped on either side."""
GOOD_ALIGNMENT = 0.995
"""Correlation from which no further start is tried."""
MIN_OVERLAP = 0.5
"""Minimum part of the mean picture that the other one must cover."""
AnyFloats = NDArray[Any]
_STEPS = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 100, 1e-6)


class Sketch(NamedTuple):
    """What a fingerprint needs of one frame."""

    face: UInt8Image | None
    """(32, 32) inner part of the largest face, from `faces.descriptor.inner_face`."""

    picture: UInt8Image
    """(128, 128) grey."""
    row_maxima: UInt8Image
    """(R,) highest level of each row that was read."""
    column_maxima: UInt8Image
    """(W,) highest level of each column."""


def sketch(pixels: UInt8Image, face: UInt8Image | None) -> Sketch:
    """Reduce a frame, (H, W, 3) RGB, to its sketch, given its largest face.

    About 256 rows are read, and of these every fourth pixel for the maxima.
    """
    some_rows = pixels[:: max(1, len(pixels) // (2 * SKETCH_PX))]
    grey = np.asarray(cv2.cvtColor(some_rows, cv2.COLOR_RGB2GRAY), np.uint8)
    small = cv2.resize(grey, (SKETCH_PX, SKETCH_PX), interpolation=cv2.INTER_AREA)
    return Sketch(face, np.asarray(small, np.uint8), grey[:, ::4].max(axis=1), grey[::4].max(axis=0))


@dataclass(slots=True, eq=False)
class _Held:
    number: int
    picture: UInt8Image


class Fingerprinter:
    """Makes the fingerprint of one video from the sketches of its frames, which must be added in order.

    Only frames of the first stream, and of the size of its first frame, count.
    """

    def __init__(self) -> None:
        self._held: list[_Held] = []
        self._every = 1
        self._num_frames = 0
        self._stream: int | None = None
        self._row_maxima = self._column_maxima = np.zeros(0, np.uint8)
        self._num_faces, self._sum_of_faces = 0, np.zeros(0, np.float32)

    def add(self, drawn: Sketch, stream: int) -> None:
        """Add the sketch of the next frame."""
        if self._stream is None:
            self._stream, self._row_maxima, self._column_maxima = stream, drawn.row_maxima, drawn.column_maxima
        has_size = len(self._row_maxima), len(self._column_maxima)
        if stream != self._stream or has_size != (len(drawn.row_maxima), len(drawn.column_maxima)):
            return
        self._row_maxima = np.maximum(self._row_maxima, drawn.row_maxima)
        self._column_maxima = np.maximum(self._column_maxima, drawn.column_maxima)
        if drawn.face is not None:
            self._sum_of_faces = drawn.face + (self._sum_of_faces if self._num_faces else np.float32(0))
            self._num_faces += 1
        if self._num_frames % self._every == 0:
            self._held.append(_Held(self._num_frames, drawn.picture))
        self._num_frames += 1
        if len(self._held) > MAX_HELD_SKETCHES:
            self._every *= 2
            self._held = [held for held in self._held if held.number % self._every == 0]

    def fingerprint(self) -> Fingerprint | None:
        """Return the fingerprint, or None if there are too few frames, nothing moves, or the picture is too dark."""
        rows, columns = (np.flatnonzero(maxima > BLACK) for maxima in (self._row_maxima, self._column_maxima))
        if len(self._held) < MIN_FRAMES or not len(rows) or not len(columns):
            return None
        at = np.linspace(0, len(self._held) - 1, min(NUM_SKETCHES, len(self._held))).round().astype(int)
        to_sketch = np.array(
            [_axis(columns, len(self._column_maxima), 0), _axis(rows, len(self._row_maxima), 1)], np.float32
        )
        flags, border = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, cv2.BORDER_REPLICATE
        cuts = [
            cv2.warpAffine(self._held[i].picture, to_sketch, (MEAN_PX, MEAN_PX), flags=flags, borderMode=border)
            for i in at
        ]
        pictures = np.stack(cuts).astype(np.float32)
        mean = pictures.mean(axis=0)
        cells = np.stack([_cells(picture) for picture in pictures])
        changes = cells - cells.mean(axis=0)
        if float(mean.std()) < MIN_CONTRAST or float(np.sqrt(np.square(changes).mean())) < MIN_MOVEMENT:
            return None
        padded = np.zeros((NUM_SKETCHES, SKETCH_CELLS, SKETCH_CELLS), np.int8)
        padded[: len(at)] = np.round(changes * (127 / np.abs(changes).max())).astype(np.int8)
        _, jpeg = cv2.imencode(".jpg", np.round(mean).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, MEAN_JPEG_QUALITY])
        if self._num_faces < MIN_FACES:
            return Fingerprint(jpeg.tobytes(), padded.tobytes())
        _, png = cv2.imencode(".png", np.round(self._sum_of_faces / self._num_faces).astype(np.uint8))
        return Fingerprint(jpeg.tobytes(), padded.tobytes(), png.tobytes())


def _axis(inside: NDArray[np.intp], size_px: int, axis: int) -> list[float]:
    """Return one row of the transform from mean-picture to sketch coordinates, without the bars along this axis."""
    to_sketch = SKETCH_PX / size_px
    start, length = float(inside[0]) * to_sketch, float(inside[-1] + 1 - inside[0]) * to_sketch
    scale = length / MEAN_PX
    factors = [scale, 0.0] if axis == 0 else [0.0, scale]
    return [*factors, start + (scale - 1) / 2]  # OpenCV counts from the centres of pixels


def _cells(picture: Float32Array) -> Float32Array:
    return np.asarray(cv2.resize(picture, (SKETCH_CELLS, SKETCH_CELLS), interpolation=cv2.INTER_AREA), np.float32)


def check(fingerprint: Fingerprint) -> None:
    """Check that a fingerprint can be compared with others.

    Raises:
        ValueError: it is damaged.
    """
    mean_picture(fingerprint)
    changes(fingerprint)
    if fingerprint.face_png is not None:
        _decoded(fingerprint.face_png, INNER_PX)


def mean_picture(fingerprint: Fingerprint) -> Float32Array:
    """Return the mean picture, (64, 64), in levels from 0 to 255.

    Raises:
        ValueError: it is damaged.
    """
    return _decoded(fingerprint.mean_jpeg, MEAN_PX)


def _decoded(data: bytes, size_px: int) -> Float32Array:
    try:
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
    except cv2.error as error:  # without data, for example
        raise ValueError("not a picture") from error
    if picture is None or picture.shape != (size_px, size_px):
        raise ValueError(f"not a picture of {size_px} x {size_px} px")
    return np.asarray(picture, np.float32)


def look(mean: Float32Array) -> Float32Array:
    """Return the coarse pattern of a mean picture, (64,): the product of two such vectors is their correlation."""
    return _unit(_cells(mean).ravel())


def changes(fingerprint: Fingerprint) -> Float32Array:
    """Return the changes, (768,), as a unit vector: the product of two of them is their correlation.

    Raises:
        ValueError: they are damaged.
    """
    return _unit(np.frombuffer(fingerprint.changes, np.int8).reshape(NUM_SKETCHES * SKETCH_CELLS**2).astype(np.float32))


def _unit(values: Float32Array) -> Float32Array:
    centred = values - values.mean()
    return np.asarray(centred / max(float(np.linalg.norm(centred)), 1e-6), np.float32)


def is_same_picture(first: Fingerprint, second: Fingerprint) -> bool:
    """Return whether mean pictures and mean faces agree.

    Raises:
        ValueError: a fingerprint is damaged.
    """
    if first.face_png is None or second.face_png is None:
        return difference(mean_picture(first), mean_picture(second)) <= MAX_DIFFERENCE_WITHOUT_FACES
    if face_difference(_decoded(first.face_png, INNER_PX), _decoded(second.face_png, INNER_PX)) > MAX_FACE_DIFFERENCE:
        return False
    return difference(mean_picture(first), mean_picture(second)) <= MAX_DIFFERENCE


def face_difference(first: Float32Array, second: Float32Array) -> float:
    """Return the root mean square difference of two mean faces, in levels.

    Shifts by up to a pixel, brightness and contrast do not count.
    """
    smooth, other = (cv2.GaussianBlur(face, (0, 0), FACE_BLUR_PX) for face in (first, second))
    inner = slice(FACE_MARGIN_PX, -FACE_MARGIN_PX)
    values = smooth[inner, inner].ravel()
    found = float("inf")
    for shift in itertools.product((-1, 0, 1), repeat=2):
        shifted = np.roll(other, shift, (0, 1))[inner, inner].ravel()
        found = min(found, float(np.sqrt(np.square(_unlike(values, shifted)).mean())))
    return found


def difference(first: Float32Array, second: Float32Array) -> float:
    """Return the largest difference of any part of two mean pictures after alignment, in levels.

    Shifts, scales, brightness and contrast do not count. It is infinite if the pictures cannot be aligned.
    """
    to_second = _alignment(first, second)
    if to_second is None:
        return float("inf")
    size_px, inverse = (MEAN_PX, MEAN_PX), cv2.WARP_INVERSE_MAP
    smooth, other = (cv2.GaussianBlur(picture, (0, 0), BLUR_PX) for picture in (first, second))
    aligned = cv2.warpAffine(other, to_second, size_px, flags=cv2.INTER_CUBIC | inverse)
    inside = cv2.warpAffine(np.ones_like(second), to_second, size_px, flags=cv2.INTER_LINEAR | inverse)
    covered = cv2.erode((inside > 0.99).astype(np.uint8), np.ones((3, 3), np.uint8), iterations=2, borderValue=0) > 0
    if covered.mean() < MIN_OVERLAP:
        return float("inf")
    rest = np.zeros_like(first)
    rest[covered] = _unlike(smooth[covered], aligned[covered])
    return float(np.abs(cv2.blur(rest, (PART_PX, PART_PX)))[covered].max())


def _unlike(first: AnyFloats, second: AnyFloats) -> AnyFloats:
    """Return the residual of the first picture after a linear fit to the second."""
    first, second = first - first.mean(), second - second.mean()
    gain = float(first @ second) / max(float(second @ second), 1e-6)
    return first - gain * second


def _alignment(first: Float32Array, second: Float32Array) -> Float32Array | None:
    """Return the affine transform, (2, 3), from pixels of the first picture to those of the second."""
    best: tuple[float, Float32Array] | None = None
    for scale in SCALES:
        shift = (1 - scale) * (MEAN_PX - 1) / 2
        start = np.array([[scale, 0, shift], [0, scale, shift]], np.float32)
        try:
            correlation, found = cv2.findTransformECC(first, second, start, cv2.MOTION_AFFINE, _STEPS)
        except cv2.error:  # it does not converge from here
            continue
        if best is None or correlation > best[0]:
            best = correlation, np.asarray(found, np.float32)
        if correlation > GOOD_ALIGNMENT:
            break
    return best[1] if best else None
