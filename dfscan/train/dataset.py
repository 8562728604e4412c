"""Load face crops from disk as batches. This module needs PyTorch: import it only inside functions."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch  # noqa: TID253
from threadpoolctl import threadpool_limits
from torch import Tensor  # noqa: TID253
from torch.utils.data import DataLoader, Dataset  # noqa: TID253

from dfscan.arrays import UInt8Image
from dfscan.dataset.manifest import Sample
from dfscan.errors import DataError
from dfscan.forgery.donors import Donors
from dfscan.forgery.names import FORGERY_KINDS, ForgeryKind
from dfscan.train.augment import PairAugmenter, evaluation_fake, evaluation_view
from dfscan.train.batches import Batch, Key
from dfscan.train.kinds import kind_class
from dfscan.train.settings import TrainSettings

EVALUATION_EPOCH = 2**31
"""Replaces the epoch in the seeds of evaluation, which uses the same faces every time."""


@dataclass(frozen=True, slots=True)
class Faces:
    """One batch of faces."""

    pixels: Tensor
    """uint8 [B, S, S, 3] RGB"""
    is_fake: Tensor
    """float32 [B]"""
    index: Tensor
    """int64 [B] indices of the samples."""
    made: Tensor
    """int64 [B], how each face was made from its sample: 0 if unchanged, else 1 + the index in `FORGERY_KINDS`."""
    kinds: Tensor
    """int64 [B] indices in `kinds.KIND_CLASSES`."""

    def pin_memory(self) -> Faces:
        """Copy the batch to page-locked memory for fast transfer to the GPU; called by DataLoader."""
        return Faces(self.pixels.pin_memory(), self.is_fake.pin_memory(), self.index, self.made, self.kinds)


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """One face as the network sees it."""

    pixels: UInt8Image
    """(S, S, 3) RGB."""
    is_fake: bool
    kind: ForgeryKind | None = None
    """Forgery that made this fake from a real face; None for real faces and true fakes."""


_Item = tuple[list[View], int, str]
"""The views of a sample, its index, and its kind of manipulation."""


class FaceSet(Dataset[_Item | DataError]):
    """Samples of one split; an item holds all faces that come from one sample."""

    def __init__(
        self,
        samples: Sequence[Sample],
        folder: Path,
        settings: TrainSettings,
        *,
        is_training: bool,
        reconstructions: Path | None = None,
    ) -> None:
        """Create the data set without reading any crop.

        Args:
            samples: samples of one split.
            folder: folder of the manifest.
            settings: the recipe.
            is_training: whether faces are augmented; otherwise they are preprocessed as in a scan.
            reconstructions: folder of the reconstructed faces, if any are used.
        """
        self.samples = samples
        self._settings = settings
        self._views = PairAugmenter(settings) if is_training else None
        self.reconstructions = reconstructions
        self._donors = Donors(samples, folder, reconstructions)
        self._turns = _turns(samples)

    @property
    def num_faces(self) -> list[int]:
        """Number of faces that come from each sample."""
        settings = self._settings
        num_fakes = bool(settings.kinds) + (bool(settings.held_out_kinds) and not self._views)
        return [1 + (num_fakes if sample.label == "real" else 0) for sample in self.samples]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: Key) -> _Item | DataError:
        """Return the views of a sample, its index and its kind of manipulation.

        If a crop cannot be read, its error is returned rather than raised, because DataLoader would wrap it in a
        worker's traceback.
        """
        try:
            return self.views_of(key), key.sample, self.samples[key.sample].kind
        except DataError as error:
            return error

    def views_of(self, key: Key) -> list[View]:
        """Return the view of the sample itself, followed by the fakes made from it.

        Raises:
            DataError: a crop or a reconstruction cannot be read.
        """
        rng = np.random.default_rng([self._settings.seed, *key])
        sample, face = self.samples[key.sample], self._donors.read(key.sample)
        is_fake, kinds = sample.label == "fake", self._settings.kinds
        if not self._views:
            views = [View(evaluation_view(face, self._settings), is_fake)]
            for choice in () if is_fake else (kinds, self._settings.held_out_kinds):
                if choice:
                    kind = choice[self._turns[key.sample] % len(choice)]  # in rotation by source
                    donor = self._donors.of(key.sample, face, kind, rng)
                    views.append(View(evaluation_fake(face, self._settings, rng, kind, donor), True, kind))
            return views
        if is_fake or not kinds or not key.is_forged:
            return [View(pixels, is_fake) for pixels in self._views.single(face, rng)]
        kind = kinds[rng.integers(len(kinds))] if len(kinds) > 1 else kinds[0]
        donor = self._donors.of(key.sample, face, kind, rng)
        real_pixels, fake_pixels = self._views.pair(face, rng, kind, donor)
        return [View(real_pixels, False), View(fake_pixels, True, kind)]


def _turns(samples: Sequence[Sample]) -> list[int]:
    """Return for each sample the index of its source among the real sources, so all faces of a video agree."""
    places: dict[str, int] = {}
    for sample in samples:
        if sample.label == "real":
            places.setdefault(sample.source, len(places))
    return [places.get(sample.source, 0) for sample in samples]


def load(faces: FaceSet, batches: Sequence[Batch], *, num_workers: int, pin_memory: bool) -> Iterator[Faces]:
    """Yield batches in order; workers, if any, load them in advance.

    Raises:
        DataError: a crop cannot be read.
    """
    if num_workers:
        cv2.setNumThreads(1)  # else a forked worker waits forever for threads of this process's pool
    loader: Any = DataLoader(
        faces,
        batch_sampler=batches,  # type: ignore[arg-type]
        collate_fn=_collate,
        num_workers=num_workers,
        pin_memory=pin_memory,
        worker_init_fn=_start_worker,
        prefetch_factor=4 if num_workers else None,
    )
    for loaded in loader:
        if isinstance(loaded, DataError):
            raise loaded
        yield loaded


def _start_worker(_: int) -> None:
    # Ctrl-C, `timeout` and a service manager signal every process. The main process saves its state, which needs the
    # batches that are being loaded, and then stops the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # One process per core; thread pools would compete for the cores. With 16 workers on 16 cores, BLAS threads that
    # waited for work took three quarters of the CPU time.
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    threadpool_limits(1)


def _collate(items: list[_Item | DataError]) -> Faces | DataError:
    good = [item for item in items if not isinstance(item, DataError)]
    if len(good) < len(items):
        return next(item for item in items if isinstance(item, DataError))
    views = [(view, index, kind) for views, index, kind in good for view in views]
    return Faces(
        pixels=torch.from_numpy(np.stack([view.pixels for view, *_ in views])),
        is_fake=torch.tensor([view.is_fake for view, *_ in views], dtype=torch.float32),
        index=torch.tensor([index for _, index, _ in views]),
        made=torch.tensor([1 + FORGERY_KINDS.index(view.kind) if view.kind else 0 for view, *_ in views]),
        kinds=torch.tensor([kind_class(view.is_fake, view.kind, kind) for view, _, kind in views]),
    )
