"""Crop faces from the full-resolution frame to squares of the classifier's input size."""

from __future__ import annotations

import cv2
import numpy as np

from dfscan.arrays import Float32Array, UInt8Image


def crop_square_xyxy(box_xyxy: Float32Array, *, margin: float) -> tuple[int, int, int, int]:
    """Return the square that a crop covers, in whole pixels of the frame; it may extend beyond the frame.

    Args:
        box_xyxy: (4,) finite, in frame pixels.
        margin: ratio of the square's side to the longer side of the box; 1 is tight.

    Returns:
        (x1, y1, x2, y2) with x2 - x1 == y2 - y1 >= 1, x2 and y2 exclusive.
    """
    x1, y1, x2, y2 = (float(edge) for edge in box_xyxy)
    side = max(1, round(margin * max(x2 - x1, y2 - y1)))
    left = round((x1 + x2 - side) / 2)
    top = round((y1 + y2 - side) / 2)
    return left, top, left + side, top + side


def crop_face(frame_pixels: UInt8Image, box_xyxy: Float32Array, *, margin: float, size: int) -> UInt8Image:
    """Crop the square around a face and resize it; parts outside the frame are black.

    Crops are shrunk by area averaging or enlarged by bicubic interpolation and keep their aspect ratio. Only the part
    inside the frame is resized, to the nearest pixel of the crop, so that memory use does not grow with the box.

    Args:
        frame_pixels: (H, W, 3) RGB, full resolution.
        box_xyxy: (4,) finite, in frame pixels.
        margin: ratio of the square's side to the longer side of the box.
        size: side of the crop in pixels.

    Returns:
        (size, size, 3) RGB.
    """
    left, top, right, bottom = crop_square_xyxy(box_xyxy, margin=margin)
    height, width = frame_pixels.shape[:2]
    x1, x2 = max(left, 0), min(right, width)
    y1, y2 = max(top, 0), min(bottom, height)
    crop = np.zeros((size, size, 3), np.uint8)
    if x1 >= x2 or y1 >= y2:
        return crop
    side = right - left
    to_x1, to_x2 = round((x1 - left) * size / side), round((x2 - left) * size / side)
    to_y1, to_y2 = round((y1 - top) * size / side), round((y2 - top) * size / side)
    if to_x1 >= to_x2 or to_y1 >= to_y2:
        return crop
    method = cv2.INTER_AREA if side > size else cv2.INTER_CUBIC
    place_size_px = (to_x2 - to_x1, to_y2 - to_y1)
    crop[to_y1:to_y2, to_x1:to_x2] = cv2.resize(frame_pixels[y1:y2, x1:x2], place_size_px, interpolation=method)
    return crop
