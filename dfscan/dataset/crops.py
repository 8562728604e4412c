"""Cut loose face crops from frames, keep their geometry, and encode and decode them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np

from dfscan.arrays import Float32Array, UInt8Image
from dfscan.errors import DataError
from dfscan.faces.crop import crop_face, crop_square_xyxy
from dfscan.faces.detect import Detection
from dfscan.images import encode

CropFormat = Literal["png", "jpg"]

_OPTIONS: dict[CropFormat, list[int]] = {
    "png": [],
    # No chroma subsampling: forgeries also leave traces in colour.
    "jpg": [
        cv2.IMWRITE_JPEG_QUALITY,
        95,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
    ],
}


@dataclass(frozen=True, slots=True, eq=False)
class LooseCrop:
    """A face with a margin that leaves room for augmentation to rotate and shift it."""

    pixels: UInt8Image
    """(S, S, 3) RGB, black where the square extends beyond the frame."""
    box_xyxy: Float32Array
    """(4,) in pixels of the crop."""
    landmarks: Float32Array
    """(5, 2) in pixels of the crop."""


def cut(frame_pixels: UInt8Image, detection: Detection, *, margin: float, max_crop_px: int) -> LooseCrop:
    """Cut the square around a face at the frame's own resolution, and shrink it if it is larger than allowed.

    Args:
        frame_pixels: (H, W, 3) RGB.
        detection: in pixels of the frame.
        margin: side of the square relative to the longer side of the box.
        max_crop_px: maximum side of the crop.
    """
    left, top, right, _ = crop_square_xyxy(detection.box_xyxy, margin=margin)
    side_px = right - left
    size_px = min(side_px, max_crop_px)
    corner = np.array([left, top], np.float32)
    scale = np.float32(size_px / side_px)
    return LooseCrop(
        pixels=crop_face(frame_pixels, detection.box_xyxy, margin=margin, size=size_px),
        box_xyxy=(detection.box_xyxy - np.tile(corner, 2)) * scale,
        landmarks=(detection.landmarks - corner) * scale,
    )


def encode_crop(pixels: UInt8Image, crop_format: CropFormat) -> bytes:
    """Encode (H, W, 3) RGB pixels as lossless PNG or as JPEG at quality 95, and return the bytes."""
    return encode(pixels, f".{crop_format}", options=_OPTIONS[crop_format])


def read_crop(path: Path) -> UInt8Image:
    """Read a crop as (H, W, 3) RGB.

    Raises:
        DataError: the file is missing, unreadable or not an image.
    """
    remedy = "delete its row from the manifest, or recreate the data set with `dfscan prepare`"
    try:
        data = np.frombuffer(path.read_bytes(), np.uint8)
    except OSError as error:
        raise DataError(f"face crop {path}: cannot be read ({error.strerror}); {remedy}") from error
    image = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB) if len(data) else None
    if image is None:
        raise DataError(f"face crop {path}: not an image that can be decoded; {remedy}")
    return np.asarray(image, np.uint8)
