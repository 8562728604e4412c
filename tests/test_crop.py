"""Crops are square, keep the aspect ratio, are black outside the frame, and are cheap for any box."""

from __future__ import annotations

import tracemalloc

import cv2
import numpy as np
import pytest
from PIL import Image

from dfscan.faces.crop import (
    TEMPLATE,
    alignment,
    box_to_crop,
    crop_aligned,
    crop_box,
    crop_face,
    crop_square_xyxy,
    widened_box_xyxy,
)
from tests.pictures import astronaut


def box(*edges: float) -> np.ndarray:
    return np.array(edges, np.float32)


@pytest.mark.parametrize(
    ("edges", "margin", "square"),
    [
        ((10, 10, 30, 30), 1.0, (10, 10, 30, 30)),
        ((10, 10, 30, 50), 1.0, (0, 10, 40, 50)),
        ((100, 100, 200, 180), 1.3, (85, 75, 215, 205)),
        ((-20, -20, 20, 20), 1.5, (-30, -30, 30, 30)),
        ((5, 5, 5, 5), 1.3, (4, 4, 5, 5)),
    ],
)
def test_the_square_is_centred_on_the_box(edges, margin, square):
    assert crop_square_xyxy(box(*edges), margin=margin) == square


@pytest.mark.parametrize("seed", range(20))
def test_the_square_has_equal_sides_and_is_within_a_pixel_of_the_box_centre(seed):
    rng = np.random.default_rng(seed)
    x1, y1 = rng.uniform(-100, 2000, 2)
    width, height = rng.uniform(1, 900, 2)
    left, top, right, bottom = crop_square_xyxy(box(x1, y1, x1 + width, y1 + height), margin=1.3)
    assert right - left == bottom - top
    assert abs((right - left) - 1.3 * max(width, height)) <= 0.51
    assert abs((left + right) / 2 - (x1 + width / 2)) <= 1
    assert abs((top + bottom) / 2 - (y1 + height / 2)) <= 1


@pytest.mark.parametrize(("size", "method"), [(32, cv2.INTER_AREA), (200, cv2.INTER_CUBIC), (100, cv2.INTER_AREA)])
def test_a_crop_inside_the_frame_is_a_slice_and_a_resize(size, method):
    frame = astronaut()
    crop = crop_face(frame, box(200, 100, 300, 180), margin=1.0, size=size)
    expected = cv2.resize(frame[90:190, 200:300], (size, size), interpolation=method)
    assert crop.dtype == np.uint8
    np.testing.assert_array_equal(crop, expected)


def test_a_crop_is_black_outside_the_frame_and_unshifted_inside():
    frame = np.full((100, 100, 3), 200, np.uint8)
    crop = crop_face(frame, box(-50, -50, 50, 50), margin=1.0, size=100)
    assert not crop[:50].any()
    assert not crop[:, :50].any()
    assert (crop[50:, 50:] == 200).all()


def test_a_crop_at_the_border_equals_padding_first():
    frame = astronaut()
    padded = np.pad(frame, ((80, 80), (80, 80), (0, 0)))
    crop = crop_face(frame, box(-60, 400, 140, 560), margin=1.0, size=100)
    expected = cv2.resize(padded[460:660, 20:220], (100, 100), interpolation=cv2.INTER_AREA)
    np.testing.assert_array_equal(crop, expected)


def test_crops_keep_the_aspect_ratio():
    frame = np.zeros((400, 600, 3), np.uint8)
    cv2.circle(frame, (300, 200), 60, (255, 255, 255), -1)
    crop = crop_face(frame, box(270, 140, 330, 260), margin=1.5, size=380)
    rows, columns = np.nonzero(crop[:, :, 0] > 127)
    assert abs(np.ptp(rows) - np.ptp(columns)) <= 2


@pytest.mark.parametrize(
    "edges", [(500, 500, 600, 600), (-300, 0, -200, 100), (-1e9, -1e9, 1e9, 1e9), (1e30, 1e30, 2e30, 2e30)]
)
def test_distant_or_huge_boxes_are_cheap(edges):
    tracemalloc.start()
    crop = crop_face(np.full((100, 100, 3), 9, np.uint8), box(*edges), margin=1.3, size=380)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert crop.shape == (380, 380, 3)
    assert not crop.any()
    assert peak_bytes < 4_000_000


@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (1, 2000), (2000, 1)])
def test_tiny_frames_can_be_cropped(shape):
    frame = np.full((*shape, 3), 7, np.uint8)
    assert crop_face(frame, box(0, 0, 1, 1), margin=1.0, size=8).max() == 7


# The crops of other projects


def test_a_widened_box_is_cut_off_at_the_frame():
    assert widened_box_xyxy(box(100, 100, 180, 200), margin=1.25, width_px=500, height_px=500) == (90, 87, 191, 213)
    assert widened_box_xyxy(box(-20, 10, 60, 90), margin=1.25, width_px=50, height_px=500) == (0, 0, 50, 101)


@pytest.mark.parametrize("interpolation", ["linear", "antialiased_linear"])
def test_a_box_is_stretched_to_a_square(interpolation):
    frame = astronaut()
    crop = crop_box(frame, box(180, 60, 260, 170), margin=1, size=96, interpolation=interpolation)
    part = frame[60:171, 180:261]
    if interpolation == "linear":
        expected = cv2.resize(part, (96, 96), interpolation=cv2.INTER_LINEAR)
    else:
        expected = np.asarray(Image.fromarray(part).resize((96, 96), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(crop, expected)


def test_a_box_outside_the_frame_is_black():
    frame = np.full((50, 50, 3), 200, np.uint8)
    assert not crop_box(frame, box(60, 10, 90, 40), margin=1.25, size=32, interpolation="linear").any()


def test_pixels_of_the_frame_are_found_in_the_crop_of_a_box():
    where = {"margin": 1.25, "width_px": 512, "height_px": 512}
    x1, y1, x2, y2 = widened_box_xyxy(box(180, 60, 260, 170), **where)
    matrix = box_to_crop(box(180, 60, 260, 170), **where, size=64)
    corners = np.array([[x1 - 0.5, y1 - 0.5], [x2 - 0.5, y2 - 0.5]]) @ matrix[:, :2].T + matrix[:, 2]
    np.testing.assert_allclose(corners, [[-0.5, -0.5], [63.5, 63.5]])


def test_alignment_undoes_a_rotation():
    """A template that is turned, enlarged and moved returns to its place; a wider margin leaves room around it."""
    matrix = cv2.getRotationMatrix2D((40, 30), 25, 2.5)
    landmarks = np.float32(TEMPLATE @ matrix[:, :2].T + matrix[:, 2] + 70)
    for margin, expected in ((1.0, TEMPLATE * 2), (1.4, (TEMPLATE * 2 - 112) / 1.4 + 112)):
        to_crop = alignment(landmarks, margin=margin, size=224)
        np.testing.assert_allclose(landmarks @ to_crop[:, :2].T + to_crop[:, 2], expected, atol=1e-3)


def test_an_aligned_crop_is_black_outside_the_frame():
    frame = np.full((60, 60, 3), 200, np.uint8)
    crop = crop_aligned(frame, np.float32(TEMPLATE - 60), margin=1.0, size=112)
    assert (crop[61:, 61:] == 200).all()
    assert not crop[:59].any()


def test_a_point_cannot_be_aligned():
    with pytest.raises(ValueError, match="one point"):
        alignment(np.full((5, 2), 7, np.float32), margin=1.3, size=64)
