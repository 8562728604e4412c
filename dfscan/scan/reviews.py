"""Reviews: what people say about scanned files, stored in the ledger beside the verdicts.

A review belongs to the content of a file, by its sha256. So copies share it, and a changed file does not inherit it.
Reviews are only added; of the reviews of one content, the last one counts.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import get_args

from dfscan.errors import ConfigError, DataError, VideoError
from dfscan.media.source import FileIdentity, hash_file
from dfscan.objects import is_url
from dfscan.report.readers import NEEDED
from dfscan.report.schema import Column
from dfscan.scan.ledger import LedgerEntry, LedgerReader, add_reviews
from dfscan.text import display_path, guard_formula, printable
from dfscan.types import Review, ReviewVerdict, standing

HISTORY_COLUMNS: tuple[Column, ...] = (
    Column("path", "path"),
    Column("sha256", "text"),
    Column("reviewer_verdict", "text"),
    Column("reviewer", "text"),
    Column("reviewed_utc", "text"),
    Column("reviewer_note", "text"),
)
"""Columns of the list of reviews; those of a report."""
VERDICTS: tuple[ReviewVerdict, ...] = get_args(ReviewVerdict)
NAMES = {
    "path": ("path", "file"),
    "sha256": ("sha256",),
    "verdict": ("reviewer_verdict", "label", "verdict"),
    "reviewer": ("reviewer", "by"),
    "note": ("reviewer_note", "note"),
    "time": ("reviewed_utc",),
}
"""Accepted names of each column of a list, those of a report first."""
DELIMITERS = ",;\t"
TIME_FORMAT = "%Y-%m-%dT%H:%M:%SZ"


@dataclass(frozen=True, slots=True)
class ListedReview:
    """One review in a list or on the command line, for a file that is not looked up yet."""

    where: str
    """What a message about it begins with, such as ``labels.csv, line 3``."""
    path: str
    """As given; empty if only the hash is."""
    sha256: str
    """Hash of the content that was reviewed; empty if it is not given."""
    review: Review
    reviewed_utc: str = ""
    """Time of the review that the report had, which this one repeats or edits; empty if it had none."""


@dataclass(frozen=True, slots=True)
class Stored:
    """What became of a list of reviews."""

    num_stored: int
    num_unchanged: int
    """Number of reviews that the ledger already had."""
    problems: list[str]
    """One message for each review that was not stored."""


def now_utc() -> str:
    """Return the time as reviews have it."""
    return datetime.now(UTC).strftime(TIME_FORMAT)


# Reading a list


def read_review_list(path: Path, *, reviewer: str, time_utc: str) -> list[ListedReview]:
    """Read reviews from CSV: a list of one's own, or a report with the column ``reviewer_verdict`` filled in.

    Accepted are commas, semicolons and tabs, a byte order mark, capitals in names and verdicts, and columns in any
    order. Lines without a verdict are skipped.

    Args:
        path: the file.
        reviewer: name for lines without one; may be empty.
        time_utc: time of the reviews.

    Raises:
        DataError: the file cannot be read or is not CSV, a column is missing or ambiguous, or lines are unusable; the
            message gives the first lines and their causes.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            header, rows = _table(file)
            columns = _columns(path, header)
            listed = list[ListedReview]()
            problems = list[str]()
            for line, cells in rows:
                found, problem = _review(f"{path}, line {line}", header, columns, cells, reviewer, time_utc)
                listed += [found] if found else []
                problems += [f"line {line}: {problem}"] if problem else []
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a CSV file in UTF-8 ({error.reason}); save it as `CSV UTF-8`") from error
    except csv.Error as error:
        raise DataError(f"{path}: not a CSV file ({error})") from error
    if problems:
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise DataError(f"{path}: nothing was stored: {'; '.join(problems[:5])}{more}")
    return listed


def _table(file: Iterable[str]) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """Return the names of the columns, and the lines with their numbers."""
    lines = iter(file)
    head, skipped = next(lines, ""), 0
    if head.lower().startswith("sep="):  # Excel writes the delimiter there
        head, skipped = next(lines, ""), 1
    names, delimiter = max(
        ((next(csv.reader([head], delimiter=each), []), each) for each in DELIMITERS), key=lambda found: len(found[0])
    )
    reader = csv.reader(lines, delimiter=delimiter)
    return [name.strip().lower() for name in names], (
        (reader.line_num + 1 + skipped, cells) for cells in reader if any(map(str.strip, cells))
    )


def _columns(path: Path, header: Sequence[str]) -> dict[str, int]:
    """Return the index of each known column.

    A report has a column ``verdict``, which is the detector's. It must never pass for a person's.
    """
    if twice := {name for name in header if name and header.count(name) > 1}:
        raise DataError(f"{path}, line 1: the column {', '.join(sorted(twice))} occurs twice; remove one")
    beside = set(header) & ({"label"} | NEEDED - {"path", "verdict"})
    if "verdict" in header and "reviewer_verdict" not in header and beside:
        raise DataError(
            f"{path}, line 1: the column `verdict` may hold the detector's verdicts; put the reviewer's verdicts into "
            "a column `reviewer_verdict`"
        )
    columns = {role: header.index(name) for role, names in NAMES.items() for name in reversed(names) if name in header}
    missing = [role for role in ("verdict",) if role not in columns]
    missing += ["path"] if not columns.keys() & {"path", "sha256"} else []
    if missing:
        wanted = " and ".join(f"`{NAMES[role][0]}`" for role in missing)
        raise DataError(f"{path}, line 1: no column {wanted}; the columns are {', '.join(header) or 'none'}")
    return columns


def _review(
    where: str,
    header: Sequence[str],
    columns: Mapping[str, int],
    cells: Sequence[str],
    reviewer: str,
    time_utc: str,
) -> tuple[ListedReview | None, str | None]:
    """Return the review of a line, or what is wrong with it; neither, if the line has no verdict."""

    def cell(role: str) -> str:
        index = columns.get(role, len(cells))
        text = cells[index].strip() if index < len(cells) else ""
        return text[1:] if text.startswith("'") and guard_formula(text[1:]) == text else text

    if len(cells) > len(header):
        return None, f"{len(cells)} cells, but {len(header)} columns; put cells that contain the delimiter in quotes"
    if not cell("verdict"):
        return None, None
    verdict = next((each for each in VERDICTS if each == cell("verdict").lower()), None)
    name = cell("reviewer") or reviewer
    if verdict is None:
        return None, f"'{cell('verdict')}' is not one of {', '.join(VERDICTS)}"
    if not cell("path") and not cell("sha256"):
        return None, "no path"
    if not name:
        return None, "no reviewer; fill in `reviewer`, or give --by"
    if time := cell("time"):
        try:
            is_past = time == datetime.strptime(time, TIME_FORMAT).strftime(TIME_FORMAT) and time <= time_utc
        except ValueError:
            is_past = False
        if not is_past:
            return None, f"'{time}' is not a past time such as 2026-11-25T14:30:00Z; leave `reviewed_utc` as it was"
    review = Review(verdict, name, cell("note"), time_utc)
    sha256 = cell("sha256").lower().removeprefix("sha256:")
    return ListedReview(where, cell("path"), sha256, review, time), None


# Storing


def store_reviews(ledger: Path, listed: Iterable[ListedReview]) -> Stored:
    """Store reviews of files that the ledger has; those of other files become problems.

    The rows of a report whose reviews nobody edited are known. A row that was edited counts as a review of now, unless
    the ledger has got a later review since the report was made.

    Raises:
        DataError: the ledger cannot be read.
        OutputError: the ledger cannot be written.
    """
    new = list[tuple[str, Review]]()
    problems = list[str]()
    num_unchanged = 0
    with LedgerReader(ledger) as reader:
        files = _Files(reader.entries())
        known = dict[str, list[Review]]()
        for each in listed:
            try:
                sha256 = files.content_of(each)
            except DataError as error:
                problems.append(f"{each.where}: {error}")
                continue
            if sha256 not in known:
                known[sha256] = reader.reviews(sha256)
            last = known[sha256][-1] if known[sha256] else None
            if _is_known(each, known[sha256]):
                num_unchanged += 1
            elif last and each.reviewed_utc and each.reviewed_utc < last.time_utc:
                shown = f"{each.where}: {last.reviewer} reviewed this content later, at {last.time_utc}"
                problems.append(f"{shown}; make the report again, or use --verdict")
            else:
                is_from_elsewhere = each.reviewed_utc > (last.time_utc if last else "")
                review = replace(each.review, time_utc=each.reviewed_utc) if is_from_elsewhere else each.review
                known[sha256].append(review)
                new.append((sha256, review))
    if new:
        add_reviews(ledger, new)
    return Stored(len(new), num_unchanged, problems)


def _is_known(listed: ListedReview, stored: Sequence[Review]) -> bool:
    """Return True if the last review says the same, or an earlier one with the time in the report."""

    def shown(review: Review) -> list[str]:
        return [review.verdict, *(guard_formula(printable(text)) for text in (review.reviewer, review.note))]

    if standing(stored) is None and listed.review.verdict == "withdrawn":
        return True
    at_that_time = (review for review in stored if review.time_utc == listed.reviewed_utc)
    return any(shown(review) == shown(listed.review) for review in (*stored[-1:], *at_that_time))


class _Files:
    """The files of a ledger by the names that people use for them."""

    def __init__(self, entries: Iterable[LedgerEntry]) -> None:
        self._by_name: dict[str, list[LedgerEntry]] = {}
        self._by_sha256: dict[str, LedgerEntry] = {}
        for entry in entries:
            for name in {os.fsdecode(entry.key[0]), display_path(entry.path)}:
                self._by_name.setdefault(name, []).append(entry)
            if entry.sha256:
                self._by_sha256[entry.sha256] = entry

    def content_of(self, listed: ListedReview) -> str:
        """Return the sha256 of the reviewed content.

        Raises:
            DataError: the ledger does not have this file, or not with this content.
        """
        shown = display_path(listed.path) if listed.path else listed.sha256
        found = self._named(listed.path) if listed.path else []
        if listed.sha256:
            if listed.sha256 in self._by_sha256:
                return listed.sha256
            raise DataError(
                f"{shown} has changed since it was reviewed; review it again"
                if found
                else f"{shown} is not in the ledger"
            )
        if not found:
            raise DataError(f"{shown} is not in the ledger; give its path as in the report, or its absolute path")
        if len({entry.sha256 for entry in found}) > 1:
            raise DataError(f"{shown} names {len(found)} files in the ledger; give the absolute path")
        if not found[0].sha256:
            raise DataError(f"{shown} could not be read when it was scanned, so its content is unknown; scan it again")
        if problem := why_changed(found[0]):
            raise DataError(f"{shown}: {problem}")
        return found[0].sha256

    def _named(self, path: str) -> list[LedgerEntry]:
        names = {path, display_path(path), path if is_url(path) else os.path.abspath(path)}
        return list({entry.row: entry for name in names for entry in self._by_name.get(name, [])}.values())


def why_changed(entry: LedgerEntry, *, is_needed: bool = False) -> str | None:
    """Return why the file no longer has the content that was scanned, or None if it has.

    The file is hashed only if its size or modification time differs. Objects in a store are not looked at.

    Args:
        entry: the file.
        is_needed: a file that is missing or not looked at is a problem, too. Otherwise the ledger may have come from
            another machine.
    """
    _, size_bytes, mtime_ns, _ = entry.key
    path = os.fsdecode(entry.key[0])
    identity = None if is_url(path) else FileIdentity.of(path)
    if identity is None:
        problem = (
            "in_store: it is in an object store; copy it to a disk" if is_url(path) else "not_there: it is missing"
        )
        return problem if is_needed else None
    if (identity.size_bytes, identity.mtime_ns) == (size_bytes, mtime_ns):
        return None
    try:
        is_same = hash_file(path) == entry.sha256
    except VideoError as error:
        return f"{error.code}: {error}"
    return None if is_same else "changed: its content has changed since it was scanned; scan it again"


# Listing


def history(ledger: Path, paths: Sequence[str]) -> Iterator[dict[str, object]]:
    """Yield the values of `HISTORY_COLUMNS` of every review, by file and in order of time.

    Args:
        ledger: the ledger.
        paths: the files; all, if there are none.

    Raises:
        DataError: the ledger cannot be read.
        ConfigError: the ledger does not have one of the files.
    """
    with LedgerReader(ledger) as reader:
        entries = reader.entries()
        if paths:
            files = _Files(entries)
            entries = []
            for path in paths:
                if not (found := files._named(path)):
                    raise ConfigError(f"{display_path(path)} is not in {ledger}; give its path as in the report")
                entries += found
        for entry in entries:
            for review in reader.reviews(entry.sha256):
                yield {
                    "path": entry.path,
                    "sha256": entry.sha256,
                    "reviewer_verdict": review.verdict,
                    "reviewer": review.reviewer,
                    "reviewed_utc": review.time_utc,
                    "reviewer_note": review.note or None,
                }
