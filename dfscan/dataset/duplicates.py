"""Find copies of an image among a million crops by fingerprints that survive re-encoding, resizing and brightening."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from dfscan.arrays import UInt8Image

FINGERPRINT_CELLS = 16
FINGERPRINT_BITS = 2 * FINGERPRINT_CELLS**2
MIN_STEP = 0.05
"""Minimum difference between cells, relative to the image's own contrast; smaller differences are noise."""
MAX_DISTANCE_BITS = 26
"""Maximum distance at which two crops count as copies of one image.

Measured in differing bits, out of 512, on the 1,219 crops that `prepare` cuts from portraits of 1,083 people. Four
people appear twice, under two names: two publishers trimmed the same photograph differently, so the detector's box is
not quite the same. Their distances are 16, 20, 26 and 34 bits.

============================  ======  ======  ======  ======
copy of a crop                median    99 %  99.9 %     max
============================  ======  ======  ======  ======
JPEG 50                            1       7      10      11
half the size                      1       9      14      16
brighter by 5 % and 6 levels       2      13      19      20
noise, sigma 6                     2      10      14      17
a quarter of the size              4      15      22      25
JPEG 30                            3      25      32      32
============================  ======  ======  ======  ======

============================  ======  ======  ======  ======
another photograph               min    20th  0.01 %  median
============================  ======  ======  ======  ======
of the same person                17      31              65
of someone else, same studio      38      51      57     197
============================  ======  ======  ======  ======
"""
NUM_BANDS = 20
"""Two fingerprints share a band for certain up to 19 differing bits, and in all but 1 of 10,000 cases at 26 bits."""

Fingerprints = NDArray[np.uint64]


def fingerprint(pixels: UInt8Image) -> str:
    """Encode where an image gets brighter to the right and downwards, on a grid of 16 x 16 cells.

    Args:
        pixels: (H, W, 3) RGB.

    Returns:
        512 bits as 128 hex digits.
    """
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY).astype(np.float32)
    side = FINGERPRINT_CELLS + 1
    cells = cv2.resize(grey, (side, side), interpolation=cv2.INTER_AREA)
    min_step = MIN_STEP * float(cells.std())
    corner = cells[:-1, :-1]
    steps = np.stack([cells[:-1, 1:] - corner, cells[1:, :-1] - corner])
    return np.packbits(steps > min_step).tobytes().hex()


def unpack(fingerprints: Sequence[str]) -> Fingerprints:
    """Convert fingerprints from hex digits to (N, 8) words."""
    return np.frombuffer(bytes.fromhex("".join(fingerprints)), np.uint64).reshape(-1, FINGERPRINT_BITS // 64)


def near_duplicates(
    fingerprints: Fingerprints, groups: NDArray[np.intp]
) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Find all pairs of different groups that are at most `MAX_DISTANCE_BITS` apart.

    Two fingerprints that differ in few bits agree in at least one of `NUM_BANDS` bands of bits, so only fingerprints
    that share a band are compared.

    Args:
        fingerprints: (N, 8), from `unpack`.
        groups: (N,) group of each fingerprint; pairs within one group are skipped.

    Yields:
        Indices of the first and of the second member of each pair; a pair may be yielded more than once.
    """
    # Neighbouring bits are correlated; shuffled bits spread the crops over many more values per band.
    scattered = np.random.default_rng(0).permutation(FINGERPRINT_BITS)
    for bits in np.array_split(scattered, NUM_BANDS):
        values = np.zeros(len(fingerprints), np.uint32)  # the band of each fingerprint as a number
        for word, shift in (divmod(int(bit), 64) for bit in bits):
            is_set = (fingerprints[:, word] >> np.uint64(shift)) & np.uint64(1)
            values = (values << np.uint32(1)) | is_set.astype(np.uint32)
        order = np.argsort(values, kind="stable")
        ends = np.searchsorted(values[order], values[order], side="right")
        # Equal bands are a run in this order: pair each member with the next one, then with the one after it.
        ranks, step = np.arange(len(order)), 1
        while len(ranks := ranks[ranks + step < ends[ranks]]):
            a, b = order[ranks], order[ranks + step]
            apart = groups[a] != groups[b]
            a, b = a[apart], b[apart]
            distances = np.bitwise_count(fingerprints[a] ^ fingerprints[b]).sum(axis=1, dtype=np.int64)
            is_near = distances <= MAX_DISTANCE_BITS
            if is_near.any():
                yield a[is_near], b[is_near]
            step += 1
