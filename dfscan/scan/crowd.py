"""Select the faces to score in a crowd: the same people in every frame, not the largest faces of each frame."""

from __future__ import annotations

from collections.abc import Sequence

from dfscan.faces.descriptor import similarity
from dfscan.faces.track import MIN_IOU, MIN_SIMILARITY, iou
from dfscan.types import Face, FaceCrop


class Crowd:
    """Selects the people of one video whose faces are scored; frames must be given in order."""

    def __init__(self, max_faces: int) -> None:
        """Start with no people.

        Args:
            max_faces: maximum number of faces scored per frame.
        """
        self._max_faces = max_faces
        self._people: list[Face] = []
        """The last face of each selected person."""
        self.max_faces_per_frame = 0
        """Largest number of faces in one frame."""

    def choose(self, crops: Sequence[FaceCrop]) -> list[FaceCrop]:
        """Return the faces of one frame to score: people selected earlier come first, then the largest faces.

        Args:
            crops: crops of all faces in the frame, largest first.
        """
        self.max_faces_per_frame = max(self.max_faces_per_frame, len(crops))
        fits = []
        for j, person in enumerate(self._people):
            for i, face in enumerate(crop.face for crop in crops):
                overlap = iou(person.box_xyxy, face.box_xyxy) if person.shot == face.shot else 0.0
                similar = similarity(person.descriptor, face.descriptor)
                if overlap >= MIN_IOU or similar >= MIN_SIMILARITY:
                    fits.append((overlap + similar, j, i))
        known: dict[int, int] = {}  # face -> person, by their indices
        for _, j, i in sorted(fits, key=lambda each: (-each[0], each[1], each[2])):
            if i not in known and j not in known.values():
                known[i] = j
        order = sorted(range(len(crops)), key=lambda i: i not in known)
        chosen = sorted(order[: self._max_faces])
        for i in chosen:
            if i in known:
                self._people[known[i]] = crops[i].face
            else:
                self._people.append(crops[i].face)
        return [crops[i] for i in chosen]
