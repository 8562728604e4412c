"""Compare two scans: verdicts that changed and what else changed, scores that moved, new and missing files.

A scan is a ledger or a report. Files are matched by their path as reports show it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dfscan.config import ScanSettings, rows
from dfscan.report.comparison_page import ChangeTable
from dfscan.report.meta import meta_path
from dfscan.report.readers import open_report
from dfscan.report.schema import DETECTORS, REPORT_COLUMNS, Column, is_score, report_row
from dfscan.scan.ledger import LedgerReader, is_ledger
from dfscan.scan.setup import NOT_IN_RECIPE
from dfscan.text import display_path, report_order

ChangeKind = Literal["verdict", "status", "score", "missing", "new"]
KINDS: tuple[ChangeKind, ...] = ("verdict", "status", "score", "missing", "new")
"""Kinds of changes; a file that changed in several ways has the first."""

_COMPARED = ("verdict", "score", "threshold", "status", "reason", "checkpoint", "sha256")
_KINDS_OF_COLUMNS = {column.name: column.kind for column in REPORT_COLUMNS}
CHANGE_COLUMNS: tuple[Column, ...] = (
    Column("path", "path"),
    Column("change", "text"),
    Column("cause", "text"),
    Column("score_shift", "score"),
    *(Column(f"{when}_{name}", _KINDS_OF_COLUMNS[name]) for name in _COMPARED for when in ("old", "new")),
)
"""Columns of a comparison, with one row per changed file."""

CAUSES = (
    rows(ScanSettings).keys()
    - NOT_IN_RECIPE
    - {
        "threshold",
        "explain",
        "explain_top",
        "explain_format",
        "provenance",
    }
)
"""Settings that can be the cause of a change, except the threshold, which has a column of its own."""
SCORE_DIGITS = 6


@dataclass(frozen=True, slots=True)
class ComparedFile:
    """One file in one scan."""

    row: Mapping[str, Any]
    """Row of the report by column; scores are rounded as in a CSV."""
    settings: Mapping[str, Any] | None
    """Settings that affect results; None if they are unknown."""
    device: str | None
    """``cpu`` or ``cuda``; None if unknown."""


@dataclass(frozen=True, slots=True)
class Change:
    """One file that differs between two scans."""

    path: str
    kind: ChangeKind
    causes: tuple[str, ...]
    """What else differs: ``file``, ``checkpoint``, ``threshold``, ``settings: ...``, ``version`` or ``device``."""
    old: ComparedFile | None
    new: ComparedFile | None

    @property
    def score_shift(self) -> float | None:
        """New score minus old score; of several detectors, the largest shift."""
        shifts = _shifts(self.old, self.new) if self.old and self.new else []
        return max((shift for shift in shifts if shift is not None), key=abs, default=None)

    def row(self) -> dict[str, object]:
        """Return the values of `CHANGE_COLUMNS`."""
        cells = {
            f"{when}_{name}": of.row[name] if of else None
            for name in _COMPARED
            for when, of in (("old", self.old), ("new", self.new))
        }
        cause = "; ".join(self.causes) or None
        return {"path": self.path, "change": self.kind, "cause": cause, "score_shift": self.score_shift, **cells}


@dataclass(frozen=True, slots=True)
class ScanComparison:
    """All differences between two scans."""

    changes: list[Change]
    """In report order."""
    num_same: int
    """Number of files in both scans without a change."""
    checkpoints: tuple[list[str], list[str]]
    """Labels of the checkpoints of the old and of the new scan."""

    @property
    def counts(self) -> dict[ChangeKind, int]:
        """Number of changes of each kind, zeros included."""
        counted = Counter(change.kind for change in self.changes)
        return {kind: counted[kind] for kind in KINDS}


def compare_scans(old: Path, new: Path, *, min_shift: float) -> ScanComparison:
    """Compare two scans.

    Args:
        old: ledger, or report as CSV or JSON Lines.
        new: the same, of the later scan.
        min_shift: minimum absolute difference of two scores that counts as a change.

    Raises:
        DataError: a file cannot be read, or is neither a ledger nor a report.
    """
    before, after = read_scan(old), read_scan(new)
    limit = max(min_shift, 10**-SCORE_DIGITS)
    changes = []
    for path in sorted(before.keys() | after.keys(), key=report_order):
        one, other = before.get(path), after.get(path)
        kind: ChangeKind
        if one is None or other is None:
            kind = "new" if one is None else "missing"
        elif one.row["verdict"] != other.row["verdict"]:
            kind = "verdict"
        elif one.row["status"] != other.row["status"]:
            kind = "status"
        elif any(shift is None or abs(shift) >= limit for shift in _shifts(one, other)):
            kind = "score"
        else:
            continue
        changes.append(Change(path, kind, _causes(one, other), one, other))
    num_same = len(before.keys() | after.keys()) - len(changes)
    return ScanComparison(changes, num_same, (_checkpoints(before), _checkpoints(after)))


def _checkpoints(files: Mapping[str, ComparedFile]) -> list[str]:
    return sorted({str(file.row["checkpoint"]) for file in files.values()})


def _shifts(old: ComparedFile, new: ComparedFile) -> list[float | None]:
    """Return the shift of each score that both scans have; None if it is missing in one of the two rows."""
    shifts: list[float | None] = []
    for name in filter(is_score, old.row.keys() & new.row.keys()):
        pair = old.row[name], new.row[name]
        if pair != (None, None):
            shifts.append(None if None in pair else round(pair[1] - pair[0], SCORE_DIGITS) + 0.0)
    return shifts


def _causes(old: ComparedFile | None, new: ComparedFile | None) -> tuple[str, ...]:
    """List everything else that differs and can change a verdict."""
    if old is None or new is None:
        return ()
    content = "sha256" if old.row["sha256"] and new.row["sha256"] else "size_bytes"
    before, after = old.row[content], new.row[content]
    causes = ["file"] if before is not None and after is not None and before != after else []
    causes += ["checkpoint"] if old.row["checkpoint"] != new.row["checkpoint"] else []
    has_thresholds = "error" not in (old.row["verdict"], new.row["verdict"])
    causes += ["threshold"] if has_thresholds and old.row["threshold"] != new.row["threshold"] else []
    if old.settings is not None and new.settings is not None:
        changed = sorted(name for name in CAUSES if old.settings.get(name) != new.settings.get(name))
        causes += [f"settings: {', '.join(changed)}"] if changed else []
    causes += ["version"] if old.row["dfscan_version"] != new.row["dfscan_version"] else []
    causes += ["device"] if old.device and new.device and old.device != new.device else []
    return tuple(causes)


def tables(comparison: ScanComparison) -> list[ChangeTable]:
    """Return the tables of the page, the most important change first."""

    def of(kind: ChangeKind) -> list[Change]:
        return [change for change in comparison.changes if change.kind == kind]

    def cells(change: Change, *names: str) -> list[object]:
        row = change.row()
        return [row[name] for name in ("path", *names)]

    verdicts = sorted(of("verdict"), key=lambda change: change.row()["new_verdict"] != "fake")
    scores = sorted(of("score"), key=lambda change: -abs(change.score_shift or 0.0))
    shown = ("old_score", "new_score", "cause")
    return [
        ChangeTable(
            "Verdicts that changed",
            ("File", "Old verdict", "New verdict", "Old score", "New score", "Cause", "New reason"),
            [cells(change, "old_verdict", "new_verdict", *shown, "new_reason") for change in verdicts],
        ),
        ChangeTable(
            "Status that changed",
            ("File", "Old status", "New status", "Old reason", "New reason", "Cause"),
            [cells(change, "old_status", "new_status", "old_reason", "new_reason", "cause") for change in of("status")],
        ),
        ChangeTable(
            "Scores that shifted",
            ("File", "Verdict", "Shift", "Old score", "New score", "Cause"),
            [cells(change, "new_verdict", "score_shift", *shown) for change in scores],
        ),
        ChangeTable(
            "Missing files",
            ("File", "Old verdict", "Old score"),
            [cells(change, "old_verdict", "old_score") for change in of("missing")],
        ),
        ChangeTable(
            "New files",
            ("File", "New verdict", "New score"),
            [cells(change, "new_verdict", "new_score") for change in of("new")],
        ),
    ]


# Reading


def read_scan(path: Path) -> dict[str, ComparedFile]:
    """Return the files of a ledger or report by displayed path.

    The settings of a report come from ``REPORT.meta.json``, if that file exists and has them.

    Raises:
        DataError: the file cannot be read, or is neither a ledger nor a report.
    """
    if is_ledger(path):
        files = {}
        with LedgerReader(path) as ledger:
            for entry in ledger.entries():
                recipe = entry.recipe
                row = report_row(
                    ledger.result(entry), checkpoint=recipe.checkpoint, version=recipe.version, detectors=recipe.names
                )
                row["path"] = display_path(entry.path)
                files[str(row["path"])] = ComparedFile(_rounded(row), recipe.settings, recipe.device_kind)
        return files
    rows = [_rounded(row) for row in open_report(path, remedy="give the ledger beside it")]
    try:
        document = json.loads(meta_path(path).read_text(encoding="utf-8"))
        settings, device = document.get("settings"), document.get("device")
    except (OSError, ValueError, AttributeError):
        settings, device = None, None
    settings = settings if isinstance(settings, dict) else None
    device = device.partition(":")[0] if device else None
    return {row["path"]: ComparedFile(row, settings, device) for row in rows}


def _rounded(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the row with scores as in a CSV, and those of several detectors as columns."""
    row = {**row, **{f"score_{each['name']}": each["score"] for each in row.get(DETECTORS) or ()}}
    scores = {
        name: None if value is None else round(float(value), SCORE_DIGITS)
        for name, value in row.items()
        if name == "threshold" or is_score(name)
    }
    return {**row, **scores}
