"""Resizing and encoding of images."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from dfscan.images import encode, resize
from tests.pictures import astronaut


@pytest.mark.parametrize(("side_px", "method"), [(100, cv2.INTER_AREA), (600, cv2.INTER_CUBIC)])
def test_images_are_shrunk_by_averaging_and_enlarged_smoothly(side_px: int, method: int) -> None:
    expected = cv2.resize(astronaut(), (side_px, side_px), interpolation=method)
    assert np.array_equal(resize(astronaut(), side_px, side_px), expected)


def test_an_encoded_image_keeps_its_colours() -> None:
    data = np.frombuffer(encode(astronaut(), ".png"), np.uint8)
    assert np.array_equal(cv2.imdecode(data, cv2.IMREAD_COLOR_RGB), astronaut())
    assert len(encode(astronaut(), ".jpg", quality=50)) < len(encode(astronaut(), ".jpg", quality=90))


def test_an_image_that_a_format_cannot_hold_is_refused() -> None:
    with pytest.raises(ValueError, match=r"70000 x 1 px cannot be encoded as \.jpg"):
        encode(np.zeros((1, 70_000, 3), np.uint8), ".jpg")
