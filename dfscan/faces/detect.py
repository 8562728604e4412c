"""Find the faces of a frame: MTCNN on a copy of bounded size, boxes and landmarks in pixels of the full frame."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy as shallow_copy
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from dfscan.faces.mtcnn import NO_BOXES, WINDOW_PX, Found, Networks, find_again, find_faces
from dfscan.faces.networks import OnnxNetworks

Pixels = NDArray[np.uint8]

LEAST_SIDE_PX = 960
"""A frame whose longest side is at least twice as long is halved, as often as it can be, before it is searched.

Half of 1080p, where faces from 42 px on stay above `SMALLEST_PX`. Shrinking by other factors costs more than it saves:
averaging takes 6 ms at 1280 x 720, and bilinear interpolation lost 9 of 284 faces there. Measured on 40 portraits
pasted into 1920 x 1080 frames, JPEG quality 60, on one core of a 2-core server, with no false face at any size: at 640
the smallest faces begin to go, above 960 only the time grows. In 3840 x 2160, 7 of 8 faces of 48 px were found, and all
8 of 64 px.

=================  =====  =====  =====  =====  =====
longest side         640    800    960   1280   1920
=================  =====  =====  =====  =====  =====
found, 48 px       0.950  1.000  1.000  1.000  1.000
found, 64-200 px   1.000  1.000  1.000  1.000  1.000
CPU ms, in PyTorch    93    131    153    193    256
=================  =====  =====  =====  =====  =====
"""
SMALLEST_PX = 20.0
"""What MTCNN can see at all: its first network looks at 12 x 12 windows, its authors start at 20 px."""
LONGER_SIDE = 1.25
"""Height of a face's box over its width. `min_face_px` is for the shorter side, but windows are as large as the longer.

So the pyramid begins with windows larger by this than `min_face_px`, for a quarter less time. Of 4,449 portraits of 50
to 160 px in 640 x 360, dark, blurred, turned, covered and compressed, 4,192 were found instead of 4,167; of 4,876 of 48
to 58 px, 3,667 instead of 3,738.
"""
ROOM = 0.5
"""Kept round the boxes of faces that are to be found again, in their longer sides: what making them square can add."""

MIN_VISIBLE = 0.25
"""Minimum share of a face's box that lies in the frame: in a corner, half of its width and height."""


@dataclass(frozen=True, slots=True, eq=False)
class Detection:
    """One face found in one frame."""

    box_xyxy: NDArray[np.float32]
    """(4,) in pixels of the full frame; may reach over its border, see `MIN_VISIBLE`."""
    landmarks: NDArray[np.float32]
    """(5, 2) left eye, right eye, nose, left and right corner of the mouth, as seen in the picture."""
    score: float
    """MTCNN's final probability, in [0, 1]."""

    @property
    def area_px(self) -> float:
        """Width times height of the box, in square pixels."""
        return float(np.prod(self.box_xyxy[2:] - self.box_xyxy[:2]))


class FaceDetector:
    """Finds faces in frames of any size, down to one pixel. On the CPU, whatever the classifier runs on.

    Several threads may use it at once.
    """

    def __init__(
        self, *, threshold: float, min_face_px: int, max_faces: int, least_side_px: int = LEAST_SIDE_PX
    ) -> None:
        """Load MTCNN's networks.

        Args:
            threshold: least final probability of a face. MTCNN's own thresholds (0.6, 0.7, 0.7) stay, so
                that a value under 0.7 is as good as 0.7.
            min_face_px: least length of a box's shorter side, in pixels of the full frame.
            max_faces: most faces kept of one frame, the largest.
            least_side_px: of the copy that is searched, its longest side; see `LEAST_SIDE_PX`.
        """
        self.threshold = threshold
        self.min_face_px = min_face_px
        self.max_faces = max_faces
        self.least_side_px = least_side_px
        self._networks: Networks = OnnxNetworks()

    def with_sizes(self, *, min_face_px: int, least_side_px: int) -> FaceDetector:
        """A detector with the same networks that searches for other sizes; arguments as for the class."""
        other = shallow_copy(self)
        other.min_face_px, other.least_side_px = min_face_px, least_side_px
        return other

    def detect(self, pixels: Pixels, *, known: Sequence[Detection] = ()) -> list[Detection]:
        """Find the faces of a frame.

        Args:
            pixels: (H, W, 3), RGB, any size.
            known: faces of this frame that have been found already, see `find_again`; the search passes over them,
                which halves its cost.

        Returns:
            Known and new ones, largest first, ties by position; an empty list where there is none.
        """
        copy = Copy.of_all(pixels, self.least_side_px)
        least_px = self.least_px(copy)
        if least_px is None:
            return []
        found = self.search(copy.pixels, least_px, known_xyxy=copy.inward(known))
        return self.select([*known, *copy.outward(found)], pixels)

    def search(self, copy: Pixels, least_px: float, *, known_xyxy: NDArray[np.float32] = NO_BOXES) -> Found:
        """Find the faces of a copy, in its pixels; `least_px` and `known_xyxy` as for `mtcnn.find_faces`."""
        return find_faces(copy, self._networks, min_face_px=least_px, known_xyxy=known_xyxy)

    def least_px(self, copy: Copy) -> float | None:
        """Smallest face that is looked for in a copy, in its pixels; None where it is too small for any."""
        shortest_px, min_face_px = min(copy.pixels.shape[:2]), self.min_face_px * float(copy.scale.max())
        largest_px = max(min_face_px, 0.999 * shortest_px)  # a window that does not touch the border by rounding
        least_px = max(SMALLEST_PX, min(LONGER_SIDE * min_face_px, largest_px))
        has_a_level = shortest_px * (WINDOW_PX / least_px) >= WINDOW_PX
        return least_px if has_a_level else None

    def find_again(
        self, pixels: Pixels, near: Sequence[Detection], *, known: Sequence[Detection] = ()
    ) -> list[Detection]:
        """Find faces of a neighbouring frame again, at about a tenth of what a search costs.

        Args:
            pixels: (H, W, 3), RGB.
            near: faces of a frame of the same size.
            known: other faces of this frame; they are not found a second time.

        Returns:
            As `detect`, besides the known ones at most one for each of `near`: a face that is gone or has moved far is
            not found, nor is one that has come.
        """
        if not near:
            return list(known)
        copy = Copy.around(pixels, self.least_side_px, np.array([face.box_xyxy for face in near]))
        found = find_again(copy.pixels, self._networks, copy.inward(near), known_xyxy=copy.inward(known))
        return self.select([*known, *copy.outward(found)], pixels)

    def select(self, faces: list[Detection], pixels: Pixels) -> list[Detection]:
        """Those that are sure, sound and large enough, the largest first."""
        height_px, width_px = pixels.shape[:2]
        kept = [
            face
            for face in faces
            if face.score >= self.threshold
            and _is_sound(face, height_px, width_px)
            and float(np.min(face.box_xyxy[2:] - face.box_xyxy[:2])) >= self.min_face_px
        ]
        kept.sort(key=lambda face: (-face.area_px, *face.box_xyxy.tolist()))
        return kept[: self.max_faces]


@dataclass(frozen=True, slots=True, eq=False)
class Copy:
    """A frame, or a part of it, at the size at which it is searched."""

    pixels: Pixels
    scale: NDArray[np.float32]
    """(2,) pixels of the copy in one of the frame, along x and y."""
    corner: NDArray[np.float32]
    """(2,) where the part begins, in pixels of the frame."""

    @classmethod
    def of_all(cls, pixels: Pixels, least_side_px: int) -> Copy:
        """The whole frame, halved as `LEAST_SIDE_PX` says."""
        size_px = np.array(pixels.shape[1::-1])
        return cls.of_part(pixels, least_side_px, np.zeros(2, int), size_px)

    @classmethod
    def around(cls, pixels: Pixels, least_side_px: int, boxes_xyxy: NDArray[np.float32]) -> Copy:
        """The part that holds all the boxes, made square."""
        room = ROOM * (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).max(axis=1, keepdims=True)
        size_px = np.array(pixels.shape[1::-1])
        near = np.floor((boxes_xyxy[:, :2] - room).min(axis=0)).astype(int).clip(0, size_px - 1)
        far = np.ceil((boxes_xyxy[:, 2:] + room).max(axis=0)).astype(int).clip(near + 1, size_px)
        return cls.of_part(pixels, least_side_px, near, far)

    @classmethod
    def of_part(cls, pixels: Pixels, least_side_px: int, near: NDArray[np.int_], far: NDArray[np.int_]) -> Copy:
        """What lies between two corners, x and y, halved as the whole frame would be."""
        part = pixels[near[1] : far[1], near[0] : far[0]]
        for _ in range(num_halvings(pixels.shape, least_side_px)):
            part = _halved(part)
        scale = np.array(part.shape[1::-1]) / np.maximum(far - near, 1)
        return cls(part, scale.astype(np.float32), near.astype(np.float32))

    def inward(self, faces: Sequence[Detection]) -> NDArray[np.float32]:
        """[F, 4] boxes in pixels of the copy."""
        corners = np.array([face.box_xyxy for face in faces], np.float32).reshape(-1, 2, 2)
        return ((corners - self.corner) * self.scale).reshape(-1, 4)

    def outward(self, found: Found) -> list[Detection]:
        """In pixels of the frame."""
        boxes = (found.boxes_xyxy.reshape(-1, 2, 2) / self.scale + self.corner).reshape(-1, 4)
        landmarks = found.landmarks / self.scale + self.corner
        return [Detection(*each) for each in zip(boxes, landmarks, found.scores.tolist(), strict=True)]


def num_halvings(shape: tuple[int, ...], least_side_px: int) -> int:
    """How often a frame of this shape is halved before it is searched."""
    return max(0, (max(shape[:2]) // least_side_px).bit_length() - 1)


def _halved(pixels: Pixels) -> Pixels:
    """Each pixel the mean of four; where a side is odd, the nearest thing to it."""
    height_px, width_px = pixels.shape[:2]
    half_px = (width_px + 1) // 2, (height_px + 1) // 2
    return np.asarray(cv2.resize(pixels, half_px, interpolation=cv2.INTER_LINEAR), np.uint8)


def _is_sound(face: Detection, height_px: int, width_px: int) -> bool:
    """Whether all its numbers are finite and enough of its box lies in the frame."""
    if not (np.isfinite(face.box_xyxy).all() and np.isfinite(face.landmarks).all()):
        return False
    near, far = face.box_xyxy[:2].clip(0), face.box_xyxy[2:].clip(max=(width_px, height_px))
    return bool((far > near).all() and (far - near).prod() >= MIN_VISIBLE * face.area_px)
