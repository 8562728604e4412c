"""Assign whole groups to training, validation and test, and check that nothing is in more than one split."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from dfscan.dataset.crops import read_crop
from dfscan.dataset.duplicates import Fingerprints, fingerprint, near_duplicates, unpack
from dfscan.dataset.layouts import Source
from dfscan.dataset.manifest import SPLITS, Sample, Split
from dfscan.errors import DataError
from dfscan.text import first_few

NUM_NAMED = 3
"""Number of offenders that a message names; further ones are only counted."""
MIN_GROUPS = 3
"""Every requested split gets at least one group of each kind that has at least this many groups."""


def assign_splits(sources: Sequence[Source], *, val: float, test: float, seed: int) -> list[Source]:
    """Assign every source to a split, keeping groups together.

    Groups with only real sources, only fake sources and both are divided separately, so that every split gets its
    proportion of each. Given splits are kept and count towards the fractions. The remaining groups are ordered by a
    hash of seed and group, so a group's rank depends neither on the order of the sources nor on the names of other
    groups.

    Args:
        sources: sources with their groups.
        val: fraction of the groups for validation.
        test: fraction of the groups for the test.
        seed: seed of the division.

    Returns:
        The sources in their original order.
    """
    given: dict[str, Split] = {}
    labels: dict[str, set[str]] = defaultdict(set)
    for source in sources:
        labels[source.group].add(source.label)
        if source.split:
            given[source.group] = min(source.split, given.get(source.group, source.split))
    strata: dict[frozenset[str], list[str]] = defaultdict(list)
    for group, its_labels in labels.items():
        strata[frozenset(its_labels)].append(group)
    split_of = dict(given)
    for groups in strata.values():
        free = sorted(
            (group for group in groups if group not in given),
            key=lambda group: hashlib.sha256(f"{seed}|{group}".encode("utf-8", "surrogatepass")).digest(),
        )
        taken = [given[group] for group in groups if group in given]
        num_val = min(_num_wanted(len(groups), val, taken.count("val")), max(0, len(groups) - 1))
        num_test = min(_num_wanted(len(groups), test, taken.count("test")), max(0, len(groups) - 1 - num_val))
        for i, group in enumerate(free):
            split_of[group] = "val" if i < num_val else "test" if i < num_val + num_test else "train"
    return [replace(source, split=source.split or split_of[source.group]) for source in sources]


def _num_wanted(num_groups: int, fraction: float, num_taken: int) -> int:
    minimum = 1 if fraction > 0 and num_groups >= MIN_GROUPS else 0
    return max(0, max(minimum, round(fraction * num_groups)) - num_taken)


def find_leaks(samples: Sequence[Sample], fingerprints: Fingerprints) -> list[str]:
    """Describe everything that is in more than one split: groups, source files, crops and nearly identical crops.

    Args:
        samples: the whole data set.
        fingerprints: (N, 8), one for each sample.

    Returns:
        A clause for each kind of leak that occurs, with the first offenders and their number.
    """
    splits = np.array([SPLITS.index(sample.split) for sample in samples], np.intp)
    pairs = {
        (min(a, b), max(a, b))
        for first, second in near_duplicates(fingerprints, splits)
        for a, b in zip(first.tolist(), second.tolist(), strict=True)
        if samples[a].crop_sha256 != samples[b].crop_sha256
    }
    alike = [
        f"'{samples[a].crop}' ({samples[a].split}) and '{samples[b].crop}' ({samples[b].split})"
        for a, b in sorted(pairs)
    ]
    clauses = (
        _crossing("group", samples, lambda sample: (sample.group, sample.group)),
        _crossing("source file", samples, lambda sample: (sample.source_sha256 or sample.source, sample.source)),
        _crossing("crop", samples, lambda sample: (sample.crop_sha256, sample.crop)),
        _named("pair of nearly identical crops", alike),
    )
    return [clause for clause in clauses if clause]


def _crossing(what: str, samples: Sequence[Sample], describe: Callable[[Sample], tuple[str, str]]) -> str:
    """Return the clause on keys that cross splits; `describe` returns a sample's key and a name to show."""
    splits: dict[str, set[Split]] = defaultdict(set)
    names: dict[str, str] = {}
    for sample in samples:
        key, name = describe(sample)
        splits[key].add(sample.split)
        names.setdefault(key, name)
    offenders = [
        f"'{names[key]}' ({', '.join(sorted(crossed, key=SPLITS.index))})"
        for key, crossed in splits.items()
        if len(crossed) > 1
    ]
    return _named(what, offenders)


def _named(what: str, offenders: Sequence[str]) -> str:
    return f"{what} in more than one split: {first_few(offenders, NUM_NAMED)}" if offenders else ""


def check_splits(samples: Sequence[Sample], dataset_dir: Path) -> None:
    """Reject a data set in which anything is in more than one split.

    Args:
        samples: the whole data set; missing fingerprints are computed from the crops.
        dataset_dir: folder that the crops' paths are relative to.

    Raises:
        DataError: the splits leak, or a crop whose fingerprint is missing cannot be read.
    """
    fingerprints = unpack(
        [sample.fingerprint or fingerprint(read_crop(dataset_dir / sample.crop)) for sample in samples]
    )
    if leaks := find_leaks(samples, fingerprints):
        raise DataError(
            f"{dataset_dir}: the splits leak: {'; '.join(leaks)}. Assign related videos to one group or one split, "
            "and run `dfscan prepare` again"
        )
