"""The ``dfscan scan`` command."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dfscan.cli import options
from dfscan.cli.guard import guarded, resumable, say, start_logging
from dfscan.cli.options import EXPLAIN, INPUT, OUTPUT, VERDICT, option
from dfscan.errors import ConfigError

if TYPE_CHECKING:
    from dfscan.config import ScanSettings
    from dfscan.scan.run import ScanSummary


@guarded
def scan(
    context: typer.Context,
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            help="Video files and folders, or their URLs: s3://, gs:// or abfss://. Folders are searched recursively.",
            show_default=False,
            metavar="PATH",
        ),
    ] = None,
    files_from: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=INPUT,
            help="Also read paths from this file, one per line; use - for stdin.",
            metavar="FILE",
        ),
    ] = None,
    null: Annotated[
        bool,
        typer.Option("--null", "-0", rich_help_panel=INPUT, help="Paths in --files-from end with NUL, not newline."),
    ] = False,
    include: options.Include = None,
    exclude: options.Exclude = None,
    follow_symlinks: options.FollowSymlinks = None,
    images: options.Images = None,
    shard: Annotated[
        str | None,
        option(
            "--shard",
            panel=INPUT,
            help="Scan only the I-th of N parts of the inputs, to share the work among machines; auto takes the part "
            "from a SLURM job array. The path as given determines a file's part. `dfscan report` merges the ledgers.",
            metavar="I/N",
        ),
    ] = None,
    out: options.Out = None,
    format: options.Format = None,
    frames_out: options.FramesOut = None,
    html: options.Html = None,
    html_max_mb: options.HtmlMaxMb = None,
    keep_pictures: Annotated[
        bool | None,
        option(
            "--keep-pictures/--no-keep-pictures",
            panel=OUTPUT,
            help="Store small face images in the ledger, for an HTML page made later. Default: only with --html.",
        ),
    ] = None,
    excel: options.Excel = None,
    delimiter: options.Delimiter = None,
    ledger: Annotated[
        Path | None,
        option(
            "--ledger",
            panel=OUTPUT,
            help="SQLite file for all results. Scans that share this file scan only new and changed videos. "
            "Default: REPORT.ledger.",
            metavar="FILE",
        ),
    ] = None,
    resume: Annotated[
        bool | None,
        option(
            "--resume/--no-resume",
            panel=OUTPUT,
            help="Reuse the ledger's results for unchanged files, for example after an interrupt. Default: only with "
            "--ledger.",
        ),
    ] = None,
    verify: Annotated[
        bool | None,
        option(
            "--verify/--no-verify",
            panel=OUTPUT,
            help="Hash every file before reusing its result from the ledger. Default: only if its inode or change time "
            "differs.",
        ),
    ] = None,
    explain: Annotated[
        Path | None,
        option("--explain", panel=EXPLAIN, help="Write faces and heat maps to this folder.", metavar="DIR"),
    ] = None,
    explain_top: Annotated[
        int | None,
        option("--explain-top", panel=EXPLAIN, help="Number of highest-scoring faces per video. Default: 3."),
    ] = None,
    explain_format: Annotated[
        str | None, option("--explain-format", panel=EXPLAIN, help="Image format: png or jpg. Default: png.")
    ] = None,
    threshold: options.Threshold = None,
    min_faces: options.MinFaces = None,
    fail_on: Annotated[
        str | None,
        option(
            "--fail-on",
            panel=VERDICT,
            help="Comma-separated conditions that fail the scan: fake, inconclusive, no_face and partial exit with 1; "
            "error and empty (a folder without videos) exit with 2. Default: fake,error.",
            metavar="LIST",
        ),
    ] = None,
    new_only: Annotated[
        bool | None,
        option(
            "--new-only/--no-new-only",
            panel=VERDICT,
            help="For the exit code, ignore findings that were already in the ledger.",
        ),
    ] = None,
    exit_zero: Annotated[
        bool | None,
        option("--exit-zero/--no-exit-zero", panel=VERDICT, help="Exit with 0 regardless of the findings."),
    ] = None,
    num_frames: options.NumFrames = None,
    every: options.Every = None,
    max_frames: options.MaxFrames = None,
    stream: options.Stream = None,
    detection_threshold: options.DetectionThreshold = None,
    min_face_px: options.MinFacePx = None,
    max_faces: options.MaxFaces = None,
    checkpoint: options.CheckpointFile = None,
    device: options.Device = None,
    batch_size: options.BatchSize = None,
    provenance: options.Provenance = None,
    trust_list: options.TrustList = None,
    on: options.On = None,
    max_workers: options.MaxWorkers = None,
    gpus_per_worker: options.GpusPerWorker = None,
    workers: options.Workers = None,
    threads: options.Threads = None,
    timeout: options.Timeout = None,
    max_memory: options.MaxMemory = None,
    sandbox: options.Sandbox = None,
    quiet: options.Quiet = None,
    log_file: options.LogFile = None,
    config: options.Config = None,
) -> None:
    """Score videos and write a report with one row per video.

    Every setting can also be given as an environment variable DFSCAN_OPTION_NAME or in a --config file. Flags take
    precedence over variables, and variables over the file.

    Examples:

    \b
      dfscan scan ./videos --out report.csv
      dfscan scan ./videos --out report.xlsx --html report.html
      dfscan scan /srv/video --out tonight.csv --ledger all-nights.ledger --new-only

    Exit codes:

    \b
      0    all inputs were scanned, none is fake
      1    at least one video is fake
      2    usage error, report not written, or an input failed and no video is fake
      75   another run writes the same report or ledger
      130  interrupted
      143  terminated
    """
    from dfscan.cli.progress import ScanProgressBar
    from dfscan.config import ScanSettings, build_settings
    from dfscan.scan.outputs import named_files, spare_inputs
    from dfscan.scan.run import run_scan

    settings = build_settings(ScanSettings, options.chosen(context))
    spare_inputs(
        named_files(settings), [path for path in (config, files_from, settings.checkpoint, settings.trust_list) if path]
    )
    named, listed = _inputs(inputs or [], files_from, is_null=null)
    with ScanProgressBar(is_quiet=settings.quiet) as progress, resumable(_how_to_go_on(settings)):
        start_logging(is_quiet=settings.quiet, log_path=settings.log_file, handler=progress.log_handler)
        summary = run_scan(named, settings, listed=listed, listener=progress, on_discovered=progress.set_total)
    code = summary.exit_code(settings)
    if nothing := summary.nothing_to_scan():
        say(nothing)
    if code or not settings.quiet:
        say(_summary(summary, settings, progress.seconds))
    raise typer.Exit(code)


def _how_to_go_on(settings: ScanSettings) -> str:
    """Return a hint on how to continue after an interrupt."""
    from dfscan.scan.outputs import ledger_path

    ledger = ledger_path(settings)
    if ledger is None:
        return "no results are kept; use --out or --ledger to make a scan resumable"
    resume = "" if settings.takes_known else " with --resume"
    return f"finished videos are kept in {ledger}; to continue, run the same command again{resume}"


def _inputs(inputs: list[str], files_from: str | None, *, is_null: bool) -> tuple[list[str], list[str]]:
    named = [path for path in inputs if path != "-"]
    listed: list[str] = []
    if "-" in inputs or files_from == "-":
        listed += _read_list("-", is_null=is_null)
    if files_from not in (None, "-"):
        listed += _read_list(str(files_from), is_null=is_null)
    if is_null and files_from is None and "-" not in inputs:
        raise ConfigError("--null needs --files-from: add --files-from or remove --null")
    if not inputs and files_from is None:
        raise ConfigError("nothing to scan: give files or folders, or a list with --files-from")
    return named, listed


def _read_list(name: str, *, is_null: bool) -> list[str]:
    from dfscan.media.discover import read_list

    if name == "-":
        return read_list(sys.stdin.buffer, null=is_null)
    try:
        with Path(name).open("rb") as file:
            return read_list(file, null=is_null)
    except OSError as error:
        raise ConfigError(f"{name}: cannot be read ({error.strerror}); check --files-from") from error


def _summary(summary: ScanSummary, settings: ScanSettings, seconds: float) -> str:
    files = [*settings.out_files, *([str(settings.html)] if settings.html else [])]
    written = f" - {', '.join(files)}" if files else ""
    return f"{summary.summary()} in {seconds:.0f} s{written}"
