"""Scores of held-out faces, by any number of processes. PyTorch's own: import this module only inside functions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch  # noqa: TID253
from numpy.typing import NDArray
from torch import Tensor  # noqa: TID253

from dfscan.detector.network import DeepfakeDetector
from dfscan.detector.preprocess import Preprocessing
from dfscan.train.batches import Batch, Key
from dfscan.train.dataset import EVALUATION_EPOCH, Faces, FaceSet, load
from dfscan.train.manifest import Sample
from dfscan.train.world import World


@dataclass(frozen=True, slots=True, eq=False)
class ValidationScores:
    """One entry for each face, in the order of the samples; a fake made from a real face follows it."""

    logits: NDArray[np.float64]
    """(F,) raw."""
    is_fake: NDArray[np.bool_]
    """(F,)."""
    samples: tuple[Sample, ...]
    """(F,) what each face was cut from."""

    @property
    def sources(self) -> list[str]:
        """Videos; a fake made from a real one counts as a video of its own."""
        names = zip(self.samples, self.is_fake, strict=True)
        return [s.source + ("#self-blended" if fake and s.label == "real" else "") for s, fake in names]

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
    rows: list[tuple[int, bool, float]] = []
    for batch in load(faces, batches, num_workers=num_workers, pin_memory=world.device.type == "cuda"):
        with torch.inference_mode(), torch.autocast(world.device.type, precision, enabled=precision != torch.float32):
            logits = network(normalised(batch, preprocessing, world.device))
        labels = [bool(label) for label in batch.is_fake.tolist()]
        rows += zip(batch.index.tolist(), labels, logits.flatten().float().tolist(), strict=True)
    network.train(is_training)
    rows = sorted(world.gather(rows), key=lambda row: row[:2])
    return ValidationScores(
        logits=np.array([logit for _, _, logit in rows], np.float64),
        is_fake=np.array([is_fake for _, is_fake, _ in rows], np.bool_),
        samples=tuple(faces.samples[index] for index, _, _ in rows),
    )


def _chunks(num_faces: list[int], batch_size: int) -> list[Batch]:
    most = max(1, batch_size // max(num_faces, default=1))
    keys = [Key(EVALUATION_EPOCH, index, 0) for index in range(len(num_faces))]
    return [tuple(keys[start : start + most]) for start in range(0, len(keys), most)]
