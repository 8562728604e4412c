"""Complete training runs: from a data set to a calibrated checkpoint, a contact sheet or a measure of loading time."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import logging
import platform
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dfscan.cache import package_version
from dfscan.dataset.manifest import MANIFEST_NAME, Sample, Split, read_manifest
from dfscan.dataset.splits import check_splits
from dfscan.detector.card import Calibration, CheckpointCard, SeenFiles, withheld
from dfscan.detector.checkpoint import load_network, read_card, save_checkpoint
from dfscan.detector.preprocess import Preprocessing
from dfscan.errors import CheckpointError, ConfigError, DataError
from dfscan.evaluation.calibrate import SINGLE_PICTURES, fit_calibration, video_scores
from dfscan.evaluation.metrics import Estimate, by_source, measure
from dfscan.forgery.donors import RECONSTRUCTION_FORMAT, check_swaps
from dfscan.forgery.names import DESIGNS, ForgeryKind
from dfscan.report.meta import versions
from dfscan.train.folder import VALIDATION_COLUMNS, VALIDATION_NAME, RunFolder
from dfscan.train.settings import LITE_NETWORKS, TrainSettings

if TYPE_CHECKING:
    from dfscan.detector.network import DeepfakeDetector
    from dfscan.train.dataset import FaceSet
    from dfscan.train.distributed import DistContext
    from dfscan.train.loop import Trainer, TrainListener
    from dfscan.train.validation import ValidationScores

log = logging.getLogger("dfscan")

SHEET_COLUMNS = 8
TRAINING_SPLITS: tuple[Split, ...] = ("train", "val")
HELD_OUT_SPLITS: dict[str, Split] = {"validation": "val", "test": "test"}
"""Split of each held-out set, by its name in a card's metrics."""


def run_training(settings: TrainSettings, listener: TrainListener, *, is_resumed: bool = False) -> Path | None:
    """Train, calibrate and write the run folder.

    Args:
        settings: the user's settings; `data` and `out` are required.
        listener: receives progress events; under torchrun, only in the first process.
        is_resumed: resume the run in `out`.

    Returns:
        Path of the calibrated checkpoint; None in all processes but the first.

    Raises:
        ConfigError: the settings or the run folder cannot be used.
        DataError: the data set cannot be used.
        CheckpointError: the weights to start from cannot be used.
        TrainingError: a loss, gradient or score is not finite.
        OutputError: a file cannot be written.
        KeyboardInterrupt, SystemExit: the run was interrupted; --resume continues from the saved state.
    """
    from dfscan.train.distributed import joined_processes
    from dfscan.train.interrupt import Interrupt

    samples = load_samples(settings)
    if settings.out is None:
        raise ConfigError("no run folder: give one with --out")
    folder = RunFolder(settings.out)
    if not is_resumed:
        folder.refuse_earlier_run()
    with joined_processes(settings.device) as dist:
        if settings.match_faces and dist.size > 1:
            raise ConfigError("match_faces works with one process only: train this stage without torchrun")
        trainer = _trainer(samples, settings, dist)
        if is_resumed:
            trainer.resume(folder)
        elif dist.is_main:
            folder.create()
            folder.write_settings(dataclasses.asdict(settings))
            if settings.match_faces and settings.start_from:
                trainer.match(settings.start_from, listener.noted)
            trainer.begin(folder)
        listener = listener if dist.is_main else _Silence()
        if not _seen(samples, settings).is_complete:
            listener.noted(
                "the checkpoint will not recognise all its training videos: some SHA-256 are missing from the data set "
                "or from the initial checkpoint; `dfscan prepare` records them"
            )
        _reconstruct(samples, settings, dist, listener.noted)
        interrupt = Interrupt()
        with closing(folder), interrupt.listening():
            trainer.run(folder, listener, interrupt)
        return _finish(trainer, folder, settings, samples, dist)


def measure_loading(settings: TrainSettings, *, num_steps: int, tell: Callable[[str], None]) -> dict[str, float]:
    """Measure the seconds per training step with and without the loader; only reconstructed faces are written."""
    from dfscan.train.distributed import joined_processes

    samples = load_samples(settings)
    with joined_processes(settings.device) as dist:
        trainer = _trainer(samples, settings, dist)
        _reconstruct(samples, settings, dist, tell)
        return trainer.measure_loading(num_steps)


def write_sheet(settings: TrainSettings, path: Path, *, tell: Callable[[str], None], num_faces: int = 32) -> None:
    """Write a contact sheet of augmented faces of the first epoch: reals in one row, their fakes below.

    Missing reconstructed faces are created first, if needed.

    Raises:
        DataError: the data set cannot be used.
        OutputError: the sheet cannot be written.
    """
    from dfscan.train.batches import Key
    from dfscan.train.distributed import joined_processes
    from dfscan.train.sheet import contact_sheet, save_sheet

    samples = load_samples(settings)
    if "reconstructed" in settings.kinds:
        with joined_processes(settings.device) as dist:
            _reconstruct(samples, settings, dist, tell)
    faces = _face_set(samples, "train", settings, is_training=True)
    order = np.random.default_rng(settings.seed).permutation(len(faces))[:num_faces].tolist()
    views = [faces.views_of(Key(0, index, 0)) for index in order]
    rows = []
    for start in range(0, len(views), SHEET_COLUMNS):
        shown = list(itertools.chain.from_iterable(views[start : start + SHEET_COLUMNS]))
        rows += [[view.pixels for view in shown if view.is_fake is wanted] for wanted in (False, True)]
    save_sheet(path, contact_sheet([row for row in rows if row]))


def load_samples(settings: TrainSettings) -> list[Sample]:
    """Read the samples of a data set and check that it can be used for training.

    Raises:
        ConfigError: no data set is given, or a fold does not exist.
        DataError: a split leaks into another, is empty, lacks a class, or has too few people to swap.
    """
    if settings.data is None:
        raise ConfigError("no data set: give the folder written by `dfscan prepare` with --data")
    path = settings.data / MANIFEST_NAME if settings.data.is_dir() else settings.data
    samples = read_manifest(path)
    if settings.held_out_folds is not None:
        samples = _split_by_fold(samples, settings.held_out_folds, path)
    check_splits(samples, path.parent)
    if "swapped" in settings.kinds + settings.held_out_kinds:
        check_swaps(samples, path)
    for split in ("train", "val"):
        missing = _missing_labels(samples, split, settings)
        if len(missing) == 2:
            raise DataError(
                f"{path}: the split {split!r} is empty; prepare the data set again with more groups or another --val"
            )
        if missing:
            remedy = ", or make them from real faces with --forgeries self-blended" if "fake" in missing else ""
            raise DataError(f"{path}: the split {split!r} has no {missing.pop()} faces; add some{remedy}")
    return samples


def _split_by_fold(samples: Sequence[Sample], named: str, path: Path) -> list[Sample]:
    """Assign the named folds to validation and everything else to training.

    Samples of other folds are dropped if their group is also in a named fold.
    """
    known = {sample.fold for sample in samples} - {""}
    folds = {fold.strip() for fold in named.split(",")}
    if unknown := sorted(folds - known):
        raise ConfigError(
            f"{path}: there is no fold {unknown[0]!r}; existing folds: {', '.join(sorted(known)) or 'none'}"
        )
    held_out = {sample.group for sample in samples if sample.fold in folds}
    kept = [sample for sample in samples if sample.fold in folds or sample.group not in held_out]
    return [dataclasses.replace(sample, split="val" if sample.fold in folds else "train") for sample in kept]


def _missing_labels(samples: Sequence[Sample], split: str, settings: TrainSettings) -> set[str]:
    """Return the classes that a split lacks for training or validation."""
    labels: set[str] = {sample.label for sample in samples if sample.split == split}
    if settings.kinds and "real" in labels:
        labels.add("fake")
    return {"real", "fake"} - labels


def _trainer(samples: Sequence[Sample], settings: TrainSettings, dist: DistContext) -> Trainer:
    import torch

    from dfscan.train.loop import Trainer

    if settings.threads:
        torch.set_num_threads(settings.threads)
    card = CheckpointCard(
        name=settings.name,
        architecture=settings.architecture,
        preprocessing=Preprocessing(input_size_px=settings.input_size_px, crop_margin=settings.crop_margin),
        training=_origin(settings),
        seen=_seen(samples, settings),
    )
    parts = {split: _face_set(samples, split, settings, is_training=split == "train") for split in TRAINING_SPLITS}
    return Trainer(_network(settings), settings, training=parts["train"], validation=parts["val"], card=card, dist=dist)


def _face_set(
    samples: Sequence[Sample], split: Split, settings: TrainSettings, *, is_training: bool = False
) -> FaceSet:
    from dfscan.train.dataset import FaceSet

    of_split = [sample for sample in samples if sample.split == split]
    reconstructed = reconstructions_in(samples, settings)
    return FaceSet(of_split, _folder(settings), settings, is_training=is_training, reconstructions=reconstructed)


def _folder(settings: TrainSettings) -> Path:
    assert settings.data is not None
    return settings.data if settings.data.is_dir() else settings.data.parent


def reconstructions_in(samples: Sequence[Sample], settings: TrainSettings) -> Path | None:
    """Return the folder of a data set's reconstructed faces, or None if the settings use none.

    The folder's name is a hash of everything that the reconstructions depend on: the training faces of the autoencoders
    and their settings.

    Raises:
        ConfigError: the settings name no parent folder.
    """
    if "reconstructed" not in settings.kinds + settings.held_out_kinds:
        return None
    parent = settings.reconstructions or (settings.out / "reconstructed" if settings.out else None)
    if parent is None:
        raise ConfigError("reconstructed faces need a folder: set one with --reconstructions")
    training_faces = sorted(
        sample.crop_sha256 for sample in samples if sample.split == "train" and sample.label == "real"
    )
    facts = [
        RECONSTRUCTION_FORMAT,
        settings.seed,
        settings.reconstruction_px,
        settings.reconstruction_steps,
        *training_faces,
    ]
    return parent / hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def _reconstruct(
    samples: Sequence[Sample], settings: TrainSettings, dist: DistContext, tell: Callable[[str], None]
) -> None:
    """Create missing reconstructed faces, if the settings need them.

    Raises:
        DataError: faces are missing and there are several processes; the others would time out waiting for one.
    """
    from dfscan.forgery.autoencoder import is_complete, reconstruct

    folder = reconstructions_in(samples, settings)
    if folder is None or all(is_complete(folder, design, samples) for design in DESIGNS):
        return
    if dist.size > 1:
        raise DataError(
            f"{folder}: reconstructed faces are missing; create them first with one process: run "
            f"`dfscan preview-training` with the same settings, --reconstructions {folder.parent} and --out preview.png"
        )
    reconstruct(
        samples,
        _folder(settings),
        folder,
        size_px=settings.reconstruction_px,
        num_steps=settings.reconstruction_steps,
        device=dist.device,
        seed=settings.seed,
        tell=tell,
    )


def _network(settings: TrainSettings) -> DeepfakeDetector:
    from dfscan.detector.network import create_network, start_shallow

    if settings.grow_from:
        from dfscan.train.grow import grow

        checkpoint = read_card(settings.grow_from)
        small, source = load_network(checkpoint), checkpoint.card.architecture
        try:
            return grow(small, source=source, target=settings.architecture, seed=settings.seed)
        except CheckpointError as error:
            raise CheckpointError(f"{settings.grow_from}: {error}") from error
    if settings.start_from in LITE_NETWORKS:
        from dfscan.train.lite import start_from_lite

        return start_from_lite(settings.start_from, settings.architecture, seed=settings.seed)
    if settings.start_from is None:
        network = create_network(settings.architecture, pretrained=settings.pretrained, seed=settings.seed)
        if not settings.pretrained:
            start_shallow(network.backbone)
        return network
    checkpoint = read_card(settings.start_from)
    if checkpoint.card.architecture != settings.architecture:
        raise CheckpointError(
            f"{settings.start_from}: the architecture is {checkpoint.card.architecture}, not {settings.architecture}; "
            f"give --architecture {checkpoint.card.architecture}, or another checkpoint"
        )
    return load_network(checkpoint)


def _origin(settings: TrainSettings) -> dict[str, Any]:
    """Describe the origin of the initial weights by file and package names, without paths.

    ``imagenet_features`` is inherited from the initial checkpoint.
    """
    start, growth = settings.start_from, settings.grow_from
    origin: dict[str, Any] = {
        "started_from": Path(start).name if start else None,
        "grown_from": growth.name if growth else None,
        "imagenet_features": None,
    }
    if start in LITE_NETWORKS:
        from dfscan.train.lite import describe

        origin["imagenet_features"] = describe(start)
    elif parent := growth or start:
        origin["imagenet_features"] = (read_card(parent).card.training or {}).get("imagenet_features")
    elif settings.pretrained:
        origin["imagenet_features"] = {
            "package": "timm",
            "version": package_version("timm"),
            "licence": "Apache-2.0",
        }
    return origin


class _Silence:
    """A listener that ignores all events, for all processes but the first."""

    def noted(self, text: str) -> None:
        """Do nothing."""

    def planned(self, num_steps: int, steps_done: int) -> None:
        """Do nothing."""

    def stepped(self, loss: float) -> None:
        """Do nothing."""

    def epoch_done(self, row: dict[str, Any], is_best: bool) -> None:
        """Do nothing."""


# After the last epoch


def _finish(
    trainer: Trainer, folder: RunFolder, settings: TrainSettings, samples: Sequence[Sample], dist: DistContext
) -> Path | None:
    """Score held-out faces with the stored best checkpoint, calibrate it, and write metrics and plots."""
    held_out = {
        name: trainer.score_best(folder, _face_set(samples, split, settings))
        for name, split in HELD_OUT_SPLITS.items()
        if not _missing_labels(samples, split, settings)
    }
    if not dist.is_main:
        return None
    best = read_card(folder.best_path)
    scores = held_out["validation"].without(settings.held_out_kinds)
    videos = by_source(scores.logits, scores.is_fake, scores.sources, scores.groups)
    calibration = fit_calibration(
        videos.logits,
        videos.is_fake,
        aggregation=best.card.aggregation,
        num_frames=best.card.sampling.num_frames,
        max_fpr=settings.max_fpr,
        max_fnr=settings.max_fnr,
    )
    card = best.card.model_copy(
        update={
            "calibration": calibration,
            "training": _summary(settings, samples, trainer) | (best.card.training or {}),
            "metrics": {
                name: _metrics(faces.without(settings.held_out_kinds), best.card, calibration)
                | {"forgeries": _by_kind(faces, settings)}
                for name, faces in held_out.items()
            },
        }
    )
    save_checkpoint(folder.best_path, load_network(best), card, fp16=settings.fp16)
    document = card.model_dump()
    if why := withheld(document, "fake"):
        log.warning("scans will not return fake: %s; add real validation videos, or raise --max-fpr", why)
    if why := withheld(document, "real"):
        log.warning("scans will not return real: %s; add fake validation videos, or raise --max-fnr", why)
    _write_validation(folder, held_out["validation"], settings, calibration)
    return folder.best_path


def _metrics(scores: ValidationScores, card: CheckpointCard, calibration: Calibration) -> dict[str, Any]:
    videos = by_source(scores.logits, scores.is_fake, scores.sources, scores.groups)
    calibrated_scores = video_scores(
        videos.logits, calibration, aggregation=card.aggregation, num_frames=card.sampling.num_frames
    )
    threshold = calibration.fake_threshold
    faces = 1 / (1 + np.exp(-scores.logits / calibration.temperature))
    return {
        "frame": _plain(measure(faces, scores.is_fake, scores.groups, fake_threshold=threshold)),
        "video": _plain(measure(calibrated_scores, videos.is_fake, videos.groups.tolist(), fake_threshold=threshold)),
        "num_faces": len(scores.logits),
        "num_videos": len(videos.logits),
        "num_groups": len(set(scores.groups)),
    }


def _by_kind(scores: ValidationScores, settings: TrainSettings) -> dict[str, Any]:
    """Measure each kind of forgery against all real faces: the frame-level ROC AUC, and whether it was left out."""
    by_kind: dict[str, Any] = {}
    for kind in settings.kinds + settings.held_out_kinds:
        part = scores.against_real(kind)
        faces = 1 / (1 + np.exp(-part.logits))
        metrics = measure(faces, part.is_fake, part.groups, fake_threshold=None)
        by_kind[kind] = {
            "roc_auc": dataclasses.asdict(metrics["roc_auc"]),
            "num_faces": int(part.is_fake.sum()),
            "left_out": kind in settings.held_out_kinds,
        }
    return by_kind


def _plain(metrics: dict[str, Estimate]) -> dict[str, Any]:
    return {name: dataclasses.asdict(estimate) for name, estimate in metrics.items()}


def _write_validation(
    folder: RunFolder, scores: ValidationScores, settings: TrainSettings, calibration: Calibration
) -> None:
    from dfscan.evaluation.plots import plot_history, plot_scores

    calibrated_scores = 1 / (1 + np.exp(-scores.logits / calibration.temperature))
    labels = ["fake" if is_fake else "real" for is_fake in scores.is_fake]
    texts = [
        (s.crop, s.source, s.group, label, s.kind, s.domain) for s, label in zip(scores.samples, labels, strict=True)
    ]
    made = [kind or "" for kind in scores.made]
    numbers = zip(made, scores.logits.tolist(), calibrated_scores.tolist(), strict=True)
    rows = (text + number for text, number in zip(texts, numbers, strict=True))
    folder.write_table(VALIDATION_NAME, VALIDATION_COLUMNS, rows)
    plot_history(folder.rows(), folder.path)
    thresholds = (calibration.real_threshold, calibration.fake_threshold)
    shown = np.array([made not in settings.held_out_kinds for made in scores.made])
    plot_scores(
        calibrated_scores[shown], scores.is_fake[shown], folder.path, thresholds=thresholds, title="validation faces"
    )


_NOT_IN_CARD = (
    "data", "out", "start_from", "grow_from", "reconstructions", "device", "workers", "threads", "save_every_s"
)  # fmt: skip


def _summary(settings: TrainSettings, samples: Sequence[Sample], trainer: Trainer) -> dict[str, Any]:
    """Summarise the training for the card, without paths or file names."""
    progress = trainer.progress
    recipe = {name: value for name, value in dataclasses.asdict(settings).items() if name not in _NOT_IN_CARD}
    data = {}
    for split in ("train", "val", "test"):
        of_split = [sample for sample in samples if sample.split == split]
        data[split] = {
            "faces": dict(Counter(sample.label for sample in of_split)),
            "sources": len({sample.source for sample in of_split}),
            "groups": len({sample.group for sample in of_split}),
            "kinds": dict(Counter(sample.kind for sample in of_split if sample.kind)),
        }
    return {
        "data": data,
        "settings": recipe,
        "limits": _limits(samples, settings),
        "epochs": progress.epoch,
        "best_epoch": progress.best_epoch,
        "steps": progress.steps_done,
        "hours": round(progress.seconds / 3600, 3),
        "device": trainer.device_name,
        "versions": versions(),
        "python": platform.python_version(),
    }


def _seen(samples: Sequence[Sample], settings: TrainSettings) -> SeenFiles:
    """Collect the hashes of the files that this training and the initial checkpoint have seen."""
    by_split = {
        split: {sample.source_sha256 for sample in samples if sample.split == split} for split in TRAINING_SPLITS
    }
    is_complete = all("" not in sha256s for sha256s in by_split.values())
    seen = SeenFiles.of(by_split["train"] - {""}, by_split["val"] - {""}, is_complete=is_complete)
    parent = settings.grow_from or (None if settings.start_from in LITE_NETWORKS else settings.start_from)
    before = read_card(parent).card if parent else None
    if before is None or not before.calibration.trained:
        return seen
    return seen.union(before.seen or SeenFiles(is_complete=False))


_FORGERY_TEXTS: dict[ForgeryKind, str] = {
    "self-blended": "blended with themselves",
    "swapped": "swapped with other people's faces",
    "warped": "warped",
    "reconstructed": "reconstructed by autoencoders",
}


def _limits(samples: Sequence[Sample], settings: TrainSettings) -> list[str]:
    """List the limitations of the card's error rates."""
    limits = ["Does not reliably detect manipulations that it was not trained on, or fully synthetic faces."]
    if not any(sample.label == "fake" for sample in samples):
        ways = " or ".join(_FORGERY_TEXTS[kind] for kind in settings.kinds)
        limits.append(
            f"All its fakes, in validation too, were real faces {ways}. Its error rates hold only for such fakes; it "
            "was never tested on deepfakes from elsewhere."
        )
    num_faces = Counter(sample.source for sample in samples if sample.split == "val")
    if num_faces and sorted(num_faces.values())[len(num_faces) // 2] == 1:
        limits.append(SINGLE_PICTURES)
    return limits
