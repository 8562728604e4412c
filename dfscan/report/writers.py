"""A writer class for each report format, all with ``append(row)`` and ``close()``.

A writer is a context manager. Rows go to a temporary file, which is renamed to the report when it is complete. If the
block raises, the temporary file is removed and the old report is kept.
"""

from __future__ import annotations

import base64
import errno
import json
import os
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, BinaryIO, Protocol, Self

from dfscan.files import writing
from dfscan.report.schema import DETECTOR_COLUMNS, DETECTORS, DIGITS, Column, finite
from dfscan.text import display_path, guard_formula, is_escaped, printable


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

    def __init__(self, sink: Sink, columns: Sequence[Column], *, head: bytes = b"") -> None:
        self._sink = sink
        self._columns = tuple(columns)
        self._head = head

    def append(self, row: Mapping[str, object]) -> None:
        """Write one row, given by column name, with None for missing values."""
        raise NotImplementedError

    def close(self) -> None:
        """Finish the report; only now does a file appear under its name."""
        if self._head:
            self._write("")
        self._sink.commit()

    def _write(self, text: str) -> None:
        """Write text. The head comes with the first text, so a run that fails early writes nothing."""
        self._sink.write(self._head + text.encode())
        self._head = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind:
            self._sink.discard()
        else:
            self.close()


class CsvWriter(ReportWriter):
    """CSV in UTF-8 with LF: one header, quoted text, unquoted numbers, and empty cells for missing values.

    With the delimiter ``;``, numbers have a decimal comma; spreadsheets would read ``0.5`` as text, a date or 5.
    """

    def __init__(self, sink: Sink, columns: Sequence[Column], *, excel: bool, delimiter: str) -> None:
        header = delimiter.join(_quoted(column.name) for column in columns)
        super().__init__(sink, columns, head=f"{header}\n".encode("utf-8-sig" if excel else "utf-8"))
        self._delimiter = delimiter
        self._decimal = "," if delimiter == ";" else "."

    def append(self, row: Mapping[str, object]) -> None:
        """See `ReportWriter.append`."""
        cells = []
        for column in self._columns:
            value = typed_cell(column, row[column.name])
            if isinstance(value, str):
                cells.append(_quoted(guard_formula(value)))
            elif isinstance(value, float):
                cells.append(f"{value:.{DIGITS[column.kind]}f}".replace(".", self._decimal))
            else:
                cells.append("" if value is None else str(value))
        self._write(self._delimiter.join(cells) + "\n")


class JsonLinesWriter(ReportWriter):
    """One JSON object per line, with the columns as keys and null for missing values.

    If the path had to be escaped, the row also has ``path_bytes``, the raw bytes of the path in base64. Rows of several
    detectors also have `DETECTORS`.
    """

    def append(self, row: Mapping[str, Any]) -> None:
        """See `ReportWriter.append`."""
        record: dict[str, object] = {column.name: typed_cell(column, row[column.name]) for column in self._columns}
        path = row.get("path")
        if isinstance(path, str) and is_escaped(path):
            record["path_bytes"] = base64.b64encode(os.fsencode(path)).decode()
        if DETECTORS in row:
            record[DETECTORS] = [
                {column.name: typed_cell(column, each[column.name]) for column in DETECTOR_COLUMNS}
                for each in row[DETECTORS]
            ]
        self._write(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")


class StreamSink:
    """Standard output, or another stream that must stay open; every row is flushed at once."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def write(self, data: bytes) -> None:
        """See `Sink.write`."""
        with writing("standard output"):
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


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'
