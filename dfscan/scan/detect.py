"""Face detection in threads of this process: per video on a CPU, in batches across videos on a GPU.

One thread submits frames to a stage and takes its results. The results of one video are in order.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from typing import Protocol
from weakref import WeakKeyDictionary

import cv2
import numpy as np
from numpy.typing import NDArray

from dfscan.detector.preprocess import Preprocessing
from dfscan.faces.batched import BatchedFaceDetector
from dfscan.faces.crop import crop_aligned, crop_box, crop_face
from dfscan.faces.descriptor import appearance, scene
from dfscan.faces.detect import Detection, FaceDetector
from dfscan.faces.keyframes import Follower
from dfscan.scan.classify import VideoUnderWay
from dfscan.scan.timing import Timings
from dfscan.types import Face, FaceCrop, Frame, Reason, Scene

MAX_WAITING_FRAMES = 2
"""Maximum number of frames per thread that wait for detection on a CPU."""
MAX_BATCHES_PASSED = 8
"""On a GPU, a partial batch is sent after this many batches of other shapes."""
ODD_PICTURE_ERRORS = (IndexError, ValueError, cv2.error)
"""Errors that MTCNN and OpenCV raise on unusual frames."""

log = logging.getLogger("dfscan")


@dataclass(frozen=True, slots=True, eq=False)
class LookedOver:
    """A searched frame and the crops of its faces."""

    frame: Frame
    crops: list[FaceCrop]


@dataclass(frozen=True, slots=True, eq=False)
class Searched:
    """The next searched frames of a video."""

    video: VideoUnderWay
    looks: list[LookedOver]


class SearchStage(Protocol):
    """Detects and crops the faces of several videos at once."""

    def submit(self, video: VideoUnderWay, frame: Frame | None) -> None:
        """Take the next frame of a video, or None after its last frame."""

    def next(self) -> list[Searched]:
        """Return finished results; wait only if too many frames are queued."""

    def wait(self) -> list[Searched]:
        """Wait for the next results; the stage must be busy (see `is_busy`)."""

    @property
    def is_busy(self) -> bool:
        """True if results are pending."""


class Cutter:
    """Crops faces as the classifier needs them."""

    def __init__(self, preprocessing: Preprocessing) -> None:
        self._preprocessing = preprocessing

    def look_over(self, frame: Frame, faces: Sequence[Detection]) -> LookedOver:
        """Crop each face and compute its descriptor."""
        view = scene(frame.pixels) if faces else None
        return LookedOver(frame, [self._crop(frame, face, view) for face in faces])

    def _crop(self, frame: Frame, detection: Detection, view: Scene | None) -> FaceCrop:
        face = Face(
            frame_index=frame.index,
            time_s=frame.time_s,
            burst=frame.burst,
            box_xyxy=detection.box_xyxy,
            landmarks=detection.landmarks,
            detection_score=detection.score,
            appearance=appearance(frame.pixels, detection.landmarks),
            scene=view,
            frame_number=frame.number,
            stream=frame.stream,
            shot=frame.shot,
        )
        return FaceCrop(face, self._cut(frame, detection))

    def _cut(self, frame: Frame, detection: Detection) -> NDArray[np.uint8]:
        how = self._preprocessing
        margin, size_px, interpolation = how.crop_margin, how.input_size_px, how.interpolation
        if how.crop == "aligned":
            return crop_aligned(frame.pixels, detection.landmarks, margin=margin, size=size_px)
        cut = crop_box if how.crop == "box" else crop_face
        return cut(frame.pixels, detection.box_xyxy, margin=margin, size=size_px, interpolation=interpolation)


def broken(error: Exception) -> Reason:
    """Return the failure reason of a video in which a frame raised one of `ODD_PICTURE_ERRORS`."""
    log.debug("face detection", exc_info=error)
    return Reason("internal", f"face detection failed on a picture ({type(error).__name__})")


@dataclass(slots=True, eq=False)
class _Queue:
    """Queued frames of one video."""

    follower: Follower
    waiting: list[Frame] = field(default_factory=list)
    is_searched: bool = False
    """True while a worker thread is processing this video."""


class FollowingSearch:
    """`SearchStage` for a CPU: each video is processed by one thread at a time, and its faces are tracked."""

    def __init__(
        self, detector: FaceDetector, preprocessing: Preprocessing, timings: Timings, pool: Executor, *, threads: int
    ) -> None:
        self._detector = detector
        self._cutter = Cutter(preprocessing)
        self._timings = timings
        self._pool = pool
        self._max_waiting = MAX_WAITING_FRAMES * threads
        self._num_waiting = 0
        self._queues: WeakKeyDictionary[VideoUnderWay, _Queue] = WeakKeyDictionary()
        """Weak keys: if the decoder of a video dies and it is retried, its first state never ends."""
        self._running: deque[tuple[Future[list[LookedOver]], VideoUnderWay, int, bool]] = deque()

    def submit(self, video: VideoUnderWay, frame: Frame | None) -> None:
        """See `SearchStage.submit`."""
        queue = self._queues.get(video)
        if queue is None:
            queue = self._queues[video] = _Queue(Follower(self._detector))
        if frame is not None:
            queue.waiting.append(frame)
            self._num_waiting += 1
        if not queue.is_searched:
            self._start(video, queue)

    def _start(self, video: VideoUnderWay, queue: _Queue) -> None:
        frames, queue.waiting = queue.waiting, []
        is_last = video.ended is not None
        queue.is_searched = True
        future = self._pool.submit(self._search, queue.follower, frames, is_last)
        self._running.append((future, video, len(frames), is_last))

    def _search(self, follower: Follower, frames: list[Frame], is_last: bool) -> list[LookedOver]:
        with self._timings.stage("detect", count=len(frames)):
            looks = [look for frame in frames for look in follower.look(frame)]
            if is_last:
                looks += follower.finish()
        with self._timings.stage("crop", count=sum(len(look.faces) for look in looks)):
            return [self._cutter.look_over(look.frame, look.faces) for look in looks]

    def next(self) -> list[Searched]:
        """See `SearchStage.next`."""
        if self._running and (self._running[0][0].done() or self._num_waiting > self._max_waiting):
            return self.wait()
        return []

    def wait(self) -> list[Searched]:
        """See `SearchStage.wait`."""
        future, video, num_frames, is_last = self._running.popleft()
        try:
            looks = future.result()
        except ODD_PICTURE_ERRORS as error:
            video.failure = broken(error)
            looks = []
        self._num_waiting -= num_frames
        queue = self._queues[video]
        queue.is_searched, video.is_search_ended = False, is_last
        if queue.waiting or (video.ended and not is_last):
            self._start(video, queue)
        return [Searched(video, looks)]

    @property
    def is_busy(self) -> bool:
        """See `SearchStage.is_busy`."""
        return bool(self._running)


_Item = tuple[VideoUnderWay, Frame]
_Shape = tuple[int, ...]


@dataclass(slots=True, eq=False)
class _Batch:
    """Frames of one shape that are collected for one batch."""

    began: int
    """Number of batches that had been sent when the first frame was added."""
    items: list[_Item] = field(default_factory=list)


class BatchedSearch:
    """`SearchStage` for a GPU: detects faces in every frame, in batches of equal frame shape across videos."""

    def __init__(
        self,
        detector: BatchedFaceDetector,
        preprocessing: Preprocessing,
        timings: Timings,
        pool: Executor,
        *,
        threads: int,
    ) -> None:
        self._detector = detector
        self._cutter = Cutter(preprocessing)
        self._timings = timings
        self._max_running = threads
        self._pool = pool
        self._batches: dict[_Shape, _Batch] = {}
        self._num_sent = 0
        self._running: deque[tuple[Future[list[LookedOver | Reason]], list[_Item]]] = deque()
        self._num_open: WeakKeyDictionary[VideoUnderWay, int] = WeakKeyDictionary()
        """Number of frames of each video that are not searched yet."""
        self._shape_of: WeakKeyDictionary[VideoUnderWay, _Shape] = WeakKeyDictionary()

    def submit(self, video: VideoUnderWay, frame: Frame | None) -> None:
        """See `SearchStage.submit`."""
        if frame is None:
            video.is_search_ended = not self._num_open.get(video)
            return
        shape = frame.pixels.shape
        last_shape, self._shape_of[video] = self._shape_of.get(video, shape), shape
        if last_shape != shape:
            self._send(last_shape)  # keeps the frames of a video in order
        self._num_open[video] = self._num_open.get(video, 0) + 1
        batch = self._batches.setdefault(shape, _Batch(self._num_sent))
        batch.items.append((video, frame))
        if len(batch.items) >= self._detector.batch_size(shape):
            self._send(shape)

    def _send(self, shape: _Shape) -> None:
        batch = self._batches.pop(shape, None)
        if batch is None:
            return
        self._num_sent += 1
        self._running.append((self._pool.submit(self._search, [frame for _, frame in batch.items]), batch.items))
        for rare in [
            each for each, other in self._batches.items() if self._num_sent - other.began > MAX_BATCHES_PASSED
        ]:
            self._send(rare)

    def _search(self, frames: Sequence[Frame]) -> list[LookedOver | Reason]:
        """Return the crops of each frame, or the reason why detection failed."""
        try:
            return self._look_over(frames)
        except ODD_PICTURE_ERRORS as error:
            if len(frames) == 1:
                return [broken(error)]
            return [result for frame in frames for result in self._search([frame])]

    def _look_over(self, frames: Sequence[Frame]) -> list[LookedOver | Reason]:
        with self._timings.stage("detect", count=len(frames)):
            found = self._detector.detect([frame.pixels for frame in frames])
        with self._timings.stage("crop", count=sum(map(len, found))):
            return [self._cutter.look_over(frame, faces) for frame, faces in zip(frames, found, strict=True)]

    def next(self) -> list[Searched]:
        """See `SearchStage.next`."""
        if self._running and (self._running[0][0].done() or len(self._running) > self._max_running):
            return self.wait()
        return []

    def wait(self) -> list[Searched]:
        """See `SearchStage.wait`."""
        if not self._running:
            self._send(next(iter(self._batches)))
        future, items = self._running.popleft()
        searched = []
        for (video, _), result in zip(items, future.result(), strict=True):
            self._num_open[video] -= 1
            video.is_search_ended = video.ended is not None and not self._num_open[video]
            if isinstance(result, Reason):
                video.failure = result
            else:
                searched.append(Searched(video, [result]))
        return searched

    @property
    def is_busy(self) -> bool:
        """See `SearchStage.is_busy`."""
        return bool(self._running or self._batches)
