"""Fakes of other kinds than `forgery`'s self-blended ones: what a detector was never shown, it does not see.

Three families of manipulation, each made from pictures of real faces, as far as that goes:

- ``swapped``: another person's face, moved onto this one by their landmarks, recoloured and blended in: a face swap,
  and the pairs of Li et al. 2020, "Face X-ray for More General Face Forgery Detection", CVPR, section 3.2.
- ``warped``: features pushed about by a smooth field, as beauty filters and lip-sync by warping do.
- ``reconstructed``: the face, a part of it, or the whole crop as an autoencoder paints it; see `reconstruct`.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from dfscan.train.crops import LooseCrop
from dfscan.train.forgery import (
    LEAST_CHANGE,
    REGION_SHARES,
    REGIONS,
    Blend,
    Cut,
    Region,
    blend,
    cut_out,
    self_blend,
    towards_grey,
)
from dfscan.train.settings import ForgeryKind

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]

SWAP_REGIONS: tuple[Region, ...] = ("face", "inner")
WHOLE_SHARE = 0.4
"""Of reconstructions, those that replace the whole crop and have no edge to see."""
MAX_SHIFT = (0.05, 0.14)
"""How far a feature is pushed, least and most, in distances between the eyes."""
REACH = (0.25, 0.6)
"""Standard deviation of a push's bell, in distances between the eyes."""
LEAST_SHIFT_PX = 0.05
"""Shorter pushes are none, so that what is far from the face stays as it was, to the bit."""
_STRENGTHS = (1.0, 2.0, 4.0)
"""Tried in turn until a warp shows."""


def forge(
    kind: ForgeryKind, face: LooseCrop, companion: LooseCrop | None, rng: np.random.Generator, *, keeps_real: bool
) -> Blend:
    """Make a fake of one kind.

    Args:
        kind: which.
        face: a real face.
        companion: of the same size; another person's face for ``swapped``, this one as an autoencoder paints it for
            ``reconstructed``, None for the others.
        rng: the only source of chance.
        keeps_real: whether `real` of the result must equal the face; ``self-blended`` changes it half the time.

    Raises:
        ValueError: a companion is missing or of another size.
    """
    if kind == "self-blended":
        return self_blend(face.pixels, face.landmarks, rng, changed="source" if keeps_real else None)
    if kind == "warped":
        return warp(face.pixels, face.landmarks, rng)
    if companion is None or companion.pixels.shape != face.pixels.shape:
        raise ValueError(f"a {kind} face needs a companion of its size")
    return swap(face, companion, rng) if kind == "swapped" else replace(face, companion.pixels, rng)


def swap(face: LooseCrop, other: LooseCrop, rng: np.random.Generator) -> Blend:
    """Lay another person's face over this one, its landmarks on these, its colours drawn towards these."""
    height_px, width_px = face.pixels.shape[:2]
    region = SWAP_REGIONS[rng.integers(len(SWAP_REGIONS))]
    cut = cut_out(face.landmarks, width_px, height_px, region, rng)
    move = _alignment(other.landmarks, face.landmarks)
    moved = cv2.warpAffine(other.pixels, move, (width_px, height_px), borderMode=cv2.BORDER_REFLECT_101)
    mask = _whole(cut, width_px, height_px)
    source = recoloured(np.asarray(moved, np.uint8), face.pixels, mask, strength=rng.uniform(0.6, 1))
    return _blended(face.pixels, source, mask * np.float32(rng.uniform(0.75, 1)), region)


def replace(face: LooseCrop, painted: Pixels, rng: np.random.Generator) -> Blend:
    """Put what an autoencoder painted in the place of the face, a part of it, or everything.

    Half the time its colours are brought back to those of the picture, and it is sharpened by chance, so that blur and
    tint alone do not tell.
    """
    height_px, width_px = face.pixels.shape[:2]
    if rng.random() < WHOLE_SHARE:
        region, mask = REGIONS[0], np.ones((height_px, width_px), np.float32)
    else:
        region = REGIONS[rng.choice(len(REGIONS), p=[REGION_SHARES[name] for name in REGIONS])]
        mask = _whole(cut_out(face.landmarks, width_px, height_px, region, rng), width_px, height_px)
    if rng.random() < 0.5:
        painted = recoloured(painted, face.pixels, mask, strength=1)
    amount = rng.uniform(0, 1.5)
    blurred = cv2.GaussianBlur(painted, (0, 0), rng.uniform(0.7, 2))
    sharp = np.asarray(cv2.addWeighted(painted, 1 + amount, blurred, -amount, 0), np.uint8)
    return _blended(face.pixels, sharp, mask, region)


def warp(pixels: Pixels, landmarks: Floats, rng: np.random.Generator) -> Blend:
    """Push one to three features aside, each by a bell-shaped field.

    Args:
        pixels: (H, W, 3) RGB.
        landmarks: (5, 2) in pixels.
        rng: source of chance.
    """
    height_px, width_px = pixels.shape[:2]
    cut = cut_out(landmarks, width_px, height_px, "face", rng)
    chosen = rng.permutation(len(landmarks))[: rng.integers(1, 4)]
    turns = rng.uniform(0, 2 * np.pi, len(chosen))
    shifts_px = rng.uniform(*MAX_SHIFT, len(chosen)) * cut.eyes_px
    reaches_px = rng.uniform(*REACH, len(chosen)) * cut.eyes_px
    method = int(rng.choice([cv2.INTER_LINEAR, cv2.INTER_CUBIC]))
    pushes = np.column_stack([np.cos(turns), np.sin(turns)]) * shifts_px[:, None]
    size_px = np.array([width_px, height_px])
    somewhere = np.where(np.isfinite(landmarks[chosen]), landmarks[chosen], size_px / 2)
    inside = np.clip(somewhere, 0, size_px - 1)
    field = _field(inside, pushes, reaches_px, width_px, height_px)
    lengths_px = np.linalg.norm(field, axis=2)
    mask = np.asarray(lengths_px / lengths_px.max(), np.float32)
    for strength in _STRENGTHS:
        moved = _moved(pixels, field * np.float32(strength), method)
        if cv2.absdiff(moved, pixels)[mask >= 0.5].mean() >= LEAST_CHANGE:
            break
    return _sure(pixels, moved, mask, "face")


def _field(
    points: NDArray[Any], pushes: NDArray[Any], reaches_px: NDArray[Any], width_px: int, height_px: int
) -> Floats:
    """(H, W, 2) how far each pixel is pushed."""
    y, x = np.mgrid[:height_px, :width_px].astype(np.float32)
    field = np.zeros((height_px, width_px, 2), np.float32)
    for (at_x, at_y), push, reach_px in zip(points, pushes, reaches_px, strict=True):
        bell = np.exp(-((x - at_x) ** 2 + (y - at_y) ** 2) / (2 * max(reach_px, 1.0) ** 2))
        field += bell[:, :, None] * push.astype(np.float32)
    longest_px = max(float(np.linalg.norm(field, axis=2).max()), 1e-6)
    field *= max(1.0, 1.0 / longest_px)  # at least one pixel somewhere, however small the picture
    field[np.linalg.norm(field, axis=2) < LEAST_SHIFT_PX] = 0
    return field


def _moved(pixels: Pixels, field: Floats, method: int) -> Pixels:
    height_px, width_px = pixels.shape[:2]
    at_x = np.arange(width_px, dtype=np.float32) - field[..., 0]
    at_y = np.arange(height_px, dtype=np.float32)[:, None] - field[..., 1]
    return np.asarray(cv2.remap(pixels, at_x, at_y, method, borderMode=cv2.BORDER_REFLECT_101), np.uint8)


def recoloured(source: Pixels, target: Pixels, mask: Floats, *, strength: float) -> Pixels:
    """Draw a picture's colours towards another's: mean and spread of each channel where the mask is.

    After Reinhard et al. 2001, "Color Transfer between Images", in RGB.

    Args:
        source: (H, W, 3).
        target: (H, W, 3).
        mask: (H, W) in [0, 1], not zero everywhere.
        strength: 0 changes nothing, 1 matches both.
    """
    (source_mean, source_std), (target_mean, target_std) = (_statistics(each, mask) for each in (source, target))
    gain = np.clip(target_std / np.maximum(source_std, 1e-3), 0.5, 2)
    matched = (source - source_mean) * gain + target_mean
    return np.clip(np.rint(source + strength * (matched - source)), 0, 255).astype(np.uint8)


def _statistics(pixels: Pixels, mask: Floats) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    weights = (mask / mask.sum(dtype=np.float64)).ravel()
    values = pixels.reshape(-1, 3).astype(np.float64)
    mean = weights @ values
    return mean, np.sqrt(weights @ np.square(values - mean))


def _alignment(source: Floats, target: Floats) -> NDArray[np.float64]:
    """(2, 3) affine that brings five landmarks onto five others by least squares; none where they are no faces."""
    design = np.column_stack([source, np.ones(len(source))]).astype(np.float64)
    if not (np.isfinite(design).all() and np.isfinite(target).all()):
        return np.eye(2, 3)
    found = np.asarray(np.linalg.lstsq(design, target.astype(np.float64), rcond=None)[0].T, np.float64)
    return found if 0.05 < np.linalg.det(found[:, :2]) < 20 else np.eye(2, 3)


def _whole(cut: Cut, width_px: int, height_px: int) -> Floats:
    """The mask in its place, its peak 1."""
    x1, y1, x2, y2 = cut.box_xyxy
    mask = np.zeros((height_px, width_px), np.float32)
    mask[y1:y2, x1:x2] = cut.mask / cut.mask.max()
    return mask


def _blended(target: Pixels, source: Pixels, mask: Floats, region: Region) -> Blend:
    return _sure(target, blend(source, target, mask), mask, region)


def _sure(real: Pixels, fake: Pixels, mask: Floats, region: Region) -> Blend:
    """As it is, or, where nothing shows, as in a black picture, lighter or darker there."""
    core = mask >= mask.max() / 2
    if cv2.absdiff(fake, real)[core].mean() < LEAST_CHANGE:
        fake = blend(towards_grey(real), real, mask)
    return Blend(real.copy(), fake, mask, region)
