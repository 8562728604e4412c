"""The ``dfscan compare`` command."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dfscan.cli.guard import guarded, say, start_logging
from dfscan.errors import ConfigError, OutputError

if TYPE_CHECKING:
    from dfscan.scan.compare import ScanComparison


@guarded
def compare(
    old: Annotated[
        Path,
        typer.Argument(help="Ledger, or report as CSV or JSON Lines.", show_default=False, metavar="OLD"),
    ],
    new: Annotated[Path, typer.Argument(help="The same, of the later scan.", show_default=False, metavar="NEW")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="File for the changes: .csv, .jsonl, .xlsx or .parquet. Default: CSV to stdout.",
            show_default=False,
            metavar="FILE",
        ),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(
            help="Also write an HTML page. With --html alone, nothing is written to stdout.",
            show_default=False,
            metavar="FILE",
        ),
    ] = None,
    min_shift: Annotated[
        float, typer.Option(min=0, max=1, help="Minimum difference of two scores that counts as a change.")
    ] = 0.01,
    fail_on: Annotated[
        str,
        typer.Option(
            help="Comma-separated changes that exit with 1: verdict, status, score, missing and new.", metavar="LIST"
        ),
    ] = "verdict",
) -> None:
    """List what changed between two scans, and why.

    Writes one row for each file whose verdict, status or score changed, and for each new or missing file. The column
    `cause` lists what else differs: the file, the checkpoint, the threshold, other settings, the version of dfscan or
    the kind of device. Files are matched by the path in the reports.

    Examples:

    \b
      dfscan compare monday.csv tuesday.csv
      dfscan compare before.csv.ledger after.csv.ledger --out changes.csv --html changes.html
      dfscan compare before.csv after.csv --fail-on verdict,missing

    Exit codes:

    \b
      0    no change of a kind in --fail-on
      1    at least one such change
      2    usage error, unreadable input, or output not written
    """
    from dfscan.report.comparison_page import write_comparison_page
    from dfscan.report.formats import format_for, open_writer
    from dfscan.scan.compare import CHANGE_COLUMNS, KINDS, compare_scans, tables

    start_logging()
    failing = {kind.strip() for kind in fail_on.split(",") if kind.strip()}
    if unknown := failing - set(KINDS):
        raise ConfigError(f"--fail-on: unknown change {', '.join(sorted(unknown))}; use {', '.join(KINDS)}")
    named = [path for path in (old, new, out, html) if path]
    places = [os.path.realpath(path) for path in named]
    for i, path in enumerate(named[2:], start=2):
        if places[i] in places[:i]:
            raise ConfigError(f"{path} is named twice; name a different file for each output")
    found = compare_scans(old, new, min_shift=min_shift)
    if out or not html:
        if out is None and sys.stdout is None:
            raise OutputError("standard output is closed: name a file with --out")
        with open_writer(out or sys.stdout.buffer, CHANGE_COLUMNS, format=format_for(out or "-")) as writer:
            for change in found.changes:
                writer.append(change.row())
    if html:
        facts = {
            "Old checkpoint": ", ".join(found.checkpoints[0]),
            "New checkpoint": ", ".join(found.checkpoints[1]),
            **{f"{kind.capitalize()} changes": n for kind, n in found.counts.items() if kind not in ("missing", "new")},
            "Missing files": found.counts["missing"],
            "New files": found.counts["new"],
            "Unchanged files": found.num_same,
        }
        write_comparison_page(html, title=f"{old} and {new}", facts=facts, tables=tables(found))
    say(_summary(found) + "".join(f" - {path}" for path in (out, html) if path))
    raise typer.Exit(int(any(found.counts[kind] for kind in KINDS if kind in failing)))


def _summary(found: ScanComparison) -> str:
    from collections import Counter

    moved = Counter(
        (change.row()["old_verdict"], change.row()["new_verdict"])
        for change in found.changes
        if change.kind == "verdict"
    )
    of = found.counts
    verdicts = ", ".join(f"{count} {old} to {new}" for (old, new), count in sorted(moved.items(), key=str))
    return (
        f"{of['verdict']} verdicts changed{f' ({verdicts})' if verdicts else ''}, {of['status']} status, "
        f"{of['score']} scores, {of['missing']} missing, {of['new']} new, {found.num_same} unchanged"
    )
