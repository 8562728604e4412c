"""How much of a face a picture shows: sharpness and traces of block compression.

Both are measured on the pixels of the frame inside the face's box, in at most 1 ms. They change no score.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from dfscan.arrays import Float32Array, UInt8Image

SIDE_PX = 128
"""Side to which a face is resized, so that a small face lacks the same details as a blurred one."""
BLOCK_PX = 8
"""Side of the blocks of JPEG, MPEG-1, MPEG-2 and MPEG-4 Visual, and of the largest transforms of H.264."""


class FaceQuality(NamedTuple):
    """Measures of one face."""

    sharpness: float
    """Contrast of the finest details of the face (finer than a 64th of its side), as a fraction of its contrast."""
    blockiness: float
    """Mean difference across the borders of 8 x 8 blocks, divided by that elsewhere; 1 without visible blocks."""


def measure_quality(frame_pixels: UInt8Image, box_xyxy: Float32Array) -> FaceQuality | None:
    """Measure one face.

    Sharpness falls with compression, with blur and in small faces. Blockiness rises with strong compression in 8 x 8
    blocks, and is lost if the video is resized or encoded again with a deblocking filter, as in H.264.

    Args:
        frame_pixels: (H, W, 3) RGB, full resolution.
        box_xyxy: (4,) finite, in frame pixels.

    Returns:
        None if less than two blocks of the box are inside the frame.
    """
    height_px, width_px = frame_pixels.shape[:2]
    x1, y1 = (max(0, round(float(edge))) for edge in box_xyxy[:2])
    x2, y2 = min(width_px, round(float(box_xyxy[2]))), min(height_px, round(float(box_xyxy[3])))
    if min(x2 - x1, y2 - y1) < 2 * BLOCK_PX:
        return None
    grey = np.asarray(cv2.cvtColor(frame_pixels[y1:y2, x1:x2], cv2.COLOR_RGB2GRAY), np.uint8)
    columns = _means(cv2.absdiff(grey[:, 1:], grey[:, :-1]), axis=0)
    rows = _means(cv2.absdiff(grey[1:], grey[:-1]), axis=1)
    blocks = (_across_blocks(columns, x1) + _across_blocks(rows, y1)) / 2
    method = cv2.INTER_AREA if min(grey.shape) >= SIDE_PX else cv2.INTER_CUBIC
    face = cv2.resize(grey, (SIDE_PX, SIDE_PX), interpolation=method).astype(np.float32)
    fine = cv2.subtract(face, cv2.pyrUp(cv2.pyrDown(face)))
    sharpness = float(np.sqrt(np.mean(np.square(fine)) / (np.var(face) + 1)))  # + 1: a flat face has no details
    return FaceQuality(sharpness, blocks)


def _means(steps: NDArray[Any], *, axis: int) -> NDArray[np.float32]:
    return np.asarray(cv2.reduce(steps, axis, cv2.REDUCE_AVG, dtype=cv2.CV_32F).ravel(), np.float32)


def _across_blocks(steps: NDArray[np.float32], start_px: int) -> float:
    """Compare the mean differences of neighbouring columns at the borders of blocks with all others.

    Args:
        steps: (W - 1,) mean difference of each column and the next one.
        start_px: position of the first column in the frame.
    """
    is_border = (np.arange(len(steps)) + start_px + 1) % BLOCK_PX == 0
    return float((steps[is_border].mean() + 0.1) / (steps[~is_border].mean() + 0.1))
