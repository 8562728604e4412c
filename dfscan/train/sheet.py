"""Arrange images side by side for inspection."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from dfscan.arrays import UInt8Image
from dfscan.files import write_bytes
from dfscan.images import encode

GAP_PX = 4
CAPTION_PX = 18
_WHITE = 255


def contact_sheet(rows: Sequence[Sequence[UInt8Image]], *, captions: Sequence[str] = ()) -> UInt8Image:
    """Arrange equally sized images in rows on white, with an optional caption above each row.

    Args:
        rows: each uint8 (S, S, 3) RGB; shorter rows are padded with white.
        captions: one per row, or none; cropped at the edge of the sheet. OpenCV draws ASCII, and ``?`` for other
            characters.

    Returns:
        (H, W, 3) RGB.

    Raises:
        ValueError: there are no images, their sizes differ, or the number of captions is neither zero nor one per row.
    """
    shapes = {image.shape for row in rows for image in row}
    if len(shapes) != 1:
        raise ValueError(f"a sheet needs images of one size, got {sorted(shapes) or 'none'}")
    if captions and len(captions) != len(rows):
        raise ValueError(f"a sheet needs one caption per row, got {len(captions)} for {len(rows)} rows")
    height, width = shapes.pop()[:2]
    caption_px = CAPTION_PX if captions else 0
    row_px = caption_px + height + GAP_PX
    num_columns = max(len(row) for row in rows)
    sheet = np.full((GAP_PX + len(rows) * row_px, GAP_PX + num_columns * (width + GAP_PX), 3), _WHITE, np.uint8)
    for i, row in enumerate(rows):
        top = GAP_PX + i * row_px
        if captions:
            baseline = (GAP_PX, top + caption_px - 5)
            cv2.putText(sheet, captions[i], baseline, cv2.FONT_HERSHEY_SIMPLEX, 0.4, (0, 0, 0), 1, cv2.LINE_AA)
        for k, image in enumerate(row):
            left = GAP_PX + k * (width + GAP_PX)
            sheet[top + caption_px : top + caption_px + height, left : left + width] = image
    return sheet


def save_sheet(path: Path, image: UInt8Image) -> None:
    """Write an image as PNG, atomically by rename.

    Args:
        path: its directory must exist.
        image: uint8 (H, W, 3) RGB.

    Raises:
        OutputError: it cannot be written.
    """
    write_bytes(path, encode(image, ".png"))
