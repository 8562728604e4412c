"""The scoring of faces in threads of this process.

One thread submits work to this stage and to the stage in `detect`, and takes the results in order. Both queues are
bounded, so that a fast decoder waits for a slow classifier.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Executor, Future

from dfscan.arrays import Float32Array
from dfscan.detector.preprocess import Preprocessing, to_input
from dfscan.detector.runtime import Runtime
from dfscan.scan.timing import Timings
from dfscan.scan.video import ScoredCrop, VideoState
from dfscan.types import FaceCrop, Frame

MAX_WAITING_BATCHES = 2
"""Maximum number of batches that wait for the classifier, in addition to one for each of its threads."""

_Unscored = tuple[VideoState, FaceCrop, Frame | None]


class ScoreStage:
    """Collects faces of all videos into batches and scores them."""

    def __init__(self, runtime: Runtime, preprocessing: Preprocessing, timings: Timings, pool: Executor) -> None:
        self._runtime = runtime
        self._preprocessing = preprocessing
        self._timings = timings
        self._pool = pool
        self._batch: list[_Unscored] = []
        self._running: deque[tuple[Future[tuple[Float32Array, Float32Array]], list[_Unscored]]] = deque()

    def submit(self, video: VideoState, crop: FaceCrop, frame: Frame | None) -> None:
        """Add a face to the batch; pass its `frame` if an explanation may need it."""
        self._batch.append((video, crop, frame))
        if len(self._batch) >= self._runtime.batch_size:
            self.flush()

    def flush(self) -> None:
        """Send the collected faces to the classifier, even if the batch is not full."""
        batch, self._batch = self._batch, []
        if batch:
            self._running.append((self._pool.submit(self._score, [crop for _, crop, _ in batch]), batch))

    def _score(self, crops: list[FaceCrop]) -> tuple[Float32Array, Float32Array]:
        with self._timings.stage("classify", count=len(crops)):
            return self._runtime.predict(to_input([crop.pixels for crop in crops], self._preprocessing))

    def next(self) -> list[tuple[VideoState, ScoredCrop]] | None:
        """Return the next scored batch, or None; wait only if too many batches are queued."""
        max_batches = self._runtime.threads + MAX_WAITING_BATCHES
        if self._running and (self._running[0][0].done() or len(self._running) > max_batches):
            return self.wait()
        return None

    def wait(self) -> list[tuple[VideoState, ScoredCrop]]:
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
