from collections.abc import Callable

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from dfscan.forgery import degrade
from tests.pictures import astronaut, nobody

Pixels = NDArray[np.uint8]


def crop(height: int = 128, width: int = 128) -> Pixels:
    return astronaut()[60 : 60 + height, 160 : 160 + width]


def error(changed: Pixels, original: Pixels) -> float:
    return float(np.abs(changed.astype(np.float64) - original).mean())


def detail(pixels: Pixels) -> float:
    return float(cv2.Laplacian(pixels, cv2.CV_32F).std())


def coded(pixels: Pixels, *, crf: int, codec: degrade.Codec = "h264", num_frames: int = 1, position: int = 0) -> Pixels:
    generation = degrade.Generation(codec, crf)
    motion = {"shift": (0.011, -0.007), "turn_deg": 0.4, "zoom": 0.006, "acceleration": 0.1}
    chain = degrade.VideoChain((generation,), num_frames=num_frames, position=position, **motion)
    return degrade.through_video(pixels, chain)


def psnr_db(changed: Pixels, original: Pixels) -> float:
    return float(10 * np.log10(255**2 / np.square(changed.astype(np.float64) - original).mean()))


DEGRADATIONS: dict[str, Callable[[Pixels], Pixels]] = {
    "key frame": lambda pixels: coded(pixels, crf=23),
    "h264": lambda pixels: coded(pixels, crf=23, num_frames=4, position=2),
    "h265": lambda pixels: coded(pixels, crf=23, codec="h265", num_frames=4, position=2),
    "vp9": lambda pixels: coded(pixels, crf=23, codec="vp9", num_frames=3, position=1),
    "jpeg": lambda pixels: degrade.compress_jpeg(pixels, quality=60),
    "blur": lambda pixels: degrade.blur(pixels, sigma_px=1.5),
    "rescale": lambda pixels: degrade.rescale(pixels, factor=0.5),
}


@pytest.mark.parametrize("change", DEGRADATIONS.values(), ids=DEGRADATIONS)
@pytest.mark.parametrize("shape", [(16, 16), (17, 31), (128, 90), (45, 200)])
def test_shape_and_type_are_kept_and_the_image_changes_little(
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
def test_degradations_are_deterministic(change: Callable[[Pixels], Pixels]) -> None:
    assert np.array_equal(change(crop()), change(crop()))


@pytest.mark.parametrize(
    ("mild", "harsh"),
    [
        (lambda p: coded(p, crf=18), lambda p: coded(p, crf=40)),
        *(
            (
                lambda p, codec=codec: coded(p, crf=18, codec=codec, num_frames=4, position=2),
                lambda p, codec=codec: coded(p, crf=40, codec=codec, num_frames=4, position=2),
            )
            for codec in degrade.SIMULATED_CODECS
        ),
        (lambda p: degrade.compress_jpeg(p, quality=95), lambda p: degrade.compress_jpeg(p, quality=20)),
        (lambda p: degrade.blur(p, sigma_px=0.7), lambda p: degrade.blur(p, sigma_px=3)),
        (lambda p: degrade.rescale(p, factor=0.8), lambda p: degrade.rescale(p, factor=0.25)),
    ],
    ids=DEGRADATIONS,
)
def test_stronger_degradations_lose_more(mild: Callable[[Pixels], Pixels], harsh: Callable[[Pixels], Pixels]) -> None:
    assert error(harsh(crop()), crop()) > 1.5 * error(mild(crop()), crop())
    assert detail(harsh(crop())) < 0.8 * detail(mild(crop())) < 0.8 * 1.05 * detail(crop())


@pytest.mark.parametrize("crf", [0, 23, 51])
def test_h264_keeps_smooth_colours_where_they_are(crf: int) -> None:
    pixels = nobody(width_px=101, height_px=67)
    pixels[..., 0] //= 2
    pixels[:, :, 2] = 255 - pixels[:, :, 2]
    assert error(coded(pixels, crf=crf), pixels) < (2.5 if crf < 51 else 8)


def test_h264_is_no_mere_change_of_colour_space() -> None:
    """Check for blocks at a high rate factor: steps across 4 x 4 pixel borders exceed those within."""
    steps = np.abs(np.diff(coded(crop(), crf=40).astype(np.float64), axis=1)).mean(axis=(0, 2))
    assert steps[3::4].mean() > 1.2 * np.delete(steps, np.s_[3::4]).mean()


def test_every_codec_is_available_here() -> None:
    assert degrade.available_codecs() == degrade.SIMULATED_CODECS


def shift_px(still: Pixels, moved: Pixels, axis: int) -> float:
    """Return by how many pixels an image is shifted: the minimum of a parabola through the errors at -1, 0 and 1."""
    inner = np.s_[2:-2, 2:-2]
    before, zero, after = (
        np.square(np.roll(still.astype(np.float64), shift, axis) - moved)[inner].mean() for shift in (-1, 0, 1)
    )
    return float((before - after) / (2 * (before - 2 * zero + after)))


@pytest.mark.parametrize("codec", degrade.SIMULATED_CODECS)
@pytest.mark.parametrize("position", [0, 1, 2, 3])
def test_a_frame_of_a_moving_clip_keeps_its_geometry(codec: degrade.Codec, position: int) -> None:
    """The clip moves by more than a pixel per frame, but the frame that is kept is aligned with the image."""
    pixels = crop(150, 151)
    changed = coded(pixels, crf=26, codec=codec, num_frames=4, position=position)
    assert max(abs(shift_px(pixels, changed, axis)) for axis in (0, 1)) < 0.1
    halves = [np.s_[:75, :75], np.s_[:75, 75:], np.s_[75:, :75], np.s_[75:, 75:]]  # neither rotated nor scaled
    assert all(psnr_db(changed[part], pixels[part]) > 25 for part in halves)


@pytest.mark.parametrize("codec", degrade.SIMULATED_CODECS)
@pytest.mark.parametrize(("num_frames", "position"), [(1, 0), (4, 1), (5, 4)])
def test_quality_falls_with_the_rate_factor(codec: degrade.Codec, num_frames: int, position: int) -> None:
    pixels = cv2.resize(crop(), (240, 240), interpolation=cv2.INTER_CUBIC).astype(np.uint8)
    crfs = (18, 24, 30, 36)
    found_db = [
        psnr_db(coded(pixels, crf=q, codec=codec, num_frames=num_frames, position=position), pixels) for q in crfs
    ]
    assert 35 < found_db[0] < 45
    assert 24 < found_db[-1] < 34
    assert found_db == sorted(found_db, reverse=True)


def test_frames_of_a_clip_are_predicted_from_others() -> None:
    """At a coarse rate factor, a frame shows remnants of the frames that it was predicted from."""
    pixels = crop()
    alone = coded(pixels, crf=36)
    assert all((coded(pixels, crf=36, num_frames=4, position=place) != alone).any() for place in (1, 2, 3))


@pytest.mark.parametrize("shape", [(16, 16), (17, 31), (90, 133)])
def test_a_messenger_keeps_the_size(shape: tuple[int, int]) -> None:
    pixels = crop(*shape)
    first, second = degrade.Generation("h264", 24), degrade.Generation("vp9", 30, 0.5)
    once, twice = (
        degrade.through_video(pixels, degrade.VideoChain(each, num_frames=3, position=1, shift=(0.01, 0)))
        for each in ((first,), (first, second))
    )
    assert twice.shape == pixels.shape
    assert error(twice, pixels) > error(once, pixels)


def test_without_encodings_only_colours_are_rounded() -> None:
    smooth = nobody(width_px=101, height_px=67)
    assert error(degrade.through_video(smooth, degrade.VideoChain((), num_frames=3, position=1)), smooth) < 2


def test_chains_depend_only_on_the_generator() -> None:
    def chains(seed: int) -> list[degrade.VideoChain]:
        rng = np.random.default_rng(seed)
        return [degrade.draw_video_chain(rng, [(18, 40), (24, 36)], recompressed=True) for _ in range(300)]

    drawn = chains(0)
    assert drawn == chains(0) != chains(1)
    generations = [generation for chain in drawn for generation in chain.generations]
    assert {each.codec for each in generations} == set(degrade.SIMULATED_CODECS)
    assert np.mean([each.codec == "h264" for each in generations]) == pytest.approx(0.8, abs=0.05)
    assert {chain.generations[0].scale for chain in drawn} == {1.0}
    assert all(0.5 <= chain.generations[1].scale < 1 and 24 <= chain.generations[1].crf <= 36 for chain in drawn)
    assert all(18 <= chain.generations[0].crf <= 40 for chain in drawn)
    assert {chain.num_frames for chain in drawn} == {1, 3, 4, 5}
    assert all(chain.position > 0 for chain in drawn if chain.num_frames > 1)


def test_only_available_codecs_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(degrade, "available_codecs", lambda: ("h264",))
    rng = np.random.default_rng(0)
    drawn = [degrade.draw_video_chain(rng, [(18, 40)], recompressed=False) for _ in range(50)]
    assert {chain.generations[0].codec for chain in drawn} == {"h264"}


def test_blur_is_a_gaussian() -> None:
    dot = np.zeros((41, 41, 3), np.uint8)
    dot[20, 20] = 255
    spread = degrade.blur(np.repeat(dot.max(axis=0, keepdims=True), 41, axis=0), sigma_px=3)[20, :, 0]
    x = np.arange(41) - 20
    assert spread == pytest.approx(255 * np.exp(-(x**2) / 18) / np.sqrt(18 * np.pi), abs=1.5)


def test_neutral_settings_change_nothing() -> None:
    assert np.array_equal(degrade.blur(crop(), sigma_px=0), crop())
    assert np.array_equal(degrade.rescale(crop(), factor=1), crop())


@pytest.mark.parametrize(
    "call",
    [
        lambda p: coded(p, crf=52),
        lambda p: coded(p, crf=-1),
        lambda p: coded(p, crf=20, num_frames=3, position=3),
        lambda p: coded(p[:15], crf=20),
        lambda p: degrade.through_video(p, degrade.VideoChain((degrade.Generation("h264", 20, 1.5),))),
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
    """Tested apart from the other degradations: an image full of edges may have nothing to smooth."""
    pixels = crop(*shape)
    before = pixels.copy()
    smooth = degrade.smooth_skin(pixels, strength=1)
    assert smooth.shape == (*shape, 3)
    assert smooth.dtype == np.uint8
    assert smooth.flags.c_contiguous
    assert np.array_equal(pixels, before)
    assert not np.shares_memory(smooth, pixels)
    assert error(smooth, pixels) < 20


def test_skin_is_smoothed_and_edges_are_kept() -> None:
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
def test_an_invalid_smoothing_strength_is_refused(strength: float) -> None:
    with pytest.raises(ValueError, match="strength"):
        degrade.smooth_skin(crop(), strength=strength)


@pytest.mark.parametrize(("size_px", "is_h264"), [(62, True), (64, False)])
def test_frames_too_small_for_libx265_become_h264(size_px: int, is_h264: bool) -> None:
    """Below 64 px, libx265 corrupts its memory."""
    picture = cv2.resize(astronaut(), (size_px, 80))
    coded = [
        degrade.through_video(picture, degrade.VideoChain((degrade.Generation(codec, 30),)))
        for codec in ("h264", "h265")
    ]
    assert np.array_equal(*coded) is is_h264
