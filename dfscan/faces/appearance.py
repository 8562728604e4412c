"""Tell faces of one video apart by their looks, without a neural network.

Landmarks put the head upright in a small patch with hair, collar and some background in it; the patch is averaged to
a few cells of CIE L*a*b*, where distances are about as people see them. It knows one take of one person again, not
a person in general: on other clothes, in other light or in profile two descriptors of one person differ.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

CELLS = 8
PATCH_PX = 64
PATCH_LANDMARKS = np.array([[0.396, 0.41], [0.604, 0.41], [0.5, 0.536], [0.414, 0.63], [0.586, 0.63]], np.float64)
"""Where eyes, nose and corners of the mouth come to lie, as shares of the patch."""
DISTANCE_SCALE = 10.0
"""A likeness falls by the factor e for this root mean square L*a*b* distance."""
NUM_VALUES = CELLS * CELLS * 3


def appearance(frame_pixels: NDArray[np.uint8], landmarks: NDArray[np.float32]) -> NDArray[np.float32]:
    """Describe the looks of one face.

    Args:
        frame_pixels: (H, W, 3) RGB, full resolution, no side over 32,766 px.
        landmarks: (5, 2) in frame pixels.

    Returns:
        (192,): L* in [0, 100], a* and b* of 8 x 8 cells. Beyond the frame its border pixels go on.
    """
    to_frame = _similarity(PATCH_LANDMARKS * PATCH_PX, np.asarray(landmarks, np.float64))
    patch = cv2.warpAffine(
        frame_pixels,
        to_frame,
        (PATCH_PX, PATCH_PX),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )
    cells = cv2.resize(patch.astype(np.float32) / 255, (CELLS, CELLS), interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.cvtColor(cells, cv2.COLOR_RGB2LAB), np.float32).ravel()


def likeness(first: NDArray[np.float32], second: NDArray[np.float32]) -> float:
    """How much two descriptors look alike, in [0, 1]; 1 where they are equal."""
    distance = float(np.sqrt(3 * np.mean(np.square(first - second))))
    return float(np.exp(-distance / DISTANCE_SCALE))


def _similarity(source: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    """The (2, 3) map of turn, uniform scale and shift that brings source closest to target by least squares.

    Umeyama 1991, in two dimensions, where turn and scale are one complex number.
    """
    source_centre, target_centre = source.mean(axis=0), target.mean(axis=0)
    a, b = source - source_centre, target - target_centre
    spread = np.sum(a * a)
    cosine = np.sum(a * b) / spread
    sine = np.sum(a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]) / spread
    turn = np.array([[cosine, -sine], [sine, cosine]])
    return np.column_stack([turn, target_centre - turn @ source_centre])
