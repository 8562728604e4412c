"""Find the faces of many frames at once, on a GPU."""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Sequence

from dfscan.errors import DfscanError
from dfscan.faces.detect import Copy, Detection, FaceDetector, Pixels
from dfscan.faces.mtcnn import Found
from dfscan.faces.networks import library_networks

MAX_FRAMES, MAX_PX = 32, 16_000_000
"""So many frames, or fewer of so many pixels in all, are searched at once: 32 of 512 x 512, 8 of 1080p, 1 of 4K."""

log = logging.getLogger("dfscan")


class BatchedFaceDetector:
    """Searches whole frames, as many as a GPU takes at once, with the rules of a `FaceDetector`.

    Batches are filled up with empty frames, so that what is found in a frame does not depend on the frames beside it.
    When memory runs out batches are halved; where it does not do for one frame, the CPU goes on for good.

    Several threads may use it at once: one batch is searched at a time, others are prepared meanwhile.
    """

    def __init__(self, detector: FaceDetector, *, device: str) -> None:
        """Load the networks.

        Args:
            detector: its thresholds and sizes count; it goes on where the GPU cannot.
            device: as PyTorch names it.

        Raises:
            DfscanError: they do not fit into the device.
        """
        self._detector = detector
        self._device = device
        self._max_px = MAX_PX
        self._is_working = True
        self._lock = threading.Lock()
        self.busy_s = 0.0
        """So long the GPU, or its driver, was at work."""
        try:
            self._networks = {name: network.to(device) for name, network in library_networks().items()}
        except RuntimeError as error:
            raise self._failure(error) from error

    def detect(self, frames: Sequence[Pixels]) -> list[list[Detection]]:
        """Find the faces of each frame, as `FaceDetector.detect`.

        Args:
            frames: (H, W, 3) RGB each, any sizes; those of one size are searched together.

        Raises:
            DfscanError: the device fails.
        """
        copies = [Copy.of_all(pixels, self._detector.least_side_px) for pixels in frames]
        alike: dict[tuple[tuple[int, ...], float], list[int]] = defaultdict(list)
        for i, copy in enumerate(copies):
            if (least_px := self._detector.least_px(copy)) is not None:
                alike[copy.pixels.shape, least_px].append(i)
        faces: list[list[Detection]] = [[] for _ in frames]
        for (_, least_px), places in alike.items():
            found = self._search([copies[i].pixels for i in places], least_px)
            for i, each in zip(places, found, strict=True):
                faces[i] = self._detector.select(copies[i].outward(each), frames[i])
        return faces

    def _search(self, copies: Sequence[Pixels], least_px: float) -> list[Found]:
        found: list[Found] = []
        while len(found) < len(copies):
            waiting = copies[len(found) :]
            if not self._is_working:
                return found + [self._detector.search(copy, least_px) for copy in waiting]
            with self._lock:
                batch = self._try(waiting, least_px)
                if batch is None:
                    self._make_room(waiting[0])
                else:
                    found += batch
        return found

    def _try(self, copies: Sequence[Pixels], least_px: float) -> list[Found] | None:
        """Of the first batch; None when memory ran out: by then the exception, which holds on to tensors, is gone."""
        import torch

        try:
            return self._run(copies, least_px)
        except torch.OutOfMemoryError:
            return None
        except RuntimeError as error:
            raise self._failure(error) from error

    def _run(self, copies: Sequence[Pixels], least_px: float) -> list[Found]:
        import torch

        from dfscan.faces.cascade import find_all_faces

        num_frames = self._batch_size(copies[0])
        frames = torch.zeros((num_frames, *copies[0].shape), dtype=torch.uint8, pin_memory=self._device != "cpu")
        for frame, copy in zip(frames.numpy(), copies, strict=False):
            frame[...] = copy
        start_s = time.perf_counter()
        on_device = frames.to(self._device, non_blocking=True)
        found = find_all_faces(on_device, self._networks, min_face_px=least_px)
        self.busy_s += time.perf_counter() - start_s
        return found[: len(copies)]

    def _batch_size(self, copy: Pixels) -> int:
        num_frames: int = self._max_px // (copy.shape[0] * copy.shape[1])
        return max(1, min(MAX_FRAMES, num_frames))

    def _make_room(self, copy: Pixels) -> None:
        import torch

        num_frames = self._batch_size(copy)
        if num_frames > 1:
            self._max_px = num_frames // 2 * copy.shape[0] * copy.shape[1]
            log.warning("%s is out of memory: searching %d frames at once for faces", self._device, num_frames // 2)
        else:
            self._is_working = False
            log.warning("%s has no memory left to search one frame: going on with the CPU, slowly", self._device)
        torch.cuda.empty_cache()

    def _failure(self, error: RuntimeError) -> DfscanError:
        cause = str(error).partition("\n")[0]
        return DfscanError(f"the face detector cannot run on {self._device}: {cause}; try --device cpu")
