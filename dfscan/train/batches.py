"""Plan the batches of an epoch with pure functions of the seed, the epoch and the number of devices.

A batch is a tuple of keys. Workers build a face from its key alone, so an interrupted run resumes with exactly the
batches that it would have seen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


class Key(NamedTuple):
    """Identifies one view of one sample."""

    epoch: int
    sample: int
    """Index in the data set."""
    view: int
    """Index of the view among the views of the sample in this epoch."""
    is_forged: bool = True
    """True to add a fake made from this sample, if it is real and the recipe makes fakes."""


Batch = tuple[Key, ...]


def plan_epoch(
    num_faces: Sequence[int], *, epoch: int, seed: int, batch_size: int, repeat: int = 1, world_size: int = 1
) -> list[Batch]:
    """Return the batches of one epoch for all devices together; device r takes ``batches[r::world_size]``.

    Args:
        num_faces: faces of each sample, 2 where a fake is made from it, else 1.
        epoch: counted from 0.
        seed: seed of the run.
        batch_size: maximum number of faces in a batch.
        repeat: views of each sample.
        world_size: number of devices; all get the same number of batches, so up to ``world_size - 1`` are dropped.

    Returns:
        Batches of at least two faces: a last batch with a single face is dropped because of batch norm.
    """
    order = np.random.default_rng([seed, epoch]).permutation(len(num_faces) * repeat)
    batches: list[list[Key]] = []
    size = batch_size
    for number in order.tolist():
        view, index = divmod(number, len(num_faces))
        if size + num_faces[index] > batch_size:
            batches.append([])
            size = 0
        batches[-1].append(Key(epoch, index, view))
        size += num_faces[index]
    if batches and size < 2:
        batches.pop()
    return [tuple(batch) for batch in batches[: len(batches) // world_size * world_size]]


@dataclass(frozen=True, slots=True, eq=False)
class Pool:
    """Samples that balanced epochs draw from, with one entry per sample in each field."""

    is_fake: Sequence[bool]
    domains: Sequence[str]
    """Origin of the footage; fakes and reals of one origin share a name."""
    groups: Sequence[str]
    sources: Sequence[str]


def draw_epoch(
    pool: Pool,
    *,
    epoch: int,
    seed: int,
    batch_size: int,
    num_faces: int,
    fake_share: float,
    domain_exponent: float,
    world_size: int = 1,
) -> list[Batch]:
    """Draw the batches of one epoch by domain, source and crop, with equal numbers of real and fake faces.

    Faces come in pairs. A pair is either a real face with a fake made from it, or a true fake with a real face of the
    same group, else of the same domain, else of any video if the fake is from a video, else of any domain. The two
    faces of such a pair therefore differ by the forgery more than by their origin.

    Args:
        pool: the samples, at least one of them real.
        epoch: counted from 0.
        seed: seed of the run.
        batch_size: faces per batch, an even number.
        num_faces: faces per epoch, rounded down to whole batches on every device.
        fake_share: proportion of pairs that contain a true fake, if the pool has any, in [0, 1].
        domain_exponent: domains are drawn in proportion to their number of groups raised to this power.
        world_size: number of devices.

    Returns:
        Batches of `batch_size` faces.
    """
    rng = np.random.default_rng([seed, epoch])
    reals, fakes = _Drawer(pool, False, domain_exponent), _Drawer(pool, True, domain_exponent)
    videos = _Drawer(pool, False, domain_exponent, min_crops=2)
    batches: list[Batch] = []
    for _ in range(num_faces // (batch_size * world_size) * world_size):
        keys: list[Key] = []
        for _ in range(batch_size // 2):
            view = int(rng.integers(2**31))
            if fakes and rng.random() < fake_share:
                fake = fakes.any(rng)
                others = videos if videos and fakes.is_video(fake) else reals
                real = reals.beside(pool.groups[fake], pool.domains[fake], rng, others)
                keys += [Key(epoch, fake, view, False), Key(epoch, real, view, False)]
            else:
                keys.append(Key(epoch, reals.any(rng), view))
        batches.append(tuple(keys))
    return batches


class _Drawer:
    """Draws samples of one label: first a domain, then one of its sources, then one of its crops."""

    def __init__(self, pool: Pool, is_fake: bool, exponent: float, *, min_crops: int = 1) -> None:
        sources: dict[str, list[int]] = {}
        for index, label in enumerate(pool.is_fake):
            if label == is_fake:
                sources.setdefault(pool.sources[index], []).append(index)
        self._crops = [crops for crops in sources.values() if len(crops) >= min_crops]
        self._videos = {index for crops in self._crops if len(crops) > 1 for index in crops}
        self._by_domain: dict[str, list[int]] = {}
        self._by_group: dict[str, list[int]] = {}
        groups: dict[str, set[str]] = {}
        for number, crops in enumerate(self._crops):
            domain, group = pool.domains[crops[0]], pool.groups[crops[0]]
            self._by_domain.setdefault(domain, []).append(number)
            self._by_group.setdefault(group, []).append(number)
            groups.setdefault(domain, set()).add(group)
        self._domains = list(self._by_domain)
        weights = np.array([len(groups[domain]) for domain in self._domains], np.float64) ** exponent
        self._odds = weights / weights.sum() if self._domains else weights

    def __bool__(self) -> bool:
        return bool(self._crops)

    def is_video(self, index: int) -> bool:
        """Return whether the sample's source has several crops, so it is a video rather than an image."""
        return index in self._videos

    def any(self, rng: np.random.Generator) -> int:
        """Draw a sample from any domain."""
        return self._of(self._by_domain[self._domains[rng.choice(len(self._domains), p=self._odds)]], rng)

    def beside(self, group: str, domain: str, rng: np.random.Generator, others: _Drawer) -> int:
        """Draw a sample of this group, else of this domain, else any sample of `others`."""
        numbers = self._by_group.get(group) or self._by_domain.get(domain)
        return self._of(numbers, rng) if numbers else others.any(rng)

    def _of(self, numbers: list[int], rng: np.random.Generator) -> int:
        crops = self._crops[numbers[rng.integers(len(numbers))]]
        return crops[rng.integers(len(crops))]


def num_steps(num_batches: int, *, grad_accumulation: int, world_size: int = 1) -> int:
    """Return the number of optimiser steps per epoch; a last partial accumulation window counts as a step."""
    return math.ceil(num_batches / world_size / grad_accumulation)
