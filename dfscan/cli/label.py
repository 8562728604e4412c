"""The ``dfscan label`` command."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from dfscan.cli.guard import guarded, say, start_logging
from dfscan.errors import ConfigError, OutputError


@guarded
def label(
    ledger: Annotated[
        Path,
        typer.Argument(help="Ledger of a scan: REPORT.ledger, or the file given with --ledger.", metavar="LEDGER"),
    ],
    paths: Annotated[
        list[str] | None,
        typer.Argument(help="Files, with their paths as in the report.", show_default=False, metavar="PATH"),
    ] = None,
    verdict: Annotated[
        Literal["fake", "real", "inconclusive", "withdrawn"] | None,
        typer.Option(
            help="Verdict of the reviewer on these files; withdrawn cancels an earlier one.", show_default=False
        ),
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(help="Name of the reviewer. With --from: the name for lines that have none.", show_default=False),
    ] = None,
    note: Annotated[str | None, typer.Option(help="Note of the reviewer.", show_default=False)] = None,
    from_list: Annotated[
        Path | None,
        typer.Option(
            "--from",
            help="CSV file with path, verdict, by and note, or a report with the column reviewer_verdict filled in.",
            show_default=False,
            metavar="FILE",
        ),
    ] = None,
) -> None:
    """Store or list reviews: the verdicts of people.

    Reports show a reviewer's verdict beside the detector's verdict. A review belongs to the content of a file, so a
    changed file has none. Reports show the last review; the ledger keeps all. Without --verdict and --from, prints all
    stored reviews as CSV.

    Examples:

    \b
      dfscan label report.csv.ledger ./videos/a.mp4 --verdict real --by "A. Miller" --note "checked with the author"
      dfscan label report.csv.ledger --from reviews.csv --by "A. Miller"
      dfscan label report.csv.ledger

    Exit codes:

    \b
      0    all reviews are stored
      1    some files are not in the ledger, have changed, or have a later review; the others are stored
      2    usage error, or an unusable list; nothing is stored
    """
    from dfscan.report.formats import open_writer
    from dfscan.scan.reviews import HISTORY_COLUMNS, ListedReview, history, now_utc, read_review_list, store_reviews
    from dfscan.text import printable
    from dfscan.types import Review

    start_logging()
    if from_list is None and verdict is None:
        if by is not None or note is not None:
            raise ConfigError("--by and --note need --verdict or --from: add one of them")
        if sys.stdout is None:
            raise OutputError("standard output is closed: open it")
        with open_writer(sys.stdout.buffer, HISTORY_COLUMNS, format="csv") as writer:
            for row in history(ledger, paths or []):
                writer.append(row)
        return
    reviewer = printable((by or "").strip())
    if from_list is not None:
        if paths or verdict is not None or note is not None:
            raise ConfigError("--from cannot be combined with paths, --verdict or --note; put those into the list")
        listed = read_review_list(from_list, reviewer=reviewer, time_utc=now_utc())
    else:
        if not paths or verdict is None or not reviewer:
            raise ConfigError("--verdict needs the paths of the files, and --by with the name of the reviewer")
        review = Review(verdict, reviewer, printable((note or "").strip()), now_utc())
        listed = [ListedReview(path, path, "", review) for path in paths]
    stored = store_reviews(ledger, listed)
    for problem in stored.problems:
        say(f"not stored: {problem}")
    unchanged = f", {stored.num_unchanged} already in the ledger" if stored.num_unchanged else ""
    missed = f", {len(stored.problems)} not stored" if stored.problems else ""
    say(f"{stored.num_stored} review{'' if stored.num_stored == 1 else 's'} stored{unchanged}{missed}")
    raise typer.Exit(int(bool(stored.problems)))
