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

from dfscan.arrays import UInt8Image
from dfscan.detector.preprocess import Preprocessing
from dfscan.faces.batched import BatchedFaceDetector
from dfscan.faces.crop import crop_aligned, crop_box, crop_face
from dfscan.faces.descriptor import face_descriptor, inner_face, scene_descriptor
from dfscan.faces.detect import Detection, FaceDetector
from dfscan.faces.keyframes import KeyframeDetector
from dfscan.faces.quality import measure_quality
from dfscan.fingerprint import SKETCH_EVERY, Sketch, sketch
from dfscan.scan.timing import Timings
from dfscan.scan.video import VideoState
from dfscan.types import Face, FaceCrop, Frame, Reason, SceneDescriptor

MAX_WAITING_FRAMES = 2
"""Maximum number of frames per thread that wait for detection on a CPU."""
MAX_BATCHES_PASSED = 8
"""On a GPU, a partial batch is sent after this many batches of other shapes."""
ODD_FRAME_ERRORS = (IndexError, ValueError, cv2.error)
"""Errors that MTCNN and OpenCV raise on unusual frames."""

log = logging.getLogger("dfscan")


@dataclass(frozen=True, slots=True, eq=False)
class FrameCrops:
    """A searched frame and the crops of its faces."""

    frame: Frame
    crops: list[FaceCrop]
    sketch: Sketch | None
    """For the fingerprint of the video, of every `SKETCH_EVERY`-th frame."""


@dataclass(frozen=True, slots=True, eq=False)
class DetectedFrames:
    """The next searched frames of a video."""

    video: VideoState
    frames: list[FrameCrops]
    is_last: bool
    """True if the video has ended and all its frames have been searched."""
    failure: Reason | None = None
    """Why frames are missing, if detection failed."""


class DetectStage(Protocol):
    """Detects and crops the faces of several videos at once. It never reads or writes the state of a video."""

    def submit(self, video: VideoState, frame: Frame) -> None:
        """Take the next frame of a video."""

    def end(self, video: VideoState) -> None:
        """Note that a video has no more frames; a result with `DetectedFrames.is_last` follows."""

    def next(self) -> list[DetectedFrames]:
        """Return finished results; wait only if too many frames are queued."""

    def wait(self) -> list[DetectedFrames]:
        """Wait for the next results; the stage must be busy (see `is_busy`)."""

    @property
    def is_busy(self) -> bool:
        """True if results are pending."""


class FaceCropper:
    """Crops faces as each of the classifiers needs them."""

    def __init__(self, preprocessings: Sequence[Preprocessing]) -> None:
        # Crops do not depend on the normalisation; without it, equal settings compare equal, so equal crops are made
        # once.
        unnormalised = {"mean": (0, 0, 0), "std": (1, 1, 1)}
        self._crops = [each.model_copy(update=unnormalised) for each in preprocessings]

    def crop_faces(self, frame: Frame, faces: Sequence[Detection]) -> FrameCrops:
        """Crop each face and compute its descriptor; sketch the frame."""
        view = scene_descriptor(frame.pixels) if faces else None
        crops = [self._crop(frame, face, view, i) for i, face in enumerate(faces)]
        if frame.index % SKETCH_EVERY:
            return FrameCrops(frame, crops, None)
        largest = max(faces, key=lambda face: face.box_xyxy[2] - face.box_xyxy[0], default=None)
        inner = inner_face(frame.pixels, largest.landmarks) if largest else None
        return FrameCrops(frame, crops, sketch(frame.pixels, inner))

    def _crop(self, frame: Frame, detection: Detection, view: SceneDescriptor | None, index: int) -> FaceCrop:
        quality = measure_quality(frame.pixels, detection.box_xyxy)
        face = Face(
            frame_index=frame.index,
            time_s=frame.time_s,
            burst=frame.burst,
            box_xyxy=detection.box_xyxy,
            landmarks=detection.landmarks,
            detection_score=detection.score,
            descriptor=face_descriptor(frame.pixels, detection.landmarks),
            scene=view,
            frame_number=frame.number,
            stream=frame.stream,
            shot=frame.shot,
            sharpness=quality.sharpness if quality else None,
            blockiness=quality.blockiness if quality else None,
            index_in_frame=index,
        )
        made = dict[Preprocessing, UInt8Image]()
        for each in dict.fromkeys(self._crops):
            margin, size_px = each.crop_margin, each.input_size_px
            if each.crop == "aligned":
                made[each] = crop_aligned(frame.pixels, detection.landmarks, margin=margin, size=size_px)
            else:
                crop = crop_box if each.crop == "box" else crop_face
                box_xyxy, interpolation = detection.box_xyxy, each.interpolation
                made[each] = crop(frame.pixels, box_xyxy, margin=margin, size=size_px, interpolation=interpolation)
        first, *others = (made[each] for each in self._crops)
        return FaceCrop(face, first, tuple(others))


def detection_failure(error: Exception) -> Reason:
    """Return the failure reason of a video in which a frame raised one of `ODD_FRAME_ERRORS`."""
    log.debug("face detection", exc_info=error)
    return Reason("internal", f"face detection failed on a picture ({type(error).__name__})")


@dataclass(slots=True, eq=False)
class _Queue:
    """Queued frames of one video."""

    detector: KeyframeDetector
    waiting: list[Frame] = field(default_factory=list)
    has_ended: bool = False
    is_running: bool = False
    """True while a worker thread is processing this video."""


class SequentialDetectStage:
    """`DetectStage` for a CPU: each video is processed by one thread at a time, and its faces are tracked."""

    def __init__(
        self, detector: FaceDetector, cropper: FaceCropper, timings: Timings, pool: Executor, *, threads: int
    ) -> None:
        self._detector = detector
        self._cropper = cropper
        self._timings = timings
        self._pool = pool
        self._max_waiting = MAX_WAITING_FRAMES * threads
        self._num_waiting = 0
        self._queues: WeakKeyDictionary[VideoState, _Queue] = WeakKeyDictionary()
        """Weak keys: if the decoder of a video dies and it is retried, its first state never ends."""
        self._running: deque[tuple[Future[list[FrameCrops]], VideoState, int, bool]] = deque()

    def submit(self, video: VideoState, frame: Frame) -> None:
        """See `DetectStage.submit`."""
        queue = self._queue_of(video)
        queue.waiting.append(frame)
        self._num_waiting += 1
        if not queue.is_running:
            self._start(video, queue)

    def end(self, video: VideoState) -> None:
        """See `DetectStage.end`."""
        queue = self._queue_of(video)
        queue.has_ended = True
        if not queue.is_running:
            self._start(video, queue)

    def _queue_of(self, video: VideoState) -> _Queue:
        if video not in self._queues:
            self._queues[video] = _Queue(KeyframeDetector(self._detector))
        return self._queues[video]

    def _start(self, video: VideoState, queue: _Queue) -> None:
        frames, queue.waiting = queue.waiting, []
        is_last = queue.has_ended
        queue.is_running = True
        future = self._pool.submit(self._detect, queue.detector, frames, is_last)
        self._running.append((future, video, len(frames), is_last))

    def _detect(self, detector: KeyframeDetector, frames: list[Frame], is_last: bool) -> list[FrameCrops]:
        with self._timings.stage("detect", count=len(frames)):
            detected = [item for frame in frames for item in detector.add(frame)]
            if is_last:
                detected += detector.finish()
        with self._timings.stage("crop", count=sum(len(item.faces) for item in detected)):
            return [self._cropper.crop_faces(item.frame, item.faces) for item in detected]

    def next(self) -> list[DetectedFrames]:
        """See `DetectStage.next`."""
        if self._running and (self._running[0][0].done() or self._num_waiting > self._max_waiting):
            return self.wait()
        return []

    def wait(self) -> list[DetectedFrames]:
        """See `DetectStage.wait`."""
        future, video, num_frames, is_last = self._running.popleft()
        failure = None
        try:
            detected = future.result()
        except ODD_FRAME_ERRORS as error:
            detected, failure = [], detection_failure(error)
        self._num_waiting -= num_frames
        queue = self._queues[video]
        queue.is_running = False
        if queue.waiting or (queue.has_ended and not is_last):
            self._start(video, queue)
        return [DetectedFrames(video, detected, is_last, failure)]

    @property
    def is_busy(self) -> bool:
        """See `DetectStage.is_busy`."""
        return bool(self._running)


_Item = tuple[VideoState, Frame]
_Shape = tuple[int, ...]


@dataclass(slots=True, eq=False)
class _Batch:
    """Frames of one shape that are collected for one batch."""

    began: int
    """Number of batches that had been sent when the first frame was added."""
    items: list[_Item] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class _Progress:
    """Progress of one video."""

    num_open: int = 0
    """Number of frames that are not searched yet."""
    shape: _Shape | None = None
    """Shape of its last frame."""
    has_ended: bool = False


class BatchedDetectStage:
    """`DetectStage` for a GPU: detects faces in every frame, in batches of equal frame shape across videos."""

    def __init__(
        self,
        detector: BatchedFaceDetector,
        cropper: FaceCropper,
        timings: Timings,
        pool: Executor,
        *,
        threads: int,
    ) -> None:
        self._detector = detector
        self._cropper = cropper
        self._timings = timings
        self._max_running = threads
        self._pool = pool
        self._batches: dict[_Shape, _Batch] = {}
        self._num_sent = 0
        self._running: deque[tuple[Future[list[FrameCrops | Reason]], list[_Item]]] = deque()
        self._progress: WeakKeyDictionary[VideoState, _Progress] = WeakKeyDictionary()
        self._ended: list[DetectedFrames] = []
        """Results of videos that ended without open frames."""

    def submit(self, video: VideoState, frame: Frame) -> None:
        """See `DetectStage.submit`."""
        progress = self._progress.setdefault(video, _Progress())
        shape = frame.pixels.shape
        last_shape, progress.shape = progress.shape, shape
        if last_shape is not None and last_shape != shape:
            self._send(last_shape)  # keeps the frames of a video in order
        progress.num_open += 1
        batch = self._batches.setdefault(shape, _Batch(self._num_sent))
        batch.items.append((video, frame))
        if len(batch.items) >= self._detector.batch_size(shape):
            self._send(shape)

    def end(self, video: VideoState) -> None:
        """See `DetectStage.end`."""
        progress = self._progress.setdefault(video, _Progress())
        progress.has_ended = True
        if not progress.num_open:
            self._ended.append(DetectedFrames(video, [], is_last=True))

    def _send(self, shape: _Shape) -> None:
        batch = self._batches.pop(shape, None)
        if batch is None:
            return
        self._num_sent += 1
        self._running.append((self._pool.submit(self._detect, [frame for _, frame in batch.items]), batch.items))
        for rare in [
            each for each, other in self._batches.items() if self._num_sent - other.began > MAX_BATCHES_PASSED
        ]:
            self._send(rare)

    def _detect(self, frames: Sequence[Frame]) -> list[FrameCrops | Reason]:
        """Return the crops of each frame, or the reason why detection failed."""
        try:
            with self._timings.stage("detect", count=len(frames)):
                faces_of_frames = self._detector.detect([frame.pixels for frame in frames])
            with self._timings.stage("crop", count=sum(map(len, faces_of_frames))):
                return [
                    self._cropper.crop_faces(frame, faces) for frame, faces in zip(frames, faces_of_frames, strict=True)
                ]
        except ODD_FRAME_ERRORS as error:
            if len(frames) == 1:
                return [detection_failure(error)]
            return [result for frame in frames for result in self._detect([frame])]

    def next(self) -> list[DetectedFrames]:
        """See `DetectStage.next`."""
        is_due = self._running and (self._running[0][0].done() or len(self._running) > self._max_running)
        return self.wait() if self._ended or is_due else []

    def wait(self) -> list[DetectedFrames]:
        """See `DetectStage.wait`."""
        if self._ended:
            ended, self._ended = self._ended, []
            return ended
        if not self._running:
            self._send(next(iter(self._batches)))
        future, items = self._running.popleft()
        searched = []
        for (video, _), result in zip(items, future.result(), strict=True):
            progress = self._progress[video]
            progress.num_open -= 1
            is_last = progress.has_ended and not progress.num_open
            if isinstance(result, Reason):
                searched.append(DetectedFrames(video, [], is_last, failure=result))
            else:
                searched.append(DetectedFrames(video, [result], is_last))
        return searched

    @property
    def is_busy(self) -> bool:
        """See `DetectStage.is_busy`."""
        return bool(self._running or self._batches or self._ended)
