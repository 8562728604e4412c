"""Turn a face crop into network inputs: one view, or a pair of a real face and a fake made from it.

All augmentation is drawn from the given generator, once for both faces of a pair, so that they differ only by the
forgery. In evaluation, a view is cropped and resized exactly as in a scan.
"""

from __future__ import annotations

import logging
import math
import os
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from dfscan.arrays import Float32Array, UInt8Image
from dfscan.dataset.crops import LooseCrop
from dfscan.faces.crop import crop_face, crop_square_xyxy
from dfscan.forgery.degrade import (
    RECOMPRESSION_CRFS,
    SIMULATED_CODECS,
    available_codecs,
    draw_video_chain,
    smooth_skin,
    through_video,
)
from dfscan.forgery.forgeries import make_forgery
from dfscan.forgery.names import ForgeryKind
from dfscan.forgery.self_blend import MIN_IMAGE_SIDE_PX
from dfscan.images import resize
from dfscan.train.settings import TrainSettings

log = logging.getLogger(__name__)


ROTATION_MARGIN = 1.25
"""Side of the image that is rotated and scaled, relative to the side of the square that is then cut from it."""
OUTLIER_PROB, OUTLIER_FACTOR = 0.1, 3.0
"""Probability that the box is off by more than usual, and the factor by which its jitter then grows."""


def evaluation_view(face: LooseCrop, settings: TrainSettings) -> UInt8Image:
    """Return the network input of this face as a scan would crop it: (size, size, 3) RGB."""
    return crop_face(face.pixels, face.box_xyxy, margin=settings.crop_margin, size=settings.input_size_px)


def evaluation_fake(
    face: LooseCrop,
    settings: TrainSettings,
    rng: np.random.Generator,
    kind: ForgeryKind,
    donor: LooseCrop | None = None,
) -> UInt8Image:
    """Return the view of a fake made from this real face; both differ within the mask only.

    Args:
        face: a real face.
        settings: the recipe.
        rng: random generator.
        kind: kind of fake.
        donor: as for `PairAugmenter.pair`.
    """
    sized_donor = donor
    if donor and donor.pixels.shape != face.pixels.shape:  # a donor face
        sized_donor = _work(donor, face.pixels.shape[0], margin=_margin(face))
    blend = make_forgery(kind, face, sized_donor, rng, keeps_real=True)
    return evaluation_view(LooseCrop(blend.fake, face.box_xyxy, face.landmarks), settings)


def _margin(face: LooseCrop) -> float:
    """Return the side of a loose crop relative to the longer side of its box."""
    return float(face.pixels.shape[0] / (face.box_xyxy[2:] - face.box_xyxy[:2]).max())


def _work(face: LooseCrop, size_px: int, *, margin: float) -> LooseCrop:
    """Return the square around a face, resized to the given size."""
    left, top, right, _ = crop_square_xyxy(face.box_xyxy, margin=margin)
    scale, corner = size_px / (right - left), np.array([left, top], np.float32)
    pixels = crop_face(face.pixels, face.box_xyxy, margin=margin, size=size_px)
    box = (face.box_xyxy - np.tile(corner, 2)) * scale
    return LooseCrop(pixels, box.astype(np.float32), ((face.landmarks - corner) * scale).astype(np.float32))


@dataclass(frozen=True, slots=True)
class Placement:
    """Square of an image that becomes the network input."""

    shift: tuple[float, float]
    """Offset from the image's centre to the square's, right and down, relative to the image's side."""
    side: float
    """Side of the square relative to the image's side."""
    rotate_deg: float
    is_flipped: bool

    def cut(self, image: NDArray[Any], size_px: int) -> NDArray[Any]:
        """Cut out the square and resize it once, as a scan does; if it is rotated, interpolate it instead.

        Args:
            image: (S, S, 3) or (S, S).
            size_px: side of the result.
        """
        image_px = image.shape[0]
        side_px = self.side * image_px
        if self.rotate_deg:
            cut = self._turned(image, size_px, side_px)
        else:
            whole_px = min(image_px, max(1, round(side_px)))
            corner = [round((image_px - whole_px) / 2 + shift * image_px) for shift in self.shift]
            left, top = (min(max(0, edge), image_px - whole_px) for edge in corner)
            cut = resize(image[top : top + whole_px, left : left + whole_px], size_px, size_px)
        return np.ascontiguousarray(cut[:, ::-1]) if self.is_flipped else cut

    def _turned(self, image: NDArray[Any], size_px: int, side_px: float) -> NDArray[Any]:
        if side_px > size_px:  # interpolation alone would cause aliasing
            image_px = round(image.shape[0] * size_px / side_px)
            image = np.asarray(cv2.resize(image, (image_px, image_px), interpolation=cv2.INTER_AREA))
        image_px = image.shape[0]
        centre = (size_px - 1) / 2
        move = cv2.getRotationMatrix2D((centre, centre), self.rotate_deg, self.side * image_px / size_px)
        move[:, 2] += (image_px - 1) / 2 + np.array(self.shift) * image_px - centre
        flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
        turned = cv2.warpAffine(image, move, (size_px, size_px), flags=flags, borderMode=cv2.BORDER_REFLECT_101)
        return np.asarray(turned, image.dtype)


class PairAugmenter:
    """Creates the views of training, with the augmentation of the settings."""

    def __init__(self, settings: TrainSettings) -> None:
        """Build the augmentation, and warn about video codecs that this build of PyAV lacks."""
        self._settings = settings
        self._augment = _augmentation(settings)
        self._margin = settings.crop_margin * settings.resize_px / settings.input_size_px * ROTATION_MARGIN
        missing = [codec for codec in SIMULATED_CODECS if codec not in available_codecs()]
        if missing and settings.kinds and settings.codec_p + settings.recompress_p > 0:
            log.warning(
                "PyAV lacks the codecs %s; faces are compressed with these only: %s",
                ", ".join(missing),
                ", ".join(available_codecs()) or "none",
            )

    def single(self, face: LooseCrop, rng: np.random.Generator) -> list[UInt8Image]:
        """Return a list with one view, (size, size, 3) RGB; size is that of the patch if patches are used.

        If the recipe makes pairs, the view is shrunk and compressed as they are; otherwise a clean image would indicate
        a fake.
        """
        has_pairs = bool(self._settings.kinds)
        size_px = self._native_size(face, rng) if has_pairs else self._largest_size(face)
        images = [_work(face, size_px, margin=self._margin).pixels]
        return self._seen(self._compressed(images, rng) if has_pairs else images, None, rng)

    def pair(
        self,
        face: LooseCrop,
        rng: np.random.Generator,
        kind: ForgeryKind = "self-blended",
        donor: LooseCrop | None = None,
    ) -> list[UInt8Image]:
        """Return two views, of a real face and of a fake made from it, that agree in everything else.

        Args:
            face: the real face.
            rng: random generator.
            kind: kind of fake.
            donor: second input of the fake, see `make_forgery`; here it may have any size.
        """
        size_px = self._native_size(face, rng)
        work = _work(face, size_px, margin=self._margin)
        sized_donor = _work(donor, size_px, margin=self._margin) if donor else None
        blend = make_forgery(kind, work, sized_donor, rng, keeps_real=False)
        return self._seen(self._compressed([blend.real, blend.fake], rng), blend.mask, rng)

    def _largest_size(self, face: LooseCrop) -> int:
        """Return the side of the square at the crop's own resolution, capped at what the network can show."""
        left, _, right, _ = crop_square_xyxy(face.box_xyxy, margin=self._margin)
        return min(round(self._settings.resize_px * ROTATION_MARGIN), right - left)

    def _native_size(self, face: LooseCrop, rng: np.random.Generator) -> int:
        """Return the side at which a fake is made and compressed: that of a face in a clip, never enlarged.

        Face sizes are log-uniform between the minimum and the maximum of the settings, or up to the crop's own size.
        """
        settings = self._settings
        own_px = float((face.box_xyxy[2:] - face.box_xyxy[:2]).max())
        low_px, high_px = min(settings.face_px_min, own_px), min(settings.face_px_max, own_px)
        is_shrunk, place = rng.random() < settings.resolution_p, rng.random()
        if not is_shrunk:
            return self._largest_size(face)
        face_px = low_px * math.exp(place * math.log(high_px / low_px))
        return max(MIN_IMAGE_SIDE_PX, round(self._margin * face_px))

    def _compressed(self, images: list[UInt8Image], rng: np.random.Generator) -> list[UInt8Image]:
        settings = self._settings
        is_smoothed, is_compressed, is_recompressed = rng.random(3) < (
            settings.skin_smoothing_p,
            settings.codec_p,
            settings.recompress_p,
        )
        if is_smoothed:
            strength = rng.uniform(0.2, 1)
            images = [smooth_skin(image, strength=strength) for image in images]
        crf_ranges = []
        if is_compressed:
            crf_ranges.append((settings.codec_crf_min, settings.codec_crf_max))
        if is_recompressed:
            crf_ranges.append(RECOMPRESSION_CRFS)
        if crf_ranges:
            chain = draw_video_chain(rng, crf_ranges, recompressed=bool(is_recompressed))
            images = [through_video(image, chain) for image in images]
        return images

    def _seen(self, images: list[UInt8Image], mask: Float32Array | None, rng: np.random.Generator) -> list[UInt8Image]:
        """Cut and augment the same square of all images, or the same patch of it if patches are used."""
        size_px, patch_px = self._settings.input_size_px, self._settings.patch_px
        placement = self._drawn_placement(rng)
        seed = int(rng.integers(2**31))
        views: list[UInt8Image] = []
        for image in images:
            self._augment.set_random_seed(seed)
            views.append(self._augment(image=placement.cut(image, size_px))["image"])
        if patch_px is None:
            return views
        placed = None if mask is None else placement.cut(mask, size_px)
        left, top = _patch_corner(placed, size_px, patch_px, rng)
        return [np.ascontiguousarray(view[top : top + patch_px, left : left + patch_px]) for view in views]

    def _drawn_placement(self, rng: np.random.Generator) -> Placement:
        """Draw the recipe's random crop, mirroring, rotation and scale, and the jitter of detected boxes in video.

        From frame to frame, MTCNN's boxes shift and grow by a few per cent of their side.
        """
        settings = self._settings
        is_turned, is_flipped, is_outlier = rng.random(3) < (settings.affine_p, settings.flip_p, OUTLIER_PROB)
        turn_deg = rng.uniform(-settings.rotate_deg, settings.rotate_deg)
        scale = rng.uniform(settings.scale_min, settings.scale_max)
        free = (settings.resize_px - settings.input_size_px) / settings.resize_px
        jitter = settings.box_jitter * (OUTLIER_FACTOR if is_outlier else 1)
        growth, *moves = jitter * rng.standard_normal(3)
        shift = rng.uniform(-free / 2, free / 2, 2) / ROTATION_MARGIN + np.array(moves) / self._margin
        side = (1 - free) / ROTATION_MARGIN * math.exp(growth) / (scale if is_turned else 1)
        return Placement((float(shift[0]), float(shift[1])), side, turn_deg if is_turned else 0.0, bool(is_flipped))


def _patch_corner(mask: Float32Array | None, size_px: int, patch_px: int, rng: np.random.Generator) -> tuple[int, int]:
    """Draw left and top of a patch: anywhere, or, if there is a mask, near a point of the mask's edge."""
    free_px = size_px - patch_px
    anywhere = rng.integers(0, free_px + 1, size=2)
    if mask is None or not mask.any():
        return int(anywhere[0]), int(anywhere[1])
    relative = mask / mask.max()
    edge = np.argwhere((relative > 0.1) & (relative < 0.9))
    if not len(edge):
        return int(anywhere[0]), int(anywhere[1])
    y, x = edge[rng.integers(len(edge))] + rng.integers(-patch_px // 4, patch_px // 4 + 1, size=2) - patch_px // 2
    return int(np.clip(x, 0, free_px)), int(np.clip(y, 0, free_px))


def _augmentation(settings: TrainSettings) -> Any:
    """Build the augmentation of colours, sharpness and noise; callers seed it for each image."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # otherwise its import checks for updates online
    import albumentations as A

    jitter = (1 - settings.jitter, 1 + settings.jitter)
    area_and_cubic = {"downscale": cv2.INTER_AREA, "upscale": cv2.INTER_CUBIC}
    return A.Compose(
        [
            A.ColorJitter(brightness=jitter, contrast=jitter, saturation=jitter, hue=(0, 0), p=settings.jitter_p),
            A.RandomBrightnessContrast(
                brightness_limit=(-settings.brightness_contrast, settings.brightness_contrast),
                contrast_limit=(-settings.brightness_contrast, settings.brightness_contrast),
                p=settings.brightness_contrast_p,
            ),
            A.Downscale(
                scale_range=(settings.downscale_min, settings.downscale_max),
                interpolation_pair=area_and_cubic,
                p=settings.downscale_p,
            ),
            A.GaussianBlur(blur_limit=(settings.blur_min_px, settings.blur_max_px), p=settings.blur_p),
            A.GaussNoise(std_range=(settings.noise_min, settings.noise_max), p=settings.noise_p),
            A.ISONoise(p=settings.iso_noise_p),
            A.ImageCompression(quality_range=(settings.jpeg_min, settings.jpeg_max), p=settings.jpeg_p),
        ]
    )
