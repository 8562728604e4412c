"""Make fakes of other kinds than those of `self_blend`; a detector misses kinds that it was never trained on.

There are three families of manipulation, each made from images of real faces:

- ``swapped``: another person's face, aligned by landmarks, recoloured and blended in. This imitates a face swap, and is
  the kind of pair in Li et al. 2020, "Face X-ray for More General Face Forgery Detection", CVPR, section 3.2.
- ``warped``: features displaced by a smooth field, as beauty filters and warping-based lip-sync do.
- ``reconstructed``: the face, a part of it, or the whole crop replaced by an autoencoder's output; see `autoencoder`.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from dfscan.arrays import Float32Array, UInt8Image
from dfscan.dataset.crops import LooseCrop
from dfscan.faces.landmarks import affine_transform
from dfscan.forgery.degrade import compress_jpeg, rescale
from dfscan.forgery.names import ForgeryKind
from dfscan.forgery.self_blend import (
    MIN_CHANGE,
    REGION_PROBS,
    REGIONS,
    Blend,
    Cut,
    Region,
    blend,
    cut_out,
    self_blend,
    towards_grey,
)

SWAP_REGIONS: tuple[Region, ...] = ("face", "inner")
WHOLE_PROB = 0.4
"""Proportion of reconstructions that replace the whole crop and have no blending boundary."""
SHARPENING = (0.0, 1.5)
"""Range of the sharpening of reconstructions, which are soft."""
ALIGNED_QUALITIES = (60, 95)
"""Range of the JPEG quality that is applied to both a reconstruction and its original."""
MIN_FINE_CHANGE = 0.5
"""As `MIN_CHANGE`, for reconstructions: a good one differs from its original in fine detail only."""
RECONSTRUCTION_WEIGHTS = (0.2, 1.0)
"""Range of the weight of the reconstruction where it replaces the original."""
SHIFTS = (0.05, 0.14)
"""Minimum and maximum displacement of a feature, in distances between the eyes."""
REACH = (0.25, 0.6)
"""Range of the standard deviation of a displacement's bell curve, in distances between the eyes."""
MIN_SHIFT_PX = 0.05
"""Shorter displacements are set to zero, so that pixels far from the face stay identical."""
SOFTENED = (0.4, 0.9)
"""Range of the factor by which a real image is shrunk, then enlarged, to be as soft as its fake."""
BORDER_LEVEL = 4
"""A row or column with no brighter pixel is border; slightly above black because crops are resized."""
CALM_FRACTION = 0.1
"""Displacements fade towards a border over this fraction of the image's side."""
_STRENGTHS = (1.0, 2.0, 4.0)
"""Tried in turn until a warp is visible."""


def make_forgery(
    kind: ForgeryKind, face: LooseCrop, donor: LooseCrop | None, rng: np.random.Generator, *, keeps_real: bool
) -> Blend:
    """Make a fake of one kind.

    Args:
        kind: kind of fake.
        face: a real face.
        donor: second input, of the same size: another person's face for ``swapped``, an autoencoder's reconstruction
            of this face for ``reconstructed``, None for the other kinds.
        rng: the only source of randomness.
        keeps_real: whether `real` of the result must equal the face. If not, it is altered half of the time: forging
            removes detail, so a lack of detail alone must not indicate a fake.

    Raises:
        ValueError: the donor is missing or has another size.
    """
    if kind == "self-blended":
        return self_blend(face.pixels, face.landmarks, rng, changed="source" if keeps_real else None)
    is_softened = not keeps_real and rng.random() < 0.5
    if kind == "warped":
        return warp(face, rng, is_softened=is_softened)
    if donor is None or donor.pixels.shape != face.pixels.shape:
        raise ValueError(f"a {kind} face needs a donor of the same size")
    softened = rescale(face.pixels, factor=rng.uniform(*SOFTENED)) if is_softened else face.pixels
    target = LooseCrop(softened, face.box_xyxy, face.landmarks)
    if kind == "swapped":
        return swap(target, donor, rng)
    return paste_reconstruction(target, donor.pixels, rng, keeps_real=keeps_real)


def swap(face: LooseCrop, other: LooseCrop, rng: np.random.Generator) -> Blend:
    """Blend another person's face over this one, aligned by landmarks and recoloured to match."""
    height_px, width_px = face.pixels.shape[:2]
    region = SWAP_REGIONS[rng.integers(len(SWAP_REGIONS))]
    cut = cut_out(face.landmarks, width_px, height_px, region, rng)
    move = affine_transform(other.landmarks, face.landmarks)
    moved = cv2.warpAffine(other.pixels, move, (width_px, height_px), borderMode=cv2.BORDER_REFLECT_101)
    mask = _within(face.pixels, _whole(cut, width_px, height_px))
    source = recoloured(np.asarray(moved, np.uint8), face.pixels, mask, strength=rng.uniform(0.6, 1))
    mask = mask * np.float32(rng.uniform(0.75, 1))
    return _sure(face.pixels, blend(source, face.pixels, mask), mask, region)


def paste_reconstruction(
    face: LooseCrop, reconstructed: UInt8Image, rng: np.random.Generator, *, keeps_real: bool = False
) -> Blend:
    """Replace the face, a part of it, or the whole crop by an autoencoder's reconstruction.

    Half of the time the reconstruction is recoloured to match the image. It is then sharpened by a random amount and
    aligned with the original, after Chen et al. 2025, "Dual Data Alignment Makes AI-Generated Image Detector Easier
    Generalizable" (arXiv 2505.14359): both get the same JPEG compression, and their pixels are mixed. An original has
    been compressed before and a reconstruction has not, so high frequencies alone would otherwise reveal it.

    Args:
        face: a real face.
        reconstructed: (H, W, 3) RGB reconstruction, of the same size.
        rng: random generator.
        keeps_real: whether the original stays unchanged and only the reconstruction is compressed.
    """
    height_px, width_px = face.pixels.shape[:2]
    if rng.random() < WHOLE_PROB:
        region, mask = REGIONS[0], np.ones((height_px, width_px), np.float32)
    else:
        region = REGIONS[rng.choice(len(REGIONS), p=[REGION_PROBS[name] for name in REGIONS])]
        mask = _whole(cut_out(face.landmarks, width_px, height_px, region, rng), width_px, height_px)
    mask = _within(face.pixels, mask)
    if rng.random() < 0.5:
        reconstructed = recoloured(reconstructed, face.pixels, mask, strength=1)
    amount = rng.uniform(*SHARPENING)
    blurred = cv2.GaussianBlur(reconstructed, (0, 0), rng.uniform(0.7, 2))
    sharp = np.asarray(cv2.addWeighted(reconstructed, 1 + amount, blurred, -amount, 0), np.uint8)
    quality = int(rng.integers(ALIGNED_QUALITIES[0], ALIGNED_QUALITIES[1] + 1))
    real = face.pixels if keeps_real else compress_jpeg(face.pixels, quality=quality)
    compressed = compress_jpeg(sharp, quality=quality)
    for weight in (rng.uniform(*RECONSTRUCTION_WEIGHTS), 1.0):  # a small weight can hide a good reconstruction
        mixed = np.asarray(cv2.addWeighted(compressed, weight, real, 1 - weight, 0), np.uint8)
        fake = blend(mixed, real, mask)
        if _change(fake, real, mask) >= MIN_FINE_CHANGE:
            break
    return _sure(real, fake, mask, region, min_change=MIN_FINE_CHANGE)


def warp(face: LooseCrop, rng: np.random.Generator, *, is_softened: bool = False) -> Blend:
    """Displace one to three features, each by a bell-shaped field.

    Args:
        face: a real face.
        rng: random generator.
        is_softened: whether both images are shifted by a fraction of a pixel, so that the real one is interpolated too.
    """
    pixels, landmarks = face.pixels, face.landmarks
    height_px, width_px = pixels.shape[:2]
    cut = cut_out(landmarks, width_px, height_px, "face", rng)
    chosen = rng.permutation(len(landmarks))[: rng.integers(1, 4)]
    turns = rng.uniform(0, 2 * np.pi, len(chosen))
    shifts_px = rng.uniform(*SHIFTS, len(chosen)) * cut.eyes_px
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
    if not mask.any():  # the image is all border
        mask[:] = 1
    for strength in _STRENGTHS:
        moved = _moved(pixels, field * np.float32(strength) + shift, method)
        if cv2.absdiff(moved, real)[mask >= 0.5].mean() >= MIN_CHANGE:
            break
    return _sure(real, moved, mask, "face")


def _field(
    points: NDArray[Any], pushes: NDArray[Any], reaches_px: NDArray[Any], width_px: int, height_px: int
) -> Float32Array:
    """Return the displacement of each pixel, (H, W, 2)."""
    y, x = np.mgrid[:height_px, :width_px].astype(np.float32)
    field = np.zeros((height_px, width_px, 2), np.float32)
    for (at_x, at_y), push, reach_px in zip(points, pushes, reaches_px, strict=True):
        bell = np.exp(-((x - at_x) ** 2 + (y - at_y) ** 2) / (2 * max(reach_px, 1.0) ** 2))
        field += bell[:, :, None] * push.astype(np.float32)
    longest_px = max(float(np.linalg.norm(field, axis=2).max()), 1e-6)
    field *= max(1.0, 1.0 / longest_px)  # displace at least one pixel by 1 px, even in a tiny image
    field[np.linalg.norm(field, axis=2) < MIN_SHIFT_PX] = 0
    return field


def _moved(pixels: UInt8Image, field: Float32Array, method: int) -> UInt8Image:
    height_px, width_px = pixels.shape[:2]
    at_x = np.arange(width_px, dtype=np.float32) - field[..., 0]
    at_y = np.arange(height_px, dtype=np.float32)[:, None] - field[..., 1]
    return np.asarray(cv2.remap(pixels, at_x, at_y, method, borderMode=cv2.BORDER_REFLECT_101), np.uint8)


def _frame_part(pixels: UInt8Image) -> tuple[slice, slice]:
    """Return the rows and columns without the black border of a crop that extends beyond its frame; all if black."""
    bright = pixels.max(axis=2) > BORDER_LEVEL
    ends = [np.flatnonzero(bright.any(axis=axis)) for axis in (1, 0)]
    rows, columns = (slice(int(lit[0]), int(lit[-1]) + 1) if len(lit) else slice(None) for lit in ends)
    return rows, columns


def _within(pixels: UInt8Image, mask: Float32Array) -> Float32Array:
    """Return the mask without the black border; unchanged if nothing else would remain."""
    part = _frame_part(pixels)
    inside = np.zeros_like(mask)
    inside[part] = mask[part]
    return inside if inside.any() else mask


def _calm(pixels: UInt8Image) -> Float32Array:
    """Return (H, W), 1 within the frame and falling to 0 towards the black border, so that no border is pulled in."""
    height_px, width_px = pixels.shape[:2]
    reach_px = CALM_FRACTION * max(height_px, width_px)
    ramps = []
    for part, size_px in zip(_frame_part(pixels), (height_px, width_px), strict=True):
        start, stop, _ = part.indices(size_px)
        at = np.arange(size_px)
        before = at - start if start else np.full(size_px, reach_px)
        after = stop - 1 - at if stop < size_px else np.full(size_px, reach_px)
        ramps.append((np.minimum(before, after) / reach_px).clip(0, 1))
    return np.asarray(np.minimum(ramps[0][:, None], ramps[1]), np.float32)


def recoloured(source: UInt8Image, target: UInt8Image, mask: Float32Array, *, strength: float) -> UInt8Image:
    """Match an image's colours to another's: mean and standard deviation of each channel within the mask.

    After Reinhard et al. 2001, "Color Transfer between Images", but in RGB.

    Args:
        source: (H, W, 3).
        target: (H, W, 3).
        mask: (H, W) in [0, 1], not zero everywhere.
        strength: 0 changes nothing, 1 matches both.
    """
    weights = (mask / mask.sum()).ravel()
    means, stds = [], []
    for image in (source, target):
        values = image.reshape(-1, 3).astype(np.float32)
        means.append(weights @ values)
        values -= means[-1]
        stds.append(np.sqrt(weights @ np.square(values, out=values)))
    (source_mean, target_mean), (source_std, target_std) = means, stds
    gain = np.clip(target_std / np.maximum(source_std, 1e-3), 0.5, 2)
    levels = np.arange(256)[:, None]
    matched = (levels - source_mean) * gain + target_mean
    table = np.clip(np.rint(levels + strength * (matched - levels)), 0, 255).astype(np.uint8)
    return np.asarray(cv2.LUT(source, table[None]), np.uint8)


def _whole(cut: Cut, width_px: int, height_px: int) -> Float32Array:
    """Return the mask in full-image coordinates, scaled to a peak of 1."""
    x1, y1, x2, y2 = cut.box_xyxy
    mask = np.zeros((height_px, width_px), np.float32)
    mask[y1:y2, x1:x2] = cut.mask / cut.mask.max()
    return mask


def _sure(
    real: UInt8Image, fake: UInt8Image, mask: Float32Array, region: Region, *, min_change: float = MIN_CHANGE
) -> Blend:
    """Return the pair; if the change is invisible, as in a black image, make the fake lighter or darker there."""
    if _change(fake, real, mask) < min_change:
        fake = blend(towards_grey(real), real, mask)
    return Blend(real.copy(), fake, mask, region)


def _change(fake: UInt8Image, real: UInt8Image, mask: Float32Array) -> float:
    """Return the mean absolute difference, in 8-bit levels, where the mask is at least half its peak."""
    return float(cv2.absdiff(fake, real)[mask >= mask.max() / 2].mean())
