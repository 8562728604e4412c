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

SEARCH_EVERY = 3
"""Number of frames from one search to the next."""


@dataclass(slots=True, eq=False)
class Look:
    """A frame and its faces."""

    frame: Frame
    faces: list[Detection]


class Follower:
    """Detects the faces of one video from its frames, which must be added in order."""

    def __init__(self, detector: FaceDetector) -> None:
        self._detector = detector
        self._waiting: list[Look] = []
        """Frames since the last search; new faces of the next search are searched in them too."""
        self._last: Look | None = None
        """The previous frame, if its faces can be re-detected in the next one."""

    def look(self, frame: Frame) -> list[Look]:
        """Add the next frame.

        Returns:
            Frames whose faces are complete, in order; fewer than `SEARCH_EVERY` frames are held back.
        """
        settled = [] if self._goes_on(frame) else self.finish()
        look, last, self._last = Look(frame, []), self._last, None
        if last is None and not self._waiting:
            self._waiting = [look]
            return settled
        near = last.faces if last else []
        look.faces = self._detector.find_again(frame.pixels, near)
        self._last = look
        if near and len(look.faces) == len(near) and len(self._waiting) + 1 < SEARCH_EVERY:
            self._waiting.append(look)
            return settled
        return settled + self._search(look)

    def finish(self) -> list[Look]:
        """Complete and return the frames held back; no following frame shares their burst and size."""
        settled, self._waiting = self._waiting, []
        if self._last is None:
            for look in settled:
                look.faces = self._detector.detect(look.frame.pixels)
        self._last = None
        return settled

    def _goes_on(self, frame: Frame) -> bool:
        before = self._waiting[-1] if self._waiting else self._last
        if before is None:
            return True
        return frame.burst == before.frame.burst and frame.pixels.shape == before.frame.pixels.shape

    def _search(self, look: Look) -> list[Look]:
        followed = look.faces
        look.faces = self._detector.detect(look.frame.pixels, known=followed)
        new = [face for face in look.faces if face not in followed]
        for earlier in reversed(self._waiting):
            new = self._find_earlier(earlier, new)
        settled, self._waiting = [*self._waiting, look], []
        return settled

    def _find_earlier(self, look: Look, new: list[Detection]) -> list[Detection]:
        """Add faces that were first detected one frame later; return the faces that were added."""
        known = look.faces
        look.faces = self._detector.find_again(look.frame.pixels, new, known=known)
        if not known and len(look.faces) < max(len(new), 1):
            look.faces = self._detector.detect(look.frame.pixels, known=look.faces)
        return [face for face in look.faces if face not in known]
