"""Score held-out faces with any number of processes.

This module imports PyTorch: import it only inside functions that need it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import compress

import numpy as np
import torch  # noqa: TID253
from torch import Tensor  # noqa: TID253

from dfscan.arrays import BoolArray, Float64Array
from dfscan.dataset.manifest import Sample
from dfscan.detector.network import DeepfakeDetector
from dfscan.detector.preprocess import Preprocessing
from dfscan.forgery.names import FORGERY_KINDS, ForgeryKind
from dfscan.train.batches import Key
from dfscan.train.dataset import EVALUATION_EPOCH, Faces, FaceSet, load
from dfscan.train.distributed import DistContext


@dataclass(frozen=True, slots=True, eq=False)
class ValidationScores:
    """One entry per face, in the order of the samples; forgeries made from a real face follow it."""

    logits: Float64Array
    """(F,) raw logits."""
    is_fake: BoolArray
    """(F,)."""
    samples: tuple[Sample, ...]
    """(F,) sample of each face."""
    made: tuple[ForgeryKind | None, ...]
    """(F,) kind of each forgery made from a real face; None for all other faces."""

    def without(self, kinds: Collection[ForgeryKind]) -> ValidationScores:
        """Return all faces except forgeries of these kinds."""
        return self._kept([made not in kinds for made in self.made])

    def against_real(self, kind: ForgeryKind) -> ValidationScores:
        """Return the real faces and the forgeries of this kind."""
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
        """(F,) source video of each face; forgeries count as separate videos."""
        return [s.source + (f"#{made}" if made else "") for s, made in zip(self.samples, self.made, strict=True)]

    @property
    def groups(self) -> list[str]:
        """(F,) group of each face."""
        return [sample.group for sample in self.samples]


def normalised(faces: Faces, preprocessing: Preprocessing, device: torch.device) -> Tensor:
    """Normalise uint8 faces on the device, as `to_input` does: float32 [B, 3, S, S], channels last."""
    pixels = faces.pixels.to(device, non_blocking=True).permute(0, 3, 1, 2).float() / 255
    mean = torch.tensor(preprocessing.mean, device=device).view(1, 3, 1, 1)
    std = torch.tensor(preprocessing.std, device=device).view(1, 3, 1, 1)
    return (pixels - mean) / std


def score_faces(
    network: DeepfakeDetector,
    faces: FaceSet,
    preprocessing: Preprocessing,
    *,
    dist: DistContext,
    batch_size: int,
    num_workers: int,
    precision: torch.dtype = torch.float32,
) -> ValidationScores:
    """Score every face of a set once, split over the processes; every process returns all scores.

    Args:
        network: on the device of this process; set to eval mode during the call.
        faces: faces without augmentation, as in a scan.
        preprocessing: preprocessing of the network.
        dist: the processes; each face is scored by exactly one of them, without padding.
        batch_size: maximum faces per batch.
        num_workers: data loading processes.
        precision: precision of the forward pass; float32 disables autocast.
    """
    num_samples = max(1, batch_size // max(faces.num_faces, default=1))
    keys = [Key(EVALUATION_EPOCH, index, 0) for index in range(len(faces))]
    batches = [tuple(keys[start : start + num_samples]) for start in range(0, len(keys), num_samples)]
    batches = batches[dist.rank :: dist.size]
    is_training = network.training
    network.eval()
    rows: list[tuple[int, int, bool, float]] = []
    for batch in load(faces, batches, num_workers=num_workers, pin_memory=dist.device.type == "cuda"):
        with torch.inference_mode(), torch.autocast(dist.device.type, precision, enabled=precision != torch.float32):
            logits = network(normalised(batch, preprocessing, dist.device))
        labels = [bool(label) for label in batch.is_fake.tolist()]
        values = logits.flatten().float().tolist()
        rows += zip(batch.index.tolist(), batch.made.tolist(), labels, values, strict=True)
    network.train(is_training)
    rows = sorted(dist.gather(rows), key=lambda row: row[:2])
    return ValidationScores(
        logits=np.array([logit for *_, logit in rows], np.float64),
        is_fake=np.array([is_fake for _, _, is_fake, _ in rows], np.bool_),
        samples=tuple(faces.samples[index] for index, *_ in rows),
        made=tuple(FORGERY_KINDS[made - 1] if made else None for _, made, *_ in rows),
    )
