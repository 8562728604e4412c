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
from dfscan.train.crops import LooseCrop, read_crop
from dfscan.train.manifest import Sample
from dfscan.train.settings import TrainSettings
from dfscan.train.views import TrainingViews, evaluation_pair, evaluation_view

EVALUATION_EPOCH = 2**31
"""Stands for the epoch in the seeds of evaluation, which sees the same faces every time."""


@dataclass(frozen=True, slots=True)
class Faces:
    """A batch: `pixels` uint8 [B, S, S, 3] RGB, `is_fake` float32 [B], `index` int64 [B] of the samples."""

    pixels: Tensor
    is_fake: Tensor
    index: Tensor

    def pin_memory(self) -> Faces:
        """The same in memory that a GPU reads fast; DataLoader calls it."""
        return Faces(self.pixels.pin_memory(), self.is_fake.pin_memory(), self.index)


_Item = tuple[NDArray[np.uint8], list[int], int]


class FaceSet(Dataset[_Item | ConfigError]):
    """Samples of one split; an item is all faces that come of one sample."""

    def __init__(self, samples: Sequence[Sample], folder: Path, settings: TrainSettings, *, is_training: bool) -> None:
        self.samples = samples
        self._folder = folder
        self._settings = settings
        self._views = TrainingViews(settings) if is_training else None

    @property
    def num_faces(self) -> list[int]:
        """Faces that come of each sample."""
        return [2 if self._is_paired(sample) else 1 for sample in self.samples]

    def _is_paired(self, sample: Sample) -> bool:
        return sample.label == "real" and self._settings.forgeries == "self-blended"

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: Key) -> _Item | ConfigError:
        """Pixels uint8 (n, S, S, 3), the label of each (1 is fake) and the sample's index.

        A crop that cannot be read gives its error, not raises it: DataLoader would wrap it in a worker's traceback.
        """
        try:
            pixels, labels = self.views_of(key)
        except ConfigError as error:
            return error
        return pixels, labels, key.sample

    def views_of(self, key: Key) -> tuple[NDArray[np.uint8], list[int]]:
        """Pixels uint8 (n, S, S, 3) and the label of each.

        Raises:
            ConfigError: the crop cannot be read.
        """
        sample = self.samples[key.sample]
        face = LooseCrop(read_crop(self._folder / sample.crop), sample.box_xyxy, sample.landmarks)
        rng = np.random.default_rng([self._settings.seed, *key])
        if self._is_paired(sample):
            pair = self._views.pair(face, rng) if self._views else evaluation_pair(face, self._settings, rng)
            return np.stack(pair), [0, 1]
        views = self._views.single(face, rng) if self._views else [evaluation_view(face, self._settings)]
        return np.stack(views), [int(sample.label == "fake")]


def load(faces: FaceSet, batches: Sequence[Batch], *, num_workers: int, pin_memory: bool) -> Iterator[Faces]:
    """Read batches in order, ahead of their use where there are workers.

    Raises:
        ConfigError: a crop cannot be read.
    """
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
    return Faces(
        pixels=torch.from_numpy(np.concatenate([pixels for pixels, _, _ in good])),
        is_fake=torch.tensor([label for _, labels, _ in good for label in labels], dtype=torch.float32),
        index=torch.tensor([index for _, labels, index in good for _ in labels]),
    )
