from collections.abc import Callable

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from dfscan.train import degrade
from tests.pictures import astronaut, nobody

Pixels = NDArray[np.uint8]


def crop(height: int = 128, width: int = 128) -> Pixels:
    return astronaut()[60 : 60 + height, 160 : 160 + width]


def error(changed: Pixels, original: Pixels) -> float:
    return float(np.abs(changed.astype(np.float64) - original).mean())


def detail(pixels: Pixels) -> float:
    return float(cv2.Laplacian(pixels, cv2.CV_32F).std())


DEGRADATIONS: dict[str, Callable[[Pixels], Pixels]] = {
    "h264": lambda pixels: degrade.compress_h264(pixels, crf=23),
    "jpeg": lambda pixels: degrade.compress_jpeg(pixels, quality=60),
    "blur": lambda pixels: degrade.blur(pixels, sigma_px=1.5),
    "rescale": lambda pixels: degrade.rescale(pixels, factor=0.5),
}


@pytest.mark.parametrize("change", DEGRADATIONS.values(), ids=DEGRADATIONS)
@pytest.mark.parametrize("shape", [(16, 16), (17, 31), (128, 90), (45, 200)])
def test_shape_and_type_stay_and_the_picture_is_much_the_same(
    change: Callable[[Pixels], Pixels], shape: tuple[int, int]
) -> None:
    pixels = crop(*shape)
    before = pixels.copy()
    changed = change(pixels)
    assert changed.shape == (*shape, 3)
    assert changed.dtype == np.uint8
    assert changed.flags.c_contiguous
    assert np.array_equal(pixels, before)
    assert 0 < error(changed, pixels) < 20
    assert abs(float(changed.mean()) - float(pixels.mean())) < 1.5


@pytest.mark.parametrize("change", DEGRADATIONS.values(), ids=DEGRADATIONS)
def test_they_are_deterministic(change: Callable[[Pixels], Pixels]) -> None:
    assert np.array_equal(change(crop()), change(crop()))


@pytest.mark.parametrize(
    ("mild", "harsh"),
    [
        (lambda p: degrade.compress_h264(p, crf=18), lambda p: degrade.compress_h264(p, crf=40)),
        (lambda p: degrade.compress_jpeg(p, quality=95), lambda p: degrade.compress_jpeg(p, quality=20)),
        (lambda p: degrade.blur(p, sigma_px=0.7), lambda p: degrade.blur(p, sigma_px=3)),
        (lambda p: degrade.rescale(p, factor=0.8), lambda p: degrade.rescale(p, factor=0.25)),
    ],
    ids=DEGRADATIONS,
)
def test_more_of_it_loses_more(mild: Callable[[Pixels], Pixels], harsh: Callable[[Pixels], Pixels]) -> None:
    assert error(harsh(crop()), crop()) > 1.5 * error(mild(crop()), crop())
    assert detail(harsh(crop())) < 0.8 * detail(mild(crop())) < 0.8 * 1.05 * detail(crop())


@pytest.mark.parametrize("crf", [0, 23, 51])
def test_h264_keeps_smooth_colours_where_they_are(crf: int) -> None:
    pixels = nobody(width_px=101, height_px=67)
    pixels[..., 0] //= 2
    pixels[:, :, 2] = 255 - pixels[:, :, 2]
    assert error(degrade.compress_h264(pixels, crf=crf), pixels) < (2.5 if crf < 51 else 8)


def test_h264_is_no_mere_change_of_colour_space() -> None:
    """At a high rate factor it shows blocks: steps across the borders of 4 x 4 pixels exceed those within."""
    steps = np.abs(np.diff(degrade.compress_h264(crop(), crf=40).astype(np.float64), axis=1)).mean(axis=(0, 2))
    assert steps[3::4].mean() > 1.2 * np.delete(steps, np.s_[3::4]).mean()


def test_blur_is_a_gaussian() -> None:
    dot = np.zeros((41, 41, 3), np.uint8)
    dot[20, 20] = 255
    spread = degrade.blur(np.repeat(dot.max(axis=0, keepdims=True), 41, axis=0), sigma_px=3)[20, :, 0]
    x = np.arange(41) - 20
    assert spread == pytest.approx(255 * np.exp(-(x**2) / 18) / np.sqrt(18 * np.pi), abs=1.5)


def test_nothing_asked_is_nothing_done() -> None:
    assert np.array_equal(degrade.blur(crop(), sigma_px=0), crop())
    assert np.array_equal(degrade.rescale(crop(), factor=1), crop())


@pytest.mark.parametrize(
    "call",
    [
        lambda p: degrade.compress_h264(p, crf=52),
        lambda p: degrade.compress_h264(p, crf=-1),
        lambda p: degrade.compress_jpeg(p, quality=0),
        lambda p: degrade.compress_jpeg(p, quality=101),
        lambda p: degrade.blur(p, sigma_px=-1),
        lambda p: degrade.rescale(p, factor=0),
        lambda p: degrade.rescale(p, factor=1.1),
    ],
)
def test_values_out_of_range_are_refused(call: Callable[[Pixels], Pixels]) -> None:
    with pytest.raises(ValueError, match="got"):
        call(crop())


@pytest.mark.parametrize("shape", [(16, 16), (17, 31), (128, 90), (45, 200)])
def test_smoothing_keeps_shape_and_type_and_its_input(shape: tuple[int, int]) -> None:
    """Apart from the others: of a picture that is all edges nothing may be left to smooth."""
    pixels = crop(*shape)
    before = pixels.copy()
    smooth = degrade.smooth_skin(pixels, strength=1)
    assert smooth.shape == (*shape, 3)
    assert smooth.dtype == np.uint8
    assert smooth.flags.c_contiguous
    assert np.array_equal(pixels, before)
    assert not np.shares_memory(smooth, pixels)
    assert error(smooth, pixels) < 20


def test_skin_is_smoothed_and_edges_stay() -> None:
    rng = np.random.default_rng(0)
    step = np.full((120, 120, 3), 60, np.float64)
    step[:, 60:] = 200
    noisy = np.clip(step + rng.normal(0, 6, step.shape), 0, 255).astype(np.uint8)
    smooth = degrade.smooth_skin(noisy, strength=1)
    assert smooth[:, 5:50].std() < 0.5 * noisy[:, 5:50].std()
    assert smooth[:, 61:63].mean() - smooth[:, 57:59].mean() > 130
    assert np.array_equal(degrade.smooth_skin(noisy, strength=0), noisy)
    half = degrade.smooth_skin(noisy, strength=0.5)
    assert np.abs(half - (smooth.astype(float) + noisy) / 2).max() <= 1


@pytest.mark.parametrize("strength", [-0.1, 1.1])
def test_skin_is_smoothed_by_a_share(strength: float) -> None:
    with pytest.raises(ValueError, match="strength"):
        degrade.smooth_skin(crop(), strength=strength)
