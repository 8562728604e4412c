"""Thumbnails of scored faces for the report page, stored in the ledger."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import cv2
import numpy as np

from dfscan.arrays import Float32Array, UInt8Image
from dfscan.detector import gradcam
from dfscan.types import FaceCrop, Picture, Track

FACE_PX = 96
HEAT_MAP_PX = 192
THUMBNAIL_JPEG_QUALITY = 80
MAX_FACES_OF_TRACK = 8
"""Maximum number of faces shown per track, spread evenly over its time."""
MAX_HELD = 640
"""Maximum number of faces held per video; in longer videos only every second, fourth, ... frame is kept."""


class FacePictures:
    """Holds the faces of one video until the tracks are known and the faces to show can be chosen."""

    def __init__(self) -> None:
        self._held: dict[int, tuple[int, bytes]] = {}
        """Frame index and JPEG of each face, by the `id` of the face."""
        self._every = 1

    def add(self, crop: FaceCrop) -> None:
        """Hold one face, if its frame is sampled."""
        if crop.face.frame_index % self._every:
            return
        self._held[id(crop.face)] = crop.face.frame_index, _jpeg(crop.pixels, FACE_PX)
        if len(self._held) > MAX_HELD:
            self._every *= 2
            self._held = {key: held for key, held in self._held.items() if held[0] % self._every == 0}

    def of(self, tracks: Sequence[Track]) -> Iterator[Picture]:
        """Yield the faces to show of each track, in order of time."""
        for track in tracks:
            held = [scored for scored in track.faces if id(scored.face) in self._held]
            at = np.unique(np.linspace(0, len(held) - 1, min(len(held), MAX_FACES_OF_TRACK)).round().astype(int))
            for scored in (held[i] for i in at):
                face, jpeg = scored.face, self._held[id(scored.face)][1]
                yield Picture("face", track.track_id, face.frame_index, face.time_s, scored.score, jpeg)


def heat_map_jpeg(pixels: UInt8Image, cam: Float32Array) -> bytes:
    """Return the heat map of a face, drawn over its crop, as JPEG.

    Args:
        pixels: (S, S, 3) RGB.
        cam: (h, w) as from `Runtime.predict`.
    """
    return _jpeg(gradcam.overlay(pixels, gradcam.heat_map(cam, pixels.shape[0])), HEAT_MAP_PX)


def _jpeg(pixels: UInt8Image, side_px: int) -> bytes:
    method = cv2.INTER_AREA if pixels.shape[0] > side_px else cv2.INTER_CUBIC
    small = cv2.resize(pixels, (side_px, side_px), interpolation=method)
    options = [cv2.IMWRITE_JPEG_QUALITY, THUMBNAIL_JPEG_QUALITY]
    is_encoded, data = cv2.imencode(".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR), options)
    assert is_encoded  # cannot fail: encoded in memory, and within the size limits of JPEG
    return data.tobytes()
