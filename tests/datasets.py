"""Create small training sets at run time: crops of one face with many variations, with a manifest."""

from __future__ import annotations

import hashlib
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from dfscan.dataset.duplicates import fingerprint
from dfscan.dataset.manifest import MANIFEST_NAME, Sample, Split, TrueLabel, write_manifest
from tests.pictures import FACE_XYXY, astronaut

LANDMARKS = np.array([[206, 108], [247, 106], [229, 129], [209, 149], [246, 147]], np.float32)
"""Eyes, nose and corners of the mouth of `astronaut`, accurate to a few px."""
LEFT, TOP, SIDE_PX = 122, 20, 200
"""Square of `astronaut` that a loose crop shows."""


def face_picture(number: int) -> NDArray[np.uint8]:
    """Return a loose crop, (200, 200, 3): one face with colour, light and background that depend on the number."""
    rng = np.random.default_rng(number)
    crop = astronaut()[TOP : TOP + SIDE_PX, LEFT : LEFT + SIDE_PX].astype(np.float32)
    crop = (crop - 128) * rng.uniform(0.6, 1.1) + 128 + rng.uniform(-40, 40, size=3)
    spots = cv2.resize(rng.uniform(-90, 90, (6, 6, 3)).astype(np.float32), (SIDE_PX, SIDE_PX))
    away = np.hypot(*np.mgrid[-1 : 1 : SIDE_PX * 1j, -1 : 1 : SIDE_PX * 1j])[:, :, None] > 0.6
    return np.clip(crop + spots * away, 0, 255).astype(np.uint8)


def write_sample(folder: Path, number: int, *, split: Split, label: TrueLabel = "real", **changes: str) -> Sample:
    """Write a crop and describe it; its group is its number unless `changes` sets another."""
    pixels = face_picture(number)
    data = cv2.imencode(".png", pixels[:, :, ::-1])[1].tobytes()
    crop = f"crops/{number:04d}.png"
    (folder / "crops").mkdir(parents=True, exist_ok=True)
    (folder / crop).write_bytes(data)
    corner = np.array([LEFT, TOP], np.float32)
    texts = {"kind": "face swap" if label == "fake" else "", "group": f"person{number}", "source": f"{number}.mp4"}
    return Sample(
        **{**texts, **changes},
        crop=crop,
        label=label,
        split=split,
        source_sha256=hashlib.sha256(f"{number}".encode()).hexdigest(),
        crop_sha256=hashlib.sha256(data).hexdigest(),
        fingerprint=fingerprint(pixels),
        time_s=0.0,
        detection_score=0.999,
        box_xyxy=np.array(FACE_XYXY, np.float32) - np.tile(corner, 2),
        landmarks=LANDMARKS - corner,
    )


def write_dataset(folder: Path, *, num_train: int = 6, num_val: int = 3, with_fakes: bool = False) -> list[Sample]:
    """Write a data set of real faces, and as many fake ones on request."""
    plan: list[tuple[Split, TrueLabel]] = [("train", "real")] * num_train + [("val", "real")] * num_val
    if with_fakes:
        plan += [("train", "fake")] * num_train + [("val", "fake")] * num_val
    samples = [write_sample(folder, i, split=split, label=label) for i, (split, label) in enumerate(plan)]
    write_manifest(folder / MANIFEST_NAME, samples)
    return samples
