"""Preprocessing of face crops for the network, shared by training and scanning; checkpoints store its settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import cv2
import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from dfscan.arrays import Float32Array, UInt8Image

Unit = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]


class Preprocessing(BaseModel):
    """Settings of the preprocessing of a face."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    input_size_px: int = Field(default=380, ge=32, le=1024)
    """Width and height of the network's input."""
    mean: tuple[Unit, Unit, Unit] = (0.485, 0.456, 0.406)
    """Mean of R, G and B on a scale of [0, 1]; the default is ImageNet's."""
    std: tuple[Positive, Positive, Positive] = (0.229, 0.224, 0.225)
    """Standard deviation of R, G and B on the same scale."""
    interpolation: Literal["area_or_cubic"] = "area_or_cubic"
    """Area averaging to shrink a crop, bicubic interpolation to enlarge it."""
    crop_margin: float = Field(default=1.3, ge=1, le=4)
    """Ratio of the side of the square crop to the longer side of the detected box."""


def to_input(crops: Sequence[UInt8Image], preprocessing: Preprocessing) -> Float32Array:
    """Resize crops, scale them to [0, 1] and normalise them.

    Args:
        crops: square crops of any size, each uint8 (S, S, 3) RGB.
        preprocessing: the checkpoint's settings.

    Returns:
        float32 [B, 3, size, size], contiguous, (x / 255 - mean) / std per channel.

    Raises:
        ValueError: if a crop is not square uint8 RGB.
    """
    size_px = preprocessing.input_size_px
    batch = np.empty((len(crops), size_px, size_px, 3), dtype=np.float32)
    for row, crop in zip(batch, crops, strict=True):
        row[...] = _resize(crop, size_px)
    batch /= 255
    batch -= np.asarray(preprocessing.mean, dtype=np.float32)
    batch /= np.asarray(preprocessing.std, dtype=np.float32)
    return np.ascontiguousarray(batch.transpose(0, 3, 1, 2))


def _resize(crop: UInt8Image, size_px: int) -> UInt8Image:
    if crop.dtype != np.uint8 or crop.ndim != 3 or crop.shape[2] != 3 or crop.shape[0] != crop.shape[1]:
        raise ValueError(f"a face crop must be uint8 (S, S, 3), got {crop.dtype} {crop.shape}")
    if crop.shape[0] == size_px:
        return crop
    interpolation = cv2.INTER_AREA if crop.shape[0] > size_px else cv2.INTER_CUBIC
    return cv2.resize(crop, (size_px, size_px), interpolation=interpolation).astype(np.uint8, copy=False)
