"""Resize and encode images, the same way in scans, reports and training."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from dfscan.arrays import UInt8Image


def resize(pixels: UInt8Image, width_px: int, height_px: int) -> UInt8Image:
    """Resize an image by area averaging if its height shrinks, and by bicubic interpolation otherwise.

    Args:
        pixels: (H, W, 3), or (H, W) for a mask.
        width_px: width of the result.
        height_px: height of the result.
    """
    method = cv2.INTER_AREA if pixels.shape[0] > height_px else cv2.INTER_CUBIC
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
