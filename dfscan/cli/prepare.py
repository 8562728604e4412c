"""``dfscan prepare``."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from dfscan.cli import options
from dfscan.cli.guard import guarded, resumable, say, start_logging
from dfscan.cli.options import FACES, INPUT, OUTPUT
from dfscan.extras import require

CROPS, SPLITS = "Crops", "Splits"

log = logging.getLogger("dfscan")


def _own(*flags: str, panel: str, help: str, **more: Any) -> Any:
    """An option that no other command reads, and so without an environment variable."""
    return typer.Option(*flags, rich_help_panel=panel, help=help, show_default=False, **more)


@guarded
def prepare(
    context: typer.Context,
    inputs: Annotated[
        list[str],
        typer.Argument(help="CSV files, folders of a known layout, videos and pictures.", show_default=False),
    ],
    out: Annotated[Path, _own("--out", "-o", panel=OUTPUT, help="Folder of the data set.", metavar="DATASET")],
    label: Annotated[
        str | None, _own("--label", panel=INPUT, help="real or fake: label of the inputs that name none.")
    ] = None,
    path_column: Annotated[
        str | None, _own("--path-column", panel=INPUT, help="Paths in a CSV file. Default: path, else file.")
    ] = None,
    label_column: Annotated[
        str | None, _own("--label-column", panel=INPUT, help="Labels: real or 0, fake or 1. Default: label.")
    ] = None,
    group_column: Annotated[
        str | None,
        _own("--group-column", panel=INPUT, help="Who or what must not cross splits. Default: group, else each file."),
    ] = None,
    split_column: Annotated[
        str | None, _own("--split-column", panel=INPUT, help="Splits settled already. Default: split, if there.")
    ] = None,
    kind_column: Annotated[
        str | None, _own("--kind-column", panel=INPUT, help="Manipulation. Default: kind or method, if there.")
    ] = None,
    source_column: Annotated[
        str | None,
        _own(
            "--source-column",
            panel=INPUT,
            help="Origin of the footage, such as a page or data set. Default: domain, if there.",
        ),
    ] = None,
    fold_column: Annotated[
        str | None, _own("--fold-column", panel=INPUT, help="Cross-validation fold. Default: fold, if there.")
    ] = None,
    num_frames: options.NumFrames = None,
    detection_threshold: options.DetectionThreshold = None,
    min_face_px: options.MinFacePx = None,
    max_faces: Annotated[
        int | None, _own("--max-faces", panel=FACES, help="Most faces of one frame, the largest. Default: 1.")
    ] = None,
    margin: Annotated[
        float | None,
        _own("--margin", panel=CROPS, help="Side of a crop over the longer side of its face. Default: 1.8."),
    ] = None,
    max_crop_px: Annotated[
        int | None, _own("--max-crop-px", panel=CROPS, help="Shrink larger crops to this side. Default: 640.")
    ] = None,
    crop_format: Annotated[
        str | None, _own("--crop-format", panel=CROPS, help="png, without loss, or jpg. Default: png.")
    ] = None,
    val: Annotated[
        float | None, _own("--val", panel=SPLITS, help="Fraction of the groups for validation. Default: 0.15.")
    ] = None,
    test: Annotated[
        float | None, _own("--test", panel=SPLITS, help="Fraction of the groups for the test. Default: 0.15.")
    ] = None,
    seed: Annotated[int | None, _own("--seed", panel=SPLITS, help="Another one splits otherwise. Default: 0.")] = None,
    workers: options.Workers = None,
    timeout: options.Timeout = None,
    max_memory: options.MaxMemory = None,
    sandbox: options.Sandbox = None,
    quiet: options.Quiet = None,
    log_file: options.LogFile = None,
) -> None:
    """Cut labelled videos or pictures into face crops to train on, with a manifest and splits that do not leak.

    Understands a CSV file, folders real/ and fake/, any folder with --label, and the layouts of FaceForensics++,
    Celeb-DF and DFDC. After an interrupt the same command goes on where it was.

    Examples:

    \b
      dfscan prepare videos.csv --out ./dataset --group-column person
      dfscan prepare ./footage --label real --out ./dataset
      dfscan prepare /data/FaceForensics++ --out ./dataset --crop-format jpg
    """
    require("train", "dfscan prepare")
    from dfscan.config import ScanSettings, build, check_environment
    from dfscan.report.text import display_path
    from dfscan.train.prepare import PrepareSettings
    from dfscan.train.prepare import prepare as run

    check_environment(os.environ, [ScanSettings])
    given = {name: value for name, value in context.params.items() if name in PrepareSettings.model_fields}
    settings = build(PrepareSettings, given)
    with _progress(is_quiet=settings.quiet) as progress, resumable("to go on, use the same command"):
        start_logging(is_quiet=settings.quiet, log_path=settings.log_file, handler=progress.log_handler)
        summary = run(inputs, settings, listener=progress)
    if not settings.quiet:
        say(f"{summary.text()} in {progress.seconds:.0f} s - {display_path(str(out))}")


def _progress(*, is_quiet: bool) -> Any:
    """The live line of a scan, fed by `train.prepare`; made here, as it brings rich."""
    from dfscan.cli.progress import Progress
    from dfscan.report.text import display_path

    class PrepareProgress(Progress):
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
