"""What a fake is made with besides the face itself: another person's face, or what an autoencoder painted of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from dfscan.errors import ConfigError
from dfscan.train.crops import LooseCrop, read_crop
from dfscan.train.manifest import Sample
from dfscan.train.settings import DESIGNS, Design, ForgeryKind

NUM_CANDIDATES = 8
"""Of so many other people drawn by chance, the one whose landmarks lie most like the face's is taken."""


class Companions:
    """Finds and reads them, for the samples of one split."""

    def __init__(self, samples: Sequence[Sample], folder: Path, reconstructions: Path | None) -> None:
        self._samples = samples
        self._folder = folder
        self._reconstructions = reconstructions
        self._real = np.array([i for i, sample in enumerate(samples) if sample.label == "real"], np.intp)
        self._shapes = [_shape(sample.landmarks) for sample in samples]

    def check_swaps(self) -> None:
        """Make sure that everybody has somebody else.

        Raises:
            ConfigError: nobody has.
        """
        if len({self._samples[i].group for i in self._real}) < 2:
            raise ConfigError(
                "swapped faces need real faces of two people in each split: prepare more, or "
                "leave them out of --forgeries"
            )

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
        painted = read_crop(path_of(self._reconstructions, design, sample))
        side_px = face.pixels.shape[0]
        method = cv2.INTER_AREA if painted.shape[0] > side_px else cv2.INTER_CUBIC
        pixels = np.asarray(cv2.resize(painted, face.pixels.shape[1::-1], interpolation=method), np.uint8)
        return LooseCrop(pixels, face.box_xyxy, face.landmarks)


def path_of(folder: Path, design: Design, sample: Sample) -> Path:
    """Where a crop's reconstruction lies: named after the crop's content, so that it is never another's."""
    return folder / design / sample.crop_sha256[:2] / f"{sample.crop_sha256[:32]}.png"


def _shape(landmarks: NDArray[np.float32]) -> NDArray[np.float64]:
    """(5, 2) landmarks without place and size, whose eyes are level."""
    points = landmarks.astype(np.float64) @ np.array([1, 1j])
    across = points[1] - points[0]
    upright = (points - points.mean()) / (across if abs(across) > 1e-6 else 1)
    return np.column_stack([upright.real, upright.imag])
