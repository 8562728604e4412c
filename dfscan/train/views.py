"""From a face crop to what the network sees of it: one view, or a pair of a real face and a fake made from it.

What is drawn depends on the generator alone, and is drawn equally for both of a pair: nothing but the forgery may tell
them apart. In evaluation a view is the same cut and the same single resizing as in a scan.
"""

from __future__ import annotations

import os
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from dfscan.faces.crop import crop_face, crop_square_xyxy
from dfscan.train.crops import LooseCrop
from dfscan.train.degrade import compress_h264, smooth_skin
from dfscan.train.forgery import LEAST_SIDE_PX
from dfscan.train.manipulate import forge
from dfscan.train.settings import ForgeryKind, TrainSettings

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]

RESENT_FACTORS, RESENT_CRFS = (0.5, 1.0), (24, 36)
"""What a messenger does to a video: its scale, and its H.264 rate factor."""
ROOM = 1.25
"""Side of the picture that is turned and scaled over the side of what is then cut from it."""


def evaluation_view(face: LooseCrop, settings: TrainSettings) -> Pixels:
    """What a scan would show the network of this face: (size, size, 3) RGB."""
    return crop_face(face.pixels, face.box_xyxy, margin=settings.crop_margin, size=settings.input_size_px)


def evaluation_fake(
    face: LooseCrop,
    settings: TrainSettings,
    rng: np.random.Generator,
    kind: ForgeryKind,
    companion: LooseCrop | None = None,
) -> Pixels:
    """The view of a fake that differs from this real face within the mask alone; `companion` as for `pair`."""
    beside = companion
    if companion and companion.pixels.shape != face.pixels.shape:  # another person's
        beside = _work(companion, face.pixels.shape[0], margin=_margin(face))
    blend = forge(kind, face, beside, rng, keeps_real=True)
    return evaluation_view(LooseCrop(blend.fake, face.box_xyxy, face.landmarks), settings)


def _margin(face: LooseCrop) -> float:
    """Side of a loose crop over the longer side of its box."""
    return float(face.pixels.shape[0] / (face.box_xyxy[2:] - face.box_xyxy[:2]).max())


def _work(face: LooseCrop, size_px: int, *, margin: float) -> LooseCrop:
    """The square round a face, at the given size."""
    left, top, right, _ = crop_square_xyxy(face.box_xyxy, margin=margin)
    scale, corner = size_px / (right - left), np.array([left, top], np.float32)
    pixels = crop_face(face.pixels, face.box_xyxy, margin=margin, size=size_px)
    box = (face.box_xyxy - np.tile(corner, 2)) * scale
    return LooseCrop(pixels, box.astype(np.float32), ((face.landmarks - corner) * scale).astype(np.float32))


class TrainingViews:
    """Makes the views of training, with the augmentation of the settings."""

    def __init__(self, settings: TrainSettings) -> None:
        self._settings = settings
        self._augment = _augmentation(settings)
        self._margin = settings.crop_margin * settings.resize_px / settings.input_size_px * ROOM
        self._size_px = round(settings.resize_px * ROOM)

    def single(self, face: LooseCrop, rng: np.random.Generator) -> list[Pixels]:
        """One view, (size, size, 3) RGB, in a list; size is the patch's where there is one.

        Beside pairs it goes through the same shrinking and compression as they do, or clean would mean fake.
        """
        has_pairs = bool(self._settings.kinds)
        work = _work(face, self._native_size(face, rng) if has_pairs else self._size_px, margin=self._margin)
        (picture,) = self._compressed([work.pixels], rng) if has_pairs else [work.pixels]
        enlarged = cv2.resize(picture, (self._size_px, self._size_px), interpolation=cv2.INTER_CUBIC)
        return self._cut([self._augmented(enlarged.astype(np.uint8), None, int(rng.integers(2**31)))], rng)

    def pair(
        self,
        face: LooseCrop,
        rng: np.random.Generator,
        kind: ForgeryKind = "self-blended",
        companion: LooseCrop | None = None,
    ) -> list[Pixels]:
        """Two views, of a real face and of a fake made from it, alike in everything else.

        Args:
            face: the real one.
            rng: source of chance.
            kind: of the fake.
            companion: what it is made with, see `forge`; of any size here.
        """
        size_px = self._native_size(face, rng)
        work = _work(face, size_px, margin=self._margin)
        beside = _work(companion, size_px, margin=self._margin) if companion else None
        blend = forge(kind, work, beside, rng, keeps_real=False)
        pictures = self._compressed([blend.real, blend.fake], rng)
        full = (self._size_px, self._size_px)
        mask = cv2.resize(blend.mask, full, interpolation=cv2.INTER_LINEAR).astype(np.float32, copy=False)
        seed = int(rng.integers(2**31))
        enlarged = (cv2.resize(picture, full, interpolation=cv2.INTER_CUBIC) for picture in pictures)
        return self._cut([self._augmented(picture.astype(np.uint8), mask, seed) for picture in enlarged], rng)

    def _native_size(self, face: LooseCrop, rng: np.random.Generator) -> int:
        """The side at which a fake is made and compressed: as its video would have it, never enlarged."""
        settings = self._settings
        left, _, right, _ = crop_square_xyxy(face.box_xyxy, margin=self._margin)
        size_px = min(self._size_px, right - left)
        is_shrunk, scale = rng.random() < settings.resolution_p, rng.uniform(settings.resolution_min, 1)
        least_px = round(self._size_px * settings.resolution_min)
        return max(min(size_px, least_px), round(size_px * scale)) if is_shrunk else size_px

    def _compressed(self, pictures: list[Pixels], rng: np.random.Generator) -> list[Pixels]:
        settings = self._settings
        is_compressed = rng.random() < settings.h264_p
        crf = int(rng.integers(settings.h264_crf_min, settings.h264_crf_max + 1))
        # Nothing is drawn for what never happens, so that recipes without it go on seeing the same faces.
        is_smoothed = settings.beauty_p > 0 and rng.random() < settings.beauty_p
        is_resent = settings.resend_p > 0 and rng.random() < settings.resend_p
        if is_smoothed:
            strength = rng.uniform(0.2, 1)
            pictures = [smooth_skin(picture, strength=strength) for picture in pictures]
        if is_compressed:
            pictures = [compress_h264(picture, crf=crf) for picture in pictures]
        if is_resent:
            factor, crf = rng.uniform(*RESENT_FACTORS), int(rng.integers(RESENT_CRFS[0], RESENT_CRFS[1] + 1))
            pictures = [_resent(picture, factor, crf) for picture in pictures]
        return pictures

    def _augmented(self, picture: Pixels, mask: Floats | None, seed: int) -> tuple[Pixels, Floats | None]:
        self._augment.set_random_seed(seed)
        if mask is None:
            return self._augment(image=picture)["image"], None
        drawn = self._augment(image=picture, mask=mask)
        return drawn["image"], drawn["mask"]

    def _cut(self, drawn: list[tuple[Pixels, Floats | None]], rng: np.random.Generator) -> list[Pixels]:
        """The same patch of all, where patches are asked for."""
        patch_px = self._settings.patch_px
        if patch_px is None:
            return [pixels for pixels, _ in drawn]
        left, top = _patch_corner(drawn[0][1], self._settings.input_size_px, patch_px, rng)
        return [np.ascontiguousarray(pixels[top : top + patch_px, left : left + patch_px]) for pixels, _ in drawn]


def _resent(picture: Pixels, factor: float, crf: int) -> Pixels:
    """Shrunk, compressed, and enlarged by who watches it."""
    side_px = picture.shape[0]
    small_px = max(LEAST_SIDE_PX, round(side_px * factor))
    small = np.asarray(cv2.resize(picture, (small_px, small_px), interpolation=cv2.INTER_AREA), np.uint8)
    back = cv2.resize(compress_h264(small, crf=crf), (side_px, side_px), interpolation=cv2.INTER_CUBIC)
    return np.asarray(back, np.uint8)


def _patch_corner(mask: Floats | None, size_px: int, patch_px: int, rng: np.random.Generator) -> tuple[int, int]:
    """Left and top of a patch: anywhere, or about a point of the mask's edge, without which no fake shows."""
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
    """The specification's augmentation; seeded anew for each picture."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else its import asks the network for a newer one
    import albumentations as A

    size_px, jitter = settings.input_size_px, (1 - settings.jitter, 1 + settings.jitter)
    area_and_cubic = {"downscale": cv2.INTER_AREA, "upscale": cv2.INTER_CUBIC}
    return A.Compose(
        [
            A.Affine(
                rotate=(-settings.rotate_deg, settings.rotate_deg),
                scale=(settings.scale_min, settings.scale_max),
                mask_interpolation=cv2.INTER_LINEAR,
                border_mode=cv2.BORDER_REFLECT_101,
                p=settings.affine_p,
            ),
            A.CenterCrop(settings.resize_px, settings.resize_px),
            A.RandomCrop(size_px, size_px),
            A.HorizontalFlip(p=settings.flip_p),
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
