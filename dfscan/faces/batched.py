"""Detect the faces of many frames at once, on a GPU."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dfscan.arrays import UInt8Image
from dfscan.errors import DfscanError
from dfscan.faces.detect import Copy, Detection, FaceDetector, num_halvings
from dfscan.faces.mtcnn_numpy import Detections
from dfscan.faces.networks import library_networks
from dfscan.gpu import BusyClock, GpuModel

if TYPE_CHECKING:
    from torch import Tensor

MAX_BATCH_FRAMES, MAX_SEARCHED_PX, MAX_WHOLE_FRAME_PX = 32, 16_000_000, 32_000_000
"""Maximum number of frames in a batch, of their pixels after halving, and of their pixels before halving. This gives 32
frames of 512 x 512, 17 of 720p, 15 of 1080p, 3 of 4K."""

log = logging.getLogger("dfscan")


class BatchedFaceDetector(GpuModel):
    """Detects faces in whole frames, in batches on a GPU, with the rules of a `FaceDetector`.

    Thread-safe: one batch is searched at a time while other threads prepare theirs.
    """

    NAME = "the face detector"
    HALVED = "detecting faces in batches of %d frames"
    ON_CPU = "detecting faces on the CPU, slowly"

    def __init__(self, detector: FaceDetector, *, device: str, clock: BusyClock | None = None) -> None:
        """Load the networks.

        Args:
            detector: provides the thresholds and sizes, and replaces the GPU when that runs out of memory.
            device: PyTorch's name of the device.
            clock: counts the busy time of this device.

        Raises:
            DfscanError: the networks do not fit into the memory of the device.
        """
        super().__init__(device, clock or BusyClock())
        self._detector = detector
        self._max_searched_px = MAX_SEARCHED_PX
        try:
            self._networks = {name: network.to(device) for name, network in library_networks().items()}
        except RuntimeError as error:
            raise self._failure(error) from error

    def batch_size(self, shape: tuple[int, ...]) -> int:
        """Return the best batch size for frames of one shape (H, W, 3)."""
        frame_px = max(1, shape[0] * shape[1])
        searched_px = max(1, frame_px >> 2 * num_halvings(shape, self._detector.min_copy_side_px))
        return max(1, min(MAX_BATCH_FRAMES, self._max_searched_px // searched_px, MAX_WHOLE_FRAME_PX // frame_px))

    def detect(self, frames: Sequence[UInt8Image]) -> list[list[Detection]]:
        """Detect the faces of each frame; see `FaceDetector.detect`.

        Args:
            frames: (H, W, 3) RGB each, of any size. Frames of one size are searched together, see `batch_size`.

        Raises:
            DfscanError: the device fails.
        """
        by_shape: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for i, pixels in enumerate(frames):
            by_shape[pixels.shape].append(i)
        faces: list[list[Detection]] = [[] for _ in frames]
        for places in by_shape.values():
            copies = [Copy.of_all(frames[i], self._detector.min_copy_side_px) for i in places]
            min_px = self._detector.min_px(copies[0])
            if min_px is None:
                continue
            detections = self._search([copy.pixels for copy in copies], frames[places[0]].shape, min_px)
            for i, copy, detected in zip(places, copies, detections, strict=True):
                faces[i] = self._detector.select(copy.outward(detected), frames[i])
        return faces

    def _search(self, copies: Sequence[UInt8Image], shape: tuple[int, ...], min_px: float) -> list[Detections]:
        from dfscan.faces import mtcnn_torch

        def search(batch: Tensor) -> list[Detections]:
            on_device = batch.to(self.device, non_blocking=True)
            return mtcnn_torch.find_all_faces(on_device, self._networks, min_face_px=min_px)

        detections: list[Detections] = []
        for num_frames, found in self._run_batches(copies, search, lambda: self.batch_size(shape)):
            detections += found[:num_frames]
        return detections + [self._detector.search(copy, min_px) for copy in copies[len(detections) :]]

    def _halve(self) -> None:
        self._max_searched_px //= 2

    def _use_cpu(self, failure: DfscanError) -> None:
        self._is_working = False
        log.warning("%s is out of memory even for one frame: %s", self.device, self.ON_CPU)
