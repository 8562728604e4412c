"""Heat maps of the regions that raise the fake score. They are not proof.

Red regions raise the score; blue regions do not affect it. The maps come from `DeepfakeDetector.forward_with_cam`.
"""

from __future__ import annotations

import cv2
import numpy as np

from dfscan.arrays import Float32Array, Float64Array, UInt8Image

OUTLINE_RGB = (255, 255, 255)


def normalise(cam: Float32Array) -> Float32Array:
    """Scale a non-negative map [h, w] to [0, 1] by its maximum; a map of zeros stays zero."""
    peak = cam.max(initial=0)
    return (cam / peak if peak > 0 else np.zeros_like(cam)).astype(np.float32)


def heat_map(cam: Float32Array, size_px: int) -> Float32Array:
    """Normalise a map [h, w] and enlarge it bicubically to float32 (size_px, size_px) in [0, 1]."""
    heat = cv2.resize(normalise(cam), (size_px, size_px), interpolation=cv2.INTER_CUBIC)
    return np.clip(heat, 0, 1).astype(np.float32)  # bicubic overshoots


def overlay(pixels: UInt8Image, heat: Float32Array, *, strength: float = 0.5) -> UInt8Image:
    """Blend colours from blue (0) to red (1) over an image.

    Args:
        pixels: uint8 (H, W, 3) RGB; not modified.
        heat: (H, W) in [0, 1].
        strength: weight of the colours in the result, in [0, 1].

    Returns:
        uint8 (H, W, 3) RGB.
    """
    levels = np.rint(heat * 255).astype(np.uint8)
    colours = cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_JET), cv2.COLOR_BGR2RGB)
    return cv2.addWeighted(pixels, 1 - strength, colours, strength, 0).astype(np.uint8, copy=False)


def overlay_on_frame(
    frame_pixels: UInt8Image, cam: Float32Array, square_xyxy: tuple[int, int, int, int], *, strength: float = 0.5
) -> UInt8Image:
    """Blend a face's map over its region of the frame and outline the region.

    Args:
        frame_pixels: uint8 (H, W, 3) RGB; not modified.
        cam: the face's map [h, w], non-negative.
        square_xyxy: the face's crop in pixels of the frame, x2 and y2 exclusive; may extend beyond the frame.
        strength: as in `overlay`.

    Returns:
        uint8 (H, W, 3) RGB.

    Raises:
        ValueError: if `square_xyxy` is not a square.
    """
    x1, y1, x2, y2 = (int(value) for value in square_xyxy)
    if x2 - x1 != y2 - y1 or x2 <= x1:
        raise ValueError(f"the crop of a face must be a square, got {square_xyxy}")
    result = frame_pixels.copy()
    height_px, width_px = frame_pixels.shape[:2]
    top, bottom, left, right = max(y1, 0), min(y2, height_px), max(x1, 0), min(x2, width_px)
    if top < bottom and left < right:
        heat = heat_map(cam, x2 - x1)[top - y1 : bottom - y1, left - x1 : right - x1]
        part = np.ascontiguousarray(frame_pixels[top:bottom, left:right])
        result[top:bottom, left:right] = overlay(part, heat, strength=strength)
    thickness_px = max(1, round(min(height_px, width_px) / 300))
    cv2.rectangle(result, (x1, y1), (x2 - 1, y2 - 1), OUTLINE_RGB, thickness_px)
    return result


def overlay_on_part(
    frame_pixels: UInt8Image, cam: Float32Array, to_crop: Float64Array, size_px: int, *, strength: float = 0.5
) -> UInt8Image:
    """Blend a face's map over a part of the frame that is not an upright square, and outline the part.

    Args:
        frame_pixels: uint8 (H, W, 3) RGB; not modified.
        cam: the face's map [h, w], non-negative.
        to_crop: affine transform (2, 3) from the frame to the crop.
        size_px: side of the crop.
        strength: as in `overlay`.

    Returns:
        uint8 (H, W, 3) RGB.
    """
    height_px, width_px = frame_pixels.shape[:2]
    inverse, whole = cv2.WARP_INVERSE_MAP, np.ones((size_px, size_px), np.uint8)
    heat = cv2.warpAffine(heat_map(cam, size_px), to_crop, (width_px, height_px), flags=cv2.INTER_LINEAR | inverse)
    part = cv2.warpAffine(whole, to_crop, (width_px, height_px), flags=cv2.INTER_NEAREST | inverse)
    blended = overlay(frame_pixels, np.asarray(heat, np.float32), strength=strength)
    result = np.where(part[:, :, None] > 0, blended, frame_pixels)
    corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) * (size_px - 1)
    from_crop = cv2.invertAffineTransform(to_crop)
    outline = np.rint(corners @ from_crop[:, :2].T + from_crop[:, 2]).astype(np.int32)
    thickness_px = max(1, round(min(height_px, width_px) / 300))
    cv2.polylines(result, [outline], isClosed=True, color=OUTLINE_RGB, thickness=thickness_px)
    return result
