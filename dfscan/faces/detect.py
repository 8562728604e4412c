"""Detect faces with MTCNN on a copy of bounded size; boxes and landmarks are in pixels of the full frame."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy as shallow_copy
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from dfscan.arrays import Float32Array, UInt8Image
from dfscan.faces.mtcnn_numpy import NO_BOXES, WINDOW_PX, Detections, Networks, find_faces, redetect
from dfscan.faces.networks import OnnxNetworks

MIN_COPY_SIDE_PX = 960
"""Minimum longest side of the copy that is searched: a frame is halved as long as the result is at least this long.

The value is half of 1080p, where faces of at least 42 px stay above `SMALLEST_PX`. Shrinking by other factors costs
more than it saves: averaging takes 6 ms at 1280 x 720, and bilinear interpolation lost 9 of 284 faces there.

Measured on 40 portraits pasted into 1920 x 1080 frames, JPEG quality 60, on one core of a 2-core server, without any
false positive: at 640 some of the smallest faces are missed, above 960 only the time grows. In frames of 3840 x 2160,
7 of 8 faces of 48 px were detected, and all 8 of 64 px.

=================  =====  =====  =====  =====  =====
longest side         640    800    960   1280   1920
=================  =====  =====  =====  =====  =====
found, 48 px       0.950  1.000  1.000  1.000  1.000
found, 64-200 px   1.000  1.000  1.000  1.000  1.000
CPU ms, in PyTorch    93    131    153    193    256
=================  =====  =====  =====  =====  =====
"""
SMALLEST_PX = 20.0
"""Smallest face that MTCNN can detect: its first network uses 12 x 12 windows, its authors start at 20 px."""
LONGER_SIDE = 1.25
"""Ratio of height to width of a face's box. `min_face_px` refers to the shorter side, but windows cover the longer one.

Therefore the pyramid starts with windows that are larger than `min_face_px` by this factor, which saves a quarter of
the time. Of 4,449 portraits of 50 to 160 px in 640 x 360 frames (dark, blurred, rotated, occluded and compressed),
4,192 were detected instead of 4,167; of 4,876 portraits of 48 to 58 px, 3,667 instead of 3,738.
"""
REDETECT_MARGIN = 0.5
"""Margin around the boxes of faces to re-detect, relative to their longer side; making boxes square adds at most this.
"""

MIN_VISIBLE = 0.25
"""Minimum proportion of a face's box that is inside the frame; in a corner, half of its width and half of its height.
"""


@dataclass(frozen=True, slots=True, eq=False)
class Detection:
    """One face detected in one frame."""

    box_xyxy: Float32Array
    """(4,) in pixels of the full frame; may extend beyond the frame, see `MIN_VISIBLE`."""
    landmarks: Float32Array
    """(5, 2) left eye, right eye, nose, left and right corner of the mouth, as the viewer sees them."""
    score: float
    """MTCNN's final probability, in [0, 1]."""

    @property
    def area_px(self) -> float:
        """Area of the box in square pixels."""
        return float(np.prod(self.box_xyxy[2:] - self.box_xyxy[:2]))


class FaceDetector:
    """Detects faces in frames of any size, down to one pixel. It always runs on the CPU.

    Several threads may use it at once.
    """

    def __init__(
        self, *, threshold: float, min_face_px: int, max_faces: int, min_copy_side_px: int = MIN_COPY_SIDE_PX
    ) -> None:
        """Load MTCNN's networks.

        Args:
            threshold: minimum final probability of a face. MTCNN's own thresholds (0.6, 0.7, 0.7) also apply, so
                values below 0.7 have the same effect as 0.7.
            min_face_px: minimum length of a box's shorter side, in pixels of the full frame.
            max_faces: maximum number of faces per frame; the largest are kept.
            min_copy_side_px: minimum longest side of the copy that is searched; see `MIN_COPY_SIDE_PX`.
        """
        self.threshold = threshold
        self.min_face_px = min_face_px
        self.max_faces = max_faces
        self.min_copy_side_px = min_copy_side_px
        self._networks: Networks = OnnxNetworks()

    def with_sizes(self, *, min_face_px: int, min_copy_side_px: int) -> FaceDetector:
        """Return a detector with the same networks and other sizes; arguments as for the class."""
        other = shallow_copy(self)
        other.min_face_px, other.min_copy_side_px = min_face_px, min_copy_side_px
        return other

    def detect(self, pixels: UInt8Image, *, known: Sequence[Detection] = ()) -> list[Detection]:
        """Detect the faces of a frame.

        Args:
            pixels: (H, W, 3), RGB, any size.
            known: faces of this frame that are already known, see `redetect`. The search skips them, which halves
                its cost.

        Returns:
            Known and new faces, largest first, ties by position; empty if there is none.
        """
        copy = Copy.of_all(pixels, self.min_copy_side_px)
        min_px = self.min_px(copy)
        if min_px is None:
            return []
        detections = self.search(copy.pixels, min_px, known_xyxy=copy.inward(known))
        return self.select([*known, *copy.outward(detections)], pixels)

    def search(self, copy: UInt8Image, min_px: float, *, known_xyxy: Float32Array = NO_BOXES) -> Detections:
        """Detect the faces of a copy, in its pixels.

        `min_px` is `min_face_px` of `mtcnn_numpy.find_faces`, `known_xyxy` as there.
        """
        return find_faces(copy, self._networks, min_face_px=min_px, known_xyxy=known_xyxy)

    def min_px(self, copy: Copy) -> float | None:
        """Return the minimum face size for a copy, in its pixels; None if the copy is too small for any face."""
        shortest_px, min_face_px = min(copy.pixels.shape[:2]), self.min_face_px * float(copy.scale.max())
        largest_px = max(min_face_px, 0.999 * shortest_px)  # 0.999 keeps rounding from touching the border
        min_px = max(SMALLEST_PX, min(LONGER_SIDE * min_face_px, largest_px))
        has_a_level = shortest_px * (WINDOW_PX / min_px) >= WINDOW_PX
        return min_px if has_a_level else None

    def redetect(
        self, pixels: UInt8Image, near: Sequence[Detection], *, known: Sequence[Detection] = ()
    ) -> list[Detection]:
        """Re-detect the faces of a neighbouring frame, at about a tenth of the cost of `detect`.

        Args:
            pixels: (H, W, 3), RGB.
            near: faces of a neighbouring frame of the same size.
            known: other faces of this frame, which are not detected again.

        Returns:
            The known faces and at most one face for each of `near`, in the order of `detect`. Faces that have moved far
            or are new in this frame are not detected.
        """
        if not near:
            return list(known)
        copy = Copy.around(pixels, self.min_copy_side_px, np.array([face.box_xyxy for face in near]))
        detections = redetect(copy.pixels, self._networks, copy.inward(near), known_xyxy=copy.inward(known))
        return self.select([*known, *copy.outward(detections)], pixels)

    def select(self, faces: list[Detection], pixels: UInt8Image) -> list[Detection]:
        """Return the faces that are probable, valid and large enough, at most `max_faces`, largest first."""
        kept = []
        for face in faces:
            is_finite = np.isfinite(face.box_xyxy).all() and np.isfinite(face.landmarks).all()
            if not (is_finite and face.score >= self.threshold):
                continue
            near, far = face.box_xyxy[:2].clip(0), face.box_xyxy[2:].clip(max=pixels.shape[1::-1])
            is_visible = (far > near).all() and (far - near).prod() >= MIN_VISIBLE * face.area_px
            if is_visible and float(np.min(face.box_xyxy[2:] - face.box_xyxy[:2])) >= self.min_face_px:
                kept.append(face)
        kept.sort(key=lambda face: (-face.area_px, *face.box_xyxy.tolist()))
        return kept[: self.max_faces]


@dataclass(frozen=True, slots=True, eq=False)
class Copy:
    """A frame, or a part of it, at the size at which it is searched."""

    pixels: UInt8Image
    scale: Float32Array
    """(2,) pixels of the copy per pixel of the frame, along x and y."""
    corner: Float32Array
    """(2,) top left corner of the part, in pixels of the frame."""

    @classmethod
    def of_all(cls, pixels: UInt8Image, min_copy_side_px: int) -> Copy:
        """Copy the whole frame, halved as described at `MIN_COPY_SIDE_PX`."""
        size_px = np.array(pixels.shape[1::-1])
        return cls.of_part(pixels, min_copy_side_px, np.zeros(2, int), size_px)

    @classmethod
    def around(cls, pixels: UInt8Image, min_copy_side_px: int, boxes_xyxy: Float32Array) -> Copy:
        """Copy the part that contains all boxes, each made square."""
        room = REDETECT_MARGIN * (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).max(axis=1, keepdims=True)
        size_px = np.array(pixels.shape[1::-1])
        near = np.floor((boxes_xyxy[:, :2] - room).min(axis=0)).astype(int).clip(0, size_px - 1)
        far = np.ceil((boxes_xyxy[:, 2:] + room).max(axis=0)).astype(int).clip(near + 1, size_px)
        return cls.of_part(pixels, min_copy_side_px, near, far)

    @classmethod
    def of_part(cls, pixels: UInt8Image, min_copy_side_px: int, near: NDArray[np.int_], far: NDArray[np.int_]) -> Copy:
        """Copy the part between two corners (x, y), halved as often as the whole frame would be."""
        part = pixels[near[1] : far[1], near[0] : far[0]]
        for _ in range(num_halvings(pixels.shape, min_copy_side_px)):
            # Each pixel is the mean of four, or an approximation of it if a side is odd.
            half_px = (part.shape[1] + 1) // 2, (part.shape[0] + 1) // 2
            part = np.asarray(cv2.resize(part, half_px, interpolation=cv2.INTER_LINEAR), np.uint8)
        scale = np.array(part.shape[1::-1]) / np.maximum(far - near, 1)
        return cls(part, scale.astype(np.float32), near.astype(np.float32))

    def inward(self, faces: Sequence[Detection]) -> Float32Array:
        """Return the boxes in pixels of the copy, [F, 4]."""
        corners = np.array([face.box_xyxy for face in faces], np.float32).reshape(-1, 2, 2)
        return ((corners - self.corner) * self.scale).reshape(-1, 4)

    def outward(self, detections: Detections) -> list[Detection]:
        """Return the faces of the copy in pixels of the frame."""
        boxes = (detections.boxes_xyxy.reshape(-1, 2, 2) / self.scale + self.corner).reshape(-1, 4)
        landmarks = detections.landmarks / self.scale + self.corner
        return [Detection(*values) for values in zip(boxes, landmarks, detections.scores.tolist(), strict=True)]


def num_halvings(shape: tuple[int, ...], min_copy_side_px: int) -> int:
    """Return how many times a frame of this shape is halved before it is searched."""
    return max(0, (max(shape[:2]) // min_copy_side_px).bit_length() - 1)
