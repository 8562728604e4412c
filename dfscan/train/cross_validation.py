"""Calibrate a checkpoint by cross-validation, with runs that each held out one fold of its training data.

The final detector is trained on every fold, so its own scores on this data cannot set thresholds. Runs of the same
recipe, each with one fold held out, score all data without having seen it. Their pooled scores stand in for those of
the final detector on new data, as in cross-validation (Stone 1974) and cross-conformal prediction (Vovk 2015).
"""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dfscan.arrays import BoolArray, Float64Array
from dfscan.detector.card import CheckpointCard
from dfscan.detector.checkpoint import Checkpoint, load_network, save_calibrated, save_checkpoint
from dfscan.errors import DataError
from dfscan.evaluation.calibrate import SINGLE_PICTURES, fit_calibration, video_scores
from dfscan.evaluation.metrics import VideoScores, by_source, measure, paired_accuracy, within_source_auc
from dfscan.train.folder import VALIDATION_COLUMNS, VALIDATION_NAME

HELD_OUT = "held-out folds"
"""Name of the pooled metrics in a card."""


@dataclass(frozen=True, slots=True, eq=False)
class HeldOutFaces:
    """Validation faces of all runs, one entry per face; forgeries made from real faces are excluded."""

    logits: Float64Array
    """(F,) raw."""
    is_fake: BoolArray
    sources: list[str]
    groups: list[str]
    kinds: list[str]
    """Kind of manipulation; empty for reals."""
    domains: list[str]


def read_held_out(run_dirs: Sequence[Path]) -> HeldOutFaces:
    """Pool the validation faces of several runs.

    Raises:
        DataError: a run has no table of validation faces or lacks columns, or two runs held out the same source.
    """
    rows: list[dict[str, str]] = []
    run_of: dict[str, Path] = {}
    for run_dir in run_dirs:
        path = run_dir / VALIDATION_NAME
        try:
            with path.open(newline="", encoding="utf-8") as file:
                run_rows = [row for row in csv.DictReader(file) if not row.get("made_by")]
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror}); give folders of finished runs") from error
        if run_rows and (missing := [name for name in VALIDATION_COLUMNS if name not in run_rows[0]]):
            raise DataError(f"{path}: lacks the columns {', '.join(missing)}; train again with this version")
        for row in run_rows:
            if run_of.setdefault(row["source"], run_dir) != run_dir:
                raise DataError(
                    f"{row['source']}: held out by {run_of[row['source']]} and by {run_dir}; give one run per fold"
                )
        rows += run_rows
    return HeldOutFaces(
        logits=np.array([float(row["logit"]) for row in rows], np.float64),
        is_fake=np.array([row["label"] == "fake" for row in rows], np.bool_),
        sources=[row["source"] for row in rows],
        groups=[row["group"] for row in rows],
        kinds=[row["kind"] for row in rows],
        domains=[row["domain"] for row in rows],
    )


def calibrate_on_runs(
    checkpoint: Checkpoint,
    run_dirs: Sequence[Path],
    out: Path,
    *,
    max_fpr: float,
    max_fnr: float,
    fp16: bool,
) -> CheckpointCard:
    """Write a copy of a checkpoint with thresholds and metrics from held-out folds.

    Args:
        checkpoint: trained on all folds with the recipe of the runs.
        run_dirs: one run per fold.
        out: path of the copy.
        max_fpr: maximum rate of real videos at or above the fake threshold.
        max_fnr: maximum rate of fake videos at or below the real threshold.
        fp16: store the weights in fp16.

    Raises:
        DataError: the runs cannot be pooled, or lack a class.
        OutputError: the copy cannot be written.
    """
    card = calibrated_on(
        read_held_out(run_dirs),
        checkpoint.card,
        by=f"{len(run_dirs)} runs of the same recipe",
        max_fpr=max_fpr,
        max_fnr=max_fnr,
    )
    if fp16:
        save_checkpoint(out, load_network(checkpoint), card, fp16=True)
    else:
        save_calibrated(out, checkpoint, card)
    return card


def calibrated_on(
    faces: HeldOutFaces, card: CheckpointCard, *, by: str, max_fpr: float, max_fnr: float
) -> CheckpointCard:
    """Return the card with thresholds and metrics from the scores of held-out folds.

    Args:
        faces: scores by detectors that had not seen the faces.
        card: card of the detector that was trained on all folds.
        by: what computed the scores, for the card.
        max_fpr: maximum rate of real videos at or above the fake threshold.
        max_fnr: maximum rate of fake videos at or below the real threshold.

    Raises:
        DataError: a class is missing.
    """
    videos = by_source(faces.logits, faces.is_fake, faces.sources, faces.groups)
    calibration = fit_calibration(
        videos.logits,
        videos.is_fake,
        aggregation=card.aggregation,
        num_frames=card.sampling.num_frames,
        max_fpr=max_fpr,
        max_fnr=max_fnr,
    )
    scores = video_scores(videos.logits, calibration, aggregation=card.aggregation, num_frames=card.sampling.num_frames)
    face_scores = 1 / (1 + np.exp(-faces.logits / calibration.temperature))
    threshold = calibration.fake_threshold
    metrics = {
        HELD_OUT: {
            "frame": _plain(measure(face_scores, faces.is_fake, faces.groups, fake_threshold=threshold)),
            "video": _plain(measure(scores, videos.is_fake, videos.groups.tolist(), fake_threshold=threshold)),
            "num_faces": len(faces.logits),
            "num_videos": len(videos.logits),
            "num_groups": len(set(faces.groups)),
        },
        f"{HELD_OUT}, ROC AUC of videos by kind": _by_kind(videos, scores, faces),
    }
    training = dict(card.training or {})
    training["limits"] = [limit for limit in training.get("limits", []) if limit != SINGLE_PICTURES]
    training |= {"calibrated_on": f"{HELD_OUT} of {by}"}
    return card.model_copy(update={"calibration": calibration, "quality": (), "training": training, "metrics": metrics})


def held_out_result(card: CheckpointCard) -> str:
    """Describe the metrics of held-out folds in a few words, from a card of `calibrated_on`."""
    assert card.metrics
    measured = card.metrics[HELD_OUT]
    auc = measured["video"]["roc_auc"]
    interval = "" if auc["low"] is None else f", 95 % interval {auc['low']:.3f} to {auc['high']:.3f}"
    return f"{measured['num_videos']} videos in {measured['num_groups']} groups, ROC AUC {auc['value']:.3f}{interval}"


def _by_kind(videos: VideoScores, scores: Float64Array, faces: HeldOutFaces) -> dict[str, Any]:
    """Compare each kind of fake with all reals, with reals of its domain, and with reals of its group."""
    first = {source: place for place, source in reversed(list(enumerate(faces.sources)))}
    places = [first[source] for source in videos.sources.tolist()]
    kinds, domains = np.array(faces.kinds)[places], np.array(faces.domains)[places]
    groups, is_fake = videos.groups, videos.is_fake
    columns: dict[str, dict[str, Any]] = {"against all reals": {}, "within sources": {}, "within takes": {}}
    counts: dict[str, Any] = {}
    for kind in ("all", *sorted(set(kinds[is_fake].tolist()))):
        kept = ~is_fake | (kinds == kind) | (kind == "all")
        values, labels, names = scores[kept], is_fake[kept], groups[kept].tolist()
        within = within_source_auc(values, labels, domains[kept].tolist(), names)
        takes = paired_accuracy(values, labels, names, names)
        name = kind or "unnamed"
        columns["against all reals"][name] = dataclasses.asdict(
            measure(values, labels, names, fake_threshold=None)["roc_auc"]
        )
        columns["within sources"][name] = dataclasses.asdict(within.estimate)
        columns["within takes"][name] = dataclasses.asdict(takes.estimate)
        counts[f"num_fakes, {name}"] = int(labels.sum())
        counts[f"num_fakes within sources, {name}"] = within.num_fakes
        counts[f"num_fakes within takes, {name}"] = takes.num_fakes
    return {**columns, **counts}


def _plain(metrics: Mapping[str, Any]) -> dict[str, Any]:
    return {name: dataclasses.asdict(estimate) for name, estimate in metrics.items()}
