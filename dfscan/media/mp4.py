"""Read properties of an MP4 or MOV file that FFmpeg does not expose: encryption, display delays and edit lists.

A file is a sequence of boxes. Each has a size (4 bytes), a name (4 bytes) and a body, which may contain further boxes.
A size of 1 means that a size of 8 bytes follows the name. ::

    ftyp | mdat (the frames) | moov -> trak -> mdia -> minf -> stbl -> stsd (codec), ctts (display delays)
                                            -> edts -> elst (edit list)
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from io import FileIO

import numpy as np
from numpy.typing import NDArray

FIRST_BOXES = (b"ftyp", b"styp", b"moov", b"moof", b"sidx", b"mdat", b"wide", b"free", b"skip")
MAX_BOXES = 100_000
MAX_DELAYS = 10_000_000
MAX_TABLE_BYTES = 1 << 26
"""Maximum number of bytes that are read of a table, such as one of frame durations."""
SAMPLE_ENTRY_BYTES = 78
"""Fixed fields of a video sample entry, before the boxes in it."""
PROTECTED_ENTRIES = (b"encv", b"drmi", b"drmv")
"""Common Encryption and two variants of Apple's FairPlay."""


@dataclass(frozen=True, slots=True)
class Box:
    """One box. `start` and `end` are the bounds of its body; in a truncated file, `end` may exceed the file size."""

    kind: bytes
    start: int
    end: int


@dataclass(frozen=True, slots=True, eq=False)
class Mp4Track:
    """One track of the index."""

    is_encrypted: bool
    delays: NDArray[np.int64]
    """(N,) ticks from the decoding to the presentation of each frame; empty if the track has no such table."""


@dataclass(frozen=True, slots=True)
class Index:
    """The ``moov`` box."""

    tracks: dict[int, Mp4Track]
    """Tracks by track number, which is FFmpeg's `stream.id`."""
    is_fragmented: bool
    """True if the file may contain frames that the index does not list."""


@dataclass(frozen=True, slots=True)
class Edits:
    """The edit list of one track, which maps the stored frames to those that a player shows."""

    num_edits: int
    hidden_s: float
    """Seconds of the track that no entry shows; 0 if unknown."""


def is_mp4(file: FileIO) -> bool:
    """Return whether the file begins with a box of the MP4 family."""
    return os.pread(file.fileno(), 8, 0)[4:] in FIRST_BOXES


def boxes(file: FileIO, start: int, end: int) -> Iterator[Box]:
    """Yield the boxes between two positions; stop at the first data that is not a box."""
    for _ in range(MAX_BOXES):
        if start >= end:
            return
        head = os.pread(file.fileno(), 16, start)
        size, body = int.from_bytes(head[:4], "big"), start + 8
        if size == 1:
            size, body = int.from_bytes(head[8:], "big"), start + 16
        elif size == 0:  # up to the end, as in an unfinished recording
            size = end - start
        if len(head) < 8 or size < body - start or not head[4:8].rstrip().isalnum():
            return
        yield Box(head[4:8], body, start + size)
        start += size


def outer_boxes(file: FileIO) -> list[Box]:
    """Return the outermost boxes of the file. In a truncated file, the last one may end beyond the file size."""
    return list(boxes(file, 0, _size(file)))


def read_index(file: FileIO) -> Index | None:
    """Read the index, or return None if there is none or it is unreadable."""
    moov = next((box for box in outer_boxes(file) if box.kind == b"moov"), None)
    if moov is None:
        return None
    tracks = {}
    tables = (b"mdia", b"minf", b"stbl")
    for trak in _inside(file, moov, b"trak"):
        header = next(_inside(file, trak, b"tkhd"), None)
        if header is None:
            continue
        is_encrypted = any(
            entry.kind in PROTECTED_ENTRIES
            or any(_inside(file, Box(entry.kind, entry.start + SAMPLE_ENTRY_BYTES, entry.end), b"sinf"))
            for stsd in _inside(file, trak, *tables, b"stsd")
            for entry in boxes(file, stsd.start + 8, min(stsd.end, _size(file)))
        )
        ctts = next(_inside(file, trak, *tables, b"ctts"), None)
        delays = _delays(file, ctts) if ctts else np.empty(0, np.int64)
        tracks[_track_number(file, header)] = Mp4Track(is_encrypted, delays)
    return Index(tracks, is_fragmented=any(_inside(file, moov, b"mvex")))


def read_edits(file: FileIO) -> dict[int, Edits]:
    """Return the edit list of each track, by track number; a track without one has no entries and hides nothing."""
    moov = next((box for box in outer_boxes(file) if box.kind == b"moov"), None)
    header = next(_inside(file, moov, b"mvhd"), None) if moov else None
    if moov is None or header is None:
        return {}
    ticks_per_s = _ticks_per_s(file, header)
    found = {}
    for trak in _inside(file, moov, b"trak"):
        if (track := next(_inside(file, trak, b"tkhd"), None)) is not None:
            found[_track_number(file, track)] = _edits(file, trak, ticks_per_s)
    return found


def _edits(file: FileIO, trak: Box, ticks_per_s: int) -> Edits:
    elst = next(_inside(file, trak, b"edts", b"elst"), None)
    if elst is None:
        return Edits(0, 0.0)
    data = os.pread(file.fileno(), min(elst.end - elst.start, MAX_TABLE_BYTES), elst.start)
    entry = np.dtype([("ticks", ">u8"), ("start", ">i8"), ("rate", ">u4")])
    if data[:1] != b"\1":
        entry = np.dtype([("ticks", ">u4"), ("start", ">i4"), ("rate", ">u4")])
    num_edits = min(int.from_bytes(data[4:8], "big"), max(0, len(data) - 8) // entry.itemsize)
    entries = np.frombuffer(data, entry, num_edits, offset=8) if num_edits else np.empty(0, entry)
    shown = entries[entries["start"] >= 0]["ticks"].astype(np.float64)  # a negative start is a pause
    header = next(_inside(file, trak, b"mdia", b"mdhd"), None)
    track_ticks_per_s = _ticks_per_s(file, header) if header else 0
    if not ticks_per_s or not track_ticks_per_s or not shown.all():  # a duration of 0 means the whole rest
        return Edits(num_edits, 0.0)
    shown_s = float(shown.sum()) / ticks_per_s
    stored_ticks = 0  # of all frames; the duration in the header may include the delay of B-frames
    stts = next(_inside(file, trak, b"mdia", b"minf", b"stbl", b"stts"), None)
    if stts:
        data = os.pread(file.fileno(), min(stts.end - stts.start, MAX_TABLE_BYTES), stts.start)[8:]
        counts, ticks = np.frombuffer(data, ">u4", len(data) // 8 * 2).reshape(-1, 2).T.astype(np.float64)
        stored_ticks = int(counts @ ticks)
    return Edits(num_edits, max(0.0, stored_ticks / track_ticks_per_s - shown_s))


def _ticks_per_s(file: FileIO, header: Box) -> int:
    """Return the unit of time in an ``mvhd`` or ``mdhd`` box."""
    body = os.pread(file.fileno(), 24, header.start)
    at = 20 if body[:1] == b"\1" else 12  # times have 8 bytes in version 1
    return int.from_bytes(body[at : at + 4], "big")


def _size(file: FileIO) -> int:
    return os.fstat(file.fileno()).st_size


def _inside(file: FileIO, box: Box, *path: bytes) -> Iterator[Box]:
    """Yield the boxes below `box` that match a path of names."""
    for child in boxes(file, box.start, min(box.end, _size(file))):
        if child.kind == path[0]:
            if len(path) == 1:
                yield child
            else:
                yield from _inside(file, child, *path[1:])


def _track_number(file: FileIO, tkhd: Box) -> int:
    body = os.pread(file.fileno(), 24, tkhd.start)
    at = 20 if body[:1] == b"\1" else 12  # times have 8 bytes in version 1
    return int.from_bytes(body[at : at + 4], "big")


def _delays(file: FileIO, ctts: Box) -> NDArray[np.int64]:
    """Expand the table of (number of frames, delay) pairs.

    Both versions of the table are read as signed, because some writers store negative delays in version 0 too.
    """
    data = os.pread(file.fileno(), min(ctts.end, _size(file)) - ctts.start, ctts.start)
    num_pairs = min(int.from_bytes(data[4:8], "big"), (len(data) - 8) // 8)
    if num_pairs <= 0:
        return np.empty(0, np.int64)
    counts, delays = np.frombuffer(data, ">i4", 2 * num_pairs, offset=8).reshape(-1, 2).T.astype(np.int64)
    if counts.min() < 0 or counts.sum() > MAX_DELAYS:
        return np.empty(0, np.int64)
    return np.repeat(delays, counts)
