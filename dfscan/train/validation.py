"""Scores of held-out faces, by any number of processes. PyTorch's own: import this module only inside functions."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import compress

import numpy as np
import torch  # noqa: TID253
from numpy.typing import NDArray
from torch import Tensor  # noqa: TID253

from dfscan.dataset.manifest import Sample
from dfscan.detector.network import DeepfakeDetector
from dfscan.detector.preprocess import Preprocessing
from dfscan.forgery.names import FORGERY_KINDS, ForgeryKind
from dfscan.train.batches import Batch, Key
from dfscan.train.dataset import EVALUATION_EPOCH, Faces, FaceSet, load
from dfscan.train.distributed import World


@dataclass(frozen=True, slots=True, eq=False)
class ValidationScores:
    """One entry for each face, in the order of the samples; fakes made from a real face follow it."""

    logits: NDArray[np.float64]
    """(F,) raw."""
    is_fake: NDArray[np.bool_]
    """(F,)."""
    samples: tuple[Sample, ...]
    """(F,) what each face was cut from."""
    made: tuple[ForgeryKind | None, ...]
    """(F,) what it was then made by."""

    def without(self, kinds: Collection[ForgeryKind]) -> ValidationScores:
        """Only those that were not made by these kinds."""
        return self._kept([made not in kinds for made in self.made])

    def against_real(self, kind: ForgeryKind) -> ValidationScores:
        """The real faces, and the fakes that were made by this kind."""
        return self._kept([made == kind or not fake for made, fake in zip(self.made, self.is_fake, strict=True)])

    def _kept(self, kept: Sequence[bool]) -> ValidationScores:
        flags = np.array(kept, np.bool_)
        return ValidationScores(
            self.logits[flags],
            self.is_fake[flags],
            tuple(compress(self.samples, kept)),
            tuple(compress(self.made, kept)),
        )

    @property
    def sources(self) -> list[str]:
        """Videos; a fake made from a real one counts as a video of its own."""
        return [s.source + (f"#{made}" if made else "") for s, made in zip(self.samples, self.made, strict=True)]

    @property
    def groups(self) -> list[str]:
        """Groups of the samples."""
        return [sample.group for sample in self.samples]


def normalised(faces: Faces, preprocessing: Preprocessing, device: torch.device) -> Tensor:
    """What `to_input` gives, made on the device from bytes: float32 [B, 3, S, S], channels last."""
    pixels = faces.pixels.to(device, non_blocking=True).permute(0, 3, 1, 2).float() / 255
    mean = torch.tensor(preprocessing.mean, device=device).view(1, 3, 1, 1)
    std = torch.tensor(preprocessing.std, device=device).view(1, 3, 1, 1)
    return (pixels - mean) / std


def score_faces(
    network: DeepfakeDetector,
    faces: FaceSet,
    preprocessing: Preprocessing,
    *,
    world: World,
    batch_size: int,
    num_workers: int,
    precision: torch.dtype = torch.float32,
) -> ValidationScores:
    """Score every face of a set once; each process takes its part, and all get everything.

    Args:
        network: on the world's device; in eval mode while this runs.
        faces: seen as in a scan.
        preprocessing: the network's own.
        world: the processes; each face is scored by one of them, without padding.
        batch_size: most faces at once.
        num_workers: loading processes.
        precision: of the forward pass; float32 means no autocast.
    """
    batches = _chunks(faces.num_faces, batch_size)[world.rank :: world.size]
    is_training = network.training
    network.eval()
    rows: list[tuple[int, int, bool, float]] = []
    for batch in load(faces, batches, num_workers=num_workers, pin_memory=world.device.type == "cuda"):
        with torch.inference_mode(), torch.autocast(world.device.type, precision, enabled=precision != torch.float32):
            logits = network(normalised(batch, preprocessing, world.device))
        labels = [bool(label) for label in batch.is_fake.tolist()]
        values = logits.flatten().float().tolist()
        rows += zip(batch.index.tolist(), batch.made.tolist(), labels, values, strict=True)
    network.train(is_training)
    rows = sorted(world.gather(rows), key=lambda row: row[:2])
    return ValidationScores(
        logits=np.array([logit for *_, logit in rows], np.float64),
        is_fake=np.array([is_fake for _, _, is_fake, _ in rows], np.bool_),
        samples=tuple(faces.samples[index] for index, *_ in rows),
        made=tuple(FORGERY_KINDS[made - 1] if made else None for _, made, *_ in rows),
    )


def _chunks(num_faces: list[int], batch_size: int) -> list[Batch]:
    most = max(1, batch_size // max(num_faces, default=1))
    keys = [Key(EVALUATION_EPOCH, index, 0) for index in range(len(num_faces))]
    return [tuple(keys[start : start + most]) for start in range(0, len(keys), most)]
