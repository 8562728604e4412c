"""MTCNN's cascade in numpy and OpenCV, independent of the library that runs its three networks.

Zhang et al. 2016, "Joint Face Detection and Alignment Using Multitask Cascaded Convolutional Networks", section II:
a first network slides over an image pyramid and proposes boxes, a second one filters them, and a third one decides and
predicts five landmarks. Each network also corrects the boxes, and each step ends with non-maximum suppression. Details
that the paper leaves open (rounding, which boxes are a pixel longer) follow facenet-pytorch 2.5.3, whose weights are
used. Unlike there, all candidates are processed at once instead of one by one on the device of the networks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from dfscan.arrays import BoolArray, Float32Array, UInt8Image

IntegralImage = NDArray[np.int32]
"""Integral image, [H + 1, W + 1, 3]: per channel, the sum of all levels above and left of a corner."""

PYRAMID_FACTOR = 0.709
"""Scale from one pyramid level to the next; it halves the area."""
WINDOW_PX, STRIDE_PX = 12, 2
"""Window and stride of the first network."""
MARGIN_PX = 2
"""Grey margin around each pyramid level, a multiple of the stride, for windows of faces cut by the border."""
REFINED_PX, DECIDED_PX = 24, 48
"""Input sides of the second and the third network."""
THRESHOLDS = (0.6, 0.7, 0.7)
"""Minimum probability of a face, for each network."""
OVERLAP_IN_SCALE, OVERLAP = 0.5, 0.7
"""Maximum overlap of two boxes before the less probable one is dropped: within a pyramid level, and later."""
MAX_REACH_PX = 1 << 20
"""Coordinates of boxes are clipped to plus and minus this value."""
NO_BOXES: Float32Array = np.empty((0, 4), np.float32)


class Networks(Protocol):
    """The three networks; inputs are float32 NCHW, RGB in [-1, 1]."""

    def propose(self, picture: Float32Array) -> tuple[Float32Array, Float32Array]:
        """Return box offsets [4, h, w] and probabilities [h, w] of each window of a picture [1, 3, H, W]."""
        ...

    def refine(self, crops: Float32Array) -> tuple[Float32Array, Float32Array]:
        """Return box offsets [K, 4] and probabilities [K] of crops [K, 3, 24, 24]."""
        ...

    def decide(self, crops: Float32Array) -> tuple[Float32Array, Float32Array, Float32Array]:
        """Return offsets [K, 4], landmarks [K, 10] (five x, five y) and probabilities [K] of crops [K, 3, 48, 48]."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Detections:
    """The faces of one frame, in descending order of probability."""

    boxes_xyxy: Float32Array
    """[F, 4] in pixels; may extend beyond the frame."""
    scores: Float32Array
    """[F] probabilities in [0, 1]."""
    landmarks: Float32Array
    """[F, 5, 2]: eyes, nose, corners of the mouth; x and y in pixels."""

    def __getitem__(self, kept: Any) -> Detections:
        """Select faces by an index array or a mask."""
        return Detections(self.boxes_xyxy[kept], self.scores[kept], self.landmarks[kept])


@dataclass(slots=True, eq=False)
class _Boxes:
    """Candidate boxes of one frame."""

    xyxy: Float32Array
    """[K, 4]"""
    scores: Float32Array
    """[K]"""
    offsets: Float32Array
    """[K, 4] offsets of the corners, in widths and heights of the box."""

    def __getitem__(self, kept: Any) -> _Boxes:
        """Select boxes by an index array or a mask."""
        return _Boxes(self.xyxy[kept], self.scores[kept], self.offsets[kept])

    def corrected(self, *, unit_px: float) -> Float32Array:
        """Return the boxes with their offsets applied. From the second step on, the library adds one pixel to sides."""
        sides = self.xyxy[:, 2:] - self.xyxy[:, :2] + unit_px
        moves = self.offsets.reshape(-1, 2, 2) * sides[:, None]
        return self.xyxy + moves.reshape(-1, 4)


def find_faces(
    frame: UInt8Image, networks: Networks, *, min_face_px: float, known_xyxy: Float32Array = NO_BOXES
) -> Detections:
    """Detect the faces of a frame.

    Args:
        frame: (H, W, 3) uint8 RGB.
        networks: the three networks.
        min_face_px: minimum face size; at least 12.
        known_xyxy: [B, 4] boxes of known faces, which are neither searched nor returned.
    """
    integral = _integral_image(frame)
    proposed = _propose(integral, networks, min_face_px)
    detections = _decide(
        integral, networks, _refine(integral, networks, proposed[~_is_covered(proposed.xyxy, known_xyxy)])
    )
    return detections[~_is_covered(detections.boxes_xyxy, known_xyxy)]


def redetect(
    frame: UInt8Image, networks: Networks, near_xyxy: Float32Array, *, known_xyxy: Float32Array = NO_BOXES
) -> Detections:
    """Re-detect faces near known positions, using the third network only.

    Of 438 faces moved by a quarter of their size across and down, 288 are re-detected with a probability of at least
    0.95; with the second network before it, only 24. None of 438 positions that a face has left is taken for a face.

    Args:
        frame: (H, W, 3) uint8 RGB.
        networks: the three networks.
        near_xyxy: [B, 4] boxes of the faces in a neighbouring frame.
        known_xyxy: as for `find_faces`.

    Returns:
        At most one face per box of `near_xyxy`; none for a face that is gone or has moved far.
    """
    nothing = np.zeros(len(near_xyxy), np.float32)
    detections = _decide(
        _integral_image(frame), networks, _Boxes(_to_square(near_xyxy), nothing, np.zeros_like(near_xyxy))
    )
    return detections[~_is_covered(detections.boxes_xyxy, known_xyxy)]


def _is_covered(boxes_xyxy: Float32Array, known_xyxy: Float32Array) -> BoolArray:
    """Return [K] whether a box overlaps a known one enough that the library would keep only one of the two."""
    near = np.maximum(boxes_xyxy[:, None, :2], known_xyxy[None, :, :2])
    far = np.minimum(boxes_xyxy[:, None, 2:], known_xyxy[None, :, 2:])
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (boxes_xyxy, known_xyxy)]
    common = np.maximum(far - near, 0).prod(axis=2)
    return np.asarray((common > OVERLAP * np.minimum(areas[0][:, None], areas[1])).any(axis=1), np.bool_)


def pyramid(height_px: int, width_px: int, min_face_px: float) -> Iterator[float]:
    """Yield the scales of the pyramid, from `min_face_px` filling the window to the frame just filling it."""
    scale = WINDOW_PX / min_face_px
    while min(height_px, width_px) * scale >= WINDOW_PX:
        yield scale
        scale *= PYRAMID_FACTOR


def _propose(integral: IntegralImage, networks: Networks, min_face_px: float) -> _Boxes:
    height, width = _size_px(integral)
    parts = [_Boxes(NO_BOXES, NO_BOXES[:, 0], NO_BOXES)]
    for scale in pyramid(height, width, min_face_px):
        offsets, scores = networks.propose(_pyramid_level(integral, int(height * scale + 1), int(width * scale + 1)))
        y, x = np.nonzero(scores >= THRESHOLDS[0])
        corner = STRIDE_PX * np.stack([x, y], axis=1) - MARGIN_PX
        near, far = np.floor((corner + 1) / scale), np.floor((corner + WINDOW_PX) / scale)
        boxes = np.concatenate([near, far], axis=1).astype(np.float32)
        part = _Boxes(boxes, scores[y, x], offsets[:, y, x].T)
        parts.append(part[_nms(part.xyxy, part.scores, OVERLAP_IN_SCALE)])
    proposed = _Boxes(
        np.concatenate([part.xyxy for part in parts]),
        np.concatenate([part.scores for part in parts]),
        np.concatenate([part.offsets for part in parts]),
    )
    proposed = proposed[_nms(proposed.xyxy, proposed.scores, OVERLAP)]
    proposed.xyxy = _to_square(proposed.corrected(unit_px=0))
    return proposed


def _refine(integral: IntegralImage, networks: Networks, boxes: _Boxes) -> _Boxes:
    boxes, crops = _crop_resize(integral, boxes, REFINED_PX)
    if not len(crops):
        return boxes
    boxes.offsets, boxes.scores = networks.refine(crops)
    boxes = boxes[boxes.scores > THRESHOLDS[1]]
    boxes = boxes[_nms(boxes.xyxy, boxes.scores, OVERLAP)]
    boxes.xyxy = _to_square(boxes.corrected(unit_px=1))
    return boxes


def _decide(integral: IntegralImage, networks: Networks, boxes: _Boxes) -> Detections:
    boxes, crops = _crop_resize(integral, boxes, DECIDED_PX)
    if not len(crops):
        return Detections(boxes.xyxy, boxes.scores, np.empty((0, 5, 2), np.float32))
    boxes.offsets, points, boxes.scores = networks.decide(crops)
    is_face = boxes.scores > THRESHOLDS[2]
    boxes, points = boxes[is_face], points[is_face]
    sides = boxes.xyxy[:, 2:] - boxes.xyxy[:, :2] + 1
    landmarks = np.stack([points[:, :5], points[:, 5:]], axis=2) * sides[:, None] + boxes.xyxy[:, None, :2] - 1
    detections = Detections(boxes.corrected(unit_px=1), boxes.scores, landmarks)
    return detections[nms_iom(detections.boxes_xyxy, detections.scores, OVERLAP)]


# The library resizes by PyTorch's adaptive average pooling, which averages every pixel that an output pixel touches, so
# neighbours share pixels. Scores depend on this: for one face, cv2.INTER_AREA gives 0.956 where adaptive pooling gives
# 0.997. With an integral image, the mean of any rectangle needs only four values.


def _integral_image(frame: UInt8Image) -> IntegralImage:
    return np.asarray(cv2.integral(frame), np.int32)


def _size_px(integral: IntegralImage) -> tuple[int, int]:
    """Return height and width of the frame."""
    height, width = integral.shape[:2]
    return height - 1, width - 1


def _edges(size_px: int | NDArray[np.intp], parts: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return start and end, [..., parts] each, of the equal parts of a length; ends are rounded up to whole pixels.

    Example: 5 px in 2 parts are 0 to 3 and 2 to 5.
    """
    size, at = np.asarray(size_px)[..., None], np.arange(parts)
    return at * size // parts, -(-(at + 1) * size // parts)


def _pyramid_level(integral: IntegralImage, height_px: int, width_px: int) -> Float32Array:
    """Return the whole frame shrunk and normalised for the networks, with a grey margin of `MARGIN_PX`."""
    rows, columns = (_edges(*pair) for pair in zip(_size_px(integral), (height_px, width_px), strict=True))
    return _means(integral, [edge[None] for edge in rows], [edge[None] for edge in columns], margin_px=MARGIN_PX)


def _means(
    integral: IntegralImage,
    rows: Sequence[NDArray[np.intp]],
    columns: Sequence[NDArray[np.intp]],
    *,
    margin_px: int = 0,
) -> Float32Array:
    """Return mean levels of rectangles, normalised for the networks.

    Args:
        integral: integral image of a frame.
        rows: start and end of each of the H rows of N pictures, [N, H] each.
        columns: start and end of each of the W columns, [N, W] each.
        margin_px: number of grey pixels to add on each side.

    Returns:
        float32 [N, 3, H + 2 margins, W + 2 margins] in [-1, 1]; 0, a medium grey, for empty rectangles.
    """
    (top, bottom), (left, right) = ([edge[:, :, None] for edge in rows], [edge[:, None] for edge in columns])
    # `take` with flat positions is four times as fast as indexing rows and columns.
    flat, above, below = integral.reshape(-1, 3), top * integral.shape[1], bottom * integral.shape[1]
    totals = flat.take(below + right, axis=0)
    totals -= flat.take(above + right, axis=0)
    totals -= flat.take(below + left, axis=0)
    totals += flat.take(above + left, axis=0)
    heights, widths = bottom - top, right - left
    areas = np.maximum(heights, 1) * np.maximum(widths, 1)
    scales = np.reciprocal(areas * np.float32(128), dtype=np.float32)
    num_pictures, num_rows, num_columns, _ = totals.shape
    pictures = np.zeros((num_pictures, 3, num_rows + 2 * margin_px, num_columns + 2 * margin_px), np.float32)
    inside = pictures[:, :, margin_px : margin_px + num_rows, margin_px : margin_px + num_columns]
    np.multiply(totals.transpose(0, 3, 1, 2), scales[:, None], out=inside)
    inside -= np.float32(127.5 / 128)
    if not (heights.all() and widths.all()):
        inside.transpose(0, 2, 3, 1)[heights * widths == 0] = 0
    return pictures


def _to_square(boxes_xyxy: Float32Array) -> Float32Array:
    """Return square boxes with the same centres; the side is the longer side of each box."""
    centres = (boxes_xyxy[:, :2] + boxes_xyxy[:, 2:]) / 2
    half = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).max(axis=1, keepdims=True, initial=0) / 2
    return np.concatenate([centres - half, centres + half], axis=1)


def _crop_resize(integral: IntegralImage, boxes: _Boxes, side_px: int) -> tuple[_Boxes, Float32Array]:
    """Crop each box to a square, grey outside the frame; drop boxes that are entirely outside.

    The authors' original code pads boxes in the same way. The library instead stretches the part inside the frame to
    the whole square. Then a face cut by the border is lost, or its box is twice as wide and centred outside the frame.
    """
    height, width = _size_px(integral)
    boxes = boxes[np.isfinite(boxes.xyxy).all(axis=1)]
    bounded = boxes.xyxy.clip(-MAX_REACH_PX, MAX_REACH_PX).astype(np.intp)
    near, far = bounded[:, :2] - 1, bounded[:, 2:]
    is_inside = (np.minimum(far, (width, height)) > near.clip(0)).all(axis=1)
    boxes, near, far = boxes[is_inside], near[is_inside], far[is_inside]
    columns, rows = (
        [(near[:, i, None] + edge).clip(0, size_px) for edge in _edges(far[:, i] - near[:, i], side_px)]
        for i, size_px in enumerate((width, height))
    )
    return boxes, _means(integral, rows, columns)


def _nms(boxes_xyxy: Float32Array, scores: Float32Array, overlap: float) -> NDArray[np.intp]:
    """Apply non-maximum suppression.

    Args:
        boxes_xyxy: [K, 4].
        scores: [K].
        overlap: intersection over union from which the less probable box is dropped.

    Returns:
        Positions of the kept boxes, by descending score.
    """
    if not len(scores):
        return np.empty(0, np.intp)
    places = np.concatenate([boxes_xyxy[:, :2], boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]], axis=1).astype(float)
    kept = cv2.dnn.NMSBoxes(places.tolist(), scores.tolist(), 0.0, overlap)
    return np.asarray(kept, np.intp)


def nms_iom(boxes_xyxy: Float32Array, scores: Float32Array, overlap: float) -> NDArray[np.intp]:
    """Apply non-maximum suppression by intersection over minimum area, which OpenCV lacks; see `_nms`."""
    kept: list[int] = []
    waiting = np.argsort(-scores, kind="stable")
    near, far = boxes_xyxy[:, :2], boxes_xyxy[:, 2:]
    areas = (far - near).prod(axis=1)
    while len(waiting):
        best, rest = waiting[0], waiting[1:]
        kept.append(int(best))
        common = np.maximum(np.minimum(far[best], far[rest]) - np.maximum(near[best], near[rest]), 0).prod(axis=1)
        waiting = rest[common <= overlap * np.minimum(areas[best], areas[rest])]
    return np.array(kept, np.intp)
