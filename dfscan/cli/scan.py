"""The ``dfscan scan`` command."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from dfscan.cli import options
from dfscan.cli.guard import guarded, resumable, say, start_logging
from dfscan.config import INPUT, ScanSettings
from dfscan.errors import ConfigError


@guarded
@options.with_settings()
def scan(
    *,
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
    settings: ScanSettings,
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
    from dfscan.files import spare_inputs
    from dfscan.scan.outputs import ledger_path, named_files
    from dfscan.scan.run import run_scan

    read = (config, files_from, *(settings.checkpoint or ()), settings.trust_list)
    spare_inputs(named_files(settings), [path for path in read if path])
    named, listed = _inputs(inputs or [], files_from, is_null=null)
    hint = "no results are kept; use --out or --ledger to make a scan resumable"
    if ledger := ledger_path(settings):
        resume = "" if settings.takes_known else " with --resume"
        hint = f"finished videos are kept in {ledger}; to continue, run the same command again{resume}"
    with ScanProgressBar(is_quiet=settings.quiet) as progress, resumable(hint):
        start_logging(is_quiet=settings.quiet, log_path=settings.log_file, handler=progress.log_handler)
        summary = run_scan(named, settings, listed=listed, listener=progress, on_discovered=progress.set_total)
    code = summary.exit_code(settings)
    if nothing := summary.nothing_to_scan():
        say(nothing)
    if code or not settings.quiet:
        files = [*settings.out_files, *([str(settings.html)] if settings.html else [])]
        written = f" - {', '.join(files)}" if files else ""
        written += f"; {summary.num_annotated} annotated in {settings.annotate}" if settings.annotate else ""
        say(f"{summary.summary()} in {progress.seconds:.0f} s{written}")
    raise typer.Exit(code)


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
