"""The scoring of faces, in threads of this process, and what is known of a video meanwhile.

One thread gives work to this stage and to that of `search`, and takes the results, in order; what waits in them is
bounded, so that a fast decoder waits for a slow classifier.
"""

from __future__ import annotations

import heapq
from collections import deque
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dfscan.detector.preprocess import Preprocessing, to_input
from dfscan.detector.runtime import Runtime
from dfscan.media.isolate import Ended
from dfscan.scan.crowd import Crowd
from dfscan.scan.ledger import FileIdentity
from dfscan.scan.pictures import FacePictures
from dfscan.scan.second_look import KeptFrames
from dfscan.scan.timing import Timings
from dfscan.types import FaceCrop, FaceScore, Frame, Reason

MAX_WAITING_BATCHES = 2
"""So many, besides one for each of its threads, may wait for the classifier."""

Floats = NDArray[np.float32]


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
    num_best: int
    """Of so many faces what an explanation needs is kept."""
    crowd: Crowd
    turn_deg: int = 0
    """Clockwise turn of its frames before they are searched."""
    num_frames: int = 0
    num_found: int = 0
    """Faces found so far, whether they are judged or not."""
    num_unscored: int = 0
    ended: Ended | None = None
    is_search_ended: bool = False
    has_changed: bool = False
    failure: Reason | None = None
    faces: list[FaceScore] = field(default_factory=list)
    pictures: FacePictures | None = None
    """Where they are wanted."""
    kept: KeptFrames = field(default_factory=KeptFrames)
    """For a second look, as long as few faces are found."""
    _best: list[tuple[float, int, FaceScore, ScoredCrop]] = field(default_factory=list)

    def end(self, ended: Ended) -> None:
        """No more frames come."""
        self.ended = ended
        self.has_changed = self.identity != FileIdentity.of(self.path)

    @property
    def fails(self) -> bool:
        """Whether it cannot be judged."""
        return bool(self.failure or self.has_changed or (self.ended and self.ended.failure))

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


_Unscored = tuple[VideoUnderWay, FaceCrop, Frame | None]


class ScoreStage:
    """Collects faces of all videos into batches and scores them."""

    def __init__(self, runtime: Runtime, preprocessing: Preprocessing, timings: Timings, pool: Executor) -> None:
        self._runtime = runtime
        self._preprocessing = preprocessing
        self._timings = timings
        self._pool = pool
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
