"""The two stages of a scan that run in threads of this process: the search for faces, and their scoring.

Both are given work by one thread, which also takes the results, in order; what waits in them is bounded, so that a fast
decoder waits for a slow classifier.
"""

from __future__ import annotations

import heapq
import logging
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from dfscan.detector.preprocess import Preprocessing, to_input
from dfscan.detector.runtime import Runtime
from dfscan.faces.appearance import appearance, scene
from dfscan.faces.crop import crop_face
from dfscan.faces.detect import Detection
from dfscan.faces.follow import Follower
from dfscan.media.isolate import Ended
from dfscan.scan.ledger import FileIdentity
from dfscan.scan.pictures import FacePictures
from dfscan.scan.timing import Timings
from dfscan.types import Face, FaceCrop, FaceScore, Frame, Reason, Scene

MAX_WAITING_FRAMES = 2
"""So many for each thread of the search may wait for it."""
MAX_WAITING_BATCHES = 2
"""So many, besides one for each of its threads, may wait for the classifier."""

Floats = NDArray[np.float32]

log = logging.getLogger("dfscan")


@dataclass(frozen=True, slots=True, eq=False)
class ScoredCrop:
    """A judged face with what an explanation needs."""

    crop: FaceCrop
    frame: Frame | None
    logit: float
    """The network's own."""
    cam: Floats


@dataclass(eq=False)
class VideoUnderWay:
    """What is known of a video so far."""

    path: str
    identity: FileIdentity | None
    follower: Follower
    num_best: int
    """Of so many faces what an explanation needs is kept."""
    num_frames: int = 0
    unsearched: list[Frame] = field(default_factory=list)
    is_searched: bool = False
    """Whether a thread is at it; frames of one video are searched in order."""
    num_unscored: int = 0
    ended: Ended | None = None
    is_search_ended: bool = False
    has_changed: bool = False
    failure: Reason | None = None
    faces: list[FaceScore] = field(default_factory=list)
    pictures: FacePictures | None = None
    """Where they are wanted."""
    _best: list[tuple[float, int, FaceScore, ScoredCrop]] = field(default_factory=list)

    def end(self, ended: Ended) -> None:
        """No more frames come."""
        self.ended = ended
        self.has_changed = self.identity != FileIdentity.of(self.path)

    @property
    def is_complete(self) -> bool:
        """Whether all its faces are scored."""
        return self.is_search_ended and not self.num_unscored

    def keep(self, score: FaceScore, scored: ScoredCrop) -> None:
        """Take one score."""
        self.num_unscored -= 1
        self.faces.append(score)
        if self.pictures:
            self.pictures.add(scored.crop)
        if self.num_best:
            heapq.heappush(self._best, (score.logit, -len(self.faces), score, scored))
            if len(self._best) > self.num_best:
                heapq.heappop(self._best)

    def best_first(self) -> list[tuple[FaceScore, ScoredCrop]]:
        """The `num_best` faces with the highest scores, the earlier first of equals."""
        return [entry[2:] for entry in sorted(self._best, key=lambda entry: entry[:2], reverse=True)]


@dataclass(frozen=True, slots=True, eq=False)
class LookedOver:
    """A frame and the crops of its faces."""

    frame: Frame
    crops: list[FaceCrop]


@dataclass(frozen=True, slots=True, eq=False)
class Searched:
    """The next frames of a video whose faces are known."""

    video: VideoUnderWay
    looks: list[LookedOver]


class SearchStage:
    """Searches several videos at once, the frames of each in order."""

    def __init__(self, preprocessing: Preprocessing, timings: Timings, *, threads: int) -> None:
        self._preprocessing = preprocessing
        self._timings = timings
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="search")
        self._max_waiting = MAX_WAITING_FRAMES * threads
        self._num_waiting = 0
        self._running: deque[tuple[Future[list[LookedOver]], VideoUnderWay, int, bool]] = deque()

    def submit(self, video: VideoUnderWay, frame: Frame | None) -> None:
        """Take the next frame of a video, or None after its last."""
        if frame is not None:
            video.num_frames += 1
            video.unsearched.append(frame)
            self._num_waiting += 1
        if not video.is_searched:
            self._start(video)

    def _start(self, video: VideoUnderWay) -> None:
        frames, video.unsearched = video.unsearched, []
        is_last = video.ended is not None
        video.is_searched = True
        future = self._pool.submit(self._search, video, frames, is_last)
        self._running.append((future, video, len(frames), is_last))

    def _search(self, video: VideoUnderWay, frames: list[Frame], is_last: bool) -> list[LookedOver]:
        with self._timings.stage("detect", count=len(frames)):
            looks = [look for frame in frames for look in video.follower.look(frame)]
            if is_last:
                looks += video.follower.finish()
        with self._timings.stage("crop", count=sum(len(look.faces) for look in looks)):
            return [LookedOver(look.frame, self._crops(look.frame, look.faces)) for look in looks]

    def _crops(self, frame: Frame, faces: list[Detection]) -> list[FaceCrop]:
        view = scene(frame.pixels) if faces else None
        return [self._crop(frame, face, view) for face in faces]

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
        )
        margin, size = self._preprocessing.crop_margin, self._preprocessing.input_size_px
        return FaceCrop(face, crop_face(frame.pixels, detection.box_xyxy, margin=margin, size=size))

    def next(self) -> Searched | None:
        """The next result if there is one; waited for only if too much is waiting."""
        if self._running and (self._running[0][0].done() or self._num_waiting > self._max_waiting):
            return self.wait()
        return None

    def wait(self) -> Searched:
        """The next result."""
        future, video, num_frames, is_last = self._running.popleft()
        try:
            looks = future.result()
        except (IndexError, ValueError, cv2.error) as error:  # what odd pictures can do to MTCNN and OpenCV
            log.debug("face detection", exc_info=True)
            video.failure = Reason("internal", f"face detection failed on a picture ({type(error).__name__})")
            looks = []
        self._num_waiting -= num_frames
        video.is_searched, video.is_search_ended = False, is_last
        if video.unsearched or (video.ended and not is_last):
            self._start(video)
        return Searched(video, looks)

    @property
    def is_busy(self) -> bool:
        """Whether results are to come."""
        return bool(self._running)

    def close(self) -> None:
        """Drop what has not begun, wait for the rest."""
        self._pool.shutdown(wait=True, cancel_futures=True)


_Unscored = tuple[VideoUnderWay, FaceCrop, Frame | None]


class ScoreStage:
    """Collects faces of all videos into batches and scores them."""

    def __init__(self, runtime: Runtime, preprocessing: Preprocessing, timings: Timings) -> None:
        self._runtime = runtime
        self._preprocessing = preprocessing
        self._timings = timings
        self._pool = ThreadPoolExecutor(runtime.threads, thread_name_prefix="score")
        self._batch: list[_Unscored] = []
        self._running: deque[tuple[Future[tuple[Floats, Floats]], list[_Unscored]]] = deque()

    def submit(self, video: VideoUnderWay, crop: FaceCrop, frame: Frame | None) -> None:
        """Take a face; `frame` if an explanation may need it."""
        video.num_unscored += 1
        self._batch.append((video, crop, frame))
        if len(self._batch) >= self._runtime.batch_size:
            self.flush()

    def flush(self) -> None:
        """Have the classifier score what has been collected, full batch or not."""
        batch, self._batch = self._batch, []
        if batch:
            self._running.append((self._pool.submit(self._score, [crop for _, crop, _ in batch]), batch))

    def _score(self, crops: list[FaceCrop]) -> tuple[Floats, Floats]:
        with self._timings.stage("classify", count=len(crops)):
            return self._runtime.predict(to_input([crop.pixels for crop in crops], self._preprocessing))

    def next(self) -> list[tuple[VideoUnderWay, ScoredCrop]] | None:
        """The next batch if there is one; waited for only if too much is waiting."""
        most = self._runtime.threads + MAX_WAITING_BATCHES
        if self._running and (self._running[0][0].done() or len(self._running) > most):
            return self.wait()
        return None

    def wait(self) -> list[tuple[VideoUnderWay, ScoredCrop]]:
        """The next batch."""
        future, batch = self._running.popleft()
        logits, cams = future.result()
        return [
            (video, ScoredCrop(crop, frame, float(logit), cam))
            for (video, crop, frame), logit, cam in zip(batch, logits, cams, strict=True)
        ]

    @property
    def is_busy(self) -> bool:
        """Whether results are to come."""
        return bool(self._running)

    def close(self) -> None:
        """Drop what has not begun, wait for the rest."""
        self._pool.shutdown(wait=True, cancel_futures=True)
