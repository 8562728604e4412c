"""The ``dfscan calibrate`` command."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Annotated, Literal

import typer

from dfscan.cli import options
from dfscan.cli.guard import guarded, resumable, say, start_logging
from dfscan.config import BEHAVIOUR, INPUT, OUTPUT, VERDICT, ScanSettings
from dfscan.errors import ConfigError
from dfscan.extras import require

log = logging.getLogger("dfscan")


@guarded
@options.with_settings("ledger checkpoint device batch_size", BEHAVIOUR)
def calibrate(
    *,
    inputs: Annotated[
        list[str],
        typer.Argument(
            help="Videos and folders with --label, CSV files, folders with real/ and fake/, or ledgers with labels.",
            show_default=False,
            metavar="FOOTAGE",
        ),
    ],
    calibrated: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            rich_help_panel=OUTPUT,
            help="File for the calibrated copy of the checkpoint.",
            show_default=False,
            metavar="FILE",
        ),
    ],
    label: Annotated[
        Literal["real", "fake"] | None,
        typer.Option(rich_help_panel=INPUT, help="Label for inputs without one.", show_default=False),
    ] = None,
    group_column: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=INPUT,
            help="CSV column with the person or camera; a group counts as one video. Default: group, if present.",
            show_default=False,
            metavar="NAME",
        ),
    ] = None,
    max_fpr: Annotated[
        float,
        typer.Option(
            min=0.0001, max=0.5, rich_help_panel=VERDICT, help="Maximum proportion of real videos called fake."
        ),
    ] = 0.01,
    max_fnr: Annotated[
        float,
        typer.Option(
            min=0.0001,
            max=0.5,
            rich_help_panel=VERDICT,
            help="Maximum proportion of fake videos called real; needs fake videos.",
        ),
    ] = 0.05,
    settings: ScanSettings,
) -> None:
    """Set a checkpoint's thresholds on your own footage.

    Genuine videos alone are enough. With 95 % confidence, at most --max-fpr of such videos then reach the threshold of
    `fake`; no video is called `real`. 1 % needs 299 videos, 2 % needs 149 and 5 % needs 59. Genuine and fake videos
    together also set the temperature and the threshold of `real`.

    Uses the checkpoint's own settings. Videos that the ledger already has are not scanned again. Check that the genuine
    videos contain no fakes: each one raises the threshold.

    Examples:

    \b
      dfscan calibrate ./own-videos --label real --checkpoint lab.safetensors --out lab.calibrated.safetensors
      dfscan calibrate ./own-videos --label real --max-fpr 0.02 --ledger all-nights.ledger --out own.safetensors
      dfscan calibrate labels.csv --group-column person --checkpoint lab.safetensors --out own.safetensors
    """
    require("train", "dfscan calibrate")
    from dfscan.cli.info import calibration_facts
    from dfscan.cli.progress import ScanProgressBar
    from dfscan.dataset.sources import SourceOptions, read_sources
    from dfscan.evaluation.own_footage import calibrate_on_footage
    from dfscan.train.folder import VALIDATION_NAME

    if runs := [path for path in inputs if (Path(path) / VALIDATION_NAME).is_file()]:
        raise ConfigError(f"{runs[0]} is the folder of a training run; for those, use `dfscan calibrate-folds`")
    settings = dataclasses.replace(settings, ledger=settings.ledger or Path(f"{calibrated}.ledger"))
    found = read_sources(inputs, SourceOptions(label=label, group_column=group_column))
    hint = f"finished videos are kept in {settings.ledger}; to continue, run the same command again"
    with ScanProgressBar(is_quiet=settings.quiet) as progress, resumable(hint):
        start_logging(is_quiet=settings.quiet, log_path=settings.log_file, handler=progress.log_handler)
        if found.skipped:
            log.warning("%d files are skipped, such as %s (%s)", len(found.skipped), *found.skipped[0])
        card = calibrate_on_footage(
            found.items,
            settings,
            calibrated,
            max_fpr=max_fpr,
            max_fnr=max_fnr,
            listener=progress,
            on_discovered=progress.set_total,
        )
    for verdict, rule in calibration_facts(card).items():
        say(f"{verdict}: {rule}")
    say(f"written to {calibrated}")
