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
from dfscan.train.degrade import compress_jpeg, rescale
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
SHARPENING = (0.0, 1.5)
"""How much a painting is sharpened, which is soft."""
ALIGNED_QUALITIES = (60, 95)
"""JPEG quality that a reconstruction and its original are given alike."""
PAINTED_SHARES = (0.2, 1.0)
"""Share of the painting in what replaces the original."""
MAX_SHIFT = (0.05, 0.14)
"""How far a feature is pushed, least and most, in distances between the eyes."""
REACH = (0.25, 0.6)
"""Standard deviation of a push's bell, in distances between the eyes."""
LEAST_SHIFT_PX = 0.05
"""Shorter pushes are none, so that what is far from the face stays as it was, to the bit."""
SOFTENED = (0.4, 0.9)
"""To what share a real picture is shrunk, and enlarged again, that is to be as soft as its fake."""
BORDER_LEVEL = 4
"""A row or column that is nowhere brighter is border; a little over black, since crops are resized."""
CALM_SHARE = 0.1
"""Over such a share of the picture's side pushes fade towards a border."""
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
        keeps_real: whether `real` of the result must equal the face. Else half the time it is changed: making a fake
            takes away detail, and a picture without must not be a fake for that.

    Raises:
        ValueError: a companion is missing or of another size.
    """
    if kind == "self-blended":
        return self_blend(face.pixels, face.landmarks, rng, changed="source" if keeps_real else None)
    is_softened = not keeps_real and rng.random() < 0.5
    if kind == "warped":
        return warp(face, rng, is_softened=is_softened)
    if companion is None or companion.pixels.shape != face.pixels.shape:
        raise ValueError(f"a {kind} face needs a companion of its size")
    softened = rescale(face.pixels, factor=rng.uniform(*SOFTENED)) if is_softened else face.pixels
    target = LooseCrop(softened, face.box_xyxy, face.landmarks)
    if kind == "swapped":
        return swap(target, companion, rng)
    return repaint(target, companion.pixels, rng, keeps_real=keeps_real)


def swap(face: LooseCrop, other: LooseCrop, rng: np.random.Generator) -> Blend:
    """Lay another person's face over this one, its landmarks on these, its colours drawn towards these."""
    height_px, width_px = face.pixels.shape[:2]
    region = SWAP_REGIONS[rng.integers(len(SWAP_REGIONS))]
    cut = cut_out(face.landmarks, width_px, height_px, region, rng)
    move = _alignment(other.landmarks, face.landmarks)
    moved = cv2.warpAffine(other.pixels, move, (width_px, height_px), borderMode=cv2.BORDER_REFLECT_101)
    mask = _within(face.pixels, _whole(cut, width_px, height_px))
    source = recoloured(np.asarray(moved, np.uint8), face.pixels, mask, strength=rng.uniform(0.6, 1))
    return _blended(face.pixels, source, mask * np.float32(rng.uniform(0.75, 1)), region)


def repaint(face: LooseCrop, painted: Pixels, rng: np.random.Generator, *, keeps_real: bool = False) -> Blend:
    """Put what an autoencoder painted in the place of the face, a part of it, or everything.

    Half the time its colours are brought back to those of the picture, and it is sharpened by chance. Then it is
    aligned with the original, after Chen et al. 2025, "Dual Data Alignment Makes AI-Generated Image Detector Easier
    Generalizable" (arXiv 2505.14359): both get the same JPEG compression, and their pixels are mixed. An original has
    been compressed before, and a painting has not, so that its high frequencies alone would give it away.

    Args:
        face: a real face.
        painted: (H, W, 3) RGB, of its size.
        rng: source of chance.
        keeps_real: whether the original stays as it is, and the painting alone is compressed.
    """
    height_px, width_px = face.pixels.shape[:2]
    if rng.random() < WHOLE_SHARE:
        region, mask = REGIONS[0], np.ones((height_px, width_px), np.float32)
    else:
        region = REGIONS[rng.choice(len(REGIONS), p=[REGION_SHARES[name] for name in REGIONS])]
        mask = _whole(cut_out(face.landmarks, width_px, height_px, region, rng), width_px, height_px)
    mask = _within(face.pixels, mask)
    if rng.random() < 0.5:
        painted = recoloured(painted, face.pixels, mask, strength=1)
    amount = rng.uniform(*SHARPENING)
    blurred = cv2.GaussianBlur(painted, (0, 0), rng.uniform(0.7, 2))
    sharp = np.asarray(cv2.addWeighted(painted, 1 + amount, blurred, -amount, 0), np.uint8)
    quality = int(rng.integers(ALIGNED_QUALITIES[0], ALIGNED_QUALITIES[1] + 1))
    real = face.pixels if keeps_real else compress_jpeg(face.pixels, quality=quality)
    share = rng.uniform(*PAINTED_SHARES)
    mixed = cv2.addWeighted(compress_jpeg(sharp, quality=quality), share, real, 1 - share, 0)
    return _blended(real, np.asarray(mixed, np.uint8), mask, region)


def warp(face: LooseCrop, rng: np.random.Generator, *, is_softened: bool = False) -> Blend:
    """Push one to three features aside, each by a bell-shaped field.

    Args:
        face: a real face.
        rng: source of chance.
        is_softened: shift the whole picture by a part of a pixel before, which interpolates the real one as well.
    """
    pixels, landmarks = face.pixels, face.landmarks
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
    field = _field(inside, pushes, reaches_px, width_px, height_px) * _calm(pixels)[:, :, None]
    shift = rng.uniform(-0.5, 0.5, 2).astype(np.float32) * is_softened
    real = _moved(pixels, np.broadcast_to(shift, field.shape), method) if is_softened else pixels
    lengths_px = np.linalg.norm(field, axis=2)
    mask = np.asarray(lengths_px / max(lengths_px.max(), 1e-6), np.float32)
    if not mask.any():  # nothing but border
        mask[:] = 1
    for strength in _STRENGTHS:
        moved = _moved(pixels, field * np.float32(strength) + shift, method)
        if cv2.absdiff(moved, real)[mask >= 0.5].mean() >= LEAST_CHANGE:
            break
    return _sure(real, moved, mask, "face")


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


def _frame_part(pixels: Pixels) -> tuple[slice, slice]:
    """Rows and columns without the black border of a crop that leaves its frame; all of them in a black picture."""
    bright = pixels.max(axis=2) > BORDER_LEVEL
    ends = [np.flatnonzero(bright.any(axis=axis)) for axis in (1, 0)]
    rows, columns = (slice(int(lit[0]), int(lit[-1]) + 1) if len(lit) else slice(None) for lit in ends)
    return rows, columns


def _within(pixels: Pixels, mask: Floats) -> Floats:
    """A mask that leaves the black border alone; as it was where nothing else is in it."""
    part = _frame_part(pixels)
    inside = np.zeros_like(mask)
    inside[part] = mask[part]
    return inside if inside.any() else mask


def _calm(pixels: Pixels) -> Floats:
    """(H, W) 1 within the frame, falling to 0 towards the black border, over which nothing may be pulled."""
    height_px, width_px = pixels.shape[:2]
    reach_px = CALM_SHARE * max(height_px, width_px)
    ramps = []
    for part, size_px in zip(_frame_part(pixels), (height_px, width_px), strict=True):
        start, stop, _ = part.indices(size_px)
        at = np.arange(size_px)
        before = at - start if start else np.full(size_px, reach_px)
        after = stop - 1 - at if stop < size_px else np.full(size_px, reach_px)
        ramps.append((np.minimum(before, after) / reach_px).clip(0, 1))
    return np.asarray(np.minimum(ramps[0][:, None], ramps[1]), np.float32)


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
    levels = np.arange(256)[:, None]
    matched = (levels - source_mean) * gain + target_mean
    table = np.clip(np.rint(levels + strength * (matched - levels)), 0, 255).astype(np.uint8)
    return np.asarray(cv2.LUT(source, table[None]), np.uint8)


def _statistics(pixels: Pixels, mask: Floats) -> tuple[Floats, Floats]:
    weights = (mask / mask.sum()).ravel()
    values = pixels.reshape(-1, 3).astype(np.float32)
    mean = weights @ values
    values -= mean
    return mean, np.sqrt(weights @ np.square(values, out=values))


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
