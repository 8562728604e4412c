"""Crop faces from the full-resolution frame to squares of the classifier's input size.

The default crop is `crop_face`. The others repeat the preprocessing of public projects whose weights can be imported.
"""

from __future__ import annotations

import cv2
import numpy as np

from dfscan.arrays import Float32Array, Float64Array, UInt8Image
from dfscan.images import Interpolation, resize

TEMPLATE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
"""Eyes, nose and corners of the mouth in an aligned face of 112 x 112 px (Deng et al. 2019, "ArcFace")."""
TEMPLATE_PX = 112


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


def crop_face(
    frame_pixels: UInt8Image,
    box_xyxy: Float32Array,
    *,
    margin: float,
    size: int,
    interpolation: Interpolation = "area_or_cubic",
) -> UInt8Image:
    """Crop the square around a face and resize it; parts outside the frame are black.

    Crops keep their aspect ratio. Only the part inside the frame is resized, to the nearest pixel of the crop, so that
    memory use does not grow with the box.

    Args:
        frame_pixels: (H, W, 3) RGB, full resolution.
        box_xyxy: (4,) finite, in frame pixels.
        margin: ratio of the square's side to the longer side of the box.
        size: side of the crop in pixels.
        interpolation: how the part is resized.

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
    part = resize(frame_pixels[y1:y2, x1:x2], to_x2 - to_x1, to_y2 - to_y1, interpolation)
    crop[to_y1:to_y2, to_x1:to_x2] = part
    return crop


def widened_box_xyxy(
    box_xyxy: Float32Array, *, margin: float, width_px: int, height_px: int
) -> tuple[int, int, int, int]:
    """Return the part of the frame that `crop_box` covers, in whole pixels: (x1, y1, x2, y2), x2 and y2 exclusive.

    Each side of the box grows by the factor `margin` around its middle. The result is cut off at the borders of a frame
    of `width_px` x `height_px`, and may be empty.
    """
    x1, y1, x2, y2 = (float(edge) for edge in box_xyxy)
    room_x, room_y = (x2 - x1) * (margin - 1) / 2, (y2 - y1) * (margin - 1) / 2
    left, top = max(0, int(x1 - room_x)), max(0, int(y1 - room_y))
    return left, top, min(width_px, int(x2 + room_x) + 1), min(height_px, int(y2 + room_y) + 1)


def crop_box(
    frame_pixels: UInt8Image,
    box_xyxy: Float32Array,
    *,
    margin: float,
    size: int,
    interpolation: Interpolation,
) -> UInt8Image:
    """Crop the widened box of a face and stretch it to a square, as the code of Self-Blended Images does.

    Args:
        frame_pixels: (H, W, 3) RGB, full resolution.
        box_xyxy: (4,) finite, in frame pixels.
        margin: see `widened_box_xyxy`.
        size: side of the crop in pixels.
        interpolation: how the box is resized.

    Returns:
        (size, size, 3) RGB; black if the box is outside the frame.
    """
    height_px, width_px = frame_pixels.shape[:2]
    x1, y1, x2, y2 = widened_box_xyxy(box_xyxy, margin=margin, width_px=width_px, height_px=height_px)
    if x1 >= x2 or y1 >= y2:
        return np.zeros((size, size, 3), np.uint8)
    return resize(frame_pixels[y1:y2, x1:x2], size, size, interpolation)


def box_to_crop(box_xyxy: Float32Array, *, margin: float, width_px: int, height_px: int, size: int) -> Float64Array:
    """Return the transform from the frame to the crop of `crop_box`, as a matrix (2, 3) of pixel centres."""
    x1, y1, x2, y2 = widened_box_xyxy(box_xyxy, margin=margin, width_px=width_px, height_px=height_px)
    scale_x, scale_y = size / max(1, x2 - x1), size / max(1, y2 - y1)
    return np.array(
        [[scale_x, 0, (0.5 - x1) * scale_x - 0.5], [0, scale_y, (0.5 - y1) * scale_y - 0.5]],
    )


def alignment(landmarks: Float32Array, *, margin: float, size: int) -> Float64Array:
    """Return the similarity transform from the frame to an aligned crop, as a matrix (2, 3).

    It moves the landmarks as close as possible to those of `TEMPLATE`, by the sum of squares (Umeyama 1991).

    Args:
        landmarks: (5, 2) in frame pixels, as in `faces.detect.Detection`.
        margin: ratio of the side of the crop to the side of the template.
        size: side of the crop in pixels.

    Raises:
        ValueError: all landmarks are at one point.
    """
    wanted = (TEMPLATE / TEMPLATE_PX + (margin - 1) / 2) / margin * size
    # As complex numbers, points are turned and scaled by one factor: w = factor * p + shift.
    points, targets = (at[:, 0] + 1j * at[:, 1] for at in (landmarks.astype(np.float64), wanted))
    centred = points - points.mean()
    if not (spread := np.vdot(centred, centred).real) > 0:
        raise ValueError("a face cannot be aligned: its landmarks are all at one point")
    factor = np.vdot(centred, targets - targets.mean()) / spread
    shift = targets.mean() - factor * points.mean()
    return np.array([[factor.real, -factor.imag, shift.real], [factor.imag, factor.real, shift.imag]])


def crop_aligned(frame_pixels: UInt8Image, landmarks: Float32Array, *, margin: float, size: int) -> UInt8Image:
    """Crop an aligned face, as the code of DeepfakeBench does; parts outside the frame are black.

    Args:
        frame_pixels: (H, W, 3) RGB, full resolution.
        landmarks: (5, 2) in frame pixels.
        margin: see `alignment`.
        size: side of the crop in pixels.

    Returns:
        (size, size, 3) RGB, with bilinear interpolation.
    """
    matrix = alignment(landmarks, margin=margin, size=size)
    return np.asarray(cv2.warpAffine(frame_pixels, matrix, (size, size)), np.uint8)
