"""Preprocessing of face crops for the network, shared by training and scanning; checkpoints store its settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from dfscan.arrays import Float32Array, UInt8Image
from dfscan.images import Interpolation, resize

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
    interpolation: Interpolation = "area_or_cubic"
    crop: Literal["square", "box", "aligned"] = "square"
    """``square``: a square around the middle of the detected box. ``box``: the widened box, stretched to a square.
    ``aligned``: the face turned, scaled and shifted so that its landmarks are where the network expects them. See
    `faces.crop`.
    """
    crop_margin: float = Field(default=1.3, ge=1, le=4)
    """Ratio of the side of the square crop to the longer side of the detected box; for ``box``, of each side of the
    crop to the same side of the box; for ``aligned``, of the side of the crop to the side of the template.
    """


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
        if crop.dtype != np.uint8 or crop.ndim != 3 or crop.shape[2] != 3 or crop.shape[0] != crop.shape[1]:
            raise ValueError(f"a face crop must be uint8 (S, S, 3), got {crop.dtype} {crop.shape}")
        is_sized = crop.shape[0] == size_px
        row[...] = crop if is_sized else resize(crop, size_px, size_px, preprocessing.interpolation)
    batch /= 255
    batch -= np.asarray(preprocessing.mean, dtype=np.float32)
    batch /= np.asarray(preprocessing.std, dtype=np.float32)
    return np.ascontiguousarray(batch.transpose(0, 3, 1, 2))
