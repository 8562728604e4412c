"""Report formats: the format for a file name, and its writer."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import BinaryIO, Literal

from dfscan.errors import ConfigError
from dfscan.files import AtomicFile
from dfscan.report.case import CaseWriter
from dfscan.report.schema import Column
from dfscan.report.tables import ParquetWriter, XlsxWriter
from dfscan.report.writers import CsvWriter, JsonLinesWriter, ReportWriter, Sink, StreamSink
from dfscan.text import printable

ReportFormat = Literal["csv", "jsonl", "xlsx", "parquet", "case"]
SUFFIXES: dict[str, ReportFormat] = {
    ".csv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".xlsx": "xlsx",
    ".parquet": "parquet",
    ".jsonld": "case",
}
_SUFFIX = re.compile(r"\.[a-z]\w*")
"""A suffix that names a format, unlike the ``.25`` of ``report-2026.11.25``."""


def format_for(path: str | os.PathLike[str], asked: ReportFormat | None = None) -> ReportFormat:
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
    format: ReportFormat,
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
    sink: Sink = AtomicFile(target) if isinstance(target, (str, os.PathLike)) else StreamSink(target)
    if format == "csv":
        return CsvWriter(sink, columns, excel=excel, delimiter=delimiter)
    if format == "jsonl":
        return JsonLinesWriter(sink, columns)
    if format == "case":
        return CaseWriter(sink, columns)
    return XlsxWriter(sink, columns, about=about or {}) if format == "xlsx" else ParquetWriter(sink, columns)
