from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest

from dfscan.dataset.crops import LooseCrop
from dfscan.detector.preprocess import Preprocessing
from dfscan.faces.crop import crop_face
from dfscan.forgery import forgeries as manipulate
from dfscan.forgery.self_blend import Blend
from dfscan.train import augment as views_module
from dfscan.train.augment import PairAugmenter, Placement, evaluation_fake, evaluation_view
from dfscan.train.settings import TrainSettings
from tests.datasets import LANDMARKS, LEFT, TOP, face_picture
from tests.pictures import FACE_XYXY, astronaut

NOTHING = dict.fromkeys(
    "resolution_p codec_p flip_p affine_p box_jitter jitter_p brightness_contrast_p jpeg_p blur_p downscale_p noise_p "
    "iso_noise_p".split(),
    0.0,
)
"""All degradations disabled."""
SMALL = {"input_size_px": 96, "resize_px": 104}


def face(number: int = 0) -> LooseCrop:
    corner = np.array([LEFT, TOP], np.float32)
    return LooseCrop(face_picture(number), np.array(FACE_XYXY, np.float32) - np.tile(corner, 2), LANDMARKS - corner)


def settings(**changes: object) -> TrainSettings:
    return TrainSettings(**{**SMALL, **changes})


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_an_evaluation_view_equals_the_crop_of_a_scan() -> None:
    corner = np.array([LEFT, TOP], np.float32)
    loose = LooseCrop(
        astronaut()[TOP : TOP + 200, LEFT : LEFT + 200],
        np.array(FACE_XYXY, np.float32) - np.tile(corner, 2),
        LANDMARKS - corner,
    )
    scanned = crop_face(astronaut(), np.array(FACE_XYXY, np.float32), margin=Preprocessing().crop_margin, size=96)
    assert (evaluation_view(loose, settings()) == scanned).all()


def test_an_evaluation_pair_shows_one_face() -> None:
    real, fake = evaluation_view(face(), settings()), evaluation_fake(face(), settings(), rng(), "self-blended")
    assert 0.3 < np.abs(real.astype(int) - fake).mean() < 30


def test_a_fake_of_an_evaluation_pair_differs_within_its_mask_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the background would reveal the fake: in training, both faces of a pair share an altered background."""
    masks = []
    blend_in = manipulate.self_blend

    def noted(*args: Any, **kwargs: Any) -> Any:
        made = blend_in(*args, **kwargs)
        masks.append(made.mask)
        return made

    monkeypatch.setattr(manipulate, "self_blend", noted)
    for seed in range(12):
        real, fake = evaluation_view(face(), settings()), evaluation_fake(face(), settings(), rng(seed), "self-blended")
        whole = replace(face(), pixels=np.repeat((masks[-1] > 0)[:, :, None], 3, axis=2).astype(np.uint8) * 255)
        outside = evaluation_view(whole, settings()) == 0
        assert outside.any()
        assert (real[outside] == fake[outside]).all()


def test_single_views_are_degraded_like_pairs_if_the_recipe_makes_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []

    def noted(picture: Any, chain: Any) -> Any:
        sent.append(picture.shape[0])
        return picture

    monkeypatch.setattr(views_module, "through_video", noted)
    for forgeries, is_expected in (("self-blended", True), ("none", False)):
        sent.clear()
        views = PairAugmenter(settings(forgeries=forgeries, codec_p=1.0, resolution_p=1.0))
        for seed in range(8):
            views.single(face(), rng(seed))
        assert (len(sent) == 8 and len(set(sent)) > 1) is is_expected


@pytest.mark.parametrize("patch_px", [None, 48])
def test_views_have_the_requested_size(patch_px: int | None) -> None:
    views = PairAugmenter(settings(patch_px=patch_px))
    size = patch_px or 96
    assert [view.shape for view in views.single(face(), rng())] == [(size, size, 3)]
    assert [view.shape for view in views.pair(face(), rng())] == [(size, size, 3)] * 2
    assert all(view.dtype == np.uint8 for view in views.pair(face(), rng()))


def test_equal_generators_give_equal_views_and_others_differ() -> None:
    views, again = PairAugmenter(settings()), PairAugmenter(settings())
    first = views.pair(face(), rng(1))
    views.single(face(3), rng(9))
    assert all((a == b).all() for a, b in zip(first, again.pair(face(), rng(1)), strict=True))
    assert (first[0] != again.pair(face(), rng(2))[0]).any()


def test_without_degradation_a_view_is_a_plain_crop() -> None:
    views = PairAugmenter(settings(**NOTHING, resize_px=96))
    (view,) = views.single(face(), rng())
    wanted = evaluation_view(face(), settings())
    assert np.abs(view.astype(int) - wanted).mean() < 3  # the centre may be off by half a pixel


@pytest.mark.parametrize(
    "name", "flip_p affine_p jitter_p brightness_contrast_p jpeg_p blur_p downscale_p noise_p iso_noise_p".split()
)
def test_each_degradation_has_an_effect_and_the_same_on_both_of_a_pair(name: str) -> None:
    plain = PairAugmenter(settings(**NOTHING))
    degraded = PairAugmenter(settings(**{**NOTHING, name: 1.0}))
    before, after = plain.pair(face(), rng(4)), degraded.pair(face(), rng(4))
    assert (before[0] != after[0]).any()
    # Away from the face, both images of a pair are equal, before and after degradation.
    corner = (slice(0, 8), slice(0, 8))
    assert np.abs(before[0][corner].astype(int) - before[1][corner]).max() <= 1
    assert np.abs(after[0][corner].astype(int) - after[1][corner]).mean() <= 3  # noise depends on brightness


@pytest.mark.parametrize("name", ["codec_p", "resolution_p", "skin_smoothing_p", "recompress_p"])
def test_video_degradations_remove_detail(name: str) -> None:
    plain = PairAugmenter(settings(**NOTHING))
    degraded = PairAugmenter(settings(**{**NOTHING, name: 1.0}, codec_crf_min=40, codec_crf_max=40))

    def detail(views: PairAugmenter) -> float:
        pairs = [views.pair(face(i), rng(i)) for i in range(8)]
        return float(np.mean([np.abs(np.diff(view.astype(float), axis=1)).mean() for pair in pairs for view in pair]))

    assert detail(degraded) < 0.97 * detail(plain)


def test_patches_of_a_pair_have_one_position_and_show_the_forgery() -> None:
    views = PairAugmenter(settings(**NOTHING, patch_px=48))
    differences = []
    for seed in range(30):
        real, fake = views.pair(face(seed), rng(seed))
        differences.append(np.abs(real.astype(int) - fake).max())
    assert min(differences) > 0
    assert np.median(differences) < 128  # patches at different positions would differ by whole features


def test_a_small_face_is_forged_at_its_own_size() -> None:
    """With a face of 40 px, both images are enlarged after blending, so neither has detail beyond its size."""
    small = LooseCrop(face_picture(0)[::3, ::3].copy(), face().box_xyxy / 3, face().landmarks / 3)
    real, fake = PairAugmenter(settings(**NOTHING)).pair(small, rng())

    def fine(view: np.ndarray) -> float:
        spectrum = np.abs(np.fft.fft2(view.astype(float).mean(axis=2)))
        return float(spectrum[40:56, 40:56].mean() / spectrum.mean())

    assert fine(fake) < 2 * fine(real)


def test_a_companion_of_any_size_is_resized_to_the_face(monkeypatch: pytest.MonkeyPatch) -> None:
    """Test reconstructions of another resolution than the crop, in training and in evaluation."""
    monkeypatch.setattr(manipulate, "RECONSTRUCTION_WEIGHTS", (1, 1))
    reconstructed = replace(face(), pixels=np.full_like(face().pixels, 90))
    whole = next(seed for seed in range(99) if rng(seed).random() < manipulate.WHOLE_PROB)
    fake = evaluation_fake(face(), settings(), rng(whole), "reconstructed", reconstructed)
    assert np.abs(fake.astype(int) - 90).max() < 80  # possibly recoloured, but flat
    assert fake.std(axis=(0, 1)).max() < 0.2 * evaluation_view(face(), settings()).std(axis=(0, 1)).min()
    big = replace(
        face(1),
        pixels=np.asarray(cv2.resize(face(1).pixels, (450, 450)), np.uint8),
        box_xyxy=face(1).box_xyxy * np.float32(2.25),
        landmarks=face(1).landmarks * np.float32(2.25),
    )
    views = PairAugmenter(settings(**NOTHING))
    for seed in range(6):
        real, swapped = views.pair(face(), rng(seed), "swapped", big)
        assert real.shape == swapped.shape
        assert (real[:6, :6] == swapped[:6, :6]).all()
        assert (real != swapped).any()
        assert (
            evaluation_fake(face(), settings(), rng(seed), "swapped", big) != evaluation_view(face(), settings())
        ).any()


def test_face_sizes_are_log_uniform(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes_px = []

    def noted(picture: Any, chain: Any) -> Any:
        sizes_px.append(picture.shape[0])
        return picture

    monkeypatch.setattr(views_module, "through_video", noted)
    recipe = settings(forgeries="self-blended", resolution_p=1.0, codec_p=1.0, face_px_min=20, face_px_max=250)
    views = PairAugmenter(recipe)
    for seed in range(400):
        views.single(face(), rng(seed))
    margin = recipe.crop_margin * recipe.resize_px / recipe.input_size_px * views_module.ROTATION_MARGIN
    own_px = float((face().box_xyxy[2:] - face().box_xyxy[:2]).max())
    logs = np.sort(np.log(np.array(sizes_px) / margin))
    assert np.exp(logs[0]) == pytest.approx(20, rel=0.05)
    assert np.exp(logs[-1]) == pytest.approx(own_px, rel=0.05)  # never enlarged
    expected = np.linspace(np.log(20), np.log(own_px), len(logs))
    assert np.abs(logs - expected).max() < 0.1 * (logs[-1] - logs[0])


def test_a_face_below_the_minimum_size_keeps_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []
    monkeypatch.setattr(views_module, "through_video", lambda picture, chain: sent.append(picture.shape[0]) or picture)
    small = LooseCrop(face_picture(0)[::4, ::4].copy(), face().box_xyxy / 4, face().landmarks / 4)
    views = PairAugmenter(settings(forgeries="self-blended", resolution_p=1.0, codec_p=1.0))
    for seed in range(5):
        views.single(small, rng(seed))
    assert len(set(sent)) == 1


def test_both_of_a_pair_get_the_same_chain(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a forgery that changes nothing, both views are identical, whatever is drawn."""
    monkeypatch.setattr(
        views_module,
        "make_forgery",
        lambda kind, work, *_, **__: Blend(work.pixels, work.pixels.copy(), np.ones(1), "face"),
    )
    recipe = settings(
        resolution_p=1.0, codec_p=0.8, recompress_p=0.5, skin_smoothing_p=0.3, noise_p=0.5, iso_noise_p=0.5
    )
    views = PairAugmenter(recipe)
    for seed in range(25):
        real, fake = views.pair(face(), rng(seed))
        assert (real == fake).all()


def test_boxes_jitter_like_detected_boxes() -> None:
    recipe = settings(**{**NOTHING, "box_jitter": 0.03}, resize_px=96)  # no random crop in addition
    views = PairAugmenter(recipe)
    drawn = [views._drawn_placement(rng(seed)) for seed in range(3000)]
    shifts = np.array([each.shift for each in drawn]) * recipe.crop_margin * views_module.ROTATION_MARGIN
    assert np.median(np.abs(shifts)) / 0.6745 == pytest.approx(0.03, rel=0.15)
    assert shifts.std() == pytest.approx(0.03 * np.sqrt(0.9 + 0.1 * 9), rel=0.1)  # 1 in 10 is off by 3 times as much
    growth = np.log([each.side * views_module.ROTATION_MARGIN for each in drawn])
    assert growth.std() == pytest.approx(0.03 * np.sqrt(0.9 + 0.1 * 9), rel=0.1)


@pytest.mark.parametrize("size_px", [96, 40, 300])
@pytest.mark.parametrize("is_flipped", [False, True])
def test_a_rotated_crop_is_aligned_with_an_unrotated_one(size_px: int, is_flipped: bool) -> None:
    pixels = cv2.GaussianBlur(face_picture(0), (0, 0), 3).astype(np.uint8)
    shift = (10 / 200, -6 / 200)
    straight = Placement(shift, 0.6, 0.0, is_flipped).cut(pixels, size_px)
    turned = Placement(shift, 0.6, 1e-6, is_flipped).cut(pixels, size_px)
    assert straight.shape == turned.shape == (size_px, size_px, 3)
    assert np.abs(straight.astype(int) - turned).mean() < 1
    upside_down = Placement(shift, 0.6, 180.0, is_flipped).cut(pixels, size_px)
    assert np.abs(straight[::-1, ::-1].astype(int) - upside_down).mean() < 1


def test_missing_codecs_are_warned_about(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(views_module, "available_codecs", lambda: ("h264",))
    PairAugmenter(settings())
    assert not caplog.records
    PairAugmenter(settings(forgeries="self-blended"))
    assert "lacks the codecs h265, vp9" in caplog.text
