"""Turn labelled videos and images into a data set: loose face crops, ``manifest.csv`` and ``skipped.csv``.

Faces are decoded, detected and cropped as in a scan. The crops of a source count once its line is in the journal. The
manifest is built from the journal at the end, so interrupted and uninterrupted runs produce the same bytes.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from dfscan.dataset.duplicates import near_duplicates, unpack
from dfscan.dataset.extract import Extraction, PrepareListener, crop_recipe, note
from dfscan.dataset.journal import Journal, JournalEntry
from dfscan.dataset.layouts import Source, components
from dfscan.dataset.manifest import MANIFEST_NAME, SPLITS, TRUE_LABELS, Sample, write_manifest
from dfscan.dataset.settings import PrepareSettings
from dfscan.dataset.sources import SourceOptions, read_sources
from dfscan.dataset.splits import assign_splits, check_splits
from dfscan.errors import DataError
from dfscan.report.formats import open_writer
from dfscan.report.schema import Column
from dfscan.text import report_order

__all__ = ["PrepareListener", "PrepareSettings", "PrepareSummary", "run_prepare"]

SKIPPED_NAME = "skipped.csv"
SKIPPED_COLUMNS = (Column("path", "path"), Column("num_crops", "int"), Column("reason", "text"))
"""Columns of ``skipped.csv``: num_crops is 0 for an unused source and positive for one that was decoded in part."""


@dataclass(slots=True)
class PrepareSummary:
    """Counts that describe a finished data set."""

    num_sources: int = 0
    num_crops: int = 0
    labels: Counter[str] = field(default_factory=Counter)
    splits: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    num_partial: int = 0
    num_merged_groups: int = 0
    """Groups that were merged into others because some of their crops show the same image."""

    def text(self) -> str:
        """Return the summary as one line of text."""
        labels = ", ".join(f"{self.labels[label]} {label}" for label in TRUE_LABELS)
        splits = ", ".join(f"{self.splits[split]} {split}" for split in SPLITS)
        skipped = ", ".join(f"{count} {code}" for code, count in sorted(self.skipped.items())) or "none"
        partial = f" ({self.num_partial} partial)" if self.num_partial else ""
        merged = (
            f"; {self.num_merged_groups} groups merged with others that show the same image"
            if self.num_merged_groups
            else ""
        )
        return (
            f"{self.num_sources} sources{partial}, {self.num_crops} crops: {labels}; {splits}{merged}; "
            f"skipped: {skipped}"
        )


def run_prepare(
    inputs: Sequence[str], settings: PrepareSettings, *, listener: PrepareListener | None = None
) -> PrepareSummary:
    """Create a data set, or continue one.

    Args:
        inputs: as for `read_sources`.
        settings: output folder and options.
        listener: receives the progress.

    Raises:
        ConfigError: the inputs cannot be interpreted.
        DataError: one file has two labels, no source shows a face, or the given splits leak; in the last case the
            manifest is still written.
        OutputError: a file cannot be written.
    """
    given = {name: value for name, value in vars(settings).items() if name in SourceOptions.__dataclass_fields__}
    inputs_read = read_sources(inputs, SourceOptions(**given))
    # The data set may be inside a folder that is searched: leave out the crops of earlier runs.
    own = os.path.join(os.path.realpath(settings.out), "")
    sources = [source for source in inputs_read.items if not os.path.realpath(source.path).startswith(own)]
    with Journal(settings.out, crop_recipe(settings)) as journal:
        extraction = Extraction(settings, journal, sources, listener)
        extraction.run()
        notes = dict(inputs_read.skipped) | extraction.failures
        entries = {path: entry for path, entry in journal.entries.items() if path not in extraction.failures}
        kept: dict[str, Source] = {}  # the first of identical files, by hash
        for source in sources:
            if source.path not in entries:
                continue
            first = kept.setdefault(entries[source.path].sha256, source)
            if first is not source:
                notes[source.path] = f"duplicate: the same file as {first.path}"
        return _write(settings, list(kept.values()), entries, notes)


def _write(
    settings: PrepareSettings, sources: Sequence[Source], entries: dict[str, JournalEntry], notes: dict[str, str]
) -> PrepareSummary:
    """Assign splits, write the output files and return the summary."""
    for source in sources:
        if what := note(entries[source.path], settings):
            notes[source.path] = what
    used = [source for source in sources if entries[source.path].crops]
    num_crops = {source.path: len(entries[source.path].crops) for source in used}
    with open_writer(settings.out / SKIPPED_NAME, SKIPPED_COLUMNS, format="csv") as writer:
        for name in sorted(notes, key=report_order):
            writer.append({"path": name, "num_crops": num_crops.get(name, 0), "reason": notes[name]})
    if not used:
        raise DataError(f"{settings.out}: no source shows a usable face; {SKIPPED_NAME} there gives the reasons")
    merged = _merge_groups_of_copies(used, entries)
    divided = assign_splits(merged, val=settings.val, test=settings.test, seed=settings.seed)
    samples = [sample for source in divided for sample in _samples(source, entries[source.path])]
    samples.sort(key=lambda sample: (sample.source, sample.crop))
    write_manifest(settings.out / MANIFEST_NAME, samples)
    check_splits(samples, settings.out)
    return PrepareSummary(
        num_sources=len(used),
        num_crops=len(samples),
        labels=Counter(sample.label for sample in samples),
        splits=Counter(sample.split for sample in samples),
        skipped=Counter(reason.partition(":")[0] for path, reason in notes.items() if path not in num_crops),
        num_partial=sum(path in num_crops for path in notes),
        num_merged_groups=len({source.group for source in used}) - len({source.group for source in merged}),
    )


def _merge_groups_of_copies(sources: Sequence[Source], entries: dict[str, JournalEntry]) -> list[Source]:
    """Merge groups that share nearly identical crops, which would otherwise leak between splits."""
    crops = [(crop, source.group) for source in sources for crop in entries[source.path].crops]
    names, groups = np.unique(np.array([group for _, group in crops], dtype=object), return_inverse=True)
    joined: set[tuple[int, int]] = set()
    for first, second in near_duplicates(unpack([crop.fingerprint for crop, _ in crops]), groups):
        joined |= set(zip(groups[first].tolist(), groups[second].tolist(), strict=True))
    merged = components((names[a], names[b]) for a, b in joined)
    return [replace(source, group=merged.get(source.group, source.group)) for source in sources]


def _samples(source: Source, entry: JournalEntry) -> list[Sample]:
    assert source.split is not None
    return [
        Sample(
            crop=crop.crop,
            source=source.path,
            label=source.label,
            kind=source.kind,
            split=source.split,
            group=source.group,
            source_sha256=entry.sha256,
            crop_sha256=crop.crop_sha256,
            time_s=crop.time_s,
            detection_score=crop.detection_score,
            box_xyxy=np.array(crop.box_xyxy, np.float32),
            landmarks=np.array(crop.landmarks, np.float32).reshape(5, 2),
            fingerprint=crop.fingerprint,
            domain=source.domain,
            fold=source.fold,
        )
        for crop in entry.crops
    ]
