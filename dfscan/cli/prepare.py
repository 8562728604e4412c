"""The ``dfscan prepare`` command."""

from __future__ import annotations

import logging
from typing import Annotated, Any

import typer

from dfscan.cli.guard import guarded, resumable, say, start_logging
from dfscan.cli.options import with_settings
from dfscan.dataset.settings import PrepareSettings
from dfscan.extras import require

log = logging.getLogger("dfscan")


@guarded
@with_settings()
def prepare(
    *,
    inputs: Annotated[
        list[str],
        typer.Argument(
            help="CSV files, folders with a known layout, videos and images.", show_default=False, metavar="INPUT"
        ),
    ],
    settings: PrepareSettings,
) -> None:
    """Turn labelled videos and images into a data set.

    Writes face crops, a manifest and training, validation and test splits without leaks between them. Accepts CSV
    files, folders that contain real/ and fake/, any folder with --label, and the layouts of FaceForensics++, Celeb-DF
    and DFDC. After an interrupt, the same command continues where it stopped.

    Examples:

    \b
      dfscan prepare videos.csv --out ./dataset --group-column person
      dfscan prepare ./footage --label real --out ./dataset
      dfscan prepare /data/FaceForensics++ --out ./dataset --crop-format jpg
    """
    require("train", "dfscan prepare")
    from dfscan.dataset.prepare import run_prepare
    from dfscan.text import display_path

    with _progress(is_quiet=settings.quiet) as progress, resumable("to continue, run the same command again"):
        start_logging(is_quiet=settings.quiet, log_path=settings.log_file, handler=progress.log_handler)
        summary = run_prepare(inputs, settings, listener=progress)
    if not settings.quiet:
        say(f"{summary.text()} in {progress.seconds:.0f} s - {display_path(str(settings.out))}")


def _progress(*, is_quiet: bool) -> Any:
    """Create a progress bar fed by `train.prepare`; the class is local because its base imports rich."""
    from dfscan.cli.progress import ScanProgressBar
    from dfscan.text import display_path

    class PrepareProgress(ScanProgressBar):
        def source_done(self, path: str, num_crops: int, reason: str) -> None:
            self.faces_scored(num_crops)
            self._labels["used" if num_crops else "skipped"] += 1
            log.log(
                logging.INFO if reason.startswith("no_face") or not reason else logging.WARNING,
                "%s: %s",
                display_path(path),
                reason or f"{num_crops} crops",
            )
            self._note(advance=1)

    return PrepareProgress(is_quiet=is_quiet)
