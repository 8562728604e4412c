"""One small writer class for each report format, all with ``append(row)`` and ``close()``.

A writer is a context manager. A report file takes its name only when it is complete: rows go to a temporary
file beside it, and leaving the block by an exception removes that and keeps the old report.
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

Format = Literal["csv", "jsonl", "xlsx", "parquet"]
SUFFIXES: dict[str, Format] = {
    ".csv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".xlsx": "xlsx",
    ".parquet": "parquet",
}
_SUFFIX = re.compile(r"\.[a-z]\w*")
"""What names a format: not the ``.25`` of ``report-2026.11.25``."""

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
        path: its name, whose suffix names the format, see `SUFFIXES`; without one it is CSV.
        asked: the format that was asked for, for names that say nothing of it.

    Raises:
        ConfigError: the suffix names a format that is not written, or another one than `asked`.
    """
    suffix, shown = os.path.splitext(os.fspath(path))[1].lower(), printable(os.fspath(path))
    named = SUFFIXES.get(suffix)
    if asked and named and asked != named:
        raise ConfigError(f"'{shown}' is named {suffix}, but --format is {asked}; change one of them")
    if not asked and not named and _SUFFIX.fullmatch(suffix):
        raise ConfigError(
            f"'{shown}': dfscan writes no {suffix} files; name it {', '.join(SUFFIXES)}, or give --format"
        )
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
        target: the path of the report, replaced whole when the writer is closed; or a binary stream such as
            ``sys.stdout.buffer``, which gets every row at once and is left open.
        columns: the columns in order; rows are looked up by their names.
        format: see `format_for`.
        excel: start CSV with a byte order mark, without which Excel misreads UTF-8.
        delimiter: of CSV; with ``;`` numbers have decimal commas.
        about: for a second sheet of a workbook: names and values of what the rows have in common.

    Raises:
        OutputError: the file cannot be created there, or the header cannot be written.
    """
    sink: Sink = AtomicFile(target) if isinstance(target, (str, os.PathLike)) else _Stream(target)
    if format == "csv":
        return CsvWriter(sink, columns, excel=excel, delimiter=delimiter)
    if format == "jsonl":
        return JsonLinesWriter(sink, columns)
    from dfscan.report.tables import ParquetWriter, XlsxWriter

    return XlsxWriter(sink, columns, about=about or {}) if format == "xlsx" else ParquetWriter(sink, columns)


class Sink(Protocol):
    """Where the bytes of a report go."""

    def write(self, data: bytes) -> None:
        """Write all of the data, or raise OutputError and discard."""

    def commit(self) -> None:
        """Make what was written count."""

    def discard(self) -> None:
        """Forget what was written, as far as that is possible."""


class ReportWriter:
    """What the writers share. A failed write is an OutputError and gives up the whole report."""

    def __init__(self, sink: Sink, columns: Sequence[Column]) -> None:
        self._sink = sink
        self._columns = tuple(columns)
        self._is_begun = False

    def append(self, row: Mapping[str, object]) -> None:
        """Write one row, given by column name: None for what is missing."""
        self._begin()
        self._sink.write(self._line(row).encode())

    def close(self) -> None:
        """Finish the report: only now does a file take its name."""
        self._begin()
        self._sink.commit()

    def _begin(self) -> None:
        """Write what comes before the rows, but not before there is one: a run that fails at once says nothing."""
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
    """Values with a delimiter between them: UTF-8, LF, header once, text quoted, numbers bare, missing empty.

    Where the delimiter is ``;``, spreadsheets read ``0.5`` as text, a date or 5: such numbers have a comma.
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
    """One JSON object a line, with the columns as keys and null for what is missing.

    A row whose path had to be escaped also has ``path_bytes``, the base64 of the path's true bytes.
    """

    def _line(self, row: Mapping[str, object]) -> str:
        record = {column.name: typed_cell(column, row[column.name]) for column in self._columns}
        path = row.get("path")
        if isinstance(path, str) and is_escaped(path):
            record["path_bytes"] = base64.b64encode(os.fsencode(path)).decode()
        return json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"


class AtomicFile:
    """A file that takes its name only when it is complete.

    The directory of `path` must exist. A file that is already there keeps its permissions, a symbolic link
    stays one, and anything else of that name (a directory, a device) is refused.

    Raises:
        OutputError: it cannot be created there, written or renamed; the old file, if any, is untouched.
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
        """Write all of the data; after a failure nothing is left of it."""
        with reported(self._shown), self._discarded_on_error():
            self._file.write(data)

    def commit(self) -> None:
        """Bring the data to the disk and give the file its name; a second call does nothing."""
        if self._file.closed:
            return
        with reported(self._shown), self._discarded_on_error():
            self._file.flush()
            os.fsync(self._file.fileno())
            os.replace(self._temporary_path, self._path)
            self._file.close()
        _sync_directory(os.path.dirname(self._path))

    def discard(self) -> None:
        """Remove the temporary file; after `commit` this does nothing."""
        if self._file.closed:
            return
        # Closing flushes, which fails on a full disk; the descriptor is released all the same.
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
    """Standard output, or another stream that is not ours to close: every row goes out at once."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def write(self, data: bytes) -> None:
        with reported("standard output"):
            rest = memoryview(data)
            while rest:  # with PYTHONUNBUFFERED stdout is a raw file, which may take only a part
                num_written = self._stream.write(rest)
                if num_written is None:
                    raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
                rest = rest[num_written:]
            self._stream.flush()

    def commit(self) -> None:
        """Every row is out already."""

    def discard(self) -> None:
        """What is out cannot be taken back."""


@contextlib.contextmanager
def reported(name: str) -> Iterator[None]:
    """Turn a failure of the system into an OutputError; a closed pipe is the caller's to end quietly."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        remedy = _REMEDIES.get(error.errno or 0, "Choose a place that you may write to.")
        raise OutputError(f"cannot write '{printable(name)}': {error.strerror or error}. {remedy}") from error


def _replaceable_mode(path: str) -> int | None:
    """Return the permissions of the file that is to be replaced; None if there is none."""
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
    """What temporary files of this path, and of no other, begin with."""
    directory, name = os.path.split(path)
    # The name may fill all of the 255 bytes that file systems allow; the temporary one needs room for more.
    digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:8]
    return os.path.join(directory, f".{name[:40]}.{digest}.")


def remove_leftovers(path: str | os.PathLike[str]) -> None:
    """Remove temporary files of this path that a killed run has left; none that runs may be writing it."""
    stem = _temporary_stem(os.path.realpath(path))
    for leftover in glob.glob(f"{glob.escape(stem)}????????.partial", include_hidden=True):
        with contextlib.suppress(OSError):
            os.unlink(leftover)


def _sync_directory(directory: str) -> None:
    # The report is in place; some file systems cannot sync a directory, and that is no failure.
    with contextlib.suppress(OSError):
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def typed_cell(column: Column, value: object) -> str | int | float | None:
    """Return the value as all formats give it: printable text, an integer, or a rounded number."""
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
