"""Make fakes from real faces alone by blending a face onto itself.

The method is that of Shiohara and Yamasaki 2022, "Detecting Deepfakes with Self-Blended Images", CVPR. Face swaps and
lip-sync edits leave the same traces whichever network made them: a blending boundary, and colours, sharpness and
geometry that differ across it. A self-blended image has these traces and no others. Two copies of one face are made
slightly different, and one is blended over the other through a soft mask.

This implementation differs from the paper where its tools are unavailable or too weak: the outline of the face comes
from a template fitted to five landmarks, changes of hue, changes of saturation and the elastic deformation of the mask
are strong enough to be visible in 8 bits, and single parts of the face are blended too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import cv2
import numpy as np

from dfscan.arrays import Float32Array, Float64Array, UInt8Image

Region = Literal["face", "inner", "eyes", "nose", "mouth"]
Changed = Literal["source", "target"]

REGIONS: tuple[Region, ...] = get_args(Region)
REGION_PROBS: dict[Region, float] = {"face": 0.5, "inner": 0.2, "mouth": 0.16, "eyes": 0.08, "nose": 0.06}
"""Probability of blending each region. The mouth leads the parts because lip-sync edits change nothing else."""
BLEND_RATIOS = (0.25, 0.5, 0.75, 1.0, 1.0, 1.0)
MIN_IMAGE_SIDE_PX = 16
MIN_CHANGE = 1.5
"""Minimum mean difference between fake and real, in 8-bit levels, where the mask is at least half its peak."""

# Template coordinates are in units of the distance between the eyes. The origin is midway between them; the axes point
# right as seen in the image, down, and towards the camera.
LANDMARKS = np.array(
    [[-0.5, 0, 0], [0.5, 0, 0], [0, 0.6, 0.45], [-0.48, 1.03, 0.05], [0.48, 1.03, 0.05]], dtype=np.float64
)
"""(5, 3) the detector's landmarks on the template; x and y are the medians of 220 portraits."""
_FRONT = [(0.82, -0.1, -0.1), (0.72, 0.55, 0), (0.62, 1.05, 0)]
"""Points that hide the far edge of a face that is turned away, and thus become its outline."""
_RIGHT_HALVES: dict[Region, list[tuple[float, float, float]]] = {
    "face": [
        (0, -1.12, -0.1),
        (0.46, -1.04, -0.15),
        (0.83, -0.77, -0.35),
        (1.02, -0.3, -0.55),
        (1.06, 0.15, -0.6),
        (1.02, 0.6, -0.55),
        (0.92, 1.02, -0.4),
        (0.7, 1.46, -0.2),
        (0.38, 1.75, 0),
        (0, 1.84, 0.05),
        *_FRONT,
    ],
    "inner": [
        (0, -0.48, 0.1),
        (0.42, -0.58, 0.05),
        (0.78, -0.46, -0.1),
        (0.93, 0, -0.3),
        (0.9, 0.5, -0.3),
        (0.8, 0.95, -0.15),
        (0.57, 1.38, 0.05),
        (0.28, 1.6, 0.1),
        (0, 1.63, 0.1),
        *_FRONT,
    ],
    "eyes": [(0, -0.3, 0.1), (0.45, -0.46, 0), (0.8, -0.35, -0.1), (0.86, 0.08, -0.2), (0.5, 0.37, 0), (0, 0.26, 0.1)],
    "nose": [
        (0, -0.12, 0.1),
        (0.14, 0, 0.1),
        (0.24, 0.4, 0.1),
        (0.4, 0.66, 0.1),
        (0.24, 0.84, 0.2),
        (0, 0.9, 0.2),
        (0, 0.6, 0.5),  # the tip, which forms the outline in profile
    ],
    "mouth": [(0, 0.68, 0.2), (0.4, 0.7, 0.15), (0.74, 0.98, 0), (0.74, 1.28, 0), (0.44, 1.54, 0.05), (0, 1.62, 0.1)],
}
OUTLINES: dict[Region, Float64Array] = {
    region: np.array([(side * x, y, z) for x, y, z in half for side in (-1, 1) if x or side > 0], dtype=np.float64)
    for region, half in _RIGHT_HALVES.items()
}
"""(N, 3) points; the region is the convex hull of their projection."""

_DEPTH_RIDGE = 0.03
"""Ridge penalty on depth; against the nose's 0.45 squared, the fit keeps about four fifths of a head turn."""
_MIN_MASK_PX = 12
"""Minimum number of mask pixels within the image; smaller regions are not blended."""
_MIN_ASPECT = 0.55
"""Minimum aspect of the fitted face: the eyes nearly meet in a profile, which would reduce the face to a sliver."""
_EYES_TO_SIDE = (0.04, 0.6)
"""Minimum and maximum distance between the eyes relative to the longer side of an image of one face."""
_MASK_GRID_PX = 160
"""Longest side at which masks are drawn; finer detail would vanish in their blur."""
_ELASTIC_NODES = 6
"""Nodes of the random field, across and down the mask."""
_STRENGTHS = (1.0, 1.0, 1.5, 2.0, 3.0)
"""Tried in turn until the fake differs visibly."""


@dataclass(frozen=True, slots=True, eq=False)
class Blend:
    """An image of a real face and a fake made from it."""

    real: UInt8Image
    """(H, W, 3) RGB; in training, altered half of the time so that an alteration alone is no clue."""
    fake: UInt8Image
    """(H, W, 3) RGB, equal to `real` where `mask` is zero, but not everywhere."""
    mask: Float32Array
    """(H, W) in [0, 1], weight of the source in each pixel of the fake; for a warp, the relative displacement."""
    region: Region


def self_blend(
    pixels: UInt8Image,
    landmarks: Float32Array,
    rng: np.random.Generator,
    *,
    region: Region | None = None,
    changed: Changed | None = None,
) -> Blend:
    """Make a fake from one image of a real face.

    Source: section 3.2 of the paper: source-target generator, mask generator, blending.

    Args:
        pixels: uint8 (H, W, 3) RGB, at least 16 px a side; not modified.
        landmarks: (5, 2) left eye, right eye, nose, left and right corner of the mouth as seen in the image, in pixels.
            If they cannot belong to a face in this image, a face in its middle is assumed.
        rng: the only source of randomness; the same state gives the same bytes.
        region: region to blend; drawn by `REGION_PROBS` if None.
        changed: the copy whose colours and sharpness are altered; drawn with equal probability if None. With
            ``source``, `real` equals `pixels`.

    Raises:
        ValueError: pixels or landmarks have another shape or type.
    """
    if (
        pixels.dtype != np.uint8
        or pixels.ndim != 3
        or pixels.shape[2] != 3
        or min(pixels.shape[:2]) < MIN_IMAGE_SIDE_PX
    ):
        raise ValueError(
            f"pixels must be uint8 (H, W, 3), {MIN_IMAGE_SIDE_PX} px or more, got {pixels.dtype} {pixels.shape}"
        )
    if np.shape(landmarks) != (5, 2):
        raise ValueError(f"landmarks must be (5, 2), got {np.shape(landmarks)}")
    if region is None:
        region = REGIONS[rng.choice(len(REGIONS), p=[REGION_PROBS[name] for name in REGIONS])]
    cut = cut_out(landmarks, pixels.shape[1], pixels.shape[0], region, rng)
    x1, y1, x2, y2 = cut.box_xyxy
    mask = cut.mask * np.float32(rng.choice(BLEND_RATIOS) / cut.mask.max())
    is_source_changed = rng.random() < 0.5 if changed is None else changed == "source"
    real, patch = _lay_over(pixels, mask, cut, rng, is_source_changed=is_source_changed)
    fake = real.copy()
    fake[y1:y2, x1:x2] = patch
    whole_mask = np.zeros(pixels.shape[:2], np.float32)
    whole_mask[y1:y2, x1:x2] = mask
    return Blend(real, fake, whole_mask, region)


@dataclass(frozen=True, slots=True, eq=False)
class Cut:
    """Mask and placement of the part that a fake takes from its source."""

    mask: Float32Array
    """(y2 - y1, x2 - x1) in [0, 1], not zero everywhere."""
    box_xyxy: tuple[int, int, int, int]
    """In pixels, end exclusive, within the image."""
    move: Float64Array
    """(2, 3) affine map from the source's pixels to the target's."""
    eyes_px: float
    """Distance between the eyes."""


def cut_out(landmarks: Float32Array, width_px: int, height_px: int, region: Region, rng: np.random.Generator) -> Cut:
    """Draw a mask around a region of the face; if the region is outside the image, assume a face in its middle."""
    for camera in (_placed(landmarks, width_px, height_px), _centred(width_px, height_px)):
        eyes_px = float(np.sqrt(np.linalg.det(camera[:2])))
        points = jittered(OUTLINES[region], rng)
        outline = np.column_stack([points, np.ones(len(points))]) @ camera
        scale = rng.uniform(0.95, 1 / 0.95)
        shift_px = rng.uniform(-1, 1, 2) * (0.11, 0.09) * eyes_px
        move = np.column_stack([np.eye(2) * scale, outline.mean(axis=0) * (1 - scale) + shift_px])
        mask, box_xyxy = region_mask(outline @ move[:, :2].T + move[:, 2], width_px, height_px, rng)
        if np.count_nonzero(mask > 0.5) >= _MIN_MASK_PX:
            break  # otherwise that part of the face is outside the image
    return Cut(mask, box_xyxy, move, eyes_px)


def _lay_over(
    pixels: UInt8Image, mask: Float32Array, cut: Cut, rng: np.random.Generator, *, is_source_changed: bool
) -> tuple[UInt8Image, UInt8Image]:
    """Return the target, altered or not, and the patch of the fake within the box; the two differ visibly there."""
    x1, y1, x2, y2 = cut.box_xyxy
    move = cut.move - np.array([[0, 0, x1], [0, 0, y1]])
    moved = cv2.warpAffine(pixels, move, (x2 - x1, y2 - y1), borderMode=cv2.BORDER_REFLECT_101).astype(np.uint8)
    core = mask >= mask.max() / 2
    for strength in _STRENGTHS:
        if is_source_changed:
            real, source = pixels.copy(), change_look(moved, cut.eyes_px, rng, strength=strength)
        else:
            real, source = change_look(pixels, cut.eyes_px, rng, strength=strength), moved
        target = real[y1:y2, x1:x2]
        patch = blend(source, target, mask)
        if float(cv2.absdiff(patch, target)[core].mean()) >= MIN_CHANGE:
            return real, patch
    return real, blend(towards_grey(target), target, mask)  # nothing was visible, for example in a black image


def fit_template(landmarks: Float32Array) -> Float64Array | None:
    """Fit the template to the image with a least-squares affine camera through the five landmarks.

    The nose protrudes from the plane of the other landmarks, so its offset reveals how the head is turned. A ridge
    penalty limits that part because five points determine it poorly.

    Args:
        landmarks: (5, 2) in pixels.

    Returns:
        (4, 2) camera: template points with a 1 appended, multiplied by this matrix, give pixels. None if no face can
        have these landmarks: they are not finite, coincide, or are mirrored (flipping an image requires swapping left
        and right).
    """
    points = np.asarray(landmarks, np.float64)
    if not np.isfinite(points).all() or np.abs(points).max() > 1e6:
        return None
    design = np.column_stack([LANDMARKS, np.ones(5)])
    ridge = np.diag([0, 0, _DEPTH_RIDGE, 0])
    camera: Float64Array = np.linalg.solve(design.T @ design + ridge, design.T @ points)
    left, sizes, right = np.linalg.svd(camera[:2])
    if np.linalg.det(camera[:2]) <= 0 or sizes[0] < 1e-3 or sizes[1] < 1e-6 * sizes[0]:
        return None
    camera[:2] = left @ np.diag(np.maximum(sizes, _MIN_ASPECT * sizes[0])) @ right
    camera[2] *= min(1.0, sizes[0] / max(float(np.linalg.norm(camera[2])), 1e-9))
    camera[3] = points.mean(axis=0) - LANDMARKS.mean(axis=0) @ camera[:3]
    return camera


def _placed(landmarks: Float32Array, width_px: int, height_px: int) -> Float64Array:
    """Return the fitted camera, or that of a face in the middle if the fit is implausible in this image."""
    camera = fit_template(landmarks)
    if camera is not None:
        eyes_to_side = np.sqrt(np.linalg.det(camera[:2])) / max(width_px, height_px)
        x, y = np.array([0, 0.5, 0, 1]) @ camera
        is_inside = 0 <= x < width_px and 0 <= y < height_px
        if is_inside and _EYES_TO_SIDE[0] <= eyes_to_side <= _EYES_TO_SIDE[1]:
            return camera
    return _centred(width_px, height_px)


def _centred(width_px: int, height_px: int) -> Float64Array:
    eyes_px = 0.25 * min(width_px, height_px)
    return np.array([[eyes_px, 0], [0, eyes_px], [0, 0], [width_px / 2, height_px / 2 - 0.4 * eyes_px]])


def jittered(outline: Float64Array, rng: np.random.Generator) -> Float64Array:
    """Stretch and shift the outline at random and move each point slightly inwards; returns (N, 3).

    Points never move outwards: the convex hull would keep the outermost of them and extend beyond the face.
    """
    centre = outline.mean(axis=0)
    spread = outline - centre
    stretch = np.array([*rng.uniform(0.94, 1.1, 2), 1.0])
    wobble = 1 - rng.uniform(0, 0.08, (len(outline), 1)) * (1, 1, 0)
    moved: Float64Array = centre + spread * stretch * wobble
    return moved


def region_mask(
    outline: Float64Array, width_px: int, height_px: int, rng: np.random.Generator
) -> tuple[Float32Array, tuple[int, int, int, int]]:
    """Draw the convex hull of the outline, dent its edge and soften it.

    The mask is drawn on a grid of at most 160 px and enlarged, so that the cost does not grow with the image.

    Args:
        outline: (N, 2) in pixels.
        width_px: width of the image.
        height_px: height of the image.
        rng: random generator.

    Returns:
        The mask in [0, 1] within a box of the image, and that box as (x1, y1, x2, y2), end exclusive. The mask is zero
        outside the box. Both are empty if the outline is entirely outside the image.
    """
    low, high = outline.min(axis=0), outline.max(axis=0)
    margin_px = 0.2 * float((high - low).min()) + 2
    left, top = (int(edge) for edge in np.floor(low - margin_px))
    right, bottom = (int(edge) for edge in np.ceil(high + margin_px))
    grid_scale = min(1.0, _MASK_GRID_PX / max(right - left, bottom - top))
    grid_size = (max(8, round((right - left) * grid_scale)), max(8, round((bottom - top) * grid_scale)))
    to_grid = np.array(grid_size) / (right - left, bottom - top)
    hull = np.asarray(cv2.convexHull(((outline - (left, top)) * to_grid).astype(np.float32)), np.float32)[:, 0]
    for _ in range(2):  # cut each corner at a quarter of its sides (Chaikin 1974): a smooth curve inside the hull
        following = np.roll(hull, -1, axis=0)
        hull = np.stack([0.75 * hull + 0.25 * following, 0.25 * hull + 0.75 * following], 1).reshape(-1, 2)
    drawn = np.zeros(grid_size[::-1], np.uint8)
    cv2.fillPoly(drawn, [np.rint(hull * 16).astype(np.int32)], 255, lineType=cv2.LINE_AA, shift=4)
    width_grid_px = float(((high - low) * to_grid).min())
    flat = np.divide(drawn, 255, dtype=np.float32)
    bent = np.minimum(flat, elastic(flat, width_grid_px, rng))  # keep only dents: bulges would extend beyond the face
    soft = soften(bent, width_grid_px, rng)
    x1, y1, x2, y2 = max(left, 0), max(top, 0), min(right, width_px), min(bottom, height_px)
    if x1 >= x2 or y1 >= y2:
        return np.zeros((0, 0), np.float32), (0, 0, 0, 0)
    whole = cv2.resize(soft, (right - left, bottom - top), interpolation=cv2.INTER_LINEAR)
    return np.asarray(whole[y1 - top : y2 - top, x1 - left : x2 - left], np.float32).copy(), (x1, y1, x2, y2)


def elastic(mask: Float32Array, width_px: float, rng: np.random.Generator) -> Float32Array:
    """Deform the edge of the mask with a smooth random field, by a few hundredths of the region's width.

    Args:
        mask: (H, W).
        width_px: shorter side of the region.
        rng: random generator.

    Returns:
        (H, W), zero where the field reaches beyond the border.
    """
    height, width = mask.shape
    nodes = rng.normal(0, rng.uniform(0.02, 0.04) * width_px, (_ELASTIC_NODES, _ELASTIC_NODES, 2))
    field = cv2.resize(nodes.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    at_x = field[..., 0] + np.arange(width, dtype=np.float32)
    at_y = field[..., 1] + np.arange(height, dtype=np.float32)[:, None]
    return np.asarray(cv2.remap(mask, at_x, at_y, cv2.INTER_LINEAR, borderValue=0), np.float32)


def soften(mask: Float32Array, width_px: float, rng: np.random.Generator) -> Float32Array:
    """Blur, keep what the blur left intact, and blur again: the new soft edge is inside the old edge.

    Args:
        mask: (H, W) in [0, 1].
        width_px: shorter side of the region; kernels are 4 to 24 % of it.
        rng: random generator.

    Returns:
        (H, W) in [0, 1], with peak 1 unless the mask was empty, and zero wherever `mask` is zero.
    """
    # The wider kernel erodes and the narrower one softens, so the soft edge never reaches the old edge again.
    narrow_px, wide_px = (2 * int(width * width_px / 2) + 1 for width in np.sort(rng.uniform(0.04, 0.24, 2)))
    core = (cv2.GaussianBlur(mask, (wide_px, wide_px), wide_px / 3) > 0.9999).astype(np.float32)
    soft = cv2.GaussianBlur(core, (narrow_px, narrow_px), narrow_px / 3, borderType=cv2.BORDER_CONSTANT)
    peak = float(soft.max())
    return np.asarray(np.minimum(soft / peak, 1) if peak > 0 else mask, np.float32)


def change_look(pixels: UInt8Image, eyes_px: float, rng: np.random.Generator, *, strength: float = 1.0) -> UInt8Image:
    """Alter colours and sharpness as forgery tools do.

    Colours: a shift of each channel, hue, saturation, value, brightness and contrast. Sharpness: either shrunk and
    enlarged again, or sharpened, never both.

    Args:
        pixels: (H, W, 3) RGB.
        eyes_px: distance between the eyes; shrinking leaves at least 16 px of it, or is by a factor of at most 1.5.
        rng: random generator.
        strength: factor on every colour change.

    Returns:
        (H, W, 3) RGB, a new array.
    """
    colours = np.asarray(cv2.transform(pixels, _colour_matrix(rng, strength)), np.uint8)
    if rng.random() < 0.5:
        height, width = pixels.shape[:2]
        factor = rng.uniform(1.4, float(np.clip(eyes_px / 16, 1.5, 4)))
        size_px = (max(2, round(width / factor)), max(2, round(height / factor)))
        down = int(rng.choice([cv2.INTER_LINEAR, cv2.INTER_AREA]))  # the paper's nearest neighbour leaves jagged edges
        up = int(rng.choice([cv2.INTER_LINEAR, cv2.INTER_CUBIC]))
        small = cv2.resize(colours, size_px, interpolation=down)
        return np.asarray(cv2.resize(small, (width, height), interpolation=up), np.uint8)
    sigma_px, amount = rng.uniform(0.7, 2.0), rng.uniform(0.4, 1.2)
    blurred = cv2.GaussianBlur(colours, (0, 0), sigma_px)
    return np.asarray(cv2.addWeighted(colours, 1 + amount, blurred, -amount, 0), np.uint8)


def _colour_matrix(rng: np.random.Generator, strength: float) -> Float64Array:
    """Return (3, 4) for `cv2.transform`: all colour changes in one matrix, so that 8 bits are rounded once."""
    strength *= rng.uniform(0.4, 1)
    largest = (np.radians(7), 0.18, 0.07, 0.1, 16)
    hue, saturation, value, contrast, brightness = rng.uniform(-1, 1, 5) * largest * strength
    shift = rng.uniform(-15, 15, 3) * strength * (rng.random() < 0.5)
    axis = np.full((3, 3), 1 / 3)  # projects on grey
    cross = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / np.sqrt(3)
    turn = np.cos(hue) * np.eye(3) + np.sin(hue) * cross + (1 - np.cos(hue)) * axis
    luma = np.tile([0.299, 0.587, 0.114], (3, 1))
    colour = (luma + (1 + saturation) * (np.eye(3) - luma)) @ turn * (1 + value) * (1 + contrast)
    offset = shift + brightness - contrast * 128
    return np.column_stack([colour, offset])


def blend(source: UInt8Image, target: UInt8Image, mask: Float32Array) -> UInt8Image:
    """Return mask * source + (1 - mask) * target, rounded once.

    Args:
        source: (H, W, 3).
        target: (H, W, 3).
        mask: (H, W) in [0, 1].

    Returns:
        (H, W, 3).
    """
    base = target.astype(np.float32)
    mixed = base + mask[:, :, None] * (source - base)
    return np.rint(mixed).astype(np.uint8)


def towards_grey(pixels: UInt8Image) -> UInt8Image:
    """Make every pixel visibly lighter or darker, in the direction that has room."""
    return np.where(pixels < 128, pixels + np.uint8(32), pixels - np.uint8(32)).astype(np.uint8)
