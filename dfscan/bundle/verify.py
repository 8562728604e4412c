"""Check a bundle, which may have been made to do harm, and the original videos against it.

Nothing is unpacked to disk: files are hashed as they are read. Names that could leave a folder, links, encrypted and
repeated entries, and bundles that would grow out of proportion are refused.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import stat
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from dfscan.bundle.signature import can_check, check_signature
from dfscan.bundle.write import (
    CONTENTS_NAME,
    FORMAT,
    MAX_RATIO,
    MAX_SMALL_BYTES,
    PIECE_BYTES,
    SIGNATURE_NAME,
    SUMS_NAME,
    name_problem,
)
from dfscan.errors import ConfigError, DataError, VideoError
from dfscan.files import file_place
from dfscan.media.source import hash_file
from dfscan.objects import is_url
from dfscan.report.readers import read_rows
from dfscan.text import display_path, printable

MAX_LINE_BYTES = 1 << 20
"""Maximum length of a line of a report."""
MAX_PATH_CHARACTERS, MAX_PATH_PARTS = 4096, 255
"""Maximum length of the path of an original video. Linux opens no longer ones."""
MAX_DIFFERENCES = 1000
"""Maximum number of differences that are named; the others are counted."""
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""Accepted compressions. `zipfile` decompresses these in pieces, but a whole block of the others at once."""
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError)
_ESCAPE = re.compile(r"\\(?:[nrt]|x[0-9a-f]{2}|u[0-9a-f]{4})")
_SUM = re.compile(r"([0-9a-f]{64}) [ *](.+)")


@dataclass
class Verification:
    """What was checked, and every difference."""

    num_files: int = 0
    signature: str = ""
    """Finding on the signature."""
    originals: str = "not checked"
    """Finding on the original videos."""
    differences: list[str] = field(default_factory=list)
    """The first `MAX_DIFFERENCES` ones."""
    num_differences: int = 0

    def add(self, difference: str) -> None:
        """Count a difference, and keep it if there are not too many."""
        self.num_differences += 1
        if len(self.differences) < MAX_DIFFERENCES:
            self.differences.append(difference)


def verify_bundle(path: Path, *, videos: Path | None = None, allowed_signers: Path | None = None) -> Verification:
    """Check the files of a bundle against its checksums, its signature, and the original videos against its report.

    Args:
        path: the bundle.
        videos: folder in which to look for the original videos; None checks the bundle alone.
        allowed_signers: trusted signers, see `signature.check_signature`. A bundle without a signature of one of them
            is then a difference.

    Raises:
        DataError: the file is not a bundle, or is refused.
        ConfigError: `videos` or `allowed_signers` does not exist, or `allowed_signers` needs the missing ssh-keygen.
    """
    if videos is not None and not videos.is_dir():
        raise ConfigError(f"--videos {videos}: no such folder")
    if allowed_signers is not None and not allowed_signers.is_file():
        raise ConfigError(f"--allowed-signers {allowed_signers}: no such file")
    found = Verification()
    try:
        with zipfile.ZipFile(path) as archive:
            entries = _accepted(archive, path)
            sums = _checked_files(archive, entries, path, found)
            report = _report_name(archive, entries, path, found)
            if SIGNATURE_NAME not in entries:
                found.signature = "none, so anyone could have changed the bundle"
                if allowed_signers:
                    found.add("signature: the bundle has none")
            elif allowed_signers is None and not can_check():  # the checksums are of use without it
                found.signature = "not checked, because ssh-keygen is not installed"
            else:
                checked = check_signature(sums, _small(archive, entries, SIGNATURE_NAME, path), allowed_signers)
                found.signature = checked.text
                if not checked.is_good:
                    found.add(f"signature: {checked.text}")
            if videos is not None and report is not None:
                with archive.open(report) as file:
                    _check_originals(file, report, videos, found)
    except (NotImplementedError, *_DAMAGE) as error:
        raise DataError(f"{path}: not a bundle, or damaged ({error}); get it again") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    return found


def _accepted(archive: zipfile.ZipFile, path: Path) -> dict[str, zipfile.ZipInfo]:
    """Return the entries by name, or refuse the bundle."""
    infos = archive.infolist()
    names = Counter(info.filename for info in infos)
    for info in infos:
        expected_kind = stat.S_IFDIR if info.is_dir() else stat.S_IFREG
        faults = {
            "has two names": info.orig_filename != info.filename,
            "occurs twice": names[info.filename] > 1,
            "is a link or a device": stat.S_IFMT(info.external_attr >> 16) not in (0, expected_kind),
            "is encrypted": info.flag_bits & 1,
            "is compressed with another method than deflate": info.compress_type not in METHODS,
        }
        found = (fault for fault, is_present in faults.items() if is_present)
        if problem := name_problem(info.filename.removesuffix("/")) or next(found, None):
            raise DataError(f"{path}: refused: '{printable(info.filename)}' {problem}")
    num_bytes, limit = sum(info.file_size for info in infos), max(MAX_SMALL_BYTES, MAX_RATIO * path.stat().st_size)
    if num_bytes > limit:
        raise DataError(f"{path}: refused: {num_bytes} bytes when unpacked, more than {MAX_RATIO} times its own size")
    return {info.filename: info for info in infos if not info.is_dir()}


def _small(archive: zipfile.ZipFile, entries: dict[str, zipfile.ZipInfo], name: str, path: Path) -> bytes:
    if name not in entries:
        raise DataError(f"{path}: not a bundle of dfscan: it has no {name}")
    with archive.open(name) as file:  # the size in the entry may be wrong
        data = file.read(MAX_SMALL_BYTES + 1)
    if len(data) > MAX_SMALL_BYTES:
        raise DataError(f"{path}: refused: {name} is larger than {MAX_SMALL_BYTES >> 20} MiB")
    return data


def _checked_files(
    archive: zipfile.ZipFile, entries: dict[str, zipfile.ZipInfo], path: Path, found: Verification
) -> bytes:
    """Compare every file with its checksum; return the checksums as they are."""
    raw = _small(archive, entries, SUMS_NAME, path)
    sums: dict[str, str] = {}
    for number, line in enumerate(raw.decode(errors="surrogateescape").split("\n"), start=1):
        match = _SUM.fullmatch(line)
        if match and match[2] not in sums:
            sums[match[2]] = match[1]
        elif line:
            found.add(f"{SUMS_NAME}, line {number}: {'repeated' if match else 'not a checksum'}")
    for name in sorted(entries.keys() - {SUMS_NAME, SIGNATURE_NAME}):
        if name not in sums:
            found.add(f"{name}: is not in {SUMS_NAME}")
            continue
        found.num_files += 1
        digest = hashlib.sha256()
        try:
            with archive.open(name) as file:
                while piece := file.read(PIECE_BYTES):
                    digest.update(piece)
        except _DAMAGE as error:
            found.add(f"{name}: is damaged ({error})")
        else:
            if digest.hexdigest() != sums[name]:
                found.add(f"{name}: differs from its checksum")
    for name in sorted(sums.keys() - entries.keys()):
        found.add(f"{printable(name)}: is missing")
    return raw


def _report_name(
    archive: zipfile.ZipFile, entries: dict[str, zipfile.ZipInfo], path: Path, found: Verification
) -> str | None:
    """Return the name of the report in the bundle; None, after adding a difference, if it cannot be found."""
    try:
        document = json.loads(_small(archive, entries, CONTENTS_NAME, path))
        name, version = document["report"], document["format"]
    except (ValueError, KeyError, TypeError, RecursionError, *_DAMAGE) as error:
        found.add(f"{CONTENTS_NAME}: is damaged ({error})")
        return None
    if version != FORMAT:
        raise DataError(f"{path}: format {version!r} is of another version of dfscan; this one reads {FORMAT}")
    if isinstance(name, str) and name in entries:
        return name
    found.add(f"{CONTENTS_NAME}: the report that it names is missing")
    return None


# The original videos


def _check_originals(file: IO[bytes], report: str, videos: Path, found: Verification) -> None:
    """Compare the hash of every video with the one in its row."""
    counts = Counter[str]()
    hashes: dict[tuple[int, int] | None, str] = {}
    stop = ""
    try:
        for row in read_rows(report, _lines(file, report)):
            state, difference = _original(row, videos, hashes)
            counts[state] += 1
            if difference:
                found.add(difference)
    except (DataError, *_DAMAGE) as error:  # also the differences so far are of use
        stop = f"; not all checked ({error})"
        found.add(f"original videos{stop}")
    found.originals = (", ".join(f"{counts[state]} {state}" for state in STATES if counts[state]) or "none") + stop


STATES = (
    "unchanged",
    "different",
    "missing",
    "unreadable",
    "in a store (not checked)",
    "without a hash (not checked)",
    "with an escaped path (not checked)",
)


def _lines(file: IO[bytes], name: str) -> Iterator[str]:
    """Yield the lines of a report; a compressed one can be longer than memory."""
    encoding = "utf-8-sig"
    while line := file.readline(MAX_LINE_BYTES + 1):
        if len(line) > MAX_LINE_BYTES:
            raise DataError(f"{name}: refused: a line is longer than {MAX_LINE_BYTES} bytes")
        yield line.decode(encoding)
        encoding = "utf-8"


def _original(
    row: Mapping[str, Any], videos: Path, hashes: dict[tuple[int, int] | None, str]
) -> tuple[str, str | None]:
    """Return what became of one video, and the difference, if there is one.

    Args:
        row: row of the report.
        videos: folder in which to look.
        hashes: known hashes by `file_place`, so that no file is read twice.
    """
    shown, sha256 = str(row["path"])[:MAX_PATH_CHARACTERS], row["sha256"]
    if is_url(shown):
        return "in a store (not checked)", None
    if sha256 is None:
        return "without a hash (not checked)", None
    try:  # JSON Lines also have the path as bytes if it had to be escaped
        path = os.fsdecode(base64.b64decode(row["path_bytes"])) if "path_bytes" in row else str(row["path"])
    except (ValueError, TypeError) as error:
        raise DataError(f"`path_bytes` is damaged ({error})") from error
    parts = [part for part in path[: MAX_PATH_CHARACTERS + 1].split("/") if part not in ("", ".", "..")]
    if len(path) > MAX_PATH_CHARACTERS or len(parts) > MAX_PATH_PARTS or "\0" in path:
        parts = []
    problem: tuple[str, str] | None = None
    for start in range(len(parts)):  # first its whole path below the folder, then shorter and shorter ends of it
        candidate = os.path.join(videos, *parts[start:])
        place = file_place(candidate)
        try:
            found = hashes.get(place) or hash_file(candidate)
            if place:
                hashes[place] = found
            if found == sha256:
                return "unchanged", None
            problem = problem or ("different", f"{shown}: differs from the scanned file ({display_path(candidate)})")
        except VideoError as error:
            if error.code != "not_found":
                problem = problem or ("unreadable", f"{shown}: {error}")
    if problem is None and "path_bytes" not in row and _ESCAPE.search(shown):
        return "with an escaped path (not checked)", None
    return problem or ("missing", f"{shown}: is not in {display_path(str(videos))}")
