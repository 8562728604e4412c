"""Fit a detector's head to the true fakes of a data set, on features that stay as they are.

The features of a backbone that learned made forgeries also differ between true fakes and reals, but in another
direction. A linear classifier finds that direction from a few hundred clips. Training the backbone on so few would
distort the features (Kumar et al. 2022, "Fine-Tuning can Distort Pretrained Features and Underperform
Out-of-Distribution", ICLR).

Thresholds and metrics come from the folds of the data set: each fold is scored by a classifier that was fitted without
it. The backbone must not have been trained on any of them.

This module imports PyTorch: import it only inside functions that need it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch  # noqa: TID253
from pydantic import ValidationError

from dfscan.arrays import BoolArray, Float64Array
from dfscan.dataset.manifest import MANIFEST_NAME, Sample, read_manifest
from dfscan.detector.card import CheckpointCard, SeenFiles
from dfscan.detector.checkpoint import load_network, read_card, save_checkpoint
from dfscan.detector.network import EFFICIENTNETS, DeepfakeDetector, Head
from dfscan.detector.preprocess import Preprocessing
from dfscan.detector.runtime import choose_device
from dfscan.errors import CheckpointError, ConfigError, DataError
from dfscan.files import AtomicFile, spare_inputs
from dfscan.train.batches import Key
from dfscan.train.cross_validation import HeldOutFaces, calibrated_on
from dfscan.train.dataset import EVALUATION_EPOCH, FaceSet, load
from dfscan.train.grow import grow
from dfscan.train.settings import TrainSettings
from dfscan.version import __version__

PENALTY_C = 0.01
"""Inverse strength of the L2 penalty on standardised features, as in scikit-learn."""
FACES_PER_BATCH = 16


def fit_to_folds(
    path: str,
    data: Path,
    out: Path,
    *,
    grow_to: str | None = None,
    input_size_px: int | None = None,
    name: str | None = None,
    fp16: bool = False,
    max_fpr: float = 0.01,
    max_fnr: float = 0.05,
    device: str = "auto",
    num_workers: int = 1,
    tell: Callable[[str], None],
) -> CheckpointCard:
    """Write a calibrated checkpoint whose head is fitted to the faces of all folds.

    Args:
        path: checkpoint whose backbone is kept.
        data: data set folder, or its manifest. Only faces that belong to a fold are used.
        out: checkpoint to write.
        grow_to: larger architecture to store the detector in; its scores stay the same.
        input_size_px: side of the network's input, if not that of the checkpoint.
        name: name in the card, if not that of the checkpoint.
        fp16: store the weights in fp16.
        max_fpr: maximum rate of real videos at or above the fake threshold.
        max_fnr: maximum rate of fake videos at or below the real threshold.
        device: auto, cpu, cuda or cuda:N; computes the features.
        num_workers: data loading processes.
        tell: called with a line of progress now and then.

    Raises:
        CheckpointError: the checkpoint cannot be used or grown, crops faces in another way than training does, or was
            trained on faces of a fold.
        ConfigError: the device is not available, the name or `grow_to` is invalid, or `out` is an input.
        DataError: the data set cannot be read, has fewer than two folds, or the other folds of a fold have no domain
            with both classes.
        OutputError: the checkpoint cannot be written.
    """
    checkpoint = read_card(path)
    card = checkpoint.card
    if card.preprocessing.crop != "square" or card.preprocessing.interpolation != Preprocessing().interpolation:
        raise CheckpointError(
            f"{path}: it crops or resizes faces in another way than `dfscan prepare` and `dfscan train`; give a "
            "checkpoint that dfscan trained"
        )
    if name is not None:
        try:
            CheckpointCard(name=name)
        except ValidationError as error:
            raise ConfigError(
                f"--name {name!r} is invalid: use at most 64 letters, digits, dots, dashes, plus signs and underscores"
            ) from error
    family = EFFICIENTNETS if card.architecture in EFFICIENTNETS else (card.architecture,)
    if grow_to and grow_to not in (larger := family[family.index(card.architecture) :]):
        raise ConfigError(f"--grow-to {grow_to}: {path} can only be stored as {' or '.join(larger)}")
    if input_size_px:
        preprocessing = card.preprocessing.model_copy(update={"input_size_px": input_size_px})
        card = card.model_copy(update={"preprocessing": preprocessing})
    manifest = data / MANIFEST_NAME if data.is_dir() else data
    spare_inputs([("--out", out)], [checkpoint.path, manifest])
    AtomicFile(out).discard()  # only to check that it can be written
    samples = [sample for sample in read_manifest(manifest) if sample.fold]
    seen_before = card.seen or SeenFiles(is_complete=False)
    if card.calibration.trained:
        if known := {sample.source for sample in samples if seen_before.use_of(sample.source_sha256)}:
            raise CheckpointError(
                f"{path}: was trained on {len(known)} of the videos in folds of {manifest}, such as {min(known)}, so "
                "held-out folds would be no test; train the backbone with all folds in --held-out-folds"
            )
        if not seen_before.is_complete:
            tell(f"{path} does not say all that it was trained on; it must not have been trained on faces of a fold")
    if len({sample.fold for sample in samples}) < 2:
        raise DataError(f"{manifest}: faces of at least two folds are needed; run `dfscan prepare` with --fold-column")
    network = load_network(checkpoint).to(choose_device(device))
    features = _pooled_features(network, card, samples, manifest.parent, num_workers=num_workers, tell=tell)
    logits = held_out_logits(features, samples, manifest)
    weight, bias = fit_linear(features, samples, manifest)
    network = network.cpu()
    set_linear(network.head, weight, bias)
    if grow_to and grow_to != card.architecture:
        network = grow(network, source=card.architecture, target=grow_to, seed=0)
        card = card.model_copy(update={"architecture": grow_to})
    sha256s = {sample.source_sha256 for sample in samples}
    seen = SeenFiles.of(sha256s - {""}, (), is_complete="" not in sha256s)
    training: dict[str, Any] = dict(card.training or {})
    training["limits"] = [
        "Does not reliably detect manipulations that it was not trained on, or fully synthetic faces."
    ]
    training["head"] = {
        "method": f"logistic regression on pooled features relative to the midpoint of each domain, C = {PENALTY_C}",
        "backbone": {"file": checkpoint.path.name, "sha256": checkpoint.sha256},
        "faces in folds": len(samples),
        "videos in folds": len({sample.source for sample in samples}),
        "groups": len({sample.group for sample in samples}),
        "folds": len({sample.fold for sample in samples}),
    }
    if checkpoint.card.calibration.trained:
        seen = seen.union(seen_before)
    update = {"name": name or card.name, "seen": seen, "training": training, "dfscan_version": __version__}
    card = card.model_copy(update=update)
    held_out = HeldOutFaces(
        logits=logits,
        is_fake=_is_fake(samples),
        sources=[sample.source for sample in samples],
        groups=[sample.group for sample in samples],
        kinds=[sample.kind for sample in samples],
        domains=[sample.domain for sample in samples],
    )
    card = calibrated_on(held_out, card, by="a head fitted to the other folds", max_fpr=max_fpr, max_fnr=max_fnr)
    save_checkpoint(out, network, card, fp16=fp16)
    return card


def held_out_logits(features: Float64Array, samples: Sequence[Sample], manifest: Path) -> Float64Array:
    """Compute the logit of each face by a classifier that has seen neither its fold nor its group.

    Args:
        features: (F, K).
        samples: (F,) the faces.
        manifest: named in errors.

    Raises:
        DataError: the other folds of a fold cannot be fitted; see `fit_linear`.
    """
    folds, groups = (np.array([getattr(sample, name) for sample in samples]) for name in ("fold", "group"))
    logits = np.zeros(len(samples))
    for fold in np.unique(folds):
        held_out = folds == fold
        kept = ~held_out & ~np.isin(groups, groups[held_out])
        if not kept.any():
            raise DataError(
                f"{manifest}: all groups of the other folds are in fold {fold}, too; keep a group in one fold"
            )
        others = [sample for sample, is_kept in zip(samples, kept, strict=True) if is_kept]
        weight, bias = fit_linear(features[kept], others, manifest)
        logits[held_out] = features[held_out] @ weight + bias
    return logits


def fit_linear(features: Float64Array, samples: Sequence[Sample], manifest: Path) -> tuple[Float64Array, float]:
    """Fit a logistic regression to the differences between fakes and reals of the same domain.

    Domains differ in more than their labels, such as in cameras and codecs. Therefore the midpoint between its fakes
    and its reals is subtracted from the features of each domain, and domains with only one class are left out. The
    weight of a domain grows with the square root of its number of faces; both classes weigh the same.

    Args:
        features: (F, K) pooled features.
        samples: (F,) the faces.
        manifest: named in errors.

    Returns:
        Weights (K,) and bias; a face's logit is its features times the weights plus the bias.

    Raises:
        DataError: no domain has both classes.
    """
    from sklearn.linear_model import LogisticRegression

    is_fake = _is_fake(samples)
    domains = np.array([sample.domain for sample in samples])
    mean, std = features.mean(axis=0), features.std(axis=0) + 1e-6
    scaled = (features - mean) / std
    weights = np.zeros(len(samples))
    for domain in np.unique(domains):
        parts = [(domains == domain) & (is_fake == label) for label in (True, False)]
        if not all(part.any() for part in parts):
            continue
        scaled[domains == domain] -= sum(scaled[part].mean(axis=0) for part in parts) / 2
        for part in parts:
            weights[part] = 1 / np.sqrt(part.sum())
    kept = weights > 0
    if not kept.any():
        raise DataError(
            f"{manifest}: no domain has both real and fake videos outside a fold; give clips of the same page or data "
            "set the same domain (`dfscan prepare --source-column`)"
        )
    for label in (True, False):
        weights[is_fake == label] *= kept.sum() / 2 / weights[is_fake == label].sum()
    fitted = LogisticRegression(C=PENALTY_C, max_iter=1000).fit(
        scaled[kept], is_fake[kept], sample_weight=weights[kept]
    )
    weight = fitted.coef_[0] / std
    return weight, float(fitted.intercept_[0] - mean @ weight)


def set_linear(head: Head, weight: Float64Array, bias: float) -> None:
    """Make the head compute ``features @ weight + bias`` in eval mode.

    A ReLU lies between its two linear layers, so one hidden unit computes the positive part and another the negative
    part. The other hidden units keep their inputs but do not count, until further training gives them weight.
    """
    with torch.no_grad():
        units = head.output.weight[0].abs().argsort()[:2].tolist()
        head.output.weight.zero_()
        head.output.bias.zero_()
        assert head.norm.running_mean is not None
        assert head.norm.running_var is not None
        for unit, sign in zip(units, (1.0, -1.0), strict=True):
            head.hidden.weight[unit] = sign * torch.from_numpy(weight).float()
            head.hidden.bias[unit] = sign * bias
            head.norm.running_mean[unit], head.norm.running_var[unit] = 0.0, 1.0 - head.norm.eps
            head.norm.weight[unit], head.norm.bias[unit] = 1.0, 0.0
            head.output.weight[0, unit] = sign


def _is_fake(samples: Sequence[Sample]) -> BoolArray:
    return np.array([sample.label == "fake" for sample in samples], np.bool_)


def _pooled_features(
    network: DeepfakeDetector,
    card: CheckpointCard,
    samples: Sequence[Sample],
    folder: Path,
    *,
    num_workers: int,
    tell: Callable[[str], None],
) -> Float64Array:
    """Compute the backbone's pooled features (F, K) of all faces, cropped as in a scan."""
    from dfscan.train.validation import normalised

    size_px = card.preprocessing.input_size_px
    settings = TrainSettings(input_size_px=size_px, resize_px=size_px, crop_margin=card.preprocessing.crop_margin)
    faces = FaceSet(samples, folder, settings, is_training=False)
    keys = [Key(EVALUATION_EPOCH, index, 0) for index in range(len(samples))]
    batches = [tuple(keys[start : start + FACES_PER_BATCH]) for start in range(0, len(keys), FACES_PER_BATCH)]
    device = next(network.parameters()).device
    features: list[np.ndarray] = []
    for number, batch in enumerate(load(faces, batches, num_workers=num_workers, pin_memory=device.type == "cuda")):
        if number % 50 == 0:
            tell(f"features of {number * FACES_PER_BATCH} of {len(samples)} faces")
        with torch.inference_mode():
            features.append(network.pooled(normalised(batch, card.preprocessing, device)).double().cpu().numpy())
    return np.concatenate(features)
