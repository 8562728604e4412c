"""Find the faces of a frame: MTCNN on a copy of bounded size, boxes and landmarks in pixels of the full frame."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from dfscan.faces.mtcnn import WINDOW_PX, Networks, find_faces
from dfscan.faces.networks import OnnxNetworks, TorchNetworks

Pixels = NDArray[np.uint8]

MAX_SIDE_PX = 960
"""Longest side of the copy that is searched.

Half of 1080p, where faces from 42 px on stay above `SMALLEST_PX`. Measured on 40 portraits pasted into 1920 x 1080
frames, JPEG quality 60, on one core of a 2-core server, with no false face at any size: at 640 the smallest faces
begin to go, above 960 only the time grows. In 3840 x 2160, 7 of 8 faces of 48 px were found, and all 8 of 64 px.

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
GPU_BATCH = 32

log = logging.getLogger("dfscan")


@dataclass(frozen=True, slots=True, eq=False)
class Detection:
    """One face found in one frame."""

    box_xyxy: NDArray[np.float32]
    """(4,) in pixels of the full frame; may reach over its border, its centre does not."""
    landmarks: NDArray[np.float32]
    """(5, 2) left eye, right eye, nose, left and right corner of the mouth, as seen in the picture."""
    score: float
    """MTCNN's final probability, in [0, 1]."""

    @property
    def area_px(self) -> float:
        """Width times height of the box, in square pixels."""
        return float(np.prod(self.box_xyxy[2:] - self.box_xyxy[:2]))


class FaceDetector:
    """Finds faces in frames of any size, down to one pixel."""

    def __init__(
        self,
        *,
        threshold: float,
        min_face_px: int,
        max_faces: int,
        device: str = "cpu",
        max_side_px: int = MAX_SIDE_PX,
    ) -> None:
        """Load MTCNN's networks; only for a GPU is PyTorch imported.

        Args:
            threshold: least final probability of a face. MTCNN's own thresholds (0.6, 0.7, 0.7) stay, so
                that a value under 0.7 is as good as 0.7.
            min_face_px: least length of a box's shorter side, in pixels of the full frame.
            max_faces: most faces kept of one frame, the largest.
            device: where the networks run: ``cpu``, or a GPU as PyTorch names it.
            max_side_px: longest side of the copy that is searched; see `MAX_SIDE_PX`.
        """
        self.threshold = threshold
        self.min_face_px = min_face_px
        self.max_faces = max_faces
        self.max_side_px = max_side_px
        self._device = device
        self._batch = 1 if device == "cpu" else GPU_BATCH
        self._networks: Networks = OnnxNetworks() if device == "cpu" else TorchNetworks(device)

    def detect(self, frames: Sequence[Pixels]) -> list[list[Detection]]:
        """Find the faces of every frame.

        On a GPU neighbours of one size are searched together; on a CPU one frame at a time is faster, and what
        is found in a frame then never depends on its neighbours.

        Args:
            frames: each (H, W, 3), RGB, any sizes.

        Returns:
            For each frame its faces, largest first, ties by position; an empty list where there is none.
        """
        found: list[list[Detection]] = []
        for (height, width), same_size in itertools.groupby(frames, key=lambda pixels: pixels.shape[:2]):
            found += self._detect_same_size(list(same_size), height, width)
        return found

    def _detect_same_size(self, frames: list[Pixels], height_px: int, width_px: int) -> list[list[Detection]]:
        size_px = self._searched_size(height_px, width_px)
        scale = np.array([size_px[0] / max(width_px, 1), size_px[1] / max(height_px, 1)], np.float32)
        least_px = max(SMALLEST_PX, self.min_face_px * float(scale.max()))
        if min(size_px) * (WINDOW_PX / least_px) < WINDOW_PX:  # not one step in its pyramid
            return [[] for _ in frames]
        found: list[list[Detection]] = []
        while len(found) < len(frames):
            batch = [_shrink(pixels, size_px) for pixels in frames[len(found) : len(found) + self._batch]]
            for faces in self._search(batch, least_px, scale):
                found.append(self._select(faces, height_px, width_px))
        return found

    def _search(self, batch: list[Pixels], least_px: float, scale: NDArray[np.float32]) -> list[list[Detection]]:
        """The faces of each frame; of none where a GPU's memory ran out, for which room is made then."""
        if self._device == "cpu":
            found = find_faces(batch, self._networks, min_face_px=least_px)
        else:
            import torch

            try:
                found = find_faces(batch, self._networks, min_face_px=least_px)
            except torch.OutOfMemoryError:
                found = []
            if not found:  # not before the exception, which holds on to the tensors, is gone
                self._make_room()
        return [
            [
                Detection(box, landmarks, float(score))
                for box, landmarks, score in zip(
                    faces.boxes_xyxy / np.tile(scale, 2), faces.landmarks / scale, faces.scores, strict=True
                )
            ]
            for faces in found
        ]

    def _make_room(self) -> None:
        """After a GPU's memory ran out: search one frame at a time, then on the CPU."""
        import torch

        if self._batch > 1:
            self._batch = 1
            log.warning("%s is out of memory: searching one frame at a time for faces", self._device)
        else:
            log.warning("%s has no memory left to search one frame: going on with the CPU, slowly", self._device)
            self._device, self._networks = "cpu", OnnxNetworks()
        torch.cuda.empty_cache()

    def _searched_size(self, height_px: int, width_px: int) -> tuple[int, int]:
        """(width, height) of the copy that is searched."""
        scale = min(1.0, self.max_side_px / max(height_px, width_px, 1))
        return max(1, round(width_px * scale)), max(1, round(height_px * scale))

    def _select(self, faces: list[Detection], height_px: int, width_px: int) -> list[Detection]:
        kept = [
            face
            for face in faces
            if face.score >= self.threshold
            and _is_sound(face, height_px, width_px)
            and float(np.min(face.box_xyxy[2:] - face.box_xyxy[:2])) >= self.min_face_px
        ]
        kept.sort(key=lambda face: (-face.area_px, *face.box_xyxy.tolist()))
        return kept[: self.max_faces]


def _shrink(pixels: Pixels, size_px: tuple[int, int]) -> Pixels:
    if pixels.shape[1::-1] == size_px:
        return pixels
    return np.asarray(cv2.resize(pixels, size_px, interpolation=cv2.INTER_AREA), np.uint8)


def _is_sound(face: Detection, height_px: int, width_px: int) -> bool:
    """Whether all its numbers are finite and its box's centre lies in the frame."""
    if not (np.isfinite(face.box_xyxy).all() and np.isfinite(face.landmarks).all()):
        return False
    centre_x, centre_y = (face.box_xyxy[:2] + face.box_xyxy[2:]) / 2
    return bool(0 <= centre_x <= width_px and 0 <= centre_y <= height_px)
