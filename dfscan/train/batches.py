"""Which faces go into which batch: pure functions of the seed, the epoch and the number of devices.

A batch is a tuple of keys. Workers make a face from its key alone, so that an interrupted run goes on with the very
batches that it would have seen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


class Key(NamedTuple):
    """One view of one sample."""

    epoch: int
    sample: int
    """Its index in the data set."""
    view: int
    """Which of the sample's views in this epoch."""
    is_forged: bool = True
    """Show a fake made from a real sample beside it, where the recipe makes fakes."""


Batch = tuple[Key, ...]


def plan_epoch(
    num_faces: Sequence[int], *, epoch: int, seed: int, batch_size: int, repeat: int = 1, world_size: int = 1
) -> list[Batch]:
    """The batches of one epoch, for all devices together: device r takes ``batches[r::world_size]``.

    Args:
        num_faces: of each sample: 2 where a fake comes with it, else 1.
        epoch: from 0.
        seed: of the run.
        batch_size: most faces of a batch.
        repeat: views of each sample.
        world_size: number of devices; each gets as many batches, so that up to ``world_size - 1`` are left out.

    Returns:
        Batches of at least two faces: batch norm must not see a single one, so a last batch of one is left out.
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
    """What balanced epochs are drawn from; one entry for each sample."""

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
    """Draw the batches of one epoch by domain, source and crop, as many reals as fakes.

    Faces come in pairs. A pair is a real face with a fake made from it, or a true fake with a real face of its own
    group, else of its own domain, else of any domain: what differs within such a pair is the forgery more than the
    origin.

    Args:
        pool: the samples, with reals among them.
        epoch: from 0.
        seed: of the run.
        batch_size: faces of a batch, even.
        num_faces: faces of the epoch; rounded down to whole batches on every device.
        fake_share: proportion of pairs with a true fake, if the pool has any, in [0, 1].
        domain_exponent: domains are drawn in proportion to their number of groups to this power.
        world_size: number of devices.

    Returns:
        Batches of `batch_size` faces.
    """
    rng = np.random.default_rng([seed, epoch])
    reals, fakes = _Drawer(pool, False, domain_exponent), _Drawer(pool, True, domain_exponent)
    batches: list[Batch] = []
    for _ in range(num_faces // (batch_size * world_size) * world_size):
        keys: list[Key] = []
        for _ in range(batch_size // 2):
            view = int(rng.integers(2**31))
            if fakes and rng.random() < fake_share:
                fake = fakes.any(rng)
                real = reals.beside(pool.groups[fake], pool.domains[fake], rng)
                keys += [Key(epoch, fake, view, False), Key(epoch, real, view, False)]
            else:
                keys.append(Key(epoch, reals.any(rng), view))
        batches.append(tuple(keys))
    return batches


class _Drawer:
    """Draws samples of one label: a domain, then one of its sources, then one of its crops."""

    def __init__(self, pool: Pool, is_fake: bool, exponent: float) -> None:
        sources: dict[str, list[int]] = {}
        for index, label in enumerate(pool.is_fake):
            if label == is_fake:
                sources.setdefault(pool.sources[index], []).append(index)
        self._crops = list(sources.values())
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
        self._odds = weights / weights.sum()

    def __bool__(self) -> bool:
        return bool(self._crops)

    def any(self, rng: np.random.Generator) -> int:
        """A sample of any domain."""
        return self._of(self._by_domain[self._domains[rng.choice(len(self._domains), p=self._odds)]], rng)

    def beside(self, group: str, domain: str, rng: np.random.Generator) -> int:
        """A sample of this group, else of this domain, else of any."""
        numbers = self._by_group.get(group) or self._by_domain.get(domain)
        return self._of(numbers, rng) if numbers else self.any(rng)

    def _of(self, numbers: list[int], rng: np.random.Generator) -> int:
        crops = self._crops[numbers[rng.integers(len(numbers))]]
        return crops[rng.integers(len(crops))]


def num_steps(num_batches: int, *, accumulate: int, world_size: int = 1) -> int:
    """Optimiser steps of an epoch of so many batches; a last partial window is a step too."""
    return math.ceil(num_batches / world_size / accumulate)
