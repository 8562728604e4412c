"""MTCNN's cascade in numpy and OpenCV, whatever runs its three networks.

Zhang et al. 2016, "Joint Face Detection and Alignment Using Multitask Cascaded Convolutional Networks", section II:
a network that slides over a pyramid of smaller copies proposes boxes, a second one sorts them, a third one decides and
gives five landmarks; each also corrects the boxes, and overlapping ones are reduced to the best after each step.
What the paper leaves open (rounding, which boxes are a pixel longer) is as in facenet-pytorch 2.5.3, whose weights are
used; what it does one candidate at a time on the networks' device is done here for all at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]
Sums = NDArray[np.int32]
"""[H + 1, W + 1, 3]: of each channel, the sum of all levels above and left of a corner."""

PYRAMID_FACTOR = 0.709
"""From one copy to the next: about half the area."""
WINDOW_PX, STRIDE_PX = 12, 2
"""What the first network looks at, and how far it moves."""
MARGIN_PX = 2
"""Grey round each copy, a multiple of the stride: of a face cut by the border so much of the window lies outside."""
REFINED_PX, DECIDED_PX = 24, 48
"""Sides of what the second and the third network look at."""
THRESHOLDS = (0.6, 0.7, 0.7)
"""Least probability of a face, for each network."""
OVERLAP_IN_SCALE, OVERLAP = 0.5, 0.7
"""Of two boxes that overlap more the less probable is dropped: within one copy, and from then on."""
MAX_REACH_PX = 1 << 20
"""Farther out corners of boxes count as if they were here."""
NO_BOXES: Floats = np.empty((0, 4), np.float32)


class Networks(Protocol):
    """The three networks; pictures are float32 NCHW, RGB in [-1, 1]."""

    def propose(self, picture: Floats) -> tuple[Floats, Floats]:
        """Of a picture [1, 3, H, W]: corrections [4, h, w] and probabilities [h, w] of each window."""
        ...

    def refine(self, crops: Floats) -> tuple[Floats, Floats]:
        """Of crops [K, 3, 24, 24]: corrections [K, 4] and probabilities [K]."""
        ...

    def decide(self, crops: Floats) -> tuple[Floats, Floats, Floats]:
        """Of crops [K, 3, 48, 48]: corrections [K, 4], landmarks [K, 10] (five x, five y) and probabilities [K]."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """The faces of one frame, the most probable first."""

    boxes_xyxy: Floats
    """[F, 4] in pixels; may reach over the border."""
    scores: Floats
    """[F] probabilities in [0, 1]."""
    landmarks: Floats
    """[F, 5, 2]: eyes, nose, corners of the mouth; x and y in pixels."""

    def __getitem__(self, kept: Any) -> Found:
        """Those that an index array or mask picks."""
        return Found(self.boxes_xyxy[kept], self.scores[kept], self.landmarks[kept])


@dataclass(slots=True, eq=False)
class _Boxes:
    """Candidates."""

    xyxy: Floats
    """[K, 4]"""
    scores: Floats
    """[K]"""
    corrections: Floats
    """[K, 4] of the corners, in widths and heights of the box."""

    def __getitem__(self, kept: Any) -> _Boxes:
        """Those that an index array or mask picks."""
        return _Boxes(self.xyxy[kept], self.scores[kept], self.corrections[kept])

    def corrected(self, *, unit_px: float) -> Floats:
        """The boxes moved by their corrections; the library takes sides as one pixel longer from the second step on."""
        sides = self.xyxy[:, 2:] - self.xyxy[:, :2] + unit_px
        moves = self.corrections.reshape(-1, 2, 2) * sides[:, None]
        return self.xyxy + moves.reshape(-1, 4)


def find_faces(frame: Pixels, networks: Networks, *, min_face_px: float, known_xyxy: Floats = NO_BOXES) -> Found:
    """Find the faces of a frame.

    Args:
        frame: (H, W, 3) uint8 RGB.
        networks: what runs the three networks.
        min_face_px: smallest face that is looked for; below 12 makes no sense.
        known_xyxy: [B, 4] boxes of faces that are known already: they are not looked at and not given again.
    """
    sums = _sums(frame)
    proposed = _propose(sums, networks, min_face_px)
    found = _decide(sums, networks, _refine(sums, networks, proposed[~_is_covered(proposed.xyxy, known_xyxy)]))
    return found[~_is_covered(found.boxes_xyxy, known_xyxy)]


def find_again(frame: Pixels, networks: Networks, near_xyxy: Floats, *, known_xyxy: Floats = NO_BOXES) -> Found:
    """Find faces that are about where they are thought to be, by the third network alone.

    Where a face has moved by a quarter of its size across and down, it finds 288 of 438 again at a probability of 0.95,
    with the second network before it 24. It takes none of 438 places that a face has left for one.

    Args:
        frame: (H, W, 3) uint8 RGB.
        networks: what runs the three networks.
        near_xyxy: [B, 4] where they were in a neighbouring frame.
        known_xyxy: as for `find_faces`.

    Returns:
        At most as many; fewer where one is no longer there, or has moved far.
    """
    nothing = np.zeros(len(near_xyxy), np.float32)
    found = _decide(_sums(frame), networks, _Boxes(_squared(near_xyxy), nothing, np.zeros_like(near_xyxy)))
    return found[~_is_covered(found.boxes_xyxy, known_xyxy)]


def _is_covered(boxes_xyxy: Floats, known_xyxy: Floats) -> NDArray[np.bool_]:
    """[K] whether a box overlaps with a known one so far that the library would keep one of the two."""
    near = np.maximum(boxes_xyxy[:, None, :2], known_xyxy[None, :, :2])
    far = np.minimum(boxes_xyxy[:, None, 2:], known_xyxy[None, :, 2:])
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (boxes_xyxy, known_xyxy)]
    common = np.maximum(far - near, 0).prod(axis=2)
    return np.asarray((common > OVERLAP * np.minimum(areas[0][:, None], areas[1])).any(axis=1), np.bool_)


def pyramid(height_px: int, width_px: int, min_face_px: float) -> Iterator[float]:
    """Scales of the copies: in the first a face of `min_face_px` fills the window, in the last the frame just does."""
    scale = WINDOW_PX / min_face_px
    while min(height_px, width_px) * scale >= WINDOW_PX:
        yield scale
        scale *= PYRAMID_FACTOR


def _propose(sums: Sums, networks: Networks, min_face_px: float) -> _Boxes:
    height, width = _size_px(sums)
    parts = [_Boxes(NO_BOXES, NO_BOXES[:, 0], NO_BOXES)]
    for scale in pyramid(height, width, min_face_px):
        corrections, scores = networks.propose(_shrunk(sums, int(height * scale + 1), int(width * scale + 1)))
        y, x = np.nonzero(scores >= THRESHOLDS[0])
        corner = STRIDE_PX * np.stack([x, y], axis=1) - MARGIN_PX
        near, far = np.floor((corner + 1) / scale), np.floor((corner + WINDOW_PX) / scale)
        boxes = np.concatenate([near, far], axis=1).astype(np.float32)
        part = _Boxes(boxes, scores[y, x], corrections[:, y, x].T)
        parts.append(part[_best(part.xyxy, part.scores, OVERLAP_IN_SCALE)])
    found = _Boxes(
        np.concatenate([part.xyxy for part in parts]),
        np.concatenate([part.scores for part in parts]),
        np.concatenate([part.corrections for part in parts]),
    )
    found = found[_best(found.xyxy, found.scores, OVERLAP)]
    found.xyxy = _squared(found.corrected(unit_px=0))
    return found


def _refine(sums: Sums, networks: Networks, boxes: _Boxes) -> _Boxes:
    boxes, crops = _cut(sums, boxes, REFINED_PX)
    if not len(crops):
        return boxes
    boxes.corrections, boxes.scores = networks.refine(crops)
    boxes = boxes[boxes.scores > THRESHOLDS[1]]
    boxes = boxes[_best(boxes.xyxy, boxes.scores, OVERLAP)]
    boxes.xyxy = _squared(boxes.corrected(unit_px=1))
    return boxes


def _decide(sums: Sums, networks: Networks, boxes: _Boxes) -> Found:
    boxes, crops = _cut(sums, boxes, DECIDED_PX)
    if not len(crops):
        return Found(boxes.xyxy, boxes.scores, np.empty((0, 5, 2), np.float32))
    boxes.corrections, points, boxes.scores = networks.decide(crops)
    is_face = boxes.scores > THRESHOLDS[2]
    boxes, points = boxes[is_face], points[is_face]
    sides = boxes.xyxy[:, 2:] - boxes.xyxy[:, :2] + 1
    landmarks = np.stack([points[:, :5], points[:, 5:]], axis=2) * sides[:, None] + boxes.xyxy[:, None, :2] - 1
    found = Found(boxes.corrected(unit_px=1), boxes.scores, landmarks)
    return found[best_by_smaller(found.boxes_xyxy, found.scores, OVERLAP)]


# The library averages every pixel that an output pixel touches, neighbours' shared ones too (PyTorch's adaptive average
# pooling), and the networks' probabilities hang on it: OpenCV's exact areas gave 0.956 for a face that has 0.997 so.
# From sums over all that is above and left of a corner, the mean of any rectangle takes four of them.


def _sums(frame: Pixels) -> Sums:
    return np.asarray(cv2.integral(frame), np.int32)


def _size_px(sums: Sums) -> tuple[int, int]:
    """Height and width of the frame."""
    height, width = sums.shape[:2]
    return height - 1, width - 1


def _edges(size_px: int | NDArray[np.intp], parts: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Where the parts of a length begin and end, [..., parts] each; ends reach to the next whole pixel.

    5 px in 2 parts: 0 to 3 and 2 to 5.
    """
    size, at = np.asarray(size_px)[..., None], np.arange(parts)
    return at * size // parts, -(-(at + 1) * size // parts)


def _shrunk(sums: Sums, height_px: int, width_px: int) -> Floats:
    """The whole frame at a smaller size, as the networks take it, with a grey margin of `MARGIN_PX`."""
    rows, columns = (_edges(*pair) for pair in zip(_size_px(sums), (height_px, width_px), strict=True))
    return _means(sums, [edge[None] for edge in rows], [edge[None] for edge in columns], margin_px=MARGIN_PX)


def _means(
    sums: Sums, rows: Sequence[NDArray[np.intp]], columns: Sequence[NDArray[np.intp]], *, margin_px: int = 0
) -> Floats:
    """Mean levels of rectangles, as the networks take them.

    Args:
        sums: of a frame.
        rows: where each of the H rows of N pictures begins and ends, [N, H] each.
        columns: the same for W columns.
        margin_px: grey pixels that are added on each side.

    Returns:
        float32 [N, 3, H + 2 margins, W + 2 margins] in [-1, 1]; 0, a medium grey, where a rectangle is empty.
    """
    (top, bottom), (left, right) = ([edge[:, :, None] for edge in rows], [edge[:, None] for edge in columns])
    # Flat positions: taking them is four times as fast as indexing rows and columns.
    flat, above, below = sums.reshape(-1, 3), top * sums.shape[1], bottom * sums.shape[1]
    totals = flat.take(below + right, axis=0)
    totals -= flat.take(above + right, axis=0)
    totals -= flat.take(below + left, axis=0)
    totals += flat.take(above + left, axis=0)
    heights, widths = bottom - top, right - left
    areas = np.maximum(heights, 1) * np.maximum(widths, 1)
    shares = np.reciprocal(areas * np.float32(128), dtype=np.float32)
    num_pictures, num_rows, num_columns, _ = totals.shape
    pictures = np.zeros((num_pictures, 3, num_rows + 2 * margin_px, num_columns + 2 * margin_px), np.float32)
    inside = pictures[:, :, margin_px : margin_px + num_rows, margin_px : margin_px + num_columns]
    np.multiply(totals.transpose(0, 3, 1, 2), shares[:, None], out=inside)
    inside -= np.float32(127.5 / 128)
    if not (heights.all() and widths.all()):
        inside.transpose(0, 2, 3, 1)[heights * widths == 0] = 0
    return pictures


def _squared(boxes_xyxy: Floats) -> Floats:
    """Boxes about the same centres, both sides as long as the longer one."""
    centres = (boxes_xyxy[:, :2] + boxes_xyxy[:, 2:]) / 2
    half = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).max(axis=1, keepdims=True, initial=0) / 2
    return np.concatenate([centres - half, centres + half], axis=1)


def _cut(sums: Sums, boxes: _Boxes, side_px: int) -> tuple[_Boxes, Floats]:
    """Crop each box as a square, grey where it lies outside the frame; boxes that lie outside altogether are dropped.

    The authors' own code fills boxes up as well. The library stretches the part inside the frame to the whole square
    instead: a face cut by the border is then lost, or its box is twice as wide as the face and centred outside.
    """
    height, width = _size_px(sums)
    boxes = boxes[np.isfinite(boxes.xyxy).all(axis=1)]
    bounded = boxes.xyxy.clip(-MAX_REACH_PX, MAX_REACH_PX).astype(np.intp)
    near, far = bounded[:, :2] - 1, bounded[:, 2:]
    is_inside = (np.minimum(far, (width, height)) > near.clip(0)).all(axis=1)
    boxes, near, far = boxes[is_inside], near[is_inside], far[is_inside]
    columns, rows = (
        [(near[:, i, None] + edge).clip(0, size_px) for edge in _edges(far[:, i] - near[:, i], side_px)]
        for i, size_px in enumerate((width, height))
    )
    return boxes, _means(sums, rows, columns)


def _best(boxes_xyxy: Floats, scores: Floats, overlap: float) -> NDArray[np.intp]:
    """Non-maximum suppression: positions of the boxes that no more probable one covers.

    Args:
        boxes_xyxy: [K, 4].
        scores: [K].
        overlap: from which share of their union a box is dropped.

    Returns:
        Positions, by descending score.
    """
    if not len(scores):
        return np.empty(0, np.intp)
    places = np.concatenate([boxes_xyxy[:, :2], boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]], axis=1).astype(float)
    kept = cv2.dnn.NMSBoxes(places.tolist(), scores.tolist(), 0.0, overlap)
    return np.asarray(kept, np.intp)


def best_by_smaller(boxes_xyxy: Floats, scores: Floats, overlap: float) -> NDArray[np.intp]:
    """As `_best`, but overlap is a share of the smaller box, which OpenCV does not know; by now there are few boxes."""
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
