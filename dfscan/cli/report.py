"""The ``dfscan report`` command."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import typer

from dfscan.cli import options
from dfscan.cli.guard import guarded, say, start_logging
from dfscan.config import CASE, OUTPUT, VERDICT, ScanSettings


@guarded
@options.with_settings(
    "out format frames_out html html_max_mb webvtt excel delimiter quiet "
    "annotate annotate_top timeout max_memory sandbox",
    CASE,
)
def report(
    *,
    ledgers: Annotated[
        list[Path],
        typer.Argument(
            help="Ledgers of scans: REPORT.ledger, or the file given with --ledger.",
            show_default=False,
            metavar="LEDGER",
        ),
    ],
    settings: ScanSettings,
    calibration: Annotated[
        list[str] | None,
        typer.Option(
            rich_help_panel=VERDICT,
            help="Judge all videos again with the thresholds and temperature of this checkpoint. It must have been "
            "calibrated from the checkpoint of the scan. Repeat it for several detectors.",
            show_default=False,
            metavar="FILE",
        ),
    ] = None,
    new_threshold: Annotated[  # not the setting `threshold`, which a file of --config may contain for scans
        float | None,
        typer.Option(
            "--threshold",
            min=0,
            max=1,
            rich_help_panel=VERDICT,
            help="Judge all videos again with this minimum score for the verdict fake.",
            show_default=False,
        ),
    ] = None,
    order: Annotated[
        Literal["path", "review"],
        typer.Option(
            rich_help_panel=OUTPUT,
            help="Order of the rows: `path`, or `review`: first the videos that a person should look at first.",
        ),
    ] = "path",
    config: options.Config = None,
) -> None:
    """Rebuild reports from ledgers, without scanning.

    The reports contain the latest result of every file in the ledgers. If several ledgers contain a file, the last
    ledger on the command line counts. With --html alone, nothing is written to stdout. With --calibration or
    --threshold, the stored scores of faces give new verdicts; the ledgers stay as they are.

    Examples:

    \b
      dfscan report report.csv.ledger --html report.html
      dfscan report report.csv.ledger --calibration lab.calibrated.safetensors --out again.csv
      dfscan report all-nights.ledger --order review --out review.xlsx
    """
    from dfscan.scan.rebuild import rebuild_reports
    from dfscan.types import VERDICT_LABELS

    if settings.html and settings.out is None and settings.format is None:
        settings = dataclasses.replace(settings, out=())
    start_logging(is_quiet=settings.quiet)
    labels = rebuild_reports(ledgers, settings, calibrations=calibration or (), threshold=new_threshold, order=order)
    if not settings.quiet:
        files = [*settings.out_files, *([str(settings.html)] if settings.html else [])]
        counts = ", ".join(f"{labels[label]} {label}" for label in VERDICT_LABELS)
        plural = "video" if labels.total() == 1 else "videos"
        say(f"{labels.total()} {plural}: {counts}" + (f" - {', '.join(files)}" if files else ""))
