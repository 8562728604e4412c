"""The ``dfscan prepare`` command."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Any

import typer

from dfscan.cli import options
from dfscan.cli.guard import guarded, resumable, say, start_logging
from dfscan.cli.options import FACES, INPUT, OUTPUT
from dfscan.extras import require

CROPS, SPLITTING = "Crops", "Splits"

log = logging.getLogger("dfscan")


def _own(*flags: str, panel: str, help: str, **more: Any) -> Any:
    """Create an option of this command only, without an environment variable."""
    return typer.Option(*flags, rich_help_panel=panel, help=help, show_default=False, **more)


@guarded
def prepare(
    context: typer.Context,
    inputs: Annotated[
        list[str],
        typer.Argument(
            help="CSV files, folders with a known layout, videos and images.", show_default=False, metavar="INPUT"
        ),
    ],
    out: Annotated[Path, _own("--out", "-o", panel=OUTPUT, help="Folder for the data set.", metavar="DATASET")],
    label: Annotated[
        str | None, _own("--label", panel=INPUT, help="Label for inputs without one: real or fake.")
    ] = None,
    path_column: Annotated[
        str | None, _own("--path-column", panel=INPUT, help="CSV column with the path. Default: path, else file.")
    ] = None,
    label_column: Annotated[
        str | None,
        _own("--label-column", panel=INPUT, help="CSV column with the label: real or 0, fake or 1. Default: label."),
    ] = None,
    group_column: Annotated[
        str | None,
        _own(
            "--group-column",
            panel=INPUT,
            help="CSV column with the group, such as a person; all files of a group are put in the same split. "
            "Default: group, if present, else each file is a group.",
        ),
    ] = None,
    split_column: Annotated[
        str | None, _own("--split-column", panel=INPUT, help="CSV column with the split. Default: split, if present.")
    ] = None,
    kind_column: Annotated[
        str | None,
        _own(
            "--kind-column",
            panel=INPUT,
            help="CSV column with the kind of manipulation. Default: kind or method, if present.",
        ),
    ] = None,
    source_column: Annotated[
        str | None,
        _own(
            "--source-column",
            panel=INPUT,
            help="CSV column with the origin, such as a page or data set. Default: domain, if present.",
        ),
    ] = None,
    fold_column: Annotated[
        str | None,
        _own(
            "--fold-column", panel=INPUT, help="CSV column with the cross-validation fold. Default: fold, if present."
        ),
    ] = None,
    num_frames: options.NumFrames = None,
    detection_threshold: options.DetectionThreshold = None,
    min_face_px: options.MinFacePx = None,
    max_faces: Annotated[
        int | None,
        _own("--max-faces", panel=FACES, help="Maximum number of faces per frame; the largest are kept. Default: 1."),
    ] = None,
    margin: Annotated[
        float | None,
        _own("--margin", panel=CROPS, help="Ratio of a crop's side to the longer side of the face box. Default: 1.8."),
    ] = None,
    max_crop_px: Annotated[
        int | None,
        _own(
            "--max-crop-px",
            panel=CROPS,
            help="Maximum side of a crop in pixels; larger crops are shrunk. Default: 640.",
        ),
    ] = None,
    crop_format: Annotated[
        str | None, _own("--crop-format", panel=CROPS, help="Image format: png (lossless) or jpg. Default: png.")
    ] = None,
    val: Annotated[
        float | None,
        _own("--val", panel=SPLITTING, help="Fraction of the groups in the validation split. Default: 0.15."),
    ] = None,
    test: Annotated[
        float | None, _own("--test", panel=SPLITTING, help="Fraction of the groups in the test split. Default: 0.15.")
    ] = None,
    seed: Annotated[int | None, _own("--seed", panel=SPLITTING, help="Seed of the split. Default: 0.")] = None,
    workers: options.Workers = None,
    timeout: options.Timeout = None,
    max_memory: options.MaxMemory = None,
    sandbox: options.Sandbox = None,
    quiet: options.Quiet = None,
    log_file: options.LogFile = None,
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
    from dfscan.config import build_settings
    from dfscan.dataset.prepare import PrepareSettings, run_prepare
    from dfscan.text import display_path

    given = {name: value for name, value in context.params.items() if name in PrepareSettings.model_fields}
    settings = build_settings(PrepareSettings, given)
    with _progress(is_quiet=settings.quiet) as progress, resumable("to continue, run the same command again"):
        start_logging(is_quiet=settings.quiet, log_path=settings.log_file, handler=progress.log_handler)
        summary = run_prepare(inputs, settings, listener=progress)
    if not settings.quiet:
        say(f"{summary.text()} in {progress.seconds:.0f} s - {display_path(str(out))}")


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
