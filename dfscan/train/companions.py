"""What a fake is made with besides the face itself: another person's face, or what an autoencoder painted of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dfscan.errors import ConfigError
from dfscan.train.crops import LooseCrop, read_crop, resized
from dfscan.train.manifest import Sample
from dfscan.train.settings import DESIGNS, Design, ForgeryKind, TrainSettings

NUM_CANDIDATES = 8
"""Of so many other people drawn by chance, the one whose landmarks lie most like the face's is taken."""

RECONSTRUCTION_FORMAT = 1
"""Changes with the autoencoders."""


class Companions:
    """Finds and reads them, for the samples of one split."""

    def __init__(self, samples: Sequence[Sample], folder: Path, reconstructions: Path | None) -> None:
        self._samples = samples
        self._folder = folder
        self._reconstructions = reconstructions
        self._real = np.array([i for i, sample in enumerate(samples) if sample.label == "real"], np.intp)
        self._shapes = [_shape(sample.landmarks) for sample in samples]

    def read(self, index: int) -> LooseCrop:
        """A sample's face.

        Raises:
            ConfigError: it cannot be read.
        """
        sample = self._samples[index]
        return LooseCrop(read_crop(self._folder / sample.crop), sample.box_xyxy, sample.landmarks)

    def of(self, index: int, face: LooseCrop, kind: ForgeryKind, rng: np.random.Generator) -> LooseCrop | None:
        """What a fake of this kind is made with from a sample and its face; None where it needs nothing.

        Raises:
            ConfigError: it cannot be read.
        """
        if kind == "swapped":
            return self.read(self._likest_other(index, rng))
        if kind == "reconstructed":
            return self._painted(self._samples[index], face, DESIGNS[rng.integers(len(DESIGNS))])
        return None

    def _likest_other(self, index: int, rng: np.random.Generator) -> int:
        group = self._samples[index].group
        drawn: list[int] = self._real[rng.integers(0, len(self._real), NUM_CANDIDATES)].tolist()
        others = [other for other in drawn if self._samples[other].group != group]
        if not others:  # most of the split is of one person
            others = [other for other in self._real.tolist() if self._samples[other].group != group]
        return min(others, key=lambda other: float(np.square(self._shapes[other] - self._shapes[index]).sum()))

    def _painted(self, sample: Sample, face: LooseCrop, design: Design) -> LooseCrop:
        """In the place of the face's own pixels."""
        assert self._reconstructions is not None
        path = path_of(self._reconstructions, design, sample)
        try:
            painted = read_crop(path)
        except ConfigError as error:
            raise ConfigError(
                f"reconstructed face {path} is missing or damaged: delete it if it is there, and run again; then it is "
                "painted anew"
            ) from error
        height_px, width_px = face.pixels.shape[:2]
        return LooseCrop(resized(painted, width_px, height_px), face.box_xyxy, face.landmarks)


def check_swaps(samples: Sequence[Sample], manifest: Path) -> None:
    """Make sure that in each split everybody has somebody else to be swapped with.

    Raises:
        ConfigError: somebody has not.
    """
    groups: dict[str, set[str]] = {}
    for sample in samples:
        if sample.label == "real":
            groups.setdefault(sample.split, set()).add(sample.group)
    for split, names in groups.items():
        if len(names) < 2:
            raise ConfigError(
                f"{manifest}: in the split {split!r} all real faces are of one group, and none can be swapped: prepare "
                "more people, or leave swapped out of --forgeries and --left-out"
            )


def reconstructions_in(samples: Sequence[Sample], settings: TrainSettings) -> Path | None:
    """The folder of the reconstructed faces of a data set; None where there are to be none.

    Its name hangs on all that the faces hang on: who teaches the autoencoders, and how.

    Raises:
        ConfigError: no folder is named that it could be in.
    """
    if "reconstructed" not in settings.kinds + settings.left_out_kinds:
        return None
    parent = settings.reconstructions or (settings.out / "reconstructed" if settings.out else None)
    if parent is None:
        raise ConfigError("reconstructed faces need a folder: name one with --reconstructions")
    taught = sorted(sample.crop_sha256 for sample in samples if sample.split == "train" and sample.label == "real")
    facts = [RECONSTRUCTION_FORMAT, settings.seed, settings.reconstruction_px, settings.reconstruction_steps, *taught]
    return parent / hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def path_of(folder: Path, design: Design, sample: Sample) -> Path:
    """Where a crop's reconstruction lies: named after the crop's content, so that it is never another's."""
    return folder / design / sample.crop_sha256[:2] / f"{sample.crop_sha256[:32]}.png"


def _shape(landmarks: NDArray[np.float32]) -> NDArray[np.float64]:
    """(5, 2) landmarks without place and size, whose eyes are level."""
    points = landmarks.astype(np.float64) @ np.array([1, 1j])
    across = points[1] - points[0]
    upright = (points - points.mean()) / (across if abs(across) > 1e-6 else 1)
    return np.column_stack([upright.real, upright.imag])
