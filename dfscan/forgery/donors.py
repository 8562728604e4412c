"""Find the second input of a fake: a donor face for a swap, or an autoencoder's reconstruction of the face."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dfscan.dataset.crops import LooseCrop, read_crop
from dfscan.dataset.manifest import Sample
from dfscan.errors import DataError
from dfscan.faces.landmarks import landmark_shape
from dfscan.forgery.names import DESIGNS, Design, ForgeryKind
from dfscan.images import resize

NUM_CANDIDATES = 8
"""Donors drawn at random; the one whose landmarks are most similar to the face's is used."""

RECONSTRUCTION_FORMAT = 1
"""Incremented whenever the autoencoders change."""


class Donors:
    """Finds and reads donor faces and reconstructions for the samples of one split."""

    def __init__(self, samples: Sequence[Sample], folder: Path, reconstructions: Path | None) -> None:
        self._samples = samples
        self._folder = folder
        self._reconstructions = reconstructions
        self._real = np.array([i for i, sample in enumerate(samples) if sample.label == "real"], np.intp)
        self._shapes = [landmark_shape(sample.landmarks) for sample in samples]

    def read(self, index: int) -> LooseCrop:
        """Read the face of a sample.

        Raises:
            DataError: the crop cannot be read.
        """
        sample = self._samples[index]
        return LooseCrop(read_crop(self._folder / sample.crop), sample.box_xyxy, sample.landmarks)

    def of(self, index: int, face: LooseCrop, kind: ForgeryKind, rng: np.random.Generator) -> LooseCrop | None:
        """Return the second input of a fake of this kind, or None if the kind needs none.

        Args:
            index: index of the sample that the fake is made from.
            face: the face of that sample.
            kind: kind of fake.
            rng: random generator.

        Raises:
            DataError: a crop or a reconstruction cannot be read.
        """
        if kind == "swapped":
            group = self._samples[index].group
            drawn: list[int] = self._real[rng.integers(0, len(self._real), NUM_CANDIDATES)].tolist()
            others = [other for other in drawn if self._samples[other].group != group]
            if not others:  # one person dominates the split
                others = [other for other in self._real.tolist() if self._samples[other].group != group]
            shape = self._shapes[index]
            return self.read(min(others, key=lambda other: float(np.square(self._shapes[other] - shape).sum())))
        if kind != "reconstructed":
            return None
        assert self._reconstructions is not None
        path = path_of(self._reconstructions, DESIGNS[rng.integers(len(DESIGNS))], self._samples[index])
        try:
            reconstructed = read_crop(path)
        except DataError as error:
            raise DataError(
                f"reconstructed face {path} is missing or damaged: delete it if it exists and run again to recreate it"
            ) from error
        height_px, width_px = face.pixels.shape[:2]
        return LooseCrop(resize(reconstructed, width_px, height_px), face.box_xyxy, face.landmarks)


def check_swaps(samples: Sequence[Sample], manifest: Path) -> None:
    """Check that every split has at least two groups of real faces, so that each face has a donor.

    Raises:
        DataError: all real faces of a split belong to one group.
    """
    groups: dict[str, set[str]] = {}
    for sample in samples:
        if sample.label == "real":
            groups.setdefault(sample.split, set()).add(sample.group)
    for split, names in groups.items():
        if len(names) < 2:
            raise DataError(
                f"{manifest}: all real faces of the split {split!r} belong to one group, so none can be swapped: "
                "prepare more people, or remove swapped from --forgeries and --held-out"
            )


def path_of(folder: Path, design: Design, sample: Sample) -> Path:
    """Return the path of a crop's reconstruction; it is named after the hash of the crop, hence unique."""
    return folder / design / sample.crop_sha256[:2] / f"{sample.crop_sha256[:32]}.png"
