from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from dfscan.errors import OutputError
from dfscan.train.sheet import CAPTION_PX, GAP_PX, contact_sheet, save_sheet


def square(red: int, side_px: int = 20) -> NDArray[np.uint8]:
    return np.full((side_px, side_px, 3), (red, 10, 200), np.uint8)


def test_images_are_in_rows_with_gaps() -> None:
    sheet = contact_sheet([[square(1), square(2), square(3)], [square(4)]])
    assert sheet.shape == (2 * 20 + 3 * GAP_PX, 3 * 20 + 4 * GAP_PX, 3)
    for red, (row, column) in {1: (0, 0), 2: (0, 1), 3: (0, 2), 4: (1, 0)}.items():
        top, left = GAP_PX + row * (20 + GAP_PX), GAP_PX + column * (20 + GAP_PX)
        assert np.array_equal(sheet[top : top + 20, left : left + 20], square(red))
    assert (sheet == 255).all(axis=2).sum() == sheet[..., 0].size - 4 * 20 * 20


def test_captions_are_above_their_rows() -> None:
    sheet = contact_sheet([[square(1, 60)], [square(2, 60)]], captions=["one", ""])
    first = sheet[GAP_PX : GAP_PX + CAPTION_PX]
    second = sheet[2 * GAP_PX + CAPTION_PX + 60 :][:CAPTION_PX]
    assert first.min() < 100
    assert (second == 255).all()
    assert np.array_equal(sheet[GAP_PX + CAPTION_PX :][:60, GAP_PX : GAP_PX + 60], square(1, 60))


@pytest.mark.parametrize("rows", [[], [[]], [[square(1)], [square(1, 21)]]])
def test_empty_sheets_and_mixed_sizes_are_refused(rows: list[list[NDArray[np.uint8]]]) -> None:
    with pytest.raises(ValueError, match="one size"):
        contact_sheet(rows)


def test_captions_must_match_the_rows() -> None:
    with pytest.raises(ValueError, match="1 for 2 rows"):
        contact_sheet([[square(1)], [square(2)]], captions=["one"])


def test_a_saved_sheet_reads_back_unchanged(tmp_path: Path) -> None:
    sheet = contact_sheet([[square(7)]])
    save_sheet(tmp_path / "sheet.png", sheet)
    bgr = cv2.imread(str(tmp_path / "sheet.png"))
    assert bgr is not None
    assert np.array_equal(bgr[..., ::-1], sheet)
    assert [path.name for path in tmp_path.iterdir()] == ["sheet.png"]


def test_an_unwritable_path_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot write"):
        save_sheet(tmp_path / "missing" / "sheet.png", square(1))
