"""Check a bundle, which may have been made to do harm, and the original videos against it.

Nothing is unpacked to disk: files are hashed as they are read. Names that could leave a folder, links, encrypted and
repeated entries, and bundles that would grow out of proportion are refused.
"""

from __future__ import annotations

import hashlib
import json
import re
import stat
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO

from dfscan.bundle.signature import check_signature
from dfscan.bundle.write import CONTENTS_NAME, FORMAT, PIECE_BYTES, SIGNATURE_NAME, SUMS_NAME
from dfscan.errors import ConfigError, DataError, VideoError
from dfscan.media.source import hash_file
from dfscan.objects import is_url
from dfscan.report.readers import read_rows
from dfscan.text import display_path, is_escaped, printable

MAX_RATIO = 200
"""Maximum size of all files together, relative to the bundle. Deflate can reach 1032; a bundle with a ledger of 50,000
videos with equal faces reached 30."""
MAX_SMALL_BYTES = 64 << 20
"""Maximum size of the files that are read into memory: the checksums, their signature and the list of contents."""
MAX_LINE_BYTES = 1 << 20
"""Maximum length of a line of a report."""
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


def verify_bundle(path: Path, *, videos: Path | None = None, allowed_signers: Path | None = None) -> Verification:
    """Check the files of a bundle against its checksums, its signature, and the original videos against its report.

    Args:
        path: the bundle.
        videos: folder in which to look for the original videos; None checks the bundle alone.
        allowed_signers: trusted signers, see `signature.check_signature`. A bundle without a signature of one of them
            is then a difference.

    Raises:
        DataError: the file is not a bundle, or is refused.
        ConfigError: `videos` or `allowed_signers` does not exist, or ssh-keygen is needed and missing.
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
            _check_signature(archive, entries, path, sums, allowed_signers, found)
            if videos is not None:
                _check_originals(archive, entries, path, videos, found)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise DataError(f"{path}: not a bundle, or damaged ({error}); get it again") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    return found


def _accepted(archive: zipfile.ZipFile, path: Path) -> dict[str, zipfile.ZipInfo]:
    """Return the entries by name, or refuse the bundle."""
    infos = archive.infolist()
    names = Counter(info.filename for info in infos)
    for info in infos:
        if problem := _problem(info, names):
            raise DataError(f"{path}: refused: '{printable(info.filename)}' {problem}")
    num_bytes, limit = sum(info.file_size for info in infos), max(MAX_SMALL_BYTES, MAX_RATIO * path.stat().st_size)
    if num_bytes > limit:
        raise DataError(f"{path}: refused: {num_bytes} bytes when unpacked, more than {MAX_RATIO} times its own size")
    return {info.filename: info for info in infos if not info.is_dir()}


def _problem(info: zipfile.ZipInfo, names: Counter[str]) -> str | None:
    name, kind = info.filename.removesuffix("/"), stat.S_IFMT(info.external_attr >> 16)
    if is_escaped(name) or "\\" in name or info.orig_filename != info.filename:
        return "has a name with unprintable characters or backslashes"
    if name.startswith("/") or ":" in name.partition("/")[0] or {"", ".", ".."} & set(name.split("/")):
        return "names a place outside the bundle"
    if names[info.filename] > 1:
        return "is there twice"
    if kind not in (0, stat.S_IFDIR if info.is_dir() else stat.S_IFREG):
        return "is a link or a device"
    if info.flag_bits & 1:
        return "is encrypted"
    return None


def _small(archive: zipfile.ZipFile, entries: dict[str, zipfile.ZipInfo], name: str, path: Path) -> bytes:
    if name not in entries:
        raise DataError(f"{path}: not a bundle of dfscan: it has no {name}")
    if entries[name].file_size > MAX_SMALL_BYTES:
        raise DataError(f"{path}: refused: {name} is larger than {MAX_SMALL_BYTES >> 20} MiB")
    return archive.read(name)


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
            found.differences.append(f"{SUMS_NAME}, line {number}: {'repeated' if match else 'not a checksum'}")
    for name in sorted(entries.keys() - {SUMS_NAME, SIGNATURE_NAME}):
        if name not in sums:
            found.differences.append(f"{name}: is not in {SUMS_NAME}")
            continue
        found.num_files += 1
        try:
            with archive.open(name) as file:
                is_same = _sha256(file) == sums[name]
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            found.differences.append(f"{name}: is damaged ({error})")
        else:
            found.differences += [] if is_same else [f"{name}: differs from its checksum"]
    found.differences += [f"{printable(name)}: is missing" for name in sorted(sums.keys() - entries.keys())]
    return raw


def _sha256(file: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while piece := file.read(PIECE_BYTES):
        digest.update(piece)
    return digest.hexdigest()


def _check_signature(
    archive: zipfile.ZipFile,
    entries: dict[str, zipfile.ZipInfo],
    path: Path,
    sums: bytes,
    allowed_signers: Path | None,
    found: Verification,
) -> None:
    if SIGNATURE_NAME not in entries:
        found.signature = "none, so anyone can have changed the bundle and its checksums"
        if allowed_signers:
            found.differences.append("signature: the bundle has none")
        return
    checked = check_signature(sums, _small(archive, entries, SIGNATURE_NAME, path), allowed_signers)
    found.signature = checked.text
    if not checked.is_good:
        found.differences.append(f"signature: {checked.text}")


def _report_name(archive: zipfile.ZipFile, entries: dict[str, zipfile.ZipInfo], path: Path) -> str:
    """Return the name of the report in the bundle."""
    try:
        document = json.loads(_small(archive, entries, CONTENTS_NAME, path))
        name, version = document["report"], document["format"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{path}: {CONTENTS_NAME} is damaged ({error}); get the bundle again") from error
    if version != FORMAT:
        raise DataError(f"{path}: format {version!r} is of another version of dfscan; this one reads {FORMAT}")
    if name not in entries:
        raise DataError(f"{path}: the report that {CONTENTS_NAME} names is missing; get the bundle again")
    return str(name)


# The original videos


def _check_originals(
    archive: zipfile.ZipFile, entries: dict[str, zipfile.ZipInfo], path: Path, videos: Path, found: Verification
) -> None:
    """Compare the hash of every video with the one in its row."""
    counts = Counter[str]()
    try:
        report = _report_name(archive, entries, path)
        with archive.open(entries[report]) as file:
            for row in read_rows(report, _lines(file, report)):
                state, problem = _original(str(row["path"]), row["sha256"], videos)
                counts[state] += 1
                found.differences += [problem] if problem else []
    except (DataError, zipfile.BadZipFile, zlib.error, EOFError) as error:  # also the differences so far are of use
        found.differences.append(f"original videos: not all checked ({error})")
    found.originals = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state]) or "none checked"


STATES = ("unchanged", "different", "missing", "unreadable", "in a store (not checked)", "without a hash (not checked)")


def _lines(file: IO[bytes], name: str) -> Iterator[str]:
    """Yield the lines of a report; a compressed one can be longer than memory."""
    is_first = True
    while line := file.readline(MAX_LINE_BYTES + 1):
        if len(line) > MAX_LINE_BYTES:
            raise DataError(f"{name}: refused: a line is longer than {MAX_LINE_BYTES} bytes")
        try:
            yield line.decode("utf-8-sig" if is_first else "utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"{name}: not a report of dfscan ({error})") from error
        is_first = False


def _original(shown: str, sha256: object, videos: Path) -> tuple[str, str | None]:
    """Return what became of one video, and the difference, if there is one."""
    if is_url(shown):
        return "in a store (not checked)", None
    if not isinstance(sha256, str):
        return "without a hash (not checked)", None
    problems = list[tuple[str, str | None]]()
    for candidate in _candidates(shown, videos):
        try:
            if hash_file(str(candidate)) == sha256:
                return "unchanged", None
            problems.append(("different", f"{shown}: differs from the scanned file ({display_path(str(candidate))})"))
        except VideoError as error:
            if error.code != "not_found":
                problems.append(("unreadable", f"{shown}: {error}"))
    return problems[0] if problems else ("missing", f"{shown}: is not in {display_path(str(videos))}")


def _candidates(shown: str, videos: Path) -> Iterator[Path]:
    """Yield where a video may be: at its path below the folder, then at shorter and shorter ends of this path."""
    parts = [part for part in PurePosixPath(shown).parts if part not in ("/", ".", "..")]
    for start in range(len(parts)):
        yield videos.joinpath(*parts[start:])
