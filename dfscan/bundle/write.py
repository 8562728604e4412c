"""Write a bundle: a report, its metadata, page, heat maps and ledger in one zip file, with checksums of all of them.

Equal files give equal bytes, apart from signatures of some kinds of keys. Files are copied in pieces, so that memory
does not grow with their size.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import sqlite3
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from dfscan.bundle.signature import sign
from dfscan.errors import ConfigError, DataError, OutputError
from dfscan.files import AtomicFile, spare_inputs
from dfscan.report.dumps import FILE_COLUMNS, INDEX_NAME
from dfscan.report.meta import OUTPUT_KINDS, meta_path
from dfscan.report.readers import open_report
from dfscan.scan.ledger import LedgerReader
from dfscan.text import is_escaped, printable
from dfscan.version import __version__

SUMS_NAME = "SHA256SUMS"
SIGNATURE_NAME = "SHA256SUMS.sig"
CONTENTS_NAME = "bundle.json"
OWN_NAMES = (SUMS_NAME, SIGNATURE_NAME, CONTENTS_NAME)
FORMAT = 1
"""Version of the layout of bundles."""
OTHER_FOLDER = "other"
"""Folder in the bundle for files that are not below the report's folder."""
MEMBER_TIME = (1980, 1, 1, 0, 0, 0)
"""The earliest date in a zip file, which all its files get."""
PIECE_BYTES = 1 << 20
MAX_RATIO = 200
"""Maximum size of all files together, relative to the bundle. Deflate can reach 1032; a bundle with a ledger of 50,000
videos with equal faces reached 30."""
MAX_SMALL_BYTES = 64 << 20
"""Maximum size of the files that are read into memory: the checksums, their signature and the list of contents; and
the size of all files together that any bundle may have."""


@dataclass
class BundleSummary:
    """What a bundle holds."""

    num_files: int = 0
    num_bytes: int = 0
    """Bytes of all files, before compression."""
    warnings: list[str] = field(default_factory=list)


def write_bundle(
    report: Path, out: Path, *, added: Sequence[Path] = (), key: Path | None = None, with_ledger: bool = True
) -> BundleSummary:
    """Write a bundle, atomically replacing an older one.

    Args:
        report: the report, as CSV or JSON Lines.
        out: the zip file.
        added: more files and folders.
        key: SSH key that signs the checksums.
        with_ledger: include the ledger.

    Raises:
        ConfigError: the bundle would overwrite one of its files or a file that is no bundle, two files have one name in
            it, a name cannot be used, the key cannot sign, or `verify_bundle` would refuse the bundle for its size.
        DataError: the report or the ledger cannot be read.
        OutputError: the bundle or a temporary file cannot be written.
    """
    summary = BundleSummary()
    for _ in open_report(report):
        pass  # to fail early if it is not a report
    try:
        meta = json.loads(meta_path(report).read_text(encoding="utf-8"))
    except FileNotFoundError:
        meta = {}
    except (OSError, ValueError) as error:
        raise DataError(f"{meta_path(report)}: cannot be read ({error}); make the report again") from error
    meta = meta if isinstance(meta, dict) else {}
    outputs = _outputs(report, meta, summary)
    folder = os.path.dirname(os.path.abspath(report))
    files: dict[str, Path] = {}
    for path in (report, meta_path(report)):
        _add(files, _located(path, [path], folder, summary))
    for kind in OUTPUT_KINDS:
        for path in (Path(folder, name) for name in outputs[kind] if kind != "ledgers"):
            _add(files, _located(path, _listed(kind, path), folder, summary, is_listed=True))
    ledgers = [Path(folder, name) for name in outputs["ledgers"]]
    for path in added:  # of a folder, all files except symbolic links and ledgers, which are copied
        own = {os.path.realpath(f"{ledger}{suffix}") for ledger in ledgers for suffix in ("", "-wal", "-shm")}
        inside = [] if path.is_dir() else [path]
        for parent, folders, names in os.walk(path):
            folders.sort()
            found = [file for file in (Path(parent, name) for name in sorted(names)) if file.is_file()]
            inside += [file for file in found if not file.is_symlink() and os.path.realpath(file) not in own]
        _add(files, _located(path, inside, folder, summary))
    spare_inputs([("--out", out)], [*files.values(), *ledgers, *([key] if key else [])])
    if out.is_file() and not zipfile.is_zipfile(out):
        raise ConfigError(f"--out {out}: this file exists and is not a bundle; name another file")
    located_ledgers = [each for path in ledgers if with_ledger for each in _located(path, [path], folder, summary)]
    with tempfile.TemporaryDirectory() as temporary:
        for number, (name, path) in enumerate(located_ledgers):
            copy = Path(temporary, f"{number}.ledger")
            summary.warnings += _copied_ledger(path, copy, report, is_only=len(located_ledgers) == 1)
            _add(files, [(name, copy)])
        with AtomicFile(out) as file:
            with zipfile.ZipFile(_Target(file), "w") as archive:
                _write(archive, report, meta.get("case"), files, key, summary)
            _check_sizes(archive.infolist(), file.stream.tell(), out)
    return summary


def _check_sizes(infos: Sequence[zipfile.ZipInfo], bundle_bytes: int, out: Path) -> None:
    """Refuse what `verify_bundle` would refuse for its size, before the bundle gets its name."""
    if sum(info.file_size for info in infos) > max(MAX_SMALL_BYTES, MAX_RATIO * bundle_bytes):
        worst = max(infos, key=lambda info: info.file_size - MAX_RATIO * info.compress_size)
        raise ConfigError(
            f"--out {out}: `dfscan verify` would refuse this bundle, which is more than {MAX_RATIO} times as large "
            f"when unpacked; leave out repetitive files, such as {worst.filename}"
        )
    for info in infos:
        if info.filename in OWN_NAMES and info.file_size > MAX_SMALL_BYTES:
            raise ConfigError(
                f"--out {out}: `dfscan verify` would refuse this bundle, because {info.filename} is larger than "
                f"{MAX_SMALL_BYTES >> 20} MiB; put fewer files into it"
            )


def _write(
    archive: zipfile.ZipFile,
    report: Path,
    case: object,
    files: Mapping[str, Path],
    key: Path | None,
    summary: BundleSummary,
) -> None:
    contents = {
        "format": FORMAT,
        "dfscan_version": __version__,
        "report": os.path.basename(report),
        "case": case,
        "files": sorted(files),
    }
    contents_json = json.dumps(contents, ensure_ascii=False, indent=2) + "\n"
    sums = {CONTENTS_NAME: _add_bytes(archive, CONTENTS_NAME, contents_json.encode())}
    for name, path in sorted(files.items()):
        try:
            with path.open("rb") as source:
                sums[name] = _add_file(archive, name, source, os.fstat(source.fileno()).st_size)
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
        summary.num_bytes += archive.getinfo(name).file_size
    summary.num_files = len(sums)
    lines = "".join(f"{sum_hex}  {name}\n" for name, sum_hex in sorted(sums.items())).encode()
    _add_bytes(archive, SUMS_NAME, lines)
    if key:
        _add_bytes(archive, SIGNATURE_NAME, sign(lines, key))


class _Target(io.RawIOBase):
    """Lets `zipfile`, which needs the number of written bytes, write to an `AtomicFile`."""

    def __init__(self, file: AtomicFile) -> None:
        self._file = file
        self._has_failed = False

    def write(self, data: Any) -> int:
        if not self._has_failed:  # after a failure, `zipfile` still writes the end of the archive
            self._has_failed = True
            self._file.write(data)
            self._has_failed = False
        return len(data)


def _add_file(archive: zipfile.ZipFile, name: str, source: BinaryIO, num_bytes: int) -> str:
    """Copy a file in pieces, and return its sha256."""
    digest = hashlib.sha256()
    info = zipfile.ZipInfo(name, MEMBER_TIME)
    info.compress_type = zipfile.ZIP_DEFLATED
    info.create_system = 3  # Unix
    info.external_attr = 0o100644 << 16
    info.file_size = num_bytes
    with archive.open(info, "w", force_zip64=num_bytes > zipfile.ZIP64_LIMIT // 2) as target:
        while piece := source.read(PIECE_BYTES):
            digest.update(piece)
            target.write(piece)
    return digest.hexdigest()


def _add_bytes(archive: zipfile.ZipFile, name: str, data: bytes) -> str:
    return _add_file(archive, name, io.BytesIO(data), len(data))


# Which files


def _outputs(report: Path, meta: Mapping[str, Any], summary: BundleSummary) -> dict[str, list[str]]:
    """Return the outputs of the run that wrote the report, relative to its folder, by kind."""
    if "outputs" not in meta:
        summary.warnings.append(
            f"{meta_path(report)} does not list what belongs to the report; add the page and heat maps with --add"
        )
        beside = f"{os.path.basename(report)}.ledger"
        is_there = os.path.isfile(os.path.join(os.path.dirname(report), beside))
        return {kind: [beside] if kind == "ledgers" and is_there else [] for kind in OUTPUT_KINDS}
    outputs = meta["outputs"]
    listed: dict[str, Any] = {
        kind: outputs.get(kind, []) if isinstance(outputs, dict) else None for kind in OUTPUT_KINDS
    }
    for paths in listed.values():
        if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
            raise DataError(f"{meta_path(report)}: `outputs` is damaged; make the report again")
    return listed


def _listed(kind: str, path: Path) -> Iterator[Path]:
    """Yield the files of one output. Of folders, only those that dfscan wrote: the videos may be in the same folder."""
    if kind == "spans" and path.is_dir():
        yield from (file for file in sorted(path.glob("*.vtt")) if not file.is_symlink())
        return
    if kind != "heat_maps":
        yield path
        return
    index = path / INDEX_NAME
    yield index
    if not index.is_file():
        return
    try:
        with index.open(newline="", encoding="utf-8") as file:
            names = [row[column] for row in csv.DictReader(file) for column in FILE_COLUMNS]
    except (OSError, ValueError, KeyError, csv.Error) as error:
        raise DataError(f"{index}: cannot be read ({error}); make the heat maps again") from error
    for name in names:
        if not name or name_problem(name) or (path / name).is_symlink():
            raise DataError(f"{index}: '{printable(name or '')}' is not a file of a heat map; make the heat maps again")
        yield path / name


def _located(
    root: Path, paths: Iterable[Path], folder: str, summary: BundleSummary, *, is_listed: bool = False
) -> Iterator[tuple[str, Path]]:
    """Yield the name in the bundle and the path of each file.

    Args:
        root: a file, or the folder that the files are in.
        paths: the files.
        folder: folder of the report.
        summary: gets the warnings.
        is_listed: the metadata names `root`. They may come from someone else, so a file elsewhere causes a warning.
    """
    place = Path(os.path.relpath(root, folder)).as_posix()  # so that links between the files work in the bundle too
    if place.startswith("../") or place == "..":
        place = f"{OTHER_FOLDER}/{os.path.basename(os.path.abspath(root))}"
    for path in paths:
        name = (PurePosixPath(place) / path.relative_to(root).as_posix()).as_posix()
        if not path.is_file():
            summary.warnings.append(f"{path}: is missing, or no file; it is not in the bundle")
            continue
        if problem := name_problem(name):
            raise ConfigError(f"a bundle cannot have a file with this name: '{printable(name)}' {problem}; rename it")
        if is_listed and path == root and place.startswith(f"{OTHER_FOLDER}/"):
            summary.warnings.append(f"{path}: is not in the folder of the report; check that it belongs to it")
        yield name, path


def name_problem(name: str) -> str | None:
    """Return why a bundle cannot have a file with this name, as a predicate; None if it can."""
    if is_escaped(name) or "\\" in name:
        return "has unprintable characters or backslashes"
    if name.startswith("/") or ":" in name.partition("/")[0] or {"", ".", ".."} & set(name.split("/")):
        return "could name a place outside the bundle"
    return None


def _add(files: dict[str, Path], more: Iterable[tuple[str, Path]]) -> None:
    for name, path in more:
        if name in OWN_NAMES or (name in files and not os.path.samefile(files[name], path)):
            raise ConfigError(f"{path}: the bundle has another file named {name}; rename it")
        files[name] = path


# The ledger


def _copied_ledger(path: Path, copy: Path, report: Path, *, is_only: bool) -> list[str]:
    """Copy a ledger consistently, also while a scan writes it, into one file without a write-ahead log.

    Returns:
        What the author of the bundle may not expect.
    """
    with LedgerReader(path):
        pass  # only to check that it is one
    try:
        with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(copy)) as target:
            source.backup(target)
            target.execute("PRAGMA journal_mode = DELETE")
            target.execute("CREATE TEMP TABLE reported (sha256 TEXT PRIMARY KEY)")
            hashes = ((row["sha256"],) for row in open_report(report) if row["sha256"])
            target.executemany("INSERT OR IGNORE INTO reported VALUES (?)", hashes)
            # contents that only the report has, and files that only the ledger has
            unknown = "SELECT count(*) FROM reported WHERE sha256 NOT IN (SELECT sha256 FROM videos)"
            others = (
                "SELECT count(*) FROM videos WHERE rowid IN (SELECT max(rowid) FROM videos GROUP BY path) "
                "AND sha256 != '' AND sha256 NOT IN (SELECT sha256 FROM reported)"
            )
            (num_unknown,), (num_others,) = (target.execute(query).fetchone() for query in (unknown, others))
    except sqlite3.Error as error:
        remedy = "check the ledger, and the free space there"
        raise OutputError(f"{path}: cannot be copied to {copy.parent} ({error}); {remedy}") from error
    warnings = []
    if num_unknown and is_only:
        warnings.append(
            f"{path} has no results for {num_unknown} of the files in {report}. Is it the ledger of another report?"
        )
    if num_others:
        others = f"{path} also has results of {num_others} files that are not in {report}"
        warnings.append(f"{others}. To leave the ledger out, use --no-ledger")
    return warnings
