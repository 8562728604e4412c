"""The input of a checkpoint's self-test, and the facts on which its expected logits depend."""

from __future__ import annotations

import math

import numpy as np

from dfscan.arrays import Float32Array, UInt8Image
from dfscan.cache import package_version
from dfscan.detector.card import CheckpointCard
from dfscan.detector.preprocess import to_input
from dfscan.version import __version__

SELF_TEST_TOLERANCE = 1e-3
"""Maximum difference between expected and computed logits in fp32."""
ENLARGED_PX = (4, 8, 16, 64)
"""Sides of the images that mixed precision is also tested on. They are enlarged like the small faces of videos: float16
has its largest errors on smooth images, which the sharp tiles of the self-test do not show."""


def self_test_input(card: CheckpointCard) -> Float32Array:
    """Return the preprocessed images of the self-test, float32 [n, 3, size, size], from PCG64's raw stream.

    The images are mosaics of 24 x 24 tiles. Pixel noise would be unsuitable: it is so unlike photographs that a trained
    network amplifies rounding errors.
    """
    test, preprocessing = card.self_test, card.preprocessing
    images = mosaic(test.num_inputs, 24, preprocessing.input_size_px, seed=test.seed)
    return to_input(list(images), preprocessing)


def enlarged_input(card: CheckpointCard) -> Float32Array:
    """Return preprocessed images that are as smooth as enlarged faces, float32 [n, 3, size, size]."""
    images = [mosaic(1, side_px, side_px, seed=card.self_test.seed)[0] for side_px in ENLARGED_PX]
    return to_input(images, card.preprocessing)


def mosaic(num_images: int, num_tiles: int, size_px: int, *, seed: int) -> UInt8Image:
    """Return mosaics of random colours, uint8 (n, S, S, 3); integer arithmetic makes them the same on every machine."""
    num_values = num_images * num_tiles * num_tiles * 3
    raw = np.random.PCG64(seed).random_raw(math.ceil(num_values / 8)).astype("<u8")
    tiles = raw.view(np.uint8)[:num_values].reshape(num_images, num_tiles, num_tiles, 3)
    tile_of_pixel = np.arange(size_px) * num_tiles // size_px
    return tiles[:, tile_of_pixel][:, :, tile_of_pixel]


def library_versions() -> dict[str, str]:
    """Return the versions of dfscan and of the libraries that a score depends on."""
    names = ("torch", "timm", "onnxruntime")
    return {"dfscan": __version__} | {name: package_version(name) for name in names}
