"""The scoring of faces in threads of this process, and the state of a video in progress.

One thread submits work to this stage and to the stage in `search`, and takes the results in order. Both queues are
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
from dfscan.media.source import FileIdentity
from dfscan.objects import is_url
from dfscan.scan.crowd import Crowd
from dfscan.scan.pictures import FacePictures
from dfscan.scan.second_look import KeptFrames
from dfscan.scan.timing import Timings
from dfscan.types import FaceCrop, FaceScore, Frame, Reason

MAX_WAITING_BATCHES = 2
"""Maximum number of batches that wait for the classifier, in addition to one for each of its threads."""

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class ScoredCrop:
    """A scored face with the data for its explanation."""

    crop: FaceCrop
    frame: Frame | None
    logit: float
    """Logit of the network, before temperature scaling."""
    cam: Floats


@dataclass(eq=False)
class VideoUnderWay:
    """State of a video in progress."""

    path: str
    identity: FileIdentity | None
    num_best: int
    """Number of highest-scoring faces for which the data for an explanation is kept."""
    crowd: Crowd
    turn_deg: int = 0
    """Clockwise rotation of its frames before detection."""
    num_frames: int = 0
    num_found: int = 0
    """Number of faces found so far, whether they are scored or not."""
    num_unscored: int = 0
    ended: Ended | None = None
    is_search_ended: bool = False
    has_changed: bool = False
    failure: Reason | None = None
    faces: list[FaceScore] = field(default_factory=list)
    pictures: FacePictures | None = None
    """None if no pictures are kept."""
    kept: KeptFrames = field(default_factory=KeptFrames)
    """Frames for a second search, while few faces have been found."""
    _best: list[tuple[float, int, FaceScore, ScoredCrop]] = field(default_factory=list)

    def end(self, ended: Ended) -> None:
        """Note that decoding has ended, and whether the file has changed meanwhile."""
        self.ended = ended
        # Of an object, one version was copied and decoded.
        self.has_changed = not is_url(self.path) and self.identity != FileIdentity.of(self.path)

    @property
    def fails(self) -> bool:
        """True if the video cannot be judged."""
        return bool(self.failure or self.has_changed or (self.ended and self.ended.failure))

    @property
    def is_complete(self) -> bool:
        """True if all its frames are searched and all its faces are scored."""
        return self.is_search_ended and not self.num_unscored

    def keep(self, score: FaceScore, scored: ScoredCrop) -> None:
        """Add the score of one face."""
        self.num_unscored -= 1
        self.faces.append(score)
        if self.pictures:
            self.pictures.add(scored.crop)
        if self.num_best:
            heapq.heappush(self._best, (score.logit, -len(self.faces), score, scored))
            if len(self._best) > self.num_best:
                heapq.heappop(self._best)

    def best_first(self) -> list[tuple[FaceScore, ScoredCrop]]:
        """Return the `num_best` highest-scoring faces, highest first; ties are in order of arrival."""
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
        """Add a face to the batch; pass its `frame` if an explanation may need it."""
        video.num_unscored += 1
        self._batch.append((video, crop, frame))
        if len(self._batch) >= self._runtime.batch_size:
            self.flush()

    def flush(self) -> None:
        """Send the collected faces to the classifier, even if the batch is not full."""
        batch, self._batch = self._batch, []
        if batch:
            self._running.append((self._pool.submit(self._score, [crop for _, crop, _ in batch]), batch))

    def _score(self, crops: list[FaceCrop]) -> tuple[Floats, Floats]:
        with self._timings.stage("classify", count=len(crops)):
            return self._runtime.predict(to_input([crop.pixels for crop in crops], self._preprocessing))

    def next(self) -> list[tuple[VideoUnderWay, ScoredCrop]] | None:
        """Return the next scored batch, or None; wait only if too many batches are queued."""
        most = self._runtime.threads + MAX_WAITING_BATCHES
        if self._running and (self._running[0][0].done() or len(self._running) > most):
            return self.wait()
        return None

    def wait(self) -> list[tuple[VideoUnderWay, ScoredCrop]]:
        """Wait for the next scored batch."""
        future, batch = self._running.popleft()
        logits, cams = future.result()
        return [
            (video, ScoredCrop(crop, frame, float(logit), cam))
            for (video, crop, frame), logit, cam in zip(batch, logits, cams, strict=True)
        ]

    @property
    def is_busy(self) -> bool:
        """True if results are pending."""
        return bool(self._running)
