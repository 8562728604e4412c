"""Resize and encode images, the same way in scans, reports and training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import cv2
import numpy as np

from dfscan.arrays import UInt8Image

Interpolation = Literal["area_or_cubic", "linear", "antialiased_linear"]
"""``area_or_cubic``: area averaging if the image shrinks, bicubic interpolation otherwise. ``linear``: OpenCV's
bilinear interpolation, which skips pixels if the image shrinks by more than 2. ``antialiased_linear``: Pillow's, which
averages all of them.
"""


def resize(
    pixels: UInt8Image, width_px: int, height_px: int, interpolation: Interpolation = "area_or_cubic"
) -> UInt8Image:
    """Resize an image.

    Args:
        pixels: (H, W, 3), or (H, W) for a mask.
        width_px: width of the result.
        height_px: height of the result.
        interpolation: method.
    """
    if interpolation == "antialiased_linear":
        from PIL import Image

        return np.asarray(Image.fromarray(pixels).resize((width_px, height_px), Image.Resampling.BILINEAR))
    if interpolation == "linear":
        method = cv2.INTER_LINEAR
    else:
        does_shrink = height_px < pixels.shape[0]
        method = cv2.INTER_AREA if does_shrink else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(pixels, (width_px, height_px), interpolation=method), pixels.dtype)


def encode(pixels: UInt8Image, suffix: str, *, quality: int | None = None, options: Sequence[int] = ()) -> bytes:
    """Encode an image in memory; `cv2.imwrite` would report a full disk only by returning False.

    Args:
        pixels: (H, W, 3) RGB.
        suffix: ``.png`` or ``.jpg``.
        quality: libjpeg quality, 1 to 100.
        options: further pairs of OpenCV's ``IMWRITE_`` flags and values.

    Raises:
        ValueError: the format cannot hold the image; a side of a JPEG is at most 65,500 px.
    """
    flags = [*([] if quality is None else [cv2.IMWRITE_JPEG_QUALITY, quality]), *options]
    is_encoded, data = cv2.imencode(suffix, cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), flags)
    if not is_encoded:
        raise ValueError(f"an image of {pixels.shape[1]} x {pixels.shape[0]} px cannot be encoded as {suffix}")
    return data.tobytes()
