"""Images with real faces, generated at run time for tests.

The face is Eileen Collins's NASA portrait, public domain, included in scikit-image as `data.astronaut`. All
images are uint8 (H, W, 3) RGB. The functions compose: ``moved(two_people(gap_px=40), dx_px=12)``.
"""

from __future__ import annotations

import functools

import cv2
import numpy as np
from numpy.typing import NDArray
from skimage import data

Picture = NDArray[np.uint8]

FACE_XYXY = (181.0, 62.0, 268.0, 172.0)
"""Box of the face in `astronaut`, accurate to a few px."""


@functools.cache
def _portrait() -> Picture:
    return np.asarray(data.astronaut(), dtype=np.uint8)  # type: ignore[no-untyped-call]


def astronaut() -> Picture:
    """Return a new copy of the portrait, (512, 512, 3), with one face about 87 px wide and 110 px high."""
    return _portrait().copy()


def other_person() -> Picture:
    """Return a stand-in for another person, (512, 512, 3): the portrait mirrored, darker and recoloured."""
    flipped = _portrait()[:, ::-1, ::-1].astype(np.float32) / 255
    return np.rint(flipped ** np.float32(1.6) * 255).astype(np.uint8)


def nobody(*, width_px: int = 512, height_px: int = 512) -> Picture:
    """Return a smooth image without a face, (height_px, width_px, 3)."""
    row = np.linspace(40, 200, width_px).astype(np.uint8)
    return np.repeat(np.tile(row, (height_px, 1))[:, :, None], 3, axis=2)


def two_people(gap_px: int = 0, *, left: Picture | None = None, right: Picture | None = None) -> Picture:
    """Return two portraits side by side with a black gap; both are `astronaut` by default.

    Copies have equal descriptors and differ only in position. Pass ``right=other_person()`` for two different
    people.
    """
    left = astronaut() if left is None else left
    right = astronaut() if right is None else right
    gap = np.zeros((left.shape[0], gap_px, 3), np.uint8)
    return np.hstack([left, gap, right])


def moved(picture: Picture, dx_px: float = 0, dy_px: float = 0, zoom: float = 1) -> Picture:
    """Zoom the image about its centre, then shift it right and down; same size, black outside."""
    height, width = picture.shape[:2]
    shift_x = width / 2 * (1 - zoom) + dx_px
    shift_y = height / 2 * (1 - zoom) + dy_px
    matrix = np.array([[zoom, 0, shift_x], [0, zoom, shift_y]], np.float64)
    return np.asarray(cv2.warpAffine(picture, matrix, (width, height), flags=cv2.INTER_LINEAR), np.uint8)


def on_canvas(picture: Picture, *, width_px: int, height_px: int, left_px: int = 0, top_px: int = 0) -> Picture:
    """Place the image on a black canvas of any size, its corner at (left_px, top_px), cut at the border."""
    canvas = np.zeros((height_px, width_px, 3), np.uint8)
    matrix = np.array([[1, 0, left_px], [0, 1, top_px]], np.float64)
    return np.asarray(cv2.warpAffine(picture, matrix, (width_px, height_px), canvas), np.uint8)
