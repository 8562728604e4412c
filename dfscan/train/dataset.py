"""Face crops on disk as batches in memory. This module is PyTorch's own: import it only inside functions."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch  # noqa: TID253
from numpy.typing import NDArray
from torch import Tensor  # noqa: TID253
from torch.utils.data import DataLoader, Dataset  # noqa: TID253

from dfscan.errors import ConfigError
from dfscan.train.batches import Batch, Key
from dfscan.train.companions import Companions
from dfscan.train.crops import LooseCrop
from dfscan.train.kinds import kind_class
from dfscan.train.manifest import Sample
from dfscan.train.settings import FORGERY_KINDS, ForgeryKind, TrainSettings
from dfscan.train.views import TrainingViews, evaluation_fake, evaluation_view

EVALUATION_EPOCH = 2**31
"""Stands for the epoch in the seeds of evaluation, which sees the same faces every time."""


@dataclass(frozen=True, slots=True)
class Faces:
    """A batch."""

    pixels: Tensor
    """uint8 [B, S, S, 3] RGB"""
    is_fake: Tensor
    """float32 [B]"""
    index: Tensor
    """int64 [B] of the samples."""
    made: Tensor
    """int64 [B] what a face was made of its sample by: 0 by nothing, else 1 + the place in `FORGERY_KINDS`."""
    kinds: Tensor
    """int64 [B] indices in `kinds.KIND_CLASSES`."""

    def pin_memory(self) -> Faces:
        """The same in memory that a GPU reads fast; DataLoader calls it."""
        return Faces(self.pixels.pin_memory(), self.is_fake.pin_memory(), self.index, self.made, self.kinds)


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """One face as the network sees it."""

    pixels: NDArray[np.uint8]
    """(S, S, 3) RGB."""
    is_fake: bool
    kind: ForgeryKind | None = None
    """What a fake was made by from a real face."""


_Item = tuple[list[View], int, str]
"""The views of a sample, its index, and its kind of manipulation."""


class FaceSet(Dataset[_Item | ConfigError]):
    """Samples of one split; an item is all faces that come of one sample."""

    def __init__(
        self,
        samples: Sequence[Sample],
        folder: Path,
        settings: TrainSettings,
        *,
        is_training: bool,
        reconstructions: Path | None = None,
    ) -> None:
        """Look nothing up yet.

        Args:
            samples: of one split.
            folder: that of the manifest.
            settings: the recipe.
            is_training: whether faces are augmented; else they are seen as in a scan.
            reconstructions: where reconstructed faces are, if they are wanted.
        """
        self.samples = samples
        self._settings = settings
        self._views = TrainingViews(settings) if is_training else None
        self.reconstructions = reconstructions
        self._companions = Companions(samples, folder, reconstructions)
        self._turns = _turns(samples)

    @property
    def num_faces(self) -> list[int]:
        """Faces that come of each sample."""
        settings = self._settings
        num_fakes = bool(settings.kinds) + (bool(settings.left_out_kinds) and not self._views)
        return [1 + (num_fakes if sample.label == "real" else 0) for sample in self.samples]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: Key) -> _Item | ConfigError:
        """The views and the sample's index.

        A crop that cannot be read gives its error, not raises it: DataLoader would wrap it in a worker's traceback.
        """
        try:
            return self.views_of(key), key.sample, self.samples[key.sample].kind
        except ConfigError as error:
            return error

    def views_of(self, key: Key) -> list[View]:
        """The sample itself, and the fakes that are made of it.

        Raises:
            ConfigError: a picture cannot be read.
        """
        rng = np.random.default_rng([self._settings.seed, *key])
        sample, face = self.samples[key.sample], self._companions.read(key.sample)
        is_fake, kinds = sample.label == "fake", self._settings.kinds
        if not self._views:
            made = [] if is_fake else self._held_out_kinds(key.sample)
            fakes = [self._evaluation_fake(key.sample, face, kind, rng) for kind in made]
            return [View(evaluation_view(face, self._settings), is_fake), *fakes]
        if is_fake or not kinds or not key.is_forged:
            return [View(pixels, is_fake) for pixels in self._views.single(face, rng)]
        kind = kinds[rng.integers(len(kinds))] if len(kinds) > 1 else kinds[0]
        companion = self._companions.of(key.sample, face, kind, rng)
        real_pixels, fake_pixels = self._views.pair(face, rng, kind, companion)
        return [View(real_pixels, False), View(fake_pixels, True, kind)]

    def _held_out_kinds(self, index: int) -> list[ForgeryKind]:
        """What is made of a real face in evaluation: kinds take turns by source, and so do those left out."""
        turn, settings = self._turns[index], self._settings
        return [kinds[turn % len(kinds)] for kinds in (settings.kinds, settings.left_out_kinds) if kinds]

    def _evaluation_fake(self, index: int, face: LooseCrop, kind: ForgeryKind, rng: np.random.Generator) -> View:
        companion = self._companions.of(index, face, kind, rng)
        return View(evaluation_fake(face, self._settings, rng, kind, companion), True, kind)


def _turns(samples: Sequence[Sample]) -> list[int]:
    """For each sample the place of its source among those of real faces, so that a video's faces have one turn."""
    places: dict[str, int] = {}
    for sample in samples:
        if sample.label == "real":
            places.setdefault(sample.source, len(places))
    return [places.get(sample.source, 0) for sample in samples]


def load(faces: FaceSet, batches: Sequence[Batch], *, num_workers: int, pin_memory: bool) -> Iterator[Faces]:
    """Read batches in order, ahead of their use where there are workers.

    Raises:
        ConfigError: a crop cannot be read.
    """
    if num_workers:
        cv2.setNumThreads(1)  # else a forked worker waits for threads of this process's pool, which it does not have
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
        if isinstance(loaded, ConfigError):
            raise loaded
        yield loaded


def _start_worker(_: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the main one ends this one
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    cv2.setNumThreads(1)  # one process a core; pools of threads in each would fight
    torch.set_num_threads(1)


def _collate(items: list[_Item | ConfigError]) -> Faces | ConfigError:
    good = [item for item in items if not isinstance(item, ConfigError)]
    if len(good) < len(items):
        return next(item for item in items if isinstance(item, ConfigError))
    views = [(view, index, kind) for views, index, kind in good for view in views]
    return Faces(
        pixels=torch.from_numpy(np.stack([view.pixels for view, *_ in views])),
        is_fake=torch.tensor([view.is_fake for view, *_ in views], dtype=torch.float32),
        index=torch.tensor([index for _, index, _ in views]),
        made=torch.tensor([1 + FORGERY_KINDS.index(view.kind) if view.kind else 0 for view, *_ in views]),
        kinds=torch.tensor([kind_class(view.is_fake, view.kind, kind) for view, _, kind in views]),
    )
