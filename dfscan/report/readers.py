"""Read reports that dfscan wrote."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from dfscan.errors import DataError
from dfscan.report.formats import SUFFIXES
from dfscan.report.schema import is_score

NEEDED = frozenset("path verdict score threshold status reason checkpoint sha256 size_bytes dfscan_version".split())
"""Columns without which a file is not a report; every version of the report has them."""
REMEDY = "make one with `dfscan report` from the ledger"


def open_report(path: Path, *, remedy: str = REMEDY) -> Iterator[dict[str, Any]]:
    """Yield the rows of a CSV or JSON Lines report, one at a time; see `read_rows`.

    Raises:
        DataError: the file cannot be read, or is not a report.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as lines:
            yield from read_rows(str(path), lines, remedy=remedy)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def read_rows(name: str, lines: Iterable[str], *, remedy: str = REMEDY) -> Iterator[dict[str, Any]]:
    """Yield the rows of a report, with None for missing values, and `sha256` as plain hex.

    In rows of CSV, only scores, `threshold` and `size_bytes` are numbers. Both delimiters are accepted.

    Args:
        name: name of the report; its suffix gives the format, as in `formats`.
        lines: its lines, without a byte order mark.
        remedy: what the user can do if it has another format.

    Raises:
        DataError: it is not a report, or has another format.
    """
    kind = SUFFIXES.get(Path(name).suffix.lower(), "csv")
    if kind not in ("csv", "jsonl"):
        raise DataError(f"{name}: only CSV and JSON Lines can be read; {remedy}")
    try:
        for row in _csv_rows(name, lines) if kind == "csv" else map(json.loads, lines):
            checked = _checked(name, row)
            sha256 = checked["sha256"]  # reports of version 1 have a prefix
            yield {**checked, "sha256": sha256.removeprefix("sha256:") if isinstance(sha256, str) else None}
    except (ValueError, RecursionError, csv.Error) as error:
        raise DataError(f"{name}: not a report of dfscan ({error})") from error


def _csv_rows(name: str, lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Yield the rows of a CSV report with commas, or with semicolons and decimal commas."""
    lines = iter(lines)
    head = next(lines, "")
    delimiter = ";" if head.startswith(('"path";', "path;")) else ","
    names = next(csv.reader([head], delimiter=delimiter), [])
    _checked(name, dict.fromkeys(names))
    for cells in csv.reader(lines, delimiter=delimiter):
        row: dict[str, Any] = {column: cell or None for column, cell in zip(names, cells, strict=True)}
        for column in names:
            if row[column] and (is_score(column) or column in ("threshold", "size_bytes")):
                row[column] = float(row[column].replace(",", "."))
        yield row


def _checked(name: str, row: object) -> Mapping[str, Any]:
    """Return the row if it has the columns of a report."""
    if not isinstance(row, dict) or (missing := NEEDED - row.keys()):
        lacking = f"; it lacks the columns {', '.join(sorted(missing))}" if isinstance(row, dict) else ""
        raise DataError(f"{name}: not a report of dfscan scan{lacking}")
    return row
