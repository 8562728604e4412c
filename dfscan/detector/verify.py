"""Refuse a checkpoint that does not give its expected logits on this device with these libraries."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import Mapping

import numpy as np

from dfscan.cache import cache_dir
from dfscan.detector.checkpoint import Checkpoint
from dfscan.detector.runtime import Runtime
from dfscan.detector.selftest import ENLARGED_PX, SELF_TEST_TOLERANCE, enlarged_input, library_versions, self_test_input
from dfscan.errors import CheckpointError, OutputError
from dfscan.files import make_folder, write_bytes
from dfscan.gpu import device_name

MIXED_TOLERANCE = 2e-2
"""Maximum difference in mixed precision for logits up to 20; for larger logits, a thousandth of the logit."""

log = logging.getLogger("dfscan")


def verify_logits(runtime: Runtime, checkpoint: Checkpoint) -> None:
    """Check that the checkpoint gives its expected logits on this device with these libraries.

    Mixed precision may change logits by `MIXED_TOLERANCE`, here and on enlarged images; if it changes them more, the
    runtime is set to fp32. The bound is on the network's logits, not on scores: a high temperature brings all scores
    close together, and a change is then as large in comparison.

    The cache folder records a pass for this checkpoint, these versions and this device. Without a writable cache, the
    test runs every time.

    Raises:
        CheckpointError: if a logit differs by more than `SELF_TEST_TOLERANCE` in fp32.
    """
    stamp = None
    if folder := cache_dir():
        how = [device_name(runtime.device), runtime.batch_size, runtime.mixed_precision and ENLARGED_PX]
        facts = json.dumps([checkpoint.sha256, library_versions(), runtime.device, *how])
        stamp = folder / f"verified-{hashlib.sha256(facts.encode()).hexdigest()[:32]}"
        if stamp.is_file():
            return
    expected = np.asarray(checkpoint.card.self_test.expected_logits)
    inputs = self_test_input(checkpoint.card)
    device, is_mixed, runtime.mixed_precision = runtime.device, runtime.mixed_precision, False
    got = runtime.predict(inputs)[0]
    if not np.all(np.abs(got - expected) <= SELF_TEST_TOLERANCE):  # a NaN must fail
        test = checkpoint.card.self_test
        raise CheckpointError(
            f"checkpoint {checkpoint.path} fails its self-test on {runtime.device}: expected logits "
            f"{_numbers(test.expected_logits)}, got {_numbers(got.tolist())}. It was written with "
            f"{_listing(test.versions)}; installed are {_listing(library_versions())}. Its measured error rates would "
            "not apply: install the versions it was written with, or use a checkpoint written with the installed "
            "versions"
        )
    if is_mixed and runtime.device == device:
        inputs = np.concatenate([inputs, enlarged_input(checkpoint.card)])
        exact = runtime.predict(inputs)[0]
        runtime.mixed_precision = True
        shift = np.abs(runtime.predict(inputs)[0] - exact)
        if not np.all(shift <= np.maximum(MIXED_TOLERANCE, np.abs(exact) / 1000)):
            runtime.mixed_precision = False
            log.warning(
                "float16 changes this checkpoint's logits by %.3f: continuing in float32, which is slower", shift.max()
            )
            return
    if stamp and runtime.device == device:  # else memory ran out and the runtime moved to the CPU
        with contextlib.suppress(OutputError):  # without the stamp, the test runs again
            make_folder(stamp.parent)
            write_bytes(stamp, checkpoint.label.encode(errors="backslashreplace"))


def _numbers(values: tuple[float, ...] | list[float]) -> str:
    return ", ".join(f"{value:.6f}" for value in values)


def _listing(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items()) or "unknown versions"
