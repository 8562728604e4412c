"""Find the rows of a report that show the same video as an earlier row.

Rows come in report order, and a row only refers to earlier ones, so a report can be written row by row.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from dfscan.errors import DataError
from dfscan.fingerprint import (
    MIN_AGREEMENT,
    NUM_SKETCHES,
    SKETCH_CELLS,
    changes,
    check,
    is_same_picture,
    look,
    mean_picture,
)
from dfscan.text import display_path
from dfscan.types import Fingerprint, VideoResult

MIN_LIKENESS = 0.85
"""Minimum correlation of the coarse patterns of two copies; the other tests are made only where it is reached."""
MAX_DURATION_RATIO, MAX_DURATION_GAP_S = 0.02, 0.2
"""Two copies differ in duration by at most this part of the longer one, plus this many seconds."""


class First(NamedTuple):
    """The first row with a video."""

    path: str
    sha256: str | None
    """Rows of merged ledgers can have the same relative path."""

    @classmethod
    def of(cls, result: VideoResult) -> First:
        """Return what identifies the row of a result."""
        return cls(result.path, result.info.sha256)


class CopyFinder:
    """Assigns each row to the first earlier row with the same video.

    Per row, the durations of all earlier rows are read in numpy, and then 256 bytes of each row of about the same
    duration. Only rows with similar pictures are compared further. About 8 kB per row are kept.
    """

    def __init__(self) -> None:
        self._by_hash: dict[str, First] = {}
        self._firsts: list[First] = []
        """For each fingerprint, the first row of its group."""
        self._fingerprints: list[Fingerprint] = []
        self._durations_s = np.zeros(64, np.float32)
        self._looks = np.zeros((64, SKETCH_CELLS**2), np.float32)
        self._changes = np.zeros((64, NUM_SKETCHES * SKETCH_CELLS**2), np.float16)

    def find(self, result: VideoResult) -> First | None:
        """Return the first row with the same video, or None if this row is the first; then remember it.

        Raises:
            DataError: its fingerprint in the ledger is damaged.
        """
        sha256, fingerprint = result.info.sha256, result.fingerprint
        first = self._by_hash.get(sha256) if sha256 and result.info.size_bytes else None
        if fingerprint is not None and result.info.duration_s is not None:
            try:
                check(fingerprint)
            except ValueError as error:
                cause = "its fingerprint in the ledger is damaged"
                raise DataError(
                    f"{display_path(result.path)}: {cause}; scan the videos again with a new ledger"
                ) from error
            first = self._find(fingerprint, result.info.duration_s, first, First.of(result))
        if sha256:
            self._by_hash.setdefault(sha256, first or First.of(result))
        return first

    def _find(self, fingerprint: Fingerprint, duration_s: float, first: First | None, row: First) -> First | None:
        pattern, moves = look(mean_picture(fingerprint)), changes(fingerprint)
        num_rows = len(self._firsts)
        if first is None:
            durations_s = self._durations_s[:num_rows]
            max_gaps_s = MAX_DURATION_GAP_S + MAX_DURATION_RATIO * np.maximum(durations_s, duration_s)
            rows = np.flatnonzero(np.abs(durations_s - duration_s) <= max_gaps_s)
            rows = rows[self._looks[rows] @ pattern >= MIN_LIKENESS]
            rows = rows[self._changes[rows].astype(np.float32) @ moves >= MIN_AGREEMENT]
            for i in rows.tolist():
                if is_same_picture(self._fingerprints[i], fingerprint):
                    first = self._firsts[i]
                    break
        if num_rows == len(self._looks):
            self._durations_s, self._looks, self._changes = (
                np.concatenate([kept, np.zeros_like(kept)]) for kept in (self._durations_s, self._looks, self._changes)
            )
        self._durations_s[num_rows], self._looks[num_rows], self._changes[num_rows] = duration_s, pattern, moves
        self._fingerprints.append(fingerprint)
        self._firsts.append(first or row)
        return first
