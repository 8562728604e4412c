"""Test the fakes that are not self-blended: properties that all of them share, and those of each kind."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from dfscan.dataset.crops import LooseCrop
from dfscan.forgery import forgeries as manipulate
from dfscan.forgery.forgeries import make_forgery
from dfscan.forgery.names import FORGERY_KINDS, ForgeryKind
from dfscan.forgery.self_blend import MIN_CHANGE, Blend
from tests.datasets import LANDMARKS, LEFT, SIDE_PX, TOP, face_picture
from tests.pictures import FACE_XYXY

Pixels = NDArray[np.uint8]
OTHERS: tuple[ForgeryKind, ...] = ("swapped", "warped", "reconstructed")


def face(number: int = 0) -> LooseCrop:
    corner = np.array([LEFT, TOP], np.float32)
    return LooseCrop(face_picture(number), np.array(FACE_XYXY, np.float32) - np.tile(corner, 2), LANDMARKS - corner)


def reconstructed(number: int = 0) -> LooseCrop:
    """Return a face without detail, like an autoencoder's reconstruction."""
    small = cv2.resize(face_picture(number), (50, 50), interpolation=cv2.INTER_AREA)
    whole = cv2.resize(small, (SIDE_PX, SIDE_PX), interpolation=cv2.INTER_CUBIC)
    return replace(face(number), pixels=np.asarray(whole, np.uint8))


def donor(kind: ForgeryKind, number: int = 0) -> LooseCrop | None:
    return {"swapped": face(number + 1), "reconstructed": reconstructed(number)}.get(kind)


def made(kind: ForgeryKind, seed: int = 0, *, keeps_real: bool = True) -> Blend:
    return make_forgery(kind, face(), donor(kind), np.random.default_rng(seed), keeps_real=keeps_real)


@pytest.mark.parametrize("kind", FORGERY_KINDS)
def test_a_fake_differs_visibly_within_its_mask_and_only_there(kind: ForgeryKind) -> None:
    for seed in range(25):
        fake = made(kind, seed)
        changed = cv2.absdiff(fake.real, fake.fake).max(axis=2)
        assert np.array_equal(fake.real, face().pixels)
        assert not np.shares_memory(fake.real, fake.fake)
        assert fake.mask.dtype == np.float32
        assert fake.mask.min() >= 0
        assert 0 < fake.mask.max() <= 1
        assert not changed[fake.mask == 0].any()
        assert changed[fake.mask >= fake.mask.max() / 2].mean() >= MIN_CHANGE


@pytest.mark.parametrize("kind", FORGERY_KINDS)
def test_equal_seeds_give_equal_bytes_and_other_seeds_differ(kind: ForgeryKind) -> None:
    first, again, other = (made(kind, seed) for seed in (3, 3, 4))
    assert first.fake.tobytes() == again.fake.tobytes() != other.fake.tobytes()
    assert first.mask.tobytes() == again.mask.tobytes()


@pytest.mark.parametrize("kind", FORGERY_KINDS)
def test_half_of_the_reals_are_altered_where_allowed(kind: ForgeryKind) -> None:
    """Reconstructions are an exception: all their reals are compressed like their fakes."""
    fakes = [made(kind, seed, keeps_real=False) for seed in range(40)]
    kept = [np.array_equal(fake.real, face().pixels) for fake in fakes]
    assert not any(kept) if kind == "reconstructed" else 0.25 < np.mean(kept) < 0.75
    for fake in fakes:
        assert not cv2.absdiff(fake.real, fake.fake)[fake.mask == 0].any()


@pytest.mark.parametrize("kind", OTHERS)
def test_a_soft_image_is_not_always_the_fake(kind: ForgeryKind) -> None:
    """In training pairs, a real face often has less detail than the fake of another pair."""

    def detail(pixels: Pixels) -> float:
        return float(cv2.Laplacian(pixels, cv2.CV_32F).std())

    fakes = [made(kind, seed, keeps_real=False) for seed in range(60)]
    reals = np.array([detail(fake.real) for fake in fakes])
    forged = np.array([detail(fake.fake) for fake in fakes])
    wins = (forged[:, None] < reals).mean()
    assert 0.2 < wins < 0.85


@pytest.mark.parametrize("kind", OTHERS)
def test_the_black_border_of_a_crop_beyond_its_frame_is_unchanged(kind: ForgeryKind) -> None:
    def cut_off(crop: LooseCrop) -> LooseCrop:
        pixels = crop.pixels.clip(20)
        pixels[:, :30] = 0
        pixels[170:] = 0
        return replace(crop, pixels=pixels)

    beside = donor(kind)
    for seed in range(25):
        fake = make_forgery(kind, cut_off(face()), beside, np.random.default_rng(seed), keeps_real=True)
        assert not fake.fake[:, :30].any()
        assert not fake.fake[170:].any()
        assert (fake.fake != fake.real).any()


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("level", [0, 128, 255])
def test_the_fake_of_a_flat_image_still_differs(kind: ForgeryKind, level: int) -> None:
    flat = replace(face(), pixels=np.full((SIDE_PX, SIDE_PX, 3), level, np.uint8))
    for seed in range(4):
        fake = make_forgery(kind, flat, flat, np.random.default_rng(seed), keeps_real=True)
        least = manipulate.MIN_FINE_CHANGE if kind == "reconstructed" else MIN_CHANGE
        assert cv2.absdiff(fake.real, fake.fake)[fake.mask >= fake.mask.max() / 2].mean() >= least


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("side_px", [16, 40, 515])
def test_faces_of_any_size_can_be_forged(kind: ForgeryKind, side_px: int) -> None:
    def sized(crop: LooseCrop) -> LooseCrop:
        scale = side_px / SIDE_PX
        pixels = np.asarray(cv2.resize(crop.pixels, (side_px, side_px), interpolation=cv2.INTER_AREA), np.uint8)
        return LooseCrop(pixels, crop.box_xyxy * scale, crop.landmarks * np.float32(scale))

    for seed in range(4):
        fake = make_forgery(kind, sized(face()), sized(face(1)), np.random.default_rng(seed), keeps_real=True)
        assert fake.fake.shape == fake.real.shape == (side_px, side_px, 3)
        assert (fake.fake != fake.real).any()


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("landmarks", [np.full((5, 2), np.nan), np.zeros((5, 2)), np.full((5, 2), 1e5)])
def test_implausible_landmarks_are_tolerated(kind: ForgeryKind, landmarks: NDArray[np.float64]) -> None:
    odd = replace(face(), landmarks=landmarks.astype(np.float32))
    fake = make_forgery(kind, odd, face(1), np.random.default_rng(0), keeps_real=True)
    assert (fake.fake != fake.real).any()


@pytest.mark.parametrize("kind", ["swapped", "reconstructed"])
def test_a_companion_that_is_missing_or_of_another_size_is_refused(kind: ForgeryKind) -> None:
    small = replace(face(1), pixels=face(1).pixels[:100, :100])
    for beside in (None, small):
        with pytest.raises(ValueError, match="donor"):
            make_forgery(kind, face(), beside, np.random.default_rng(0), keeps_real=True)


# Swapped


def test_a_swap_aligns_the_landmarks_of_the_donor_with_the_face() -> None:
    """Dots on the donor's eyes, nose and mouth end up at this face's landmarks."""
    move = cv2.getRotationMatrix2D((100, 100), 12, 0.8)
    where = np.asarray(face().landmarks @ move[:, :2].T + move[:, 2], np.float32)
    grey = np.full((SIDE_PX, SIDE_PX, 3), 100, np.uint8)
    dotted = grey.copy()
    for x, y in where:
        cv2.circle(dotted, (round(float(x)), round(float(y))), 3, (255, 255, 255), -1)
    other = LooseCrop(dotted, face().box_xyxy, where)
    seen = np.zeros(5)
    for seed in range(20):
        fake = manipulate.swap(replace(face(), pixels=grey), other, np.random.default_rng(seed))
        lighter = fake.fake.mean(axis=2) - 100
        for i, (x, y) in enumerate(np.rint(face().landmarks).astype(int)):
            seen[i] += lighter[y, x] > 2 * np.abs(np.median(lighter))
    assert (seen >= 12).all()


def test_a_swap_adopts_the_colours_of_the_face_that_it_covers() -> None:
    other = replace(face(1), pixels=np.clip(face(1).pixels * np.array([0.3, 0.8, 1.6]), 0, 255).astype(np.uint8))
    for seed in range(10):
        fake = manipulate.swap(face(), other, np.random.default_rng(seed))
        core = fake.mask >= fake.mask.max() / 2
        before = np.abs(other.pixels[core].mean(axis=0) - face().pixels[core].mean(axis=0)).max()
        after = np.abs(fake.fake[core].mean(axis=0) - face().pixels[core].mean(axis=0)).max()
        assert after < 0.6 * before


def test_recolouring_matches_mean_and_standard_deviation_within_the_mask() -> None:
    rng = np.random.default_rng(0)
    source, target = (
        rng.normal(mean, std, (60, 60, 3)).clip(0, 255).astype(np.uint8) for mean, std in ((90, 12), (140, 18))
    )
    mask = np.zeros((60, 60), np.float32)
    mask[10:50, 10:50] = 1
    matched = manipulate.recoloured(source, target, mask, strength=1)[10:50, 10:50]
    assert matched.mean(axis=(0, 1)) == pytest.approx(target[10:50, 10:50].mean(axis=(0, 1)), abs=0.5)
    assert matched.std(axis=(0, 1)) == pytest.approx(target[10:50, 10:50].std(axis=(0, 1)), abs=0.5)
    assert np.array_equal(manipulate.recoloured(source, target, mask, strength=0), source)


# Warped


def test_a_warp_moves_pixels_and_creates_none() -> None:
    """A smooth ramp keeps its range of levels; they only move a little."""
    ramp = np.repeat(np.linspace(60, 180, SIDE_PX).astype(np.uint8)[None, :, None], SIDE_PX, axis=0).repeat(3, axis=2)
    eyes_px = float(np.linalg.norm(face().landmarks[1] - face().landmarks[0]))
    for seed in range(10):
        fake = manipulate.warp(replace(face(), pixels=ramp), np.random.default_rng(seed))
        assert 58 <= fake.fake.min() <= fake.fake.max() <= 182
        shift_px = cv2.absdiff(fake.fake, ramp).max() / (120 / SIDE_PX)
        assert shift_px < 4 * 3 * manipulate.SHIFTS[1] * eyes_px


def test_warps_are_centred_near_the_features() -> None:
    for seed in range(12):
        fake = manipulate.warp(face(), np.random.default_rng(seed))
        y, x = np.unravel_index(fake.mask.argmax(), fake.mask.shape)
        nearest_px = np.linalg.norm(face().landmarks - (x, y), axis=1).min()
        assert nearest_px < 25


# Reconstructed


def test_a_reconstruction_and_its_original_have_the_same_compression(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their frequencies must not differ: a perfect reconstruction comes out equal to the original."""
    monkeypatch.setattr(
        manipulate, "_sure", lambda real, fake, mask, region, **_: manipulate.Blend(real, fake, mask, region)
    )
    monkeypatch.setattr(manipulate, "recoloured", lambda source, *_, **__: source)
    monkeypatch.setattr(manipulate, "SHARPENING", (0, 0))
    for seed in range(6):
        aligned = manipulate.paste_reconstruction(face(), face().pixels, np.random.default_rng(seed))
        assert np.abs(aligned.real.astype(int) - aligned.fake).max() <= 1
        assert (aligned.real != face().pixels).any()
        kept = manipulate.paste_reconstruction(face(), face().pixels, np.random.default_rng(seed), keeps_real=True)
        assert (kept.real == face().pixels).all()
        assert (kept.fake != kept.real).any()


def test_a_reconstruction_is_mixed_with_its_original(monkeypatch: pytest.MonkeyPatch) -> None:
    distances = []
    for share in (0.25, 0.5, 1.0):
        monkeypatch.setattr(manipulate, "RECONSTRUCTION_WEIGHTS", (share, share))
        fake = manipulate.paste_reconstruction(face(), reconstructed().pixels, np.random.default_rng(3))
        distances.append(np.abs(fake.fake.astype(int) - fake.real)[fake.mask == 1].mean())
    assert distances[0] == pytest.approx(distances[2] / 4, rel=0.2)
    assert distances[1] == pytest.approx(distances[2] / 2, rel=0.2)


def test_a_good_reconstruction_is_shown_and_not_replaced_by_another_brightness() -> None:
    """It differs in fine detail only, so little that a small weight hides it."""
    smooth = np.asarray(cv2.GaussianBlur(face().pixels, (0, 0), 0.8), np.uint8)
    for seed in range(40):
        fake = manipulate.paste_reconstruction(face(), smooth, np.random.default_rng(seed), keeps_real=True)
        low = [cv2.GaussianBlur(each, (0, 0), 4).astype(float) for each in (fake.fake, fake.real)]
        assert np.abs(low[0] - low[1]).max() < 16, seed
        assert cv2.absdiff(fake.fake, fake.real)[fake.mask >= fake.mask.max() / 2].mean() >= manipulate.MIN_FINE_CHANGE


def test_some_reconstructions_replace_the_whole_crop_and_others_a_part() -> None:
    whole = [bool((made("reconstructed", seed).mask == 1).all()) for seed in range(80)]
    assert np.mean(whole) == pytest.approx(manipulate.WHOLE_PROB, abs=0.15)


def test_a_reconstruction_shows_the_output_of_the_autoencoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """A replaced crop is closer to the autoencoder's output than to the original, sharpened or not."""
    monkeypatch.setattr(manipulate, "RECONSTRUCTION_WEIGHTS", (1, 1))
    for seed in range(40):
        fake = made("reconstructed", seed)
        if not (fake.mask == 1).all():
            continue
        low = [cv2.GaussianBlur(each, (0, 0), 4).astype(float) for each in (fake.fake, reconstructed().pixels)]
        assert np.abs(low[0] - low[1]).mean() < 3
        edges = [cv2.Laplacian(each, cv2.CV_32F).std() for each in (fake.fake, fake.real)]
        assert edges[0] < edges[1]
