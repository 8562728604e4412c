"""Resize pictures with the interpolation that a checkpoint's network was trained with."""

from __future__ import annotations

from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

Interpolation = Literal["area_or_cubic", "linear", "antialiased_linear"]
"""``area_or_cubic``: area averaging to shrink, bicubic to enlarge. ``linear``: OpenCV's bilinear, which skips pixels
when it shrinks by more than 2. ``antialiased_linear``: Pillow's bilinear, which averages all of them.
"""


def resize(pixels: NDArray[np.uint8], size_px: tuple[int, int], interpolation: Interpolation) -> NDArray[np.uint8]:
    """Return a picture, uint8 (H, W, 3), in another size (width, height)."""
    if interpolation == "antialiased_linear":
        from PIL import Image

        return np.asarray(Image.fromarray(pixels).resize(size_px, Image.Resampling.BILINEAR))
    if interpolation == "linear":
        method = cv2.INTER_LINEAR
    else:
        does_shrink = size_px[0] * size_px[1] < pixels.shape[0] * pixels.shape[1]
        method = cv2.INTER_AREA if does_shrink else cv2.INTER_CUBIC
    return cv2.resize(pixels, size_px, interpolation=method).astype(np.uint8, copy=False)
