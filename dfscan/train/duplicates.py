"""Copies of a picture found by a fingerprint: among a million crops, whatever was re-encoded, resized or brightened."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

FINGERPRINT_CELLS = 16
FINGERPRINT_BITS = 2 * FINGERPRINT_CELLS**2
MIN_STEP = 0.05
"""A step between cells counts from this share of the picture's own contrast: smaller ones are noise."""
MAX_DISTANCE_BITS = 26
"""Up to here two crops are copies of one picture.

Measured on the 1,219 crops that `prepare` cuts from portraits of 1,083 people, as bits of 512 that differ. Four people
are in it twice, under two names and with one photograph that two publishers trimmed, so that the detector's box is not
quite the same: 16, 20, 26 and 34 bits.

============================  ======  ======  ======  ======
copy of a crop                median    99 %  99.9 %    most
============================  ======  ======  ======  ======
JPEG 50                            1       7      10      11
half the size                      1       9      14      16
brighter by 5 % and 6 levels       2      13      19      20
noise, sigma 6                     2      10      14      17
a quarter of the size              4      15      22      25
JPEG 30                            3      25      32      32
============================  ======  ======  ======  ======

============================  ======  ======  ======  ======
other photograph               least    20th  0.01 %  median
============================  ======  ======  ======  ======
of the same person                17      31              65
of another, one studio            38      51      57     197
============================  ======  ======  ======  ======
"""
NUM_BANDS = 20
"""What differs in up to 19 bits has a band in common for certain, with 26 bits in all but 1 of 10,000 cases."""

Fingerprints = NDArray[np.uint64]


def fingerprint(pixels: NDArray[np.uint8]) -> str:
    """Where a picture gets brighter to the right and downwards, on a grid of 16 x 16 cells.

    Args:
        pixels: (H, W, 3) RGB.

    Returns:
        512 bits as 128 hex digits.
    """
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY).astype(np.float32)
    side = FINGERPRINT_CELLS + 1
    cells = cv2.resize(grey, (side, side), interpolation=cv2.INTER_AREA)
    least = MIN_STEP * float(cells.std())
    corner = cells[:-1, :-1]
    steps = np.stack([cells[:-1, 1:] - corner, cells[1:, :-1] - corner])
    return np.packbits(steps > least).tobytes().hex()


def unpack(fingerprints: Sequence[str]) -> Fingerprints:
    """From hex digits to (N, 8) words."""
    return np.frombuffer(bytes.fromhex("".join(fingerprints)), np.uint64).reshape(-1, FINGERPRINT_BITS // 64)


def near_duplicates(
    fingerprints: Fingerprints, groups: NDArray[np.intp]
) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Find all pairs of different groups that are at most `MAX_DISTANCE_BITS` apart.

    Two fingerprints that differ in few bits agree in at least one of `NUM_BANDS` bands of bits, so only those that
    share a band are compared.

    Args:
        fingerprints: (N, 8), as from `unpack`.
        groups: (N,) pairs within one are passed over.

    Yields:
        Positions of the two of each pair; a pair may come more than once.
    """
    # Neighbouring bits say much the same; scattered ones spread the crops over many more values of a band.
    scattered = np.random.default_rng(0).permutation(FINGERPRINT_BITS)
    for bits in np.array_split(scattered, NUM_BANDS):
        values = _band(fingerprints, bits)
        order = np.argsort(values, kind="stable")
        ends = np.searchsorted(values[order], values[order], side="right")
        for first, second in _pairs_in_runs(ends):
            a, b = order[first], order[second]
            apart = groups[a] != groups[b]
            a, b = a[apart], b[apart]
            distances = np.bitwise_count(fingerprints[a] ^ fingerprints[b]).sum(axis=1, dtype=np.int64)
            is_near = distances <= MAX_DISTANCE_BITS
            if is_near.any():
                yield a[is_near], b[is_near]


def _band(fingerprints: Fingerprints, bits: NDArray[np.int64]) -> NDArray[np.uint32]:
    """(N,) the bits at these places, as one number; an order of bits of our own, the same for all."""
    values = np.zeros(len(fingerprints), np.uint32)
    for bit in bits:
        word, shift = divmod(int(bit), 64)
        values = (values << np.uint32(1)) | ((fingerprints[:, word] >> np.uint64(shift)) & np.uint64(1)).astype(
            np.uint32
        )
    return values


def _pairs_in_runs(ends: NDArray[np.intp]) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """All pairs of places in the same run, those one apart first; `ends` says for each place where its run ends."""
    first = np.arange(len(ends))
    step = 1
    while len(first := first[first + step < ends[first]]):
        yield first, first + step
        step += 1
