"""The ``dfscan bundle`` command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dfscan.cli.guard import guarded, say, start_logging


@guarded
def bundle(
    report: Annotated[Path, typer.Argument(help="Report of a scan: CSV or JSON Lines.", metavar="REPORT")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Zip file to write.", metavar="FILE")],
    sign: Annotated[
        Path | None,
        typer.Option(
            help="Sign the checksums with this SSH key; if you give the .pub file, ssh-agent must hold the private "
            "key.",
            show_default=False,
            metavar="KEY",
        ),
    ] = None,
    add: Annotated[
        list[Path] | None,
        typer.Option(help="Also include this file or folder. Repeatable.", show_default=False, metavar="PATH"),
    ] = None,
    ledger: Annotated[bool, typer.Option(help="Include the ledger.")] = True,
) -> None:
    """Pack a report and everything that belongs to it into one zip file.

    Includes the report, its metadata, the other reports and the page of the same scan, heat maps, WebVTT files and the
    ledger, with the SHA-256 of each file in SHA256SUMS. The videos themselves are not included; the report has their
    hashes. Annotated videos are not included either, because they are as large; add them with --add. Equal files give
    equal bytes.

    Examples:

    \b
      dfscan bundle report.csv --out case.zip
      dfscan bundle report.csv --out case.zip --sign ~/.ssh/id_ed25519
      dfscan bundle report.csv --out case.zip --add request.pdf --add ./annotated --no-ledger
    """
    from dfscan.bundle.write import write_bundle

    start_logging()
    summary = write_bundle(report, out, added=add or [], key=sign, with_ledger=ledger)
    for warning in summary.warnings:
        say(f"warning: {warning}")
    signed = "signed" if sign else "not signed"
    say(f"{summary.num_files} files, {summary.num_bytes / 1e6:.1f} MB, {signed} - {out}")
