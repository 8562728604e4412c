"""``dfscan scan``."""

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
    from dfscan.scan.run import Tally


@guarded
def scan(
    context: typer.Context,
    inputs: Annotated[
        list[str] | None,
        typer.Argument(help="Video files and folders (searched with all their subfolders).", show_default=False),
    ] = None,
    files_from: Annotated[
        str | None, typer.Option(rich_help_panel=INPUT, help="Also take paths from this file, one a line; - is stdin.")
    ] = None,
    null: Annotated[
        bool, typer.Option("--null", "-0", rich_help_panel=INPUT, help="Paths in --files-from end in NUL, not newline.")
    ] = False,
    include: options.Include = None,
    exclude: options.Exclude = None,
    follow_symlinks: options.FollowSymlinks = None,
    shard: Annotated[
        str | None,
        option(
            "--shard",
            panel=INPUT,
            help="Only the I-th of N parts of the inputs, by their paths as given, for several machines; "
            "dfscan report joins their ledgers.",
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
            help="Keep small pictures of faces in the ledger, for a page made later. Default: only with --html.",
        ),
    ] = None,
    excel: options.Excel = None,
    delimiter: options.Delimiter = None,
    ledger: Annotated[
        Path | None,
        option(
            "--ledger",
            panel=OUTPUT,
            help="SQLite record of all results; one that is shared over nights has only new and changed files scanned. "
            "Default: REPORT.ledger.",
        ),
    ] = None,
    resume: Annotated[
        bool | None,
        option(
            "--resume/--no-resume",
            panel=OUTPUT,
            help="Take from the ledger what it knows of unchanged files: goes on after an interrupt. Default: only "
            "with --ledger.",
        ),
    ] = None,
    verify: Annotated[
        bool | None,
        option(
            "--verify/--no-verify",
            panel=OUTPUT,
            help="Hash every file before its result is taken from the ledger. Default: only if its inode or change "
            "time differs.",
        ),
    ] = None,
    explain: Annotated[
        Path | None,
        option("--explain", panel=EXPLAIN, help="Write faces and heat maps into this folder.", metavar="DIR"),
    ] = None,
    explain_top: Annotated[
        int | None, option("--explain-top", panel=EXPLAIN, help="Highest-scoring faces of each video. Default: 3.")
    ] = None,
    explain_format: Annotated[
        str | None, option("--explain-format", panel=EXPLAIN, help="png or jpg. Default: png.")
    ] = None,
    threshold: options.Threshold = None,
    min_faces: options.MinFaces = None,
    fail_on: Annotated[
        str | None,
        option(
            "--fail-on",
            panel=VERDICT,
            help="What makes the exit code 1: of fake, inconclusive, no_face, partial; or 2: of error, and empty, a "
            "folder without videos. Default: fake,error.",
            metavar="LIST",
        ),
    ] = None,
    new_only: Annotated[
        bool | None,
        option(
            "--new-only/--no-new-only",
            panel=VERDICT,
            help="For the exit code count only what the ledger did not say of that file before.",
        ),
    ] = None,
    exit_zero: Annotated[
        bool | None, option("--exit-zero/--no-exit-zero", panel=VERDICT, help="Exit 0 whatever was found.")
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
    workers: options.Workers = None,
    threads: options.Threads = None,
    timeout: options.Timeout = None,
    max_memory: options.MaxMemory = None,
    sandbox: options.Sandbox = None,
    quiet: options.Quiet = None,
    log_file: options.LogFile = None,
    config: options.Config = None,
) -> None:
    """Judge videos: one row each, in a report that spreadsheets open.

    All settings can also be given as DFSCAN_OPTION_NAME in the environment or in a --config file; the flag wins.

    Examples:

    \b
      dfscan scan ./videos --out report.csv
      dfscan scan ./videos --out report.xlsx --html report.html
      dfscan scan /srv/video --out tonight.csv --ledger all-nights.ledger --new-only

    Exit codes:

    \b
      0   every input handled, none fake
      1   at least one fake
      2   usage error, report not written, or an input ended in error and none was fake
      75  another run writes the same report or ledger
      130 interrupted; 143 terminated
    """
    from dfscan.cli.progress import Progress
    from dfscan.config import ScanSettings, build
    from dfscan.scan.outputs import named_files, spare_inputs
    from dfscan.scan.run import run_scan

    settings = build(ScanSettings, options.chosen(context))
    spare_inputs(named_files(settings), [path for path in (config, files_from, settings.checkpoint) if path])
    named, listed = _inputs(inputs or [], files_from, is_null=null)
    with Progress(is_quiet=settings.quiet) as progress, resumable(_how_to_go_on(settings)):
        start_logging(is_quiet=settings.quiet, log_path=settings.log_file, handler=progress.log_handler)
        tally = run_scan(named, settings, listed=listed, listener=progress, on_discovered=progress.set_total)
    code = tally.exit_code(settings)
    if nothing := tally.nothing_to_scan():
        say(nothing)
    if code or not settings.quiet:
        say(_summary(tally, settings, progress.seconds))
    raise typer.Exit(code)


def _how_to_go_on(settings: ScanSettings) -> str:
    """What to do after an interrupt."""
    from dfscan.scan.outputs import ledger_path

    ledger = ledger_path(settings)
    if ledger is None:
        return "nothing is kept; with --out or --ledger a scan can be resumed"
    resume = "" if settings.takes_known else " with --resume"
    return f"finished videos are kept in {ledger}; to go on, use the same command{resume}"


def _inputs(inputs: list[str], files_from: str | None, *, is_null: bool) -> tuple[list[str], list[str]]:
    named = [path for path in inputs if path != "-"]
    listed: list[str] = []
    if "-" in inputs or files_from == "-":
        listed += _read_list("-", is_null=is_null)
    if files_from not in (None, "-"):
        listed += _read_list(str(files_from), is_null=is_null)
    if is_null and files_from is None and "-" not in inputs:
        raise ConfigError("--null is for the list of --files-from; add that, or leave --null out")
    if not inputs and files_from is None:
        raise ConfigError("nothing to scan: name files or folders, or give a list with --files-from")
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


def _summary(tally: Tally, settings: ScanSettings, seconds: float) -> str:
    files = [*settings.out_files, *([str(settings.html)] if settings.html else [])]
    written = f" - {', '.join(files)}" if files else ""
    return f"{tally.summary()} in {seconds:.0f} s{written}"
