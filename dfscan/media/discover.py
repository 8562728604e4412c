"""Which files a scan looks at: from paths and lists of paths to one sorted list of regular files.

Nothing but the standard library is imported, so that the command line stays quick, and nothing that is not a
regular file is ever opened: a FIFO named ``x.mp4`` would block for ever.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, BinaryIO

from dfscan.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from dfscan.types import Reason

HEAD_BYTES = 4096

_VIDEO = """
    264 265 266 3g2 3gp 3gp2 3gpp amv asf av1 avc avi bik cavs dav dhav dirac divx drc dv dvr-ms evo f4v
    flc fli flv gxf h261 h263 h264 h265 h266 hevc ivf m1v m2p m2t m2ts m2v m4v mj2 mjpeg mjpg mk3d mkv mov
    mp2v mp4 mp4v mpe mpeg mpeg4 mpg mpv mts mxf nsv nut obu ogm ogv qt r3d rm rmvb roq smk tod tp trp ts
    vc1 vob vro vvc webm wm wmv wtv xvid y4m
"""
_PICTURES = """
    ai apng arw avif bmp cr2 cr3 cur dds dib djvu dng emf eps exr gif hdr heic heif icns ico j2k jfif jp2
    jpe jpeg jpg jxl nef orf pbm pcx pgm png pnm ppm psd raf rw2 svg svgz tga tif tiff webp wmf xcf
"""
# .ogg is absent because it may hold pictures too.
_SOUND = """
    aac ac3 aif aifc aiff amr ape au caf dts eac3 flac m3u m3u8 m4a m4b m4p m4r mid midi mka mp3 mpa oga
    opus pls ra spx tta wav weba wma wv xspf
"""
_TEXT = """
    ass bib csv doc docm docx epub htm html ini json jsonl ledger log lrc markdown md mobi ndjson nfo odp
    ods odt pages pdf ppt pptx rst rtf sbv srt ssa sub sup tex toml tsv ttml txt vtt xls xlsm xlsx xml
    yaml yml
"""
_ARCHIVES_AND_CODE = """
    7z apk bash bat bz2 c cab cc cfg class cmd conf cpp cs css cue dart deb diff dll dmg dylib exe go gz h
    hpp ipynb jar java js jsx kt lock lua lz4 lzma mjs o patch php pl ps1 py pyc pyi r rar rb rpm rs s sh
    so sql swift tar tbz2 tgz tsx txz wasm whl xz zip zst
"""
_DATA = """
    arrow avro ckpt crt db db-shm db-wal feather h5 hdf5 key mat md5 npy npz onnx parquet pb pem pickle
    pkl pt pth safetensors sha1 sha256 sig sqlite sqlite-shm sqlite-wal sqlite3 tflite torrent ttf woff
    woff2
"""

VIDEO_SUFFIXES = frozenset(_VIDEO.split())
"""Taken without a look inside."""

OTHER_SUFFIXES = frozenset(f"{_PICTURES} {_SOUND} {_TEXT} {_ARCHIVES_AND_CODE} {_DATA}".split())
"""Passed over without a look inside."""

_STILL_OR_SOUND_BRANDS = (
    b"M4A M4B M4P F4A F4B heic heix heim heis hevc hevx hevm hevs mif1 mif2 msf1 miaf avif avis avio"
    b" jp2 jpx jpm jxl crx"
)
_VIDEO_HEADS = (
    b"\x1a\x45\xdf\xa3",  # Matroska, WebM
    b"\x00\x00\x01\xba",  # MPEG program stream
    b"\x00\x00\x01\xb3",  # MPEG video
    b"FLV\x01",
    b"\x30\x26\xb2\x75\x8e\x66\xcf\x11\xa6\xd9\x00\xaa\x00\x62\xce\x6c",  # ASF
    b"\xb7\xd8\x00\x20\x37\x49\xda\x11\xa6\x4e\x00\x07\xe9\x5e\xad\x8d",  # WTV
    b"\x06\x0e\x2b\x34\x02\x05\x01\x01\x0d\x01\x02\x01\x01",  # MXF partition pack
    b".RMF",
    b"DHAV",
    b"DKIF",
    b"YUV4MPEG2",
    b"nut/multimedia container",
)
_OGG_VIDEO_MARKS = (b"\x80theora", b"BBCD\x00", b"OVP80", b"\x01video\x00")


@dataclass(frozen=True, slots=True)
class Discovery:
    """What a scan has to look at.

    `paths` and `problems` share no path; together they are the rows of the report.
    """

    paths: list[str]
    """Regular files to open, in code-point order; bytes that are not UTF-8 are surrogate escapes."""
    problems: dict[str, Reason]
    """Paths that get an ``error`` row unopened: ``not_found``, ``not_regular`` or ``unreadable``."""
    passed_over: Counter[str]
    """How many were left out: ``not_video``, ``excluded``, ``symlink``, ``not_regular``, ``duplicate``."""


def discover(
    inputs: Iterable[str | os.PathLike[str]],
    *,
    listed: Iterable[str | os.PathLike[str]] = (),
    include: Iterable[str] = (),
    exclude: Iterable[str] = (),
    follow_symlinks: bool = False,
) -> Discovery:
    """Find the files to scan.

    A file that is named always counts, whatever its suffix and the patterns. A directory is walked: it gives
    its files with a video suffix, and those with none or an unknown one that begin like a video container.

    Args:
        inputs: files and directories named on the command line; a symbolic link among them is followed.
        listed: entries of ``--files-from``; one that does not exist becomes a problem, not an exception.
        include: patterns (`fnmatch`, case-sensitive, ``*`` crosses ``/``) on the base name or on the path
            below the directory given; if there are any, they decide instead of suffix and content.
        exclude: patterns that win over everything found in a directory, and prune directories.
        follow_symlinks: also follow links met inside directories.

    Raises:
        ConfigError: some of `inputs` do not exist; the message names them all.
    """
    named = [os.fsdecode(path) for path in inputs]
    _require_existing(named)
    search = _Search(tuple(include), tuple(exclude), follow_symlinks)
    for path in (*named, *map(os.fsdecode, listed)):
        search.add_named(path)
    return search.result()


def read_list(stream: BinaryIO, *, null: bool) -> list[str]:
    """Read the entries of ``--files-from``: one a line or, with `null`, each ended by a NUL byte.

    Names are kept exactly, spaces and carriage returns included; blank lines are skipped.
    """
    entries = stream.read().split(b"\0" if null else b"\n")
    return [os.fsdecode(entry) for entry in entries if (entry if null else entry.strip())]


def looks_like_video(head: bytes) -> bool:
    """Tell from the first `HEAD_BYTES` bytes of a file whether it is a video container."""
    return (
        head.startswith(_VIDEO_HEADS)
        or (head[:4] == b"RIFF" and head[8:12] == b"AVI ")
        or _is_iso_media(head)
        or _is_transport_stream(head)
        or (head.startswith(b"OggS") and any(mark in head for mark in _OGG_VIDEO_MARKS))
    )


def _is_iso_media(head: bytes) -> bool:
    kind = head[4:8]
    if kind == b"ftyp":
        return head[8:12].rstrip() not in _STILL_OR_SOUND_BRANDS.split()
    # "free" and "skip" are English: the text "The free ..." would be an atom of 1.4 GB.
    is_small = head[:1] == b"\0"
    return kind in (b"moov", b"mdat") or (is_small and kind in (b"wide", b"free", b"skip"))


def _is_transport_stream(head: bytes) -> bool:
    def has_sync(first: int, step: int) -> bool:
        marks = head[first : first + 2 * step + 1 : step]
        return len(marks) >= 2 and marks.count(0x47) == len(marks)

    return has_sync(0, 188) or has_sync(4, 192)


def _require_existing(paths: list[str]) -> None:
    missing = [repr(path) for path in paths if not _exists(path)]
    if missing:
        raise ConfigError(
            f"no such file or directory: {', '.join(missing)}. "
            "Check the spelling and the current directory, or leave it out."
        )


def _exists(path: str) -> bool:
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    except OSError:
        return True  # it is there but out of reach: that is an error row
    return True


def _resolve(path: str) -> str:
    try:
        return os.path.realpath(path)
    except (OSError, ValueError):
        return path


def _reason(code: str, text: str) -> Reason:
    from dfscan.types import Reason  # brings numpy, which few scans need this early

    return Reason(code, text)


def _read_head(path: str) -> bytes:
    # The file may have been exchanged for a FIFO since it was listed: neither wait for it nor read from it.
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        return os.read(fd, HEAD_BYTES) if stat.S_ISREG(os.fstat(fd).st_mode) else b""
    finally:
        os.close(fd)


def _entry_kind(entry: os.DirEntry[str], follow_symlinks: bool) -> str:
    """Return ``file``, ``directory``, or the reason to pass the entry over."""
    if entry.is_symlink() and not follow_symlinks:
        return "symlink"
    try:
        if entry.is_dir():
            return "directory"
        return "file" if entry.is_file() else "not_regular"
    except OSError:  # a link that leads to itself
        return "not_regular"


@dataclass(slots=True)
class _Search:
    """One discovery under way."""

    include: tuple[str, ...]
    exclude: tuple[str, ...]
    follow_symlinks: bool
    rows: list[tuple[str, str, Reason | None]] = field(default_factory=list)
    """Path, resolved path, problem."""
    passed_over: Counter[str] = field(default_factory=Counter)

    def add_named(self, path: str) -> None:
        try:
            mode = os.stat(path).st_mode
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return self._add_problem(path, "not_found", "there is no such file; check the list it came from")
        except OSError as error:
            return self._add_problem(path, "unreadable", f"it cannot be reached ({error.strerror})")
        if stat.S_ISDIR(mode):
            return self._walk(path)
        if stat.S_ISREG(mode):
            return self.rows.append((path, _resolve(path), None))
        self._add_problem(path, "not_regular", "a pipe, socket or device; only regular files are read")

    def result(self) -> Discovery:
        seen: set[str] = set()
        paths: list[str] = []
        problems: dict[str, Reason] = {}
        for path, resolved, problem in sorted(self.rows, key=lambda row: row[:2]):
            if resolved in seen:
                self.passed_over["duplicate"] += 1
            elif problem:
                problems[path] = problem
            else:
                paths.append(path)
            seen.add(resolved)
        return Discovery(paths, problems, self.passed_over)

    def _add_problem(self, path: str, code: str, text: str) -> None:
        self.rows.append((path, _resolve(path), _reason(code, text)))

    def _walk(self, root: str) -> None:
        visited: set[tuple[int, int]] = set()
        pending = [(root, _resolve(root))]
        while pending:
            directory, resolved = pending.pop()
            if self.follow_symlinks and not self._is_first_visit(directory, visited):
                self.passed_over["duplicate"] += 1
                continue
            found = self._read_directory(directory, resolved, root)
            # With the slash, directories come in the order of the paths below them: "a.b/" before "a/".
            pending.extend(sorted(found, key=lambda pair: pair[0] + "/", reverse=True))

    def _is_first_visit(self, directory: str, visited: set[tuple[int, int]]) -> bool:
        try:
            status = os.stat(directory)
        except OSError:
            return True  # reading it will say why
        identity = (status.st_dev, status.st_ino)
        is_first = identity not in visited
        visited.add(identity)
        return is_first

    def _read_directory(self, directory: str, resolved: str, root: str) -> Iterator[tuple[str, str]]:
        """Take the files of one directory and yield its directories, each with its resolved path."""
        try:
            with os.scandir(directory) as entries:
                for entry in entries:
                    real = _resolve(entry.path) if entry.is_symlink() else os.path.join(resolved, entry.name)
                    if self._judge(entry, real, entry.path.removeprefix(root).lstrip("/")):
                        yield entry.path, real
        except OSError as error:
            self._add_problem(directory, "unreadable", f"the directory cannot be read ({error.strerror})")

    def _judge(self, entry: os.DirEntry[str], resolved: str, relative: str) -> bool:
        """Take or count a file; return whether the entry is a directory to walk."""
        kind = _entry_kind(entry, self.follow_symlinks)
        if kind in ("file", "directory") and _matches(entry.name, relative, self.exclude):
            kind = "excluded"
        if kind == "file":
            self._take(entry, resolved, relative)
        elif kind != "directory":
            self.passed_over[kind] += 1
        return kind == "directory"

    def _take(self, entry: os.DirEntry[str], resolved: str, relative: str) -> None:
        try:
            passed_over = self._why_not(entry.name, resolved, relative)
        except OSError as error:
            return self._add_problem(entry.path, "unreadable", f"it cannot be opened ({error.strerror})")
        if passed_over:
            self.passed_over[passed_over] += 1
        else:
            self.rows.append((entry.path, resolved, None))

    def _why_not(self, name: str, resolved: str, relative: str) -> str | None:
        if self.include:
            return None if _matches(name, relative, self.include) else "excluded"
        suffix = os.path.splitext(name)[1][1:].lower()
        if suffix in VIDEO_SUFFIXES:
            return None
        if suffix in OTHER_SUFFIXES or not looks_like_video(_read_head(resolved)):
            return "not_video"
        return None


def _matches(name: str, relative: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) or fnmatchcase(relative, pattern) for pattern in patterns)
