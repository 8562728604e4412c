"""Second search for faces in videos where too few were found: rotated frames, and faces under the minimum size.

A few frames of each video are kept for this search.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import replace

import cv2
import numpy as np

from dfscan.faces.detect import SMALLEST_PX, FaceDetector
from dfscan.images import encode
from dfscan.scan.pictures import THUMBNAIL_JPEG_QUALITY
from dfscan.types import Frame, Picture, Reason

TURNS_DEG = (90, 180, 270)
"""Clockwise rotations to try."""
MAX_KEPT_FRAMES = 4
"""Maximum number of frames of a video that are searched again, spread over its length."""
MAX_KEPT_BYTES = 50_000_000
"""Maximum size of the kept frames together, unless the first frame alone is larger."""
MIN_FRAMES_WITH_FACE = 2
"""Minimum number of frames with a face; a face in a single frame may be a false detection."""
PICTURE_PX = 192
"""Longer side of a frame on the report page."""


class KeptFrames:
    """Keeps a few evenly spread frames of one video: at first every frame, then every second, every fourth, ..."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self._every = 1

    def add(self, frame: Frame) -> None:
        """Keep the frame if it is sampled; thin out the kept frames if there are too many."""
        if frame.index % self._every:
            return
        self.frames.append(frame)
        while len(self.frames) > MAX_KEPT_FRAMES or (
            len(self.frames) > 1 and sum(frame.pixels.nbytes for frame in self.frames) > MAX_KEPT_BYTES
        ):
            self._every *= 2
            self.frames = [frame for frame in self.frames if frame.index % self._every == 0]


def turned(frame: Frame, turn_deg: int) -> Frame:
    """Return the frame rotated clockwise by 0, 90, 180 or 270 degrees."""
    pixels = np.ascontiguousarray(np.rot90(frame.pixels, -turn_deg // 90))
    return replace(frame, pixels=pixels)


def find_turn(frames: Sequence[Frame], detector: FaceDetector, pool: Executor) -> int:
    """Return the clockwise rotation in degrees that shows faces in the largest number of frames, or 0.

    A rotation counts only if it shows faces in at least `MIN_FRAMES_WITH_FACE` frames, or in all if there are fewer.

    Args:
        frames: frames of one video.
        detector: detector that searched the upright frames.
        pool: threads to search in.
    """
    tries = list(itertools.product(TURNS_DEG, frames))
    faces_of = list(pool.map(lambda pair: detector.detect(turned(pair[1], pair[0]).pixels), tries))
    num_frames = Counter(turn_deg for (turn_deg, _), faces in zip(tries, faces_of, strict=True) if faces)
    min_frames = max(1, min(MIN_FRAMES_WITH_FACE, len(frames)))
    return max(
        (turn for turn in TURNS_DEG if num_frames[turn] >= min_frames), key=lambda turn: num_frames[turn], default=0
    )


def find_small_faces(frames: Sequence[Frame], detector: FaceDetector, pool: Executor) -> Reason | None:
    """Return a note with the sizes of faces under the minimum size, or None if there are no such faces.

    Args:
        frames: frames of one video in which no face was found.
        detector: detector that searched these frames.
        pool: threads to search in.
    """
    longest_px = max((max(frame.pixels.shape) for frame in frames), default=1)
    smallest_px = int(SMALLEST_PX)
    if detector.min_face_px <= smallest_px:
        return None
    finer = detector.with_sizes(min_face_px=smallest_px, min_copy_side_px=longest_px)
    faces_of_frames = [faces for faces in pool.map(lambda frame: finer.detect(frame.pixels), frames) if faces]
    if not faces_of_frames or len(faces_of_frames) < min(MIN_FRAMES_WITH_FACE, len(frames)):
        return None
    sizes_px = [
        round(float(np.min(face.box_xyxy[2:] - face.box_xyxy[:2]))) for faces in faces_of_frames for face in faces
    ]
    min_px, max_px = min(sizes_px), max(sizes_px)
    size = f"{max_px} px" if min_px == max_px else f"{min_px} to {max_px} px"
    text = f"faces of {size} were seen, but only those of at least {detector.min_face_px} px are judged"
    return Reason("faces_too_small", f"{text}; see --min-face-px")


def pictures(frames: Sequence[Frame]) -> tuple[Picture, ...]:
    """Return thumbnails of the frames, in order of time."""
    thumbnails = []
    for frame in frames:
        height_px, width_px = frame.pixels.shape[:2]
        scale = min(1.0, PICTURE_PX / max(height_px, width_px))
        size_px = max(1, round(width_px * scale)), max(1, round(height_px * scale))
        small = cv2.resize(frame.pixels, size_px, interpolation=cv2.INTER_AREA)
        jpeg = encode(np.asarray(small, np.uint8), ".jpg", quality=THUMBNAIL_JPEG_QUALITY)
        thumbnails.append(Picture("frame", -1, frame.index, frame.time_s, 0.0, jpeg))
    return tuple(thumbnails)
