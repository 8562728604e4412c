"""The scoring of faces in threads of this process.

One thread submits work to this stage and to the stage in `detect`, and takes the results in order. Both queues are
bounded, so that a fast decoder waits for a slow classifier.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, replace

from dfscan.arrays import Float32Array
from dfscan.detector.card import SeenFiles
from dfscan.detector.preprocess import Preprocessing, to_input
from dfscan.detector.runtime import Runtime
from dfscan.scan.timing import Timings
from dfscan.scan.verdict import Rules
from dfscan.scan.video import ScoredCrop, VideoState
from dfscan.types import FaceCrop, Frame

MAX_WAITING_BATCHES = 2
"""Maximum number of batches that wait for the classifier, in addition to one for each of its threads."""


@dataclass(frozen=True, slots=True)
class Classifier:
    """A checkpoint on its device, and the meaning of its scores."""

    name: str
    """Unique among the classifiers of a scan."""
    label: str
    """Label of its checkpoint."""
    runtime: Runtime
    preprocessing: Preprocessing
    temperature: float
    rules: Rules
    seen: SeenFiles | None = None
    """Files that the checkpoint was trained and calibrated on, if it records them."""


_Unscored = tuple[VideoState, FaceCrop, Frame | None]


class ScoreStage:
    """Collects faces of all videos into batches and scores them, with one classifier after the other."""

    def __init__(self, classifiers: Sequence[Classifier], timings: Timings, pool: Executor) -> None:
        self._classifiers = classifiers
        self._runtime = classifiers[0].runtime
        self._timings = timings
        self._pool = pool
        self._batch: list[_Unscored] = []
        self._running: deque[tuple[Future[list[tuple[Float32Array, Float32Array]]], list[_Unscored]]] = deque()

    def submit(self, video: VideoState, crop: FaceCrop, frame: Frame | None) -> None:
        """Add a face to the batch; pass its `frame` if an explanation may need it."""
        self._batch.append((video, crop, frame))
        if len(self._batch) >= self._runtime.batch_size:
            self.flush()

    def flush(self) -> None:
        """Send the collected faces to the classifiers, even if the batch is not full."""
        batch, self._batch = self._batch, []
        if batch:
            self._running.append((self._pool.submit(self._score, [crop for _, crop, _ in batch]), batch))

    def _score(self, crops: list[FaceCrop]) -> list[tuple[Float32Array, Float32Array]]:
        """Return the logits and heat maps of each classifier."""
        with self._timings.stage("classify", count=len(crops)):
            results = []
            pixels_of = zip(*((crop.pixels, *crop.others) for crop in crops), strict=True)
            for classifier, pixels in zip(self._classifiers, pixels_of, strict=True):
                with self._timings.stage(stage_of(classifier), count=len(crops)):
                    results.append(classifier.runtime.predict(to_input(pixels, classifier.preprocessing)))
            return results

    def next(self) -> list[tuple[VideoState, ScoredCrop]] | None:
        """Return the next scored batch, or None; wait only if too many batches are queued."""
        max_batches = self._runtime.threads + MAX_WAITING_BATCHES
        if self._running and (self._running[0][0].done() or len(self._running) > max_batches):
            return self.wait()
        return None

    def wait(self) -> list[tuple[VideoState, ScoredCrop]]:
        """Wait for the next scored batch."""
        future, batch = self._running.popleft()
        results = future.result()
        logits_of_faces = zip(*(logits.tolist() for logits, _ in results), strict=True)
        _, cams = results[0]
        return [
            (video, ScoredCrop(replace(crop, others=()), frame, logits, cam))
            for (video, crop, frame), logits, cam in zip(batch, logits_of_faces, cams, strict=True)
        ]

    @property
    def is_busy(self) -> bool:
        """True if results are pending."""
        return bool(self._running)


def stage_of(classifier: Classifier) -> str:
    """Return the name under which the cost of one classifier is measured, as a part of ``classify``."""
    return f"classify {classifier.name}"
