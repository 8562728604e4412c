"""The self-test: a checkpoint whose promised logits do not come out here, with these libraries, is refused."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import numpy as np
from numpy.typing import NDArray

import dfscan
from dfscan.cache import cache_dir, package_version, write_atomically
from dfscan.detector.card import CheckpointCard
from dfscan.detector.preprocess import to_input
from dfscan.errors import CheckpointError
from dfscan.gpu import device_name

if TYPE_CHECKING:
    from dfscan.detector.checkpoint import Checkpoint
    from dfscan.detector.runtime import Runtime

SELF_TEST_TOLERANCE = 1e-3
"""Largest allowed difference in logits, in fp32, between what a checkpoint promises and what it gives."""
MIXED_TOLERANCE = 2e-2
"""The same in mixed precision, for logits up to 20; of larger ones, as mosaics get them, a thousandth."""

_log = logging.getLogger("dfscan")


def self_test_input(card: CheckpointCard) -> NDArray[np.float32]:
    """The self-test's images after preprocessing: float32 [n, 3, size, size], from PCG64's raw stream.

    They are mosaics of 24 x 24 tiles. Noise of single pixels is so unlike any photograph that rounding errors grow on
    their way through a trained network.
    """
    test, preprocessing = card.self_test, card.preprocessing
    images = mosaic(test.num_inputs, 24, preprocessing.input_size_px, seed=test.seed)
    return to_input(list(images), preprocessing)


def mosaic(num_images: int, num_tiles: int, size_px: int, *, seed: int) -> NDArray[np.uint8]:
    """Tiles of random colours, uint8 (n, S, S, 3): integers only, so the same everywhere."""
    num_values = num_images * num_tiles * num_tiles * 3
    raw = np.random.PCG64(seed).random_raw(math.ceil(num_values / 8)).astype("<u8")
    tiles = raw.view(np.uint8)[:num_values].reshape(num_images, num_tiles, num_tiles, 3)
    tile_of_pixel = np.arange(size_px) * num_tiles // size_px
    return tiles[:, tile_of_pixel][:, :, tile_of_pixel]


def verify(runtime: Runtime, checkpoint: Checkpoint) -> None:
    """Make sure that the checkpoint still gives the logits it promised, here, on this device, with these libraries.

    In mixed precision they may differ by `MIXED_TOLERANCE`; where they differ by more, the runtime is set to fp32.

    A pass is remembered in the cache folder for this checkpoint, these versions and this device; without a
    writable cache the test runs every time.

    Raises:
        CheckpointError: if a logit differs by more than `SELF_TEST_TOLERANCE` in fp32.
    """
    stamp = _stamp_path(runtime, checkpoint)
    if stamp is not None and stamp.is_file():
        return
    expected = np.asarray(checkpoint.card.self_test.expected_logits)
    inputs = self_test_input(checkpoint.card)
    device, is_mixed, runtime.mixed_precision = runtime.device, runtime.mixed_precision, False
    got = runtime.predict(inputs)[0]
    if not np.all(np.abs(got - expected) <= SELF_TEST_TOLERANCE):  # a NaN must fail
        _refuse_scores(runtime.device, checkpoint, got)
    if is_mixed and runtime.device == device:
        runtime.mixed_precision = True
        shift = np.abs(runtime.predict(inputs)[0] - expected)
        if not np.all(shift <= np.maximum(MIXED_TOLERANCE, np.abs(expected) / 1000)):
            runtime.mixed_precision = False
            _log.warning("float16 shifts this checkpoint's logits by %.3f: going on in float32, slower", shift.max())
            return
    if runtime.device == device:  # else its memory ran out, and the CPU goes on
        _leave_stamp(stamp, checkpoint)


def _refuse_scores(device: str, checkpoint: Checkpoint, got: NDArray[np.float32]) -> NoReturn:
    test = checkpoint.card.self_test
    raise CheckpointError(
        f"checkpoint {checkpoint.path} fails its self-test on {device}: expected logits "
        f"{_numbers(test.expected_logits)}, got {_numbers(got.tolist())}. It was made with "
        f"{_listing(test.versions)}; here are {_listing(library_versions())}. Its scores would not be those "
        "that were measured: install the versions it was made with, or use a checkpoint made with these"
    )


def _numbers(values: tuple[float, ...] | list[float]) -> str:
    return ", ".join(f"{value:.6f}" for value in values)


def _listing(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items()) or "unknown versions"


def library_versions() -> dict[str, str]:
    """Versions of dfscan and of the libraries that a score depends on."""
    names = ("torch", "timm", "onnxruntime")
    return {"dfscan": dfscan.__version__} | {name: package_version(name) for name in names}


def _stamp_path(runtime: Runtime, checkpoint: Checkpoint) -> Path | None:
    if (folder := cache_dir()) is None:
        return None
    how = [device_name(runtime.device), runtime.batch_size, runtime.mixed_precision]
    facts = json.dumps([checkpoint.sha256, library_versions(), runtime.device, *how])
    return folder / f"verified-{hashlib.sha256(facts.encode()).hexdigest()[:32]}"


def _leave_stamp(stamp: Path | None, checkpoint: Checkpoint) -> None:
    if stamp is None:
        return
    with contextlib.suppress(OSError):  # verified again next time
        stamp.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(stamp, checkpoint.label.encode(errors="backslashreplace"))
