"""Read properties of a Matroska or WebM file that FFmpeg does not expose: its end, encrypted tracks, and writers.

A file is a sequence of elements. Each has a name, a size and a body, which may contain further elements. Name and size
are numbers of 1 to 8 bytes; the position of the first set bit gives their length. The bytes 0x42 0x86 are a size of two
bytes with the value 0x0286.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from io import FileIO

MAGIC = b"\x1a\x45\xdf\xa3"
MAX_ELEMENTS = 100_000
VIDEO_TRACK = 1
ENCRYPTION = 1

SEGMENT = b"\x18\x53\x80\x67"
TRACKS = b"\x16\x54\xae\x6b"
TRACK_ENTRY = b"\xae"
TRACK_TYPE = b"\x83"
CONTENT_ENCODINGS = b"\x6d\x80"
CONTENT_ENCODING = b"\x62\x40"
CONTENT_ENCODING_TYPE = b"\x50\x33"
DOCUMENT_TYPE = b"\x42\x82"
INFO = b"\x15\x49\xa9\x66"
APPLICATIONS = (b"\x4d\x80", b"\x57\x41")
"""The program that wrote the container, and the one that asked for it."""
MAX_TEXT_BYTES = 1000


@dataclass(frozen=True, slots=True)
class _Element:
    name: bytes
    start: int
    end: int | None
    """None if the size is unknown, as in live recordings."""


def announced_end(file: FileIO) -> int:
    """Return the end of the file that its header announces; 0 if it announces none."""
    segment = _segment(file)
    return (segment and segment.end) or 0


def encrypted_video_tracks(file: FileIO) -> list[bool]:
    """Return for each video track, in file order, whether it is encrypted."""
    segment = _segment(file)
    return [
        any(
            _number(file, kind) == ENCRYPTION
            for kind in _inside(file, entry, CONTENT_ENCODINGS, CONTENT_ENCODING, CONTENT_ENCODING_TYPE)
        )
        for entry in (_inside(file, segment, TRACKS, TRACK_ENTRY) if segment else ())
        if any(_number(file, kind) == VIDEO_TRACK for kind in _inside(file, entry, TRACK_TYPE))
    ]


def document_type(file: FileIO) -> str | None:
    """Return the kind of the file, ``matroska`` or ``webm``, or None if its header does not give it."""
    header = next((each for each in _elements(file, 0, _size(file)) if each.name == MAGIC), None)
    return next((_text(file, each) for each in _inside(file, header, DOCUMENT_TYPE)), None) if header else None


def applications(file: FileIO) -> list[str]:
    """Return the names of the programs that wrote the file."""
    segment = _segment(file)
    info = next(_inside(file, segment, INFO), None) if segment else None
    return [_text(file, each) for name in APPLICATIONS for each in _inside(file, info, name)] if info else []


def _segment(file: FileIO) -> _Element | None:
    return next((each for each in _elements(file, 0, _size(file)) if each.name == SEGMENT), None)


def _size(file: FileIO) -> int:
    return os.fstat(file.fileno()).st_size


def _elements(file: FileIO, start: int, end: int) -> Iterator[_Element]:
    for _ in range(MAX_ELEMENTS):
        head = os.pread(file.fileno(), 16, start)
        name = head[: _length(head)]
        field = head[len(name) :][: _length(head[len(name) :])]
        if start >= end or not name or not field:
            return
        body = start + len(name) + len(field)
        size = int.from_bytes(field, "big") - (1 << 7 * len(field))
        is_open = size == (1 << 7 * len(field)) - 1
        yield _Element(name, body, None if is_open else body + size)
        if is_open:
            return
        start = body + size


def _length(head: bytes) -> int:
    """Return the length in bytes of the number that starts here; 0 if there is none."""
    length = 9 - head[0].bit_length() if head and head[0] else 0
    return length if length <= len(head) else 0


def _inside(file: FileIO, parent: _Element, *path: bytes) -> Iterator[_Element]:
    """Yield the elements below `parent` that match a path of names."""
    size = _size(file)
    for child in _elements(file, parent.start, size if parent.end is None else min(parent.end, size)):
        if child.name == path[0]:
            if len(path) == 1:
                yield child
            else:
                yield from _inside(file, child, *path[1:])
            if child.name in (TRACKS, INFO):  # there is only one, and hours of frames may follow it
                return


def _number(file: FileIO, element: _Element) -> int:
    length = min((element.end or element.start) - element.start, 8)
    return int.from_bytes(os.pread(file.fileno(), length, element.start), "big")


def _text(file: FileIO, element: _Element) -> str:
    length = min((element.end or element.start) - element.start, MAX_TEXT_BYTES)
    return os.pread(file.fileno(), length, element.start).decode("utf-8", errors="replace").rstrip("\0")
