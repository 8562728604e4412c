"""Heat maps: scale, colours and positions."""

import cv2
import numpy as np
import pytest

from dfscan.detector.gradcam import heat_map, normalise, overlay, overlay_on_frame, overlay_on_part

GREY = np.full((60, 80, 3), 128, np.uint8)


def spot(row: int, column: int, value: float = 4.0) -> np.ndarray:
    cam = np.zeros((12, 12), np.float32)
    cam[row, column] = value
    return cam


def test_normalise_divides_by_the_maximum() -> None:
    np.testing.assert_allclose(normalise(np.float32([[0, 1], [2, 4]])), [[0, 0.25], [0.5, 1]])


@pytest.mark.parametrize("value", [0.0, 1e-30, 1e30])
def test_normalise_does_not_depend_on_the_scale(value: float) -> None:
    normal = normalise(spot(1, 2, value))

    assert normal.dtype == np.float32
    assert normal.max() == (1 if value else 0)


def test_heat_map_keeps_positions_and_range() -> None:
    heat = heat_map(spot(2, 9), 120)

    assert heat.shape == (120, 120)
    assert heat.dtype == np.float32
    assert heat.min() >= 0
    assert heat.max() <= 1
    row, column = np.unravel_index(heat.argmax(), heat.shape)
    assert (row // 10, column // 10) == (2, 9)


def test_overlay_is_red_for_high_and_blue_for_low_heat() -> None:
    heat = np.zeros((60, 80), np.float32)
    heat[:, 40:] = 1

    reconstructed = overlay(GREY, heat)

    assert reconstructed.dtype == np.uint8
    assert reconstructed.shape == GREY.shape
    cold, hot = reconstructed[0, 0].astype(int), reconstructed[0, 79].astype(int)
    assert cold[2] > cold[0]
    assert hot[0] > hot[2]
    np.testing.assert_array_equal(overlay(GREY, heat, strength=0), GREY)


def test_overlay_on_frame_changes_only_the_square() -> None:
    before = GREY.copy()

    cam = np.zeros((12, 12), np.float32)
    cam[:4, :4] = 1

    reconstructed = overlay_on_frame(GREY, cam, (20, 10, 44, 34))

    np.testing.assert_array_equal(GREY, before)
    changed = np.argwhere((reconstructed != GREY).any(axis=2))
    assert changed.min(axis=0).tolist() == [10, 20]
    assert changed.max(axis=0).tolist() == [33, 43]
    assert reconstructed[10, 20].tolist() == [255, 255, 255]
    hot, cold = reconstructed[13, 23].astype(int), reconstructed[30, 40].astype(int)
    assert hot[0] > hot[2]
    assert cold[2] > cold[0]


def test_overlay_on_frame_clips_a_square_at_the_border() -> None:
    whole = overlay_on_frame(np.full((200, 200, 3), 128, np.uint8), spot(6, 6), (70, 70, 118, 118))

    cut = overlay_on_frame(GREY, spot(6, 6), (-24, -24, 24, 24))

    np.testing.assert_array_equal(cut[:23, :23], whole[94:117, 94:117])
    np.testing.assert_array_equal(cut[30:, 30:], GREY[30:, 30:])


@pytest.mark.parametrize("square", [(-50, -50, -10, -10), (80, 60, 90, 70)])
def test_overlay_on_frame_accepts_a_square_outside_the_frame(square: tuple[int, int, int, int]) -> None:
    np.testing.assert_array_equal(overlay_on_frame(GREY, spot(0, 0), square), GREY)


@pytest.mark.parametrize("square", [(0, 0, 10, 12), (5, 5, 5, 5), (9, 9, 3, 3)])
def test_overlay_on_frame_refuses_other_shapes(square: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="must be a square"):
        overlay_on_frame(GREY, spot(0, 0), square)


def test_overlay_on_part_changes_only_a_turned_part() -> None:
    """The crop of 32 px is turned by 45 degrees around the middle of the frame; its first rows are hot."""
    cam = np.zeros((12, 12), np.float32)
    cam[:4] = 1
    to_crop = cv2.getRotationMatrix2D((40, 30), 45, 1)
    to_crop[:, 2] -= (40 - 15.5, 30 - 15.5)

    result = overlay_on_part(GREY, cam, to_crop, 32)

    ys, xs = np.nonzero((result != GREY).any(axis=2))
    reach = 15.5 * np.sqrt(2)
    assert max(abs(xs.min() - 40 + reach), abs(xs.max() - 40 - reach), abs(ys.min() - 30 + reach)) <= 1.5
    assert (np.abs(xs - 40) + np.abs(ys - 30) <= reach + 2).all()
    is_red = result[:, :, 0].astype(int) > result[:, :, 2].astype(int) + 30
    hot_y, hot_x = np.argwhere(is_red).mean(axis=0)
    row = to_crop[1, :2] @ (hot_x, hot_y) + to_crop[1, 2]
    assert row < 12
    np.testing.assert_array_equal(GREY, np.full((60, 80, 3), 128, np.uint8))
