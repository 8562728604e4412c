"""Loose face crops: cut from a frame with their geometry, encoded, and read back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from dfscan.errors import ConfigError
from dfscan.faces.crop import crop_face, crop_square_xyxy
from dfscan.faces.detect import Detection

CropFormat = Literal["png", "jpg"]

_OPTIONS: dict[CropFormat, list[int]] = {
    "png": [],
    # Full colour resolution: forgeries also show in colour.
    "jpg": [
        cv2.IMWRITE_JPEG_QUALITY,
        95,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
    ],
}


@dataclass(frozen=True, slots=True, eq=False)
class LooseCrop:
    """A face with room round it, for augmentation to turn and shift."""

    pixels: NDArray[np.uint8]
    """(S, S, 3) RGB, black where the square leaves the frame."""
    box_xyxy: NDArray[np.float32]
    """(4,) in pixels of the crop."""
    landmarks: NDArray[np.float32]
    """(5, 2) in pixels of the crop."""


def cut(frame_pixels: NDArray[np.uint8], detection: Detection, *, margin: float, max_crop_px: int) -> LooseCrop:
    """Cut the square round a face at the frame's own resolution, and shrink it where it is larger than allowed.

    Args:
        frame_pixels: (H, W, 3) RGB.
        detection: in pixels of the frame.
        margin: side of the square over the longer side of the box.
        max_crop_px: most pixels on a side.
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


def resized(pixels: NDArray[np.uint8], width_px: int, height_px: int) -> NDArray[np.uint8]:
    """Bring a picture to another size: by area averaging where it shrinks, else by bicubic interpolation."""
    method = cv2.INTER_AREA if pixels.shape[0] > height_px else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(pixels, (width_px, height_px), interpolation=method), np.uint8)


def encode(pixels: NDArray[np.uint8], crop_format: CropFormat) -> bytes:
    """Encode (H, W, 3) RGB as a file's bytes: PNG without loss, JPEG at quality 95."""
    is_encoded, data = cv2.imencode(f".{crop_format}", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), _OPTIONS[crop_format])
    assert is_encoded  # an array of this kind always fits either format
    return data.tobytes()


def read_crop(path: Path) -> NDArray[np.uint8]:
    """Read a crop as (H, W, 3) RGB.

    Raises:
        ConfigError: it is not there or no picture.
    """
    remedy = "delete its row from the manifest, or make the data set anew with `dfscan prepare`"
    try:
        data = np.frombuffer(path.read_bytes(), np.uint8)
    except OSError as error:
        raise ConfigError(f"face crop {path}: cannot be read ({error.strerror}); {remedy}") from error
    picture = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB) if len(data) else None
    if picture is None:
        raise ConfigError(f"face crop {path}: no picture that can be decoded; {remedy}")
    return np.asarray(picture, np.uint8)
