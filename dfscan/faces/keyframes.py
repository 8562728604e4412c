"""Detect faces in some frames of a video and re-detect them in the frames between.

Within a burst of samples, faces move little, so a face is first searched near its previous position. Every third frame
is searched completely, except for the faces that were re-detected there. A new face is then also searched in the frames
before. ::

    frame       0    1    2    3    4    5    6    7
                <- search  ->   ->search  ->   ->search

A frame is searched at once if a face was lost in it or no face is known near it. Therefore a face can only be missed if
it appears beside other faces and only between two searches, in at most two samples, which is too few for a verdict.
"""

from __future__ import annotations

from dataclasses import dataclass

from dfscan.faces.detect import Detection, FaceDetector
from dfscan.types import Frame

DETECT_EVERY = 3
"""Number of frames from one search to the next."""


@dataclass(slots=True, eq=False)
class FrameDetections:
    """A frame and its faces."""

    frame: Frame
    faces: list[Detection]


class KeyframeDetector:
    """Detects the faces of one video from its frames, which must be added in order."""

    def __init__(self, detector: FaceDetector) -> None:
        self._detector = detector
        self._waiting: list[FrameDetections] = []
        """Frames since the last search; new faces of the next search are searched in them too."""
        self._last: FrameDetections | None = None
        """The previous frame, if its faces can be re-detected in the next one."""

    def add(self, frame: Frame) -> list[FrameDetections]:
        """Add the next frame.

        Returns:
            Frames whose faces are complete, in order; fewer than `DETECT_EVERY` frames are held back.
        """
        before = self._waiting[-1].frame if self._waiting else self._last.frame if self._last else frame
        continues = frame.burst == before.burst and frame.pixels.shape == before.pixels.shape
        complete = [] if continues else self.finish()
        current, last, self._last = FrameDetections(frame, []), self._last, None
        if last is None and not self._waiting:
            self._waiting = [current]
            return complete
        near = last.faces if last else []
        current.faces = self._detector.redetect(frame.pixels, near)
        self._last = current
        if near and len(current.faces) == len(near) and len(self._waiting) + 1 < DETECT_EVERY:
            self._waiting.append(current)
            return complete
        return complete + self._detect_all(current)

    def finish(self) -> list[FrameDetections]:
        """Complete and return the frames held back; no following frame shares their burst and size."""
        complete, self._waiting = self._waiting, []
        if self._last is None:
            for current in complete:
                current.faces = self._detector.detect(current.frame.pixels)
        self._last = None
        return complete

    def _detect_all(self, current: FrameDetections) -> list[FrameDetections]:
        """Search a frame completely, and follow its new faces back through the frames that wait."""
        redetected = current.faces
        current.faces = self._detector.detect(current.frame.pixels, known=redetected)
        new = [face for face in current.faces if face not in redetected]
        for earlier in reversed(self._waiting):
            known = earlier.faces
            earlier.faces = self._detector.redetect(earlier.frame.pixels, new, known=known)
            if not known and len(earlier.faces) < max(len(new), 1):
                earlier.faces = self._detector.detect(earlier.frame.pixels, known=earlier.faces)
            new = [face for face in earlier.faces if face not in known]
        complete, self._waiting = [*self._waiting, current], []
        return complete
