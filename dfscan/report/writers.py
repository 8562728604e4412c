"""A writer class for each report format, all with ``append(row)`` and ``close()``.

A writer is a context manager. Rows go to a temporary file, which is renamed to the report when it is complete. If the
block raises, the temporary file is removed and the old report is kept.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import glob
import hashlib
import json
import os
import re
import secrets
import stat
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import BinaryIO, Literal, Protocol, Self

from dfscan.errors import ConfigError, OutputError
from dfscan.report.schema import DIGITS, Column, finite
from dfscan.report.text import display_path, guard_formula, is_escaped, printable

Format = Literal["csv", "jsonl", "xlsx", "parquet", "case"]
SUFFIXES: dict[str, Format] = {
    ".csv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".xlsx": "xlsx",
    ".parquet": "parquet",
    ".jsonld": "case",
}
_SUFFIX = re.compile(r"\.[a-z]\w*")
"""A suffix that names a format, unlike the ``.25`` of ``report-2026.11.25``."""

_REMEDIES = {
    errno.ENOSPC: "Free some space there or write somewhere else.",
    errno.EDQUOT: "Free some of the quota or write somewhere else.",
    errno.ENOENT: "Create its directory first.",
    errno.EISDIR: "Name a file in it.",
    errno.ENAMETOOLONG: "Choose a shorter name.",
}


def format_for(path: str | os.PathLike[str], asked: Format | None = None) -> Format:
    """Return the format of a report.

    Args:
        path: name of the report; its suffix gives the format, see `SUFFIXES`. Without a suffix it is CSV.
        asked: requested format, for names whose suffix gives no format.

    Raises:
        ConfigError: the suffix names an unsupported format, or a different format from `asked`.
    """
    suffix, shown = os.path.splitext(os.fspath(path))[1].lower(), printable(os.fspath(path))
    named = SUFFIXES.get(suffix)
    if asked and named and asked != named:
        raise ConfigError(f"'{shown}' has the suffix {suffix}, but --format is {asked}; change one of them")
    if not asked and not named and _SUFFIX.fullmatch(suffix):
        raise ConfigError(f"'{shown}': dfscan cannot write {suffix} files; use {', '.join(SUFFIXES)}, or give --format")
    return asked or named or "csv"


def open_writer(
    target: str | os.PathLike[str] | BinaryIO,
    columns: Sequence[Column],
    *,
    format: Format,
    excel: bool = False,
    delimiter: str = ",",
    about: Mapping[str, str] | None = None,
) -> ReportWriter:
    """Open a report for writing.

    Args:
        target: path of the report, which is replaced atomically when the writer is closed; or a binary stream such as
            ``sys.stdout.buffer``, to which every row is written at once and which is left open.
        columns: columns in order; cells are looked up by column name.
        format: see `format_for`.
        excel: start CSV with a byte order mark, without which Excel misreads UTF-8.
        delimiter: delimiter of CSV; with ``;``, numbers have decimal commas.
        about: names and values for the second sheet of a workbook.

    Raises:
        OutputError: the file cannot be created, or the header cannot be written.
    """
    sink: Sink = AtomicFile(target) if isinstance(target, (str, os.PathLike)) else _Stream(target)
    if format == "csv":
        return CsvWriter(sink, columns, excel=excel, delimiter=delimiter)
    if format == "jsonl":
        return JsonLinesWriter(sink, columns)
    if format == "case":
        from dfscan.report.case import CaseWriter

        return CaseWriter(sink, columns)
    from dfscan.report.tables import ParquetWriter, XlsxWriter

    return XlsxWriter(sink, columns, about=about or {}) if format == "xlsx" else ParquetWriter(sink, columns)


class Sink(Protocol):
    """Receives the bytes of a report."""

    def write(self, data: bytes) -> None:
        """Write all data, or discard the report and raise OutputError."""

    def commit(self) -> None:
        """Publish the written data."""

    def discard(self) -> None:
        """Drop the written data, as far as possible."""


class ReportWriter:
    """Base class of the writers. A failed write raises OutputError and discards the whole report."""

    def __init__(self, sink: Sink, columns: Sequence[Column]) -> None:
        self._sink = sink
        self._columns = tuple(columns)
        self._is_begun = False

    def append(self, row: Mapping[str, object]) -> None:
        """Write one row, given by column name, with None for missing values."""
        self._begin()
        self._sink.write(self._line(row).encode())

    def close(self) -> None:
        """Finish the report; only now does a file appear under its name."""
        self._begin()
        self._sink.commit()

    def _begin(self) -> None:
        """Write the header just before the first row or at the end, so that a run that fails early writes nothing."""
        if not self._is_begun:
            self._is_begun = True
            if head := self._head():
                self._sink.write(head)

    def _head(self) -> bytes:
        return b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind:
            self._sink.discard()
        else:
            self.close()

    def _line(self, row: Mapping[str, object]) -> str:
        raise NotImplementedError


class CsvWriter(ReportWriter):
    """CSV in UTF-8 with LF: one header, quoted text, unquoted numbers, and empty cells for missing values.

    With the delimiter ``;``, numbers have a decimal comma; spreadsheets would read ``0.5`` as text, a date or 5.
    """

    def __init__(self, sink: Sink, columns: Sequence[Column], *, excel: bool, delimiter: str) -> None:
        super().__init__(sink, columns)
        self._encoding = "utf-8-sig" if excel else "utf-8"
        self._delimiter = delimiter
        self._decimal = "," if delimiter == ";" else "."

    def _head(self) -> bytes:
        header = self._delimiter.join(_quoted(column.name) for column in self._columns)
        return f"{header}\n".encode(self._encoding)

    def _line(self, row: Mapping[str, object]) -> str:
        cells = [_csv_cell(column, row[column.name], self._decimal) for column in self._columns]
        return self._delimiter.join(cells) + "\n"


class JsonLinesWriter(ReportWriter):
    """One JSON object per line, with the columns as keys and null for missing values.

    If the path had to be escaped, the row also has ``path_bytes``, the raw bytes of the path in base64.
    """

    def _line(self, row: Mapping[str, object]) -> str:
        record = {column.name: typed_cell(column, row[column.name]) for column in self._columns}
        path = row.get("path")
        if isinstance(path, str) and is_escaped(path):
            record["path_bytes"] = base64.b64encode(os.fsencode(path)).decode()
        return json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"


class AtomicFile:
    """A file that appears under its name only when it is complete.

    The directory of `path` must exist. An existing file keeps its permissions, and a symbolic link is kept. Anything
    else at that path, such as a directory or a device, is refused.

    Raises:
        OutputError: the file cannot be created, written or renamed; the old file, if any, is unchanged.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._shown = os.fspath(path)
        self._path = os.path.realpath(path)
        with reported(self._shown):
            mode = _replaceable_mode(self._path)
            self._temporary_path, self._file = _create_beside(self._path)
            if mode is not None:
                os.fchmod(self._file.fileno(), mode)

    def write(self, data: bytes) -> None:
        """Write all data; a failure discards the file."""
        with reported(self._shown), self._discarded_on_error():
            self._file.write(data)

    def commit(self) -> None:
        """Flush the data to disk and rename the file; a second call does nothing."""
        if self._file.closed:
            return
        with reported(self._shown), self._discarded_on_error():
            self._file.flush()
            os.fsync(self._file.fileno())
            os.replace(self._temporary_path, self._path)
            self._file.close()
        _sync_directory(os.path.dirname(self._path))

    def discard(self) -> None:
        """Remove the temporary file; does nothing after `commit`."""
        if self._file.closed:
            return
        # Closing flushes, which fails on a full disk; the descriptor is released anyway.
        with contextlib.suppress(OSError):
            self._file.close()
        with contextlib.suppress(OSError):
            os.unlink(self._temporary_path)

    @contextlib.contextmanager
    def _discarded_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.discard()
            raise


class _Stream:
    """Standard output, or another stream that must stay open; every row is flushed at once."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def write(self, data: bytes) -> None:
        with reported("standard output"):
            rest = memoryview(data)
            while rest:  # with PYTHONUNBUFFERED, stdout is a raw file and may accept only part of the data
                num_written = self._stream.write(rest)
                if num_written is None:
                    raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
                rest = rest[num_written:]
            self._stream.flush()

    def commit(self) -> None:
        """Do nothing: every row is already written."""

    def discard(self) -> None:
        """Do nothing: written rows cannot be withdrawn."""


@contextlib.contextmanager
def reported(name: str) -> Iterator[None]:
    """Convert OSError to OutputError, except BrokenPipeError, which the caller handles quietly."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        remedy = _REMEDIES.get(error.errno or 0, "Choose a location with write permission.")
        raise OutputError(f"cannot write '{printable(name)}': {error.strerror or error}. {remedy}") from error


def _replaceable_mode(path: str) -> int | None:
    """Return the permissions of the file to be replaced, or None if there is none."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "it is a directory")
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is not a regular file, so it cannot be replaced")
    return stat.S_IMODE(mode)


def _create_beside(path: str) -> tuple[str, BinaryIO]:
    temporary_path = f"{_temporary_stem(path)}{secrets.token_hex(4)}.partial"
    fd = os.open(temporary_path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    return temporary_path, os.fdopen(fd, "wb")


def _temporary_stem(path: str) -> str:
    """Return the prefix that only temporary files of this path have."""
    directory, name = os.path.split(path)
    # The name may use all 255 bytes that file systems allow, so the temporary name is built from a part of it.
    digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:8]
    return os.path.join(directory, f".{name[:40]}.{digest}.")


def remove_leftovers(path: str | os.PathLike[str]) -> None:
    """Remove temporary files of this path left by a killed run; no other run may be writing it."""
    stem = _temporary_stem(os.path.realpath(path))
    for leftover in glob.glob(f"{glob.escape(stem)}????????.partial", include_hidden=True):
        with contextlib.suppress(OSError):
            os.unlink(leftover)


def _sync_directory(directory: str) -> None:
    # Some file systems cannot sync a directory; the report is in place anyway, so this is not a failure.
    with contextlib.suppress(OSError):
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def typed_cell(column: Column, value: object) -> str | int | float | None:
    """Return the value as written in all formats: printable text, an integer, or a rounded number."""
    if value is None:
        return None
    if column.kind == "path":
        return display_path(str(value))
    if column.kind == "text":
        return printable(str(value))
    if not isinstance(value, (int, float)):
        raise TypeError(f"column {column.name!r} holds a number, got {value!r}")
    if column.kind == "int":
        return int(value)
    number = finite(value)
    return None if number is None else round(number, DIGITS[column.kind]) + 0.0  # + 0.0: never "-0.0"


def _csv_cell(column: Column, value: object, decimal: str) -> str:
    cell = typed_cell(column, value)
    if isinstance(cell, str):
        return _quoted(guard_formula(cell))
    if isinstance(cell, float):
        return f"{cell:.{DIGITS[column.kind]}f}".replace(".", decimal)
    return "" if cell is None else str(cell)


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'
