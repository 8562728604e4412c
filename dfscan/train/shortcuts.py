"""Shortcut check: measure how well a trivial detector separates fakes from real faces.

If fakes are blurrier than reals, or compressed once more, a network learns this shortcut instead of the forgery
(Geirhos et al. 2020, "Shortcut Learning in Deep Neural Networks"). The trivial detector is a logistic regression on a
few features that are unrelated to forgeries. It must fail on forgeries made from real faces. On the fakes of a data set
it may succeed. There, its ROC AUC shows how much of a detector's success may be due to differences between sources.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from dfscan.arrays import BoolArray, Float32Array, Float64Array, UInt8Image
from dfscan.dataset.manifest import MANIFEST_NAME, Sample, read_manifest
from dfscan.errors import ConfigError, DataError
from dfscan.evaluation.metrics import Estimate, by_source, within_source_auc
from dfscan.faces.quality import BLOCK_PX
from dfscan.forgery.donors import check_swaps
from dfscan.forgery.names import DESIGNS
from dfscan.images import encode
from dfscan.train.run import reconstructions_in
from dfscan.train.settings import TrainSettings

if TYPE_CHECKING:
    from dfscan.train.dataset import View

FEATURES = (
    "blockiness",
    "high_frequencies",
    "sharpness",
    "brightness",
    "contrast",
    "saturation",
    "jpeg_bytes",
    "face_px",
)
HIGH_FREQUENCY = 0.25
"""In cycles per pixel; half of the Nyquist frequency."""
FEATURE_JPEG_QUALITY = 90
NUM_PARTS = 5
"""Folds of the cross-validation."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Result of the trivial detector on one set of faces or videos."""

    fakes: Literal["made", "true"]
    subset: str
    """``all``, a kind of forgery, or ``fold`` and its name."""
    level: Literal["frame", "video"]
    roc_auc: Estimate
    """Measured on faces or videos that were not used to fit the regression."""
    num_real: int
    num_fake: int
    num_groups: int
    coefficients: dict[str, float]
    """By feature: change of the log-odds of fake per standard deviation, from a regression on all faces of the subset.
    Correlated features share their weight. Empty for a fold, for which no such regression is fitted."""


def check_made_fakes(
    settings: TrainSettings,
    *,
    num_faces: int,
    num_resamples: int = 1000,
    tell: Callable[[str], None] = lambda _: None,
) -> list[Finding]:
    """Measure the trivial detector on forgeries made from real faces, augmented as in training.

    Args:
        settings: training settings; `data` and `forgeries` are required.
        num_faces: number of real faces to draw at random from the training split; each is paired with a forgery of
            each kind.
        num_resamples: bootstrap draws for each interval.
        tell: called with a progress message before each kind.

    Returns:
        Findings at frame level: one per kind and, if there are several kinds, one for all of them together.

    Raises:
        ConfigError: no data set is given.
        DataError: the data set cannot be used, its real faces come from fewer than five groups, or reconstructed
            faces are needed but have not been created.
    """
    from dfscan.train.batches import Key
    from dfscan.train.dataset import FaceSet

    all_samples, folder = _read(settings)
    samples = [sample for sample in all_samples if sample.split == "train"]
    reconstructed = _reconstructions(all_samples, settings)
    reals = np.array([i for i, sample in enumerate(samples) if sample.label == "real"], np.intp)
    chosen = np.random.default_rng(settings.seed).permutation(reals)[:num_faces].tolist()
    num_groups = len({samples[index].group for index in chosen})
    if num_groups < NUM_PARTS:
        raise DataError(
            f"the real training faces come from {num_groups} groups, but the check needs {NUM_PARTS}: prepare faces of "
            "more people"
        )
    tables = []
    for epoch, kind in enumerate(settings.kinds):
        tell(f"checking {len(chosen)} real faces and their {kind} forgeries")
        faces = FaceSet(
            samples,
            folder,
            dataclasses.replace(settings, forgeries=kind),
            is_training=True,
            reconstructions=reconstructed,
        )
        tables.append(_table((samples[index], faces.views_of(Key(epoch, index, 0))) for index in chosen))
    subsets: dict[str, _Table] = dict(zip(settings.kinds, tables, strict=True))
    if len(tables) > 1:
        subsets["all"] = _Table.joined(tables)
    return [
        _cross_validated(table, "made", subset, seed=settings.seed, num_resamples=num_resamples)
        for subset, table in subsets.items()
    ]


def check_true_fakes(
    settings: TrainSettings, *, num_resamples: int = 1000, tell: Callable[[str], None] = lambda _: None
) -> list[Finding]:
    """Measure the trivial detector on the fakes of a data set, preprocessed as in a scan.

    Returns:
        Findings at video level: one for all videos, cross-validated over groups, and one per fold from a regression on
        all other data. Empty if the data set has no fakes, or too few groups of a class for cross-validation.

    Raises:
        DataError: the data set cannot be used.
    """
    from dfscan.train.batches import Key
    from dfscan.train.dataset import FaceSet

    samples, folder = _read(settings)
    if not any(sample.label == "fake" for sample in samples):
        return []
    groups_of = [{sample.group for sample in samples if sample.label == label} for label in ("real", "fake")]
    if min(map(len, groups_of)) < NUM_PARTS:
        return []
    tell(f"checking {len(samples)} faces as in a scan")
    plain = dataclasses.replace(settings, forgeries="none", held_out="none")
    faces = FaceSet(samples, folder, plain, is_training=False)
    table = _table((sample, faces.views_of(Key(0, index, 0))) for index, sample in enumerate(samples))
    findings = [_cross_validated(table, "true", "all", seed=settings.seed, num_resamples=num_resamples)]
    folds = np.array([sample.fold for sample in samples], np.str_)
    for fold in sorted(set(folds.tolist()) - {""}):
        is_tested = folds == fold
        is_fitted = ~is_tested & ~np.isin(table.groups, table.groups[is_tested])
        if len(set(table.is_fake[is_fitted].tolist())) == 2:
            scores = _fitted(table.part(is_fitted)).decision_function(table.features[is_tested])
            findings.append(
                _finding(table.part(is_tested), scores, "true", f"fold {fold}", {}, num_resamples=num_resamples)
            )
    return findings


def trivial_features(pixels: UInt8Image, *, face_px: float) -> Float64Array:
    """Compute features of an image that do not depend on its content.

    Args:
        pixels: (H, W, 3) RGB, each side at least 16 px.
        face_px: longer side of the face box in the original crop.

    Returns:
        (8,) in the order of `FEATURES`:

        * blockiness: log of the ratio of the mean step across the borders of 8 x 8 blocks to the mean step elsewhere,
          as in Wang, Sheikh and Bovik 2002, "No-reference perceptual quality assessment of JPEG compressed images";
        * high_frequencies: log of the fraction of spectral energy above 0.25 cycles per pixel, without the mean;
        * sharpness: log of the variance of the Laplacian (Pech-Pacheco et al. 2000);
        * brightness and contrast: mean and standard deviation of the grey values, in [0, 1];
        * saturation: mean HSV saturation, in [0, 1];
        * jpeg_bytes: log of the bytes per pixel of a JPEG with quality 90;
        * face_px: log of the face size.
    """
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    values = grey.astype(np.float32)
    energy = np.square(np.abs(np.fft.rfft2(values - values.mean())))
    frequency = np.hypot(np.fft.fftfreq(values.shape[0])[:, None], np.fft.rfftfreq(values.shape[1])[None, :])
    laplacian = cv2.Laplacian(values, cv2.CV_32F)
    jpeg = encode(pixels, ".jpg", quality=FEATURE_JPEG_QUALITY)
    return np.array(
        [
            _blockiness(values),
            np.log((energy[frequency > HIGH_FREQUENCY].sum() + 1) / (energy.sum() + 1)),
            np.log(laplacian.var() + 1),
            values.mean() / 255,
            values.std() / 255,
            cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV)[..., 1].mean() / 255,
            np.log(len(jpeg) / grey.size),
            np.log(face_px),
        ],
        np.float64,
    )


def _blockiness(grey: Float32Array) -> float:
    at_borders, elsewhere = 0.0, 0.0
    for axis in (0, 1):
        steps = np.abs(np.diff(grey, axis=axis)).mean(axis=1 - axis)
        is_border = np.arange(1, len(steps) + 1) % BLOCK_PX == 0
        at_borders += float(steps[is_border].mean())
        elsewhere += float(steps[~is_border].mean())
    return float(np.log((at_borders + 0.1) / (elsewhere + 0.1)))


# Feature tables and regression


@dataclass(frozen=True, slots=True, eq=False)
class _Table:
    """Features and metadata, one row per face."""

    features: Float64Array
    is_fake: BoolArray
    groups: NDArray[np.str_]
    sources: NDArray[np.str_]

    def part(self, rows: NDArray[Any]) -> _Table:
        return _Table(self.features[rows], self.is_fake[rows], self.groups[rows], self.sources[rows])

    @staticmethod
    def joined(tables: Sequence[_Table]) -> _Table:
        columns = ([getattr(table, field.name) for table in tables] for field in dataclasses.fields(_Table))
        return _Table(*(np.concatenate(column) for column in columns))


def _table(seen: Iterable[tuple[Sample, Sequence[View]]]) -> _Table:
    rows = []
    for sample, views in seen:
        face_px = float((sample.box_xyxy[2:] - sample.box_xyxy[:2]).max())
        for view in views:
            features = trivial_features(view.pixels, face_px=face_px)
            rows.append((features, view.is_fake, sample.group, sample.source))
    all_features, is_fake, groups, sources = zip(*rows, strict=True)
    return _Table(np.stack(all_features), np.array(is_fake, np.bool_), np.array(groups), np.array(sources))


def _fitted(table: _Table) -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    regression = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=1000))
    return regression.fit(table.features, table.is_fake)


def _cross_validated(
    table: _Table, fakes: Literal["made", "true"], subset: str, *, seed: int, num_resamples: int
) -> Finding:
    from sklearn.model_selection import StratifiedGroupKFold

    scores = np.empty(len(table.is_fake))
    parts = StratifiedGroupKFold(NUM_PARTS, shuffle=True, random_state=seed)
    for fitted, tested in parts.split(table.features, table.is_fake, table.groups):
        scores[tested] = _fitted(table.part(fitted)).decision_function(table.features[tested])
    weights = _fitted(table)[-1].coef_[0].tolist()
    coefficients = dict(zip(FEATURES, weights, strict=True))
    return _finding(table, scores, fakes, subset, coefficients, num_resamples=num_resamples)


def _finding(
    table: _Table,
    scores: Float64Array,
    fakes: Literal["made", "true"],
    subset: str,
    coefficients: dict[str, float],
    *,
    num_resamples: int,
) -> Finding:
    """Measure scores: per face for forgeries, and per video (mean of its faces) for fakes of the data set."""
    is_fake, groups = table.is_fake, table.groups
    if fakes == "true":
        videos = by_source(scores, is_fake, table.sources.tolist(), groups.tolist())
        scores, is_fake, groups = videos.logits, videos.is_fake, videos.groups
    together = [""] * len(scores)  # a single source gives the plain ROC AUC
    auc = within_source_auc(scores, is_fake, together, groups.tolist(), num_resamples=num_resamples)
    return Finding(
        fakes,
        subset,
        "frame" if fakes == "made" else "video",
        auc.estimate,
        num_real=int((~is_fake).sum()),
        num_fake=int(is_fake.sum()),
        num_groups=len(set(groups.tolist())),
        coefficients=coefficients,
    )


def _read(settings: TrainSettings) -> tuple[list[Sample], Path]:
    if settings.data is None:
        raise ConfigError("no data set: give the folder written by `dfscan prepare` with --data")
    samples = read_manifest(settings.data)
    path = settings.data / MANIFEST_NAME if settings.data.is_dir() else settings.data
    if "swapped" in settings.kinds:
        check_swaps(samples, path)
    return samples, path.parent


def _reconstructions(samples: Sequence[Sample], settings: TrainSettings) -> Path | None:
    from dfscan.forgery.autoencoder import is_complete

    folder = reconstructions_in(samples, settings)
    if folder and not all(is_complete(folder, design, samples) for design in DESIGNS):
        raise DataError(
            f"{folder}: reconstructed faces are missing; create them with `dfscan preview-training --out preview.png`, "
            f"the same settings and --reconstructions {folder.parent}"
        )
    return folder
