"""Which faces go into which batch: pure functions of the seed, the epoch and the number of devices.

A batch is a tuple of keys. Workers make a face from its key alone, so that an interrupted run goes on with the very
batches that it would have seen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Key(NamedTuple):
    """One view of one sample."""

    epoch: int
    sample: int
    """Its index in the data set."""
    view: int
    """Which of the sample's views in this epoch."""


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


def num_steps(num_batches: int, *, accumulate: int, world_size: int = 1) -> int:
    """Optimiser steps of an epoch of so many batches; a last partial window is a step too."""
    return math.ceil(num_batches / world_size / accumulate)
