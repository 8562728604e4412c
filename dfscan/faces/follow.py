"""Find the faces of a video's frames: search some frames, and find their faces again in the frames between.

Within a burst of samples faces move little, and where one was is the best place to look for it. Every third frame is
searched, passing over the faces that were found again there; a face that is new in it is then looked for in the frames
before it as well. ::

    frame       0    1    2    3    4    5    6    7
                <- search  ->   ->search  ->   ->search

A frame in which a face was lost, or near which none is known, is searched at once. So what can be missed is a face
beside others that shows itself only between two searches, in at most two samples: too few to be judged by.
"""

from __future__ import annotations

from dataclasses import dataclass

from dfscan.faces.detect import Detection, FaceDetector
from dfscan.types import Frame

SEARCH_EVERY = 3
"""Frames from one search to the next."""


@dataclass(slots=True, eq=False)
class Look:
    """A frame and its faces."""

    frame: Frame
    faces: list[Detection]


class Follower:
    """Goes through the frames of one video, in order."""

    def __init__(self, detector: FaceDetector) -> None:
        self._detector = detector
        self._waiting: list[Look] = []
        """Frames since the last search, in which a face that the next one finds may be found too."""
        self._last: Look | None = None
        """The frame before, if faces can be followed from it."""

    def look(self, frame: Frame) -> list[Look]:
        """Take the next frame.

        Returns:
            Frames whose faces are all known now, in order; fewer than `SEARCH_EVERY` are held back.
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
        """Settle what is held back: no more frames come, or none that these faces can be followed into."""
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
        """Add faces that came to light a frame later; those that were added."""
        known = look.faces
        look.faces = self._detector.find_again(look.frame.pixels, new, known=known)
        if not known and len(look.faces) < max(len(new), 1):
            look.faces = self._detector.detect(look.frame.pixels, known=look.faces)
        return [face for face in look.faces if face not in known]
