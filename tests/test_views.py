from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest

from dfscan.detector.preprocess import Preprocessing
from dfscan.faces.crop import crop_face
from dfscan.train import manipulate
from dfscan.train import views as views_module
from dfscan.train.crops import LooseCrop
from dfscan.train.settings import TrainSettings
from dfscan.train.views import TrainingViews, evaluation_fake, evaluation_view
from tests.datasets import LANDMARKS, LEFT, TOP, face_picture
from tests.pictures import FACE_XYXY, astronaut

NOTHING = dict.fromkeys(
    "resolution_p h264_p flip_p affine_p jitter_p brightness_contrast_p jpeg_p blur_p downscale_p noise_p "
    "iso_noise_p".split(),
    0.0,
)
"""Every degradation off."""
SMALL = {"input_size_px": 96, "resize_px": 104}


def face(number: int = 0) -> LooseCrop:
    corner = np.array([LEFT, TOP], np.float32)
    return LooseCrop(face_picture(number), np.array(FACE_XYXY, np.float32) - np.tile(corner, 2), LANDMARKS - corner)


def settings(**changes: object) -> TrainSettings:
    return TrainSettings(**{**SMALL, **changes})


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_evaluation_sees_what_a_scan_would_cut_from_the_frame() -> None:
    corner = np.array([LEFT, TOP], np.float32)
    loose = LooseCrop(
        astronaut()[TOP : TOP + 200, LEFT : LEFT + 200],
        np.array(FACE_XYXY, np.float32) - np.tile(corner, 2),
        LANDMARKS - corner,
    )
    scanned = crop_face(astronaut(), np.array(FACE_XYXY, np.float32), margin=Preprocessing().crop_margin, size=96)
    assert (evaluation_view(loose, settings()) == scanned).all()


def test_an_evaluation_pair_is_real_and_fake_of_one_face() -> None:
    real, fake = evaluation_view(face(), settings()), evaluation_fake(face(), settings(), rng(), "self-blended")
    assert 0.3 < np.abs(real.astype(int) - fake).mean() < 30


def test_a_fake_of_an_evaluation_pair_differs_within_its_mask_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a look at the background would tell: training hides a changed background in both of a pair."""
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


def test_beside_pairs_a_true_fake_is_shrunk_and_compressed_like_them(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []

    def noted(picture: Any, *, crf: int) -> Any:
        sent.append(picture.shape[0])
        return picture

    monkeypatch.setattr(views_module, "compress_h264", noted)
    for forgeries, is_expected in (("self-blended", True), ("none", False)):
        sent.clear()
        views = TrainingViews(settings(forgeries=forgeries, h264_p=1.0, resolution_p=1.0, resolution_min=0.3))
        for seed in range(8):
            views.single(face(), rng(seed))
        assert (len(sent) == 8 and len(set(sent)) > 1) is is_expected


@pytest.mark.parametrize("patch_px", [None, 48])
def test_views_have_the_size_that_is_asked_for(patch_px: int | None) -> None:
    views = TrainingViews(settings(patch_px=patch_px))
    size = patch_px or 96
    assert [view.shape for view in views.single(face(), rng())] == [(size, size, 3)]
    assert [view.shape for view in views.pair(face(), rng())] == [(size, size, 3)] * 2
    assert all(view.dtype == np.uint8 for view in views.pair(face(), rng()))


def test_the_same_generator_gives_the_same_views_and_another_gives_others() -> None:
    views, again = TrainingViews(settings()), TrainingViews(settings())
    first = views.pair(face(), rng(1))
    views.single(face(3), rng(9))
    assert all((a == b).all() for a, b in zip(first, again.pair(face(), rng(1)), strict=True))
    assert (first[0] != again.pair(face(), rng(2))[0]).any()


def test_without_degradation_a_view_is_a_cut_of_the_face_at_its_place() -> None:
    views = TrainingViews(settings(**NOTHING, resize_px=96))
    (view,) = views.single(face(), rng())
    wanted = evaluation_view(face(), settings())
    assert np.abs(view.astype(int) - wanted).mean() < 3  # the centre may be half a pixel off


@pytest.mark.parametrize(
    "name", "flip_p affine_p jitter_p brightness_contrast_p jpeg_p blur_p downscale_p noise_p iso_noise_p".split()
)
def test_each_degradation_does_something_and_the_same_to_both_of_a_pair(name: str) -> None:
    plain = TrainingViews(settings(**NOTHING))
    degraded = TrainingViews(settings(**{**NOTHING, name: 1.0}))
    before, after = plain.pair(face(), rng(4)), degraded.pair(face(), rng(4))
    assert (before[0] != after[0]).any()
    # Away from the face a pair is one picture, before and after.
    corner = (slice(0, 8), slice(0, 8))
    assert np.abs(before[0][corner].astype(int) - before[1][corner]).max() <= 1
    assert np.abs(after[0][corner].astype(int) - after[1][corner]).mean() <= 3  # noise follows the picture's light


@pytest.mark.parametrize("name", ["h264_p", "resolution_p", "beauty_p", "resend_p"])
def test_what_video_does_takes_away_detail(name: str) -> None:
    plain = TrainingViews(settings(**NOTHING))
    degraded = TrainingViews(settings(**{**NOTHING, name: 1.0}, h264_crf_min=40, h264_crf_max=40))

    def detail(views: TrainingViews) -> float:
        pairs = [views.pair(face(i), rng(i)) for i in range(8)]
        return float(np.mean([np.abs(np.diff(view.astype(float), axis=1)).mean() for pair in pairs for view in pair]))

    assert detail(degraded) < 0.97 * detail(plain)


def test_patches_of_a_pair_lie_at_one_place_and_show_the_forgery() -> None:
    views = TrainingViews(settings(**NOTHING, patch_px=48))
    differences = []
    for seed in range(30):
        real, fake = views.pair(face(seed), rng(seed))
        differences.append(np.abs(real.astype(int) - fake).max())
    assert min(differences) > 0
    assert np.median(differences) < 128  # another place would differ by whole features


def test_a_small_face_is_forged_at_its_own_size() -> None:
    """A face of 40 px: real and fake are enlarged after blending, so that neither has detail above its size."""
    small = LooseCrop(face_picture(0)[::3, ::3].copy(), face().box_xyxy / 3, face().landmarks / 3)
    real, fake = TrainingViews(settings(**NOTHING)).pair(small, rng())

    def fine(view: np.ndarray) -> float:
        spectrum = np.abs(np.fft.fft2(view.astype(float).mean(axis=2)))
        return float(spectrum[40:56, 40:56].mean() / spectrum.mean())

    assert fine(fake) < 2 * fine(real)


def test_a_companion_of_any_size_is_brought_to_the_face() -> None:
    """A reconstruction in another resolution than the face's crop, in training and in evaluation."""
    painted = replace(face(), pixels=np.full_like(face().pixels, 90))
    whole = next(seed for seed in range(99) if rng(seed).random() < manipulate.WHOLE_SHARE)
    fake = evaluation_fake(face(), settings(), rng(whole), "reconstructed", painted)
    assert np.abs(fake.astype(int) - 90).max() < 80  # recoloured by chance, but flat
    assert fake.std(axis=(0, 1)).max() < 0.2 * evaluation_view(face(), settings()).std(axis=(0, 1)).min()
    big = replace(
        face(1),
        pixels=np.asarray(cv2.resize(face(1).pixels, (450, 450)), np.uint8),
        box_xyxy=face(1).box_xyxy * np.float32(2.25),
        landmarks=face(1).landmarks * np.float32(2.25),
    )
    views = TrainingViews(settings(**NOTHING))
    for seed in range(6):
        real, swapped = views.pair(face(), rng(seed), "swapped", big)
        assert real.shape == swapped.shape
        assert (real[:6, :6] == swapped[:6, :6]).all()
        assert (real != swapped).any()
        assert (
            evaluation_fake(face(), settings(), rng(seed), "swapped", big) != evaluation_view(face(), settings())
        ).any()
