"""Preprocessing compared with values computed by hand."""

import numpy as np
import pytest
from pydantic import ValidationError

from dfscan.detector.preprocess import Preprocessing, to_input


def square(size_px: int, rgb: tuple[int, int, int] = (255, 0, 51)) -> np.ndarray:
    return np.broadcast_to(np.uint8(rgb), (size_px, size_px, 3)).copy()


def test_defaults() -> None:
    settings = Preprocessing()

    assert settings.input_size_px == 380
    assert settings.mean == (0.485, 0.456, 0.406)
    assert settings.std == (0.229, 0.224, 0.225)
    assert settings.crop_margin == 1.3


@pytest.mark.parametrize("size_px", [40, 380, 777])
def test_normalises_each_channel_in_rgb_order(size_px: int) -> None:
    batch = to_input([square(size_px)], Preprocessing())

    assert batch.shape == (1, 3, 380, 380)
    assert batch.dtype == np.float32
    assert batch.flags.c_contiguous
    expected = [(1 - 0.485) / 0.229, (0 - 0.456) / 0.224, (0.2 - 0.406) / 0.225]
    np.testing.assert_allclose(batch[0].min(axis=(1, 2)), expected, rtol=1e-5)
    np.testing.assert_allclose(batch[0].max(axis=(1, 2)), expected, rtol=1e-5)


def test_rows_and_columns_keep_their_positions() -> None:
    crop = square(32, (0, 0, 0))
    crop[3, 7, 1] = 255

    batch = to_input([crop], Preprocessing(input_size_px=32, mean=(0, 0, 0), std=(1, 1, 1)))

    assert np.argwhere(batch).tolist() == [[0, 1, 3, 7]]


def test_crops_are_shrunk_by_area_averaging() -> None:
    crop = np.random.default_rng(1).integers(0, 256, (128, 128, 3), dtype=np.uint8)

    batch = to_input([crop], Preprocessing(input_size_px=32, mean=(0, 0, 0), std=(1, 1, 1)))

    expected = crop.reshape(32, 4, 32, 4, 3).mean(axis=(1, 3)).transpose(2, 0, 1) / 255
    np.testing.assert_allclose(batch[0], expected, atol=0.51 / 255)


def test_crops_are_enlarged_bicubically() -> None:
    crop = square(32, (0, 0, 0))
    crop[:, 16:] = 200

    batch = to_input([crop], Preprocessing(input_size_px=64, mean=(0, 0, 0), std=(1, 1, 1)))

    assert batch.max() > 200.5 / 255  # only a kernel with negative lobes overshoots at an edge


def test_crops_of_different_sizes_form_one_batch() -> None:
    sizes = [31, 380, 500]
    together = to_input([square(size) for size in sizes], Preprocessing())

    assert together.shape == (3, 3, 380, 380)
    assert to_input([], Preprocessing()).shape == (0, 3, 380, 380)


@pytest.mark.parametrize(
    "crop", [np.zeros((8, 9, 3), np.uint8), np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3), np.float32)]
)
def test_refuses_invalid_crops(crop: np.ndarray) -> None:
    with pytest.raises(ValueError, match="face crop must be uint8"):
        to_input([crop], Preprocessing())


@pytest.mark.parametrize(
    "wrong", [{"std": (0, 1, 1)}, {"input_size_px": 10**6}, {"interpolation": "lanczos"}, {"size": 380}]
)
def test_refuses_unusable_settings(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Preprocessing.model_validate(wrong)
