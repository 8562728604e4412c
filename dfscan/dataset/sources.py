"""List the labelled videos and images of the inputs, grouped so that splits do not leak.

Each supported layout has a thin adapter, chosen by the files that are present. No adapter opens a video.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dfscan.dataset.layouts import (
    LABEL_WORDS,
    SPLIT_WORDS,
    Source,
    Sources,
    media_files,
    read_celeb_df,
    read_dfdc,
    read_face_forensics,
    read_real_and_fake,
)
from dfscan.dataset.manifest import SPLITS, TRUE_LABELS, TrueLabel
from dfscan.dataset.settings import PrepareSettings
from dfscan.errors import ConfigError, DataError
from dfscan.scan.ledger import LedgerReader, is_ledger
from dfscan.scan.reviews import why_changed
from dfscan.text import first_few
from dfscan.types import standing

__all__ = ["Source", "SourceOptions", "Sources", "read_sources"]

LAYOUTS = (
    "a CSV file with a path and a label column; a ledger with reviewers' verdicts; a folder with real/ and fake/; any "
    "folder or file with --label; "
    "FaceForensics++ (original_sequences/, manipulated_sequences/); Celeb-DF (Celeb-real/, Celeb-synthesis/); "
    "DFDC (metadata.json beside the videos or one folder down)"
)


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """Labels and column names for inputs that do not define them."""

    label: TrueLabel | None = None
    """Label of inputs without one: plain folders and files, and CSV files without the column."""
    path_column: str = PrepareSettings.path_column
    """If a file lacks the default column, ``file`` is used."""
    label_column: str = PrepareSettings.label_column
    group_column: str | None = None
    """None: ``group``, if present."""
    split_column: str | None = None
    """None: ``split``, if present."""
    kind_column: str | None = None
    """None: ``kind`` or ``method``, if present."""
    source_column: str | None = None
    """None: ``domain``, if present. A column ``source`` must be named: it often holds a file name."""
    fold_column: str | None = None
    """None: ``fold``, if present."""
    take_column: str | None = None
    """None: takes are unknown. Videos of one take form a group, unless a group is given."""


def read_sources(inputs: Sequence[str], options: SourceOptions = SourceOptions()) -> Sources:
    """List the labelled videos and images of files and folders.

    Args:
        inputs: CSV files, ledgers with reviews, media files and folders.
        options: column names, and the label of inputs without one.

    Returns:
        Every file once, in the order of the inputs; within an input, in the order of its paths or lines.

    Raises:
        ConfigError: an input does not exist or has no supported layout.
        DataError: an input cannot be read or contains no existing file, a CSV file lacks columns or holds unknown
            words, or one file has two labels.
    """
    if missing := [repr(path) for path in inputs if not os.path.exists(path)]:
        raise ConfigError(f"no such file or directory: {', '.join(missing)}. Check the spelling, or leave it out.")
    sources = Sources()
    for path in inputs:
        part = Sources()
        _read_input(Path(path), options, part)
        if part.skipped and not part.items:
            problems = [f"'{file}' {reason}" for file, reason in part.skipped]
            where = "" if is_ledger(path) else "; paths are relative to its folder"
            raise DataError(f"{path}: none of its files can be used: {first_few(problems, 1)}{where}")
        if not part.items and is_ledger(path):
            raise DataError(f"{path}: no review says `fake` or `real`; store some with `dfscan label`")
        if not part.items:
            raise DataError(f"{path}: contains no video or image")
        sources.items += part.items
        sources.skipped += part.skipped
    kept: dict[str, Source] = {}
    for source in sources.items:
        first = kept.setdefault(os.path.realpath(source.path), source)
        if first.label != source.label:
            raise DataError(
                f"'{source.path}' is {source.label}, but {first.label} as '{first.path}': remove the wrong one"
            )
        if first.path != source.path:
            sources.skipped.append((source.path, f"repeated: named already, as {first.path}"))
    return Sources(list(kept.values()), sources.skipped)


def _read_input(path: Path, options: SourceOptions, sources: Sources) -> None:
    if path.suffix.lower() == ".csv" and path.is_file():
        return _read_csv(path, options, sources)
    if is_ledger(path):
        return _read_reviews(path, sources)
    if path.is_file():
        return sources.add(Source(str(path), _given_label(path, options), group=str(path)))
    if (path / "original_sequences").is_dir() or (path / "manipulated_sequences").is_dir():
        return read_face_forensics(path, sources)
    if (path / "Celeb-real").is_dir() or (path / "Celeb-synthesis").is_dir():
        return read_celeb_df(path, sources)
    if metadata := sorted([*path.glob("metadata.json"), *path.glob("*/metadata.json")]):
        return read_dfdc(metadata, sources)
    if (path / "real").is_dir() or (path / "fake").is_dir():
        return read_real_and_fake(path, sources)
    label = _given_label(path, options)
    for file in media_files(path):
        sources.add(Source(str(file), label, group=str(file)))


def _given_label(path: Path, options: SourceOptions) -> TrueLabel:
    if options.label is None:
        raise ConfigError(f"{path}: cannot tell what is real; set --label, or use one of these: {LAYOUTS}")
    return options.label


def _read_reviews(path: Path, sources: Sources) -> None:
    """Read what reviewers call real or fake; of several files with one content, the first that still has it."""
    done: set[str] = set()
    with LedgerReader(path) as ledger:
        for entry in ledger.entries():
            review = standing(ledger.reviews(entry.sha256)) if entry.sha256 not in done else None
            if review is None or review.verdict not in TRUE_LABELS:
                continue
            file = os.fsdecode(entry.key[0])
            label: TrueLabel = "fake" if review.verdict == "fake" else "real"
            if problem := why_changed(entry, is_needed=True):
                sources.skipped.append((file, problem))
            else:
                done.add(entry.sha256)
                sources.items.append(Source(file, label, group=file))


def _read_csv(path: Path, options: SourceOptions, sources: Sources) -> None:
    """Read rows of paths relative to the folder of the CSV file."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            rows = [(reader.line_num, row) for row in reader]
            header = reader.fieldnames or ()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not a CSV file in UTF-8 ({error}); save it as one") from error
    columns = _columns(path, header, options)
    problems: dict[str, list[int]] = {}
    for line, row in rows:
        cells = {role: (row.get(name) or "").strip() for role, name in columns.items()}
        label = LABEL_WORDS.get(cells["label"].lower()) if "label" in cells else options.label
        split = SPLIT_WORDS.get(cells.get("split", "").lower())
        for is_bad, problem in (
            (not cells["path"], f"column '{columns['path']}' is empty: enter a file name"),
            (label is None, f"column '{columns.get('label')}' is neither real (0) nor fake (1)"),
            (cells.get("split") and not split, f"column '{columns.get('split')}' is none of {', '.join(SPLITS)}"),
        ):
            if is_bad:
                problems.setdefault(problem, []).append(line)
        if not problems and label:
            name = str(path.parent / cells["path"])
            texts = {role: cells.get(role, "") for role in ("kind", "fold", "take")}
            group = cells.get("group") or texts["take"] or name
            sources.add(Source(name, label, group=group, split=split, domain=cells.get("source", ""), **texts))
    if problems:
        listed = "; ".join(f"{problem} (line {first_few(lines)})" for problem, lines in problems.items())
        raise DataError(f"{path}: {listed}")


def _columns(path: Path, header: Sequence[str], options: SourceOptions) -> dict[str, str]:
    """Return the column of each role that the file has."""
    asked = {
        "path": [options.path_column] + ["file"] * (options.path_column == SourceOptions().path_column),
        "label": [options.label_column],
        "group": [options.group_column or "group"],
        "split": [options.split_column or "split"],
        "kind": [options.kind_column] if options.kind_column else ["kind", "method"],
        "source": [options.source_column or "domain"],
        "fold": [options.fold_column or "fold"],
        "take": [options.take_column] if options.take_column else [],
    }
    columns = {role: name for role, names in asked.items() for name in names[::-1] if name in header}
    needed = {"path", *(["label"] if options.label is None else [])}
    roles = ("group", "split", "kind", "source", "fold", "take")
    needed |= {role for role in roles if getattr(options, f"{role}_column")}
    if missing := [role for role in asked if role in needed and role not in columns]:
        wanted = ", ".join(f"'{asked[role][0]}' (--{role}-column)" for role in missing)
        label = ", or --label for all" if "label" in missing else ""
        raise DataError(f"{path}, line 1: no column {wanted}; choose from {', '.join(header) or 'none'}{label}")
    return columns
