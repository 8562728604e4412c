"""The state of a video in progress. Each method is the only writer of its fields."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field

from dfscan.arrays import Float32Array
from dfscan.fingerprint import Fingerprinter
from dfscan.media.isolate import Ended
from dfscan.media.source import FileIdentity
from dfscan.objects import is_url
from dfscan.scan import second_look
from dfscan.scan.crowd import Crowd
from dfscan.scan.pictures import FacePictures
from dfscan.types import FaceCrop, FaceScore, Frame, Reason


@dataclass(frozen=True, slots=True, eq=False)
class ScoredCrop:
    """A scored face with the data for its explanation."""

    crop: FaceCrop
    frame: Frame | None
    logits: tuple[float, ...]
    """Logit of each network, before temperature scaling."""
    cam: Float32Array
    """Heat map of the first network."""


@dataclass(eq=False)
class VideoState:
    """State of a video in progress; used by one thread.

    Its frames are decoded, searched and scored in this order, but each step may be several frames ahead of the next.
    `end` is called before `finish_detection`.
    """

    path: str
    identity: FileIdentity | None
    num_best: int
    """Number of highest-scoring faces for which the data for an explanation is kept."""
    min_faces: int
    """While fewer faces have been found, frames are kept for a second search."""
    crowd: Crowd
    turn_deg: int = 0
    """Clockwise rotation of its frames before detection."""
    pictures: FacePictures | None = None
    """None if no pictures are kept."""
    num_frames: int = 0
    num_found: int = 0
    """Number of faces found so far, whether they are scored or not."""
    ended: Ended | None = None
    has_changed: bool = False
    failure: Reason | None = None
    faces: list[tuple[FaceScore, ...]] = field(default_factory=list)
    """Scores of each face by all classifiers."""
    fingerprinter: Fingerprinter = field(default_factory=Fingerprinter)
    kept: second_look.KeptFrames = field(default_factory=second_look.KeptFrames)
    """Frames for a second search, while few faces have been found."""
    _num_chosen: int = 0
    """Number of faces that are scored, or will be."""
    _is_detection_done: bool = False
    _best: list[tuple[float, int, FaceScore, ScoredCrop]] = field(default_factory=list)

    def add_frame(self, frame: Frame) -> Frame:
        """Count a decoded frame; return it as it is to be searched, in the rotation of this pass."""
        self.num_frames += 1
        frame = second_look.turned(frame, self.turn_deg) if self.turn_deg else frame
        if self.num_found < self.min_faces:
            self.kept.add(frame)
        else:
            self.kept.frames.clear()
        return frame

    def end(self, ended: Ended) -> None:
        """Note that decoding has ended, and whether the file has changed meanwhile."""
        self.ended = ended
        # Of an object in a store, one version was copied and decoded.
        self.has_changed = not is_url(self.path) and self.identity != FileIdentity.of(self.path)

    def choose_faces(self, crops: Sequence[FaceCrop]) -> list[FaceCrop]:
        """Count the faces found in the next frame, and return those to score."""
        self.num_found += len(crops)
        chosen = self.crowd.choose(crops)
        self._num_chosen += len(chosen)
        return chosen

    def finish_detection(self) -> None:
        """Note that all frames have been searched."""
        self._is_detection_done = True

    def fail(self, reason: Reason) -> None:
        """Note why the video cannot be judged."""
        self.failure = reason

    def add_scores(self, scores: tuple[FaceScore, ...], scored: ScoredCrop) -> None:
        """Add the scores of one face by all classifiers; the first one decides which faces are the highest."""
        self.faces.append(scores)
        score = scores[0]
        if self.pictures:
            self.pictures.add(scored.crop)
        if self.num_best:
            heapq.heappush(self._best, (score.logit, -len(self.faces), score, scored))
            if len(self._best) > self.num_best:
                heapq.heappop(self._best)

    @property
    def fails(self) -> bool:
        """True if the video cannot be judged."""
        return bool(self.failure or self.has_changed or (self.ended and self.ended.failure))

    @property
    def is_complete(self) -> bool:
        """True if all its frames are searched and all chosen faces are scored."""
        return self._is_detection_done and len(self.faces) == self._num_chosen

    def best_first(self) -> list[tuple[FaceScore, ScoredCrop]]:
        """Return the `num_best` highest-scoring faces, highest first; ties are in order of arrival."""
        return [entry[2:] for entry in sorted(self._best, key=lambda entry: entry[:2], reverse=True)]

    def set_aside(self) -> None:
        """Free the kept frames while a second pass decodes the video again."""
        self.kept.frames.clear()

    def take_frames_from(self, turned: VideoState) -> None:
        """Take the frames of the second pass, which found no more faces, and turn them back."""
        self.kept.frames = [second_look.turned(frame, 360 - turned.turn_deg) for frame in turned.kept.frames]
