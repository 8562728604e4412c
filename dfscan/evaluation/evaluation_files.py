"""Output files of an evaluation: all results as JSON, tables as CSV, and plots."""

from __future__ import annotations

import importlib.metadata
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dfscan.dataset.manifest import TRUE_LABELS
from dfscan.errors import ConfigError
from dfscan.evaluation.evaluate import ALL, LEVELS, Evaluation, LabelledResult, SubsetMetrics, count_verdicts
from dfscan.evaluation.metrics import CONFIDENCE
from dfscan.evaluation.plots import Curve, plot_comparisons, plot_robustness, plot_scores
from dfscan.files import AtomicFile, make_folder, write_bytes
from dfscan.report.formats import open_writer
from dfscan.report.meta import versions
from dfscan.report.schema import Column

DOCUMENT, METRICS, VIDEOS = "evaluation.json", "metrics.csv", "videos.csv"
ROBUSTNESS_PLOT, COMPARISON_PLOT = "robustness.png", "within.png"
PLOTS = ("roc.png", "calibration.png", "histogram.png", ROBUSTNESS_PLOT, COMPARISON_PLOT)
COMPARISONS = {"within_source_auc": "within sources", "paired_accuracy": "pairs of a take"}
"""Display names of the comparisons, for plots and terminal output."""

VIDEO_COLUMNS = (
    Column("path", "path"),
    Column("label", "text"),
    Column("kind", "text"),
    Column("group", "text"),
    Column("verdict", "text"),
    Column("score", "score"),
    Column("num_faces", "int"),
    Column("reason", "text"),
    Column("source", "text"),
    Column("take", "text"),
)
METRIC_COLUMNS = (
    Column("level", "text"),
    Column("subset", "text"),
    Column("metric", "text"),
    Column("value", "score"),
    Column("low", "score"),
    Column("high", "score"),
    Column("num_videos", "int"),
    Column("num_groups", "int"),
)


def prepare_folder(folder: Path, *, inputs: Iterable[str]) -> None:
    """Create the output folder, and check that it is writable and that no output would overwrite an input.

    Raises:
        OutputError: the folder cannot be created or written to.
        ConfigError: an input has the path of an output file.
    """
    make_folder(folder, remedy="Give another folder with --out.")
    places = {os.path.realpath(folder / name): name for name in (DOCUMENT, METRICS, VIDEOS, *PLOTS)}
    for path in inputs:
        if name := places.get(os.path.realpath(path)):
            raise ConfigError(f"{name} would overwrite the input {path}; give another folder with --out")
    AtomicFile(folder / DOCUMENT).discard()


def write_videos(folder: Path, results: Sequence[LabelledResult]) -> None:
    """Write one row per video to ``videos.csv``.

    Raises:
        OutputError: the file cannot be written.
    """
    with open_writer(folder / VIDEOS, VIDEO_COLUMNS, format="csv") as writer:
        for video in results:
            source, verdict = video.source, video.verdict
            row = {"path": source.path, "label": source.label, "kind": source.kind or None, "group": source.group}
            row |= {"source": source.domain or None, "take": source.take or None}
            outcome = {"verdict": verdict.label, "score": verdict.score, "num_faces": len(video.face_scores)}
            writer.append(row | outcome | {"reason": str(verdict.reason) if verdict.reason else None})


def write_evaluation(folder: Path, evaluation: Evaluation, *, skipped: Sequence[tuple[str, str]] = ()) -> None:
    """Write all files but ``videos.csv``: the metrics table, the JSON document and the plots.

    Raises:
        OutputError: a file cannot be written.
    """
    with open_writer(folder / METRICS, METRIC_COLUMNS, format="csv") as writer:
        for row in _rows(evaluation.parts):
            writer.append(row)
        for condition in evaluation.conditions:
            for row in _rows(condition.parts, prefix=f"robustness: {condition.name}"):
                writer.append(row)
    text = json.dumps(document(evaluation, skipped=skipped), allow_nan=False, indent=2)
    write_bytes(folder / DOCUMENT, f"{text}\n".encode())
    _plot(folder, evaluation)


def document(evaluation: Evaluation, *, skipped: Sequence[tuple[str, str]] = ()) -> dict[str, Any]:
    """Return all results as JSON-compatible values; numbers are not rounded."""
    import av  # noqa: F401  once imported, versions() includes FFmpeg's

    checkpoint = evaluation.checkpoint
    return {
        "checkpoint": {"label": checkpoint.label, "sha256": checkpoint.sha256, "path": str(checkpoint.path)},
        "thresholds": dict(zip(("real", "fake"), evaluation.thresholds, strict=True)),
        "counts": counts(evaluation.results) | {"skipped": len(skipped)},
        "overlap": evaluation.overlap,
        "verdicts": count_verdicts(evaluation.results),
        "metrics": _nested(evaluation.parts),
        "groups": _groups(evaluation.results),
        "robustness": {
            condition.name: {
                "metrics": _nested(condition.parts),
                "verdicts": condition.verdicts,
                "num_cut_short": condition.num_cut_short,
            }
            for condition in evaluation.conditions
        },
        "skipped": [{"path": path, "reason": reason} for path, reason in skipped],
        "bootstrap": {
            "over": "groups",
            "confidence": CONFIDENCE,
            "num_resamples": evaluation.num_resamples,
            "seed": evaluation.seed,
        },
        "settings": evaluation.settings.document(),
        "versions": versions() | {"scikit-learn": importlib.metadata.version("scikit-learn")},
    }


def counts(results: Sequence[LabelledResult]) -> dict[str, int]:
    """Count videos, labels, groups, videos with a score, and faces."""
    return {
        "videos": len(results),
        **{label: sum(video.source.label == label for video in results) for label in TRUE_LABELS},
        "groups": len({video.source.group for video in results}),
        "judged": sum(video.verdict.score is not None for video in results),
        "faces": sum(len(video.face_scores) for video in results),
    }


def _nested(parts: Iterable[SubsetMetrics]) -> dict[str, Any]:
    """Return the metrics by level and subset."""
    nested: dict[str, Any] = {level: {} for level in LEVELS}
    for part in parts:
        estimates = {name: asdict(estimate) for name, estimate in part.metrics.items()}
        for name, comparison in part.comparisons.items():
            sizes = asdict(comparison)
            estimates[name] = sizes.pop("estimate") | sizes
        nested[part.level][part.subset] = {"num_videos": part.num_videos, "num_groups": part.num_groups, **estimates}
    return nested


def _groups(results: Sequence[LabelledResult]) -> dict[str, Any]:
    """Summarise groups of at least two videos; a single video already has its row in `videos.csv`."""
    members: dict[str, list[LabelledResult]] = {}
    for video in results:
        members.setdefault(video.source.group, []).append(video)
    groups: dict[str, Any] = {}
    for group, videos in sorted(members.items()):
        if len(videos) > 1:
            of = {label: [video.verdict for video in videos if video.source.label == label] for label in TRUE_LABELS}
            groups[group] = {f"num_{label}": len(verdicts) for label, verdicts in of.items()}
            for label, verdicts in of.items():
                scores = [verdict.score for verdict in verdicts if verdict.score is not None]
                groups[group][f"mean_score_{label}"] = sum(scores) / len(scores) if scores else None
            groups[group]["verdicts"] = count_verdicts(videos)
    return groups


def _rows(parts: Iterable[SubsetMetrics], *, prefix: str | None = None) -> Iterator[dict[str, object]]:
    for part in parts:
        subject = {"level": part.level, "subset": prefix or part.subset}
        sizes = {"num_videos": part.num_videos, "num_groups": part.num_groups}
        for name, estimate in part.metrics.items():
            yield subject | {"metric": name} | asdict(estimate) | sizes
        for name, comparison in part.comparisons.items():
            sizes = {"num_videos": comparison.num_fakes + comparison.num_reals, "num_groups": comparison.num_groups}
            yield subject | {"metric": name} | asdict(comparison.estimate) | sizes


def _plot(folder: Path, evaluation: Evaluation) -> None:
    videos = [video for video in evaluation.results if video.scores("video")]
    plot_scores(
        [score for video in videos for score in video.scores("video")],
        [video.source.label == "fake" for video in videos],
        folder,
        thresholds=evaluation.thresholds,
        title=f"{len(videos)} videos, {evaluation.checkpoint.label}",
    )
    if evaluation.conditions:
        by_name = {"original": evaluation.parts} | {each.name: each.parts for each in evaluation.conditions}
        aucs: Curve = {
            name: {part.level: part.metrics["roc_auc"] for part in parts if part.subset == ALL and part.metrics}
            for name, parts in by_name.items()
        }
        plot_robustness(aucs, folder)
    else:
        (folder / ROBUSTNESS_PLOT).unlink(missing_ok=True)  # it would be from an earlier evaluation
    curve = {
        part.subset: {"all pairs": part.metrics["roc_auc"]}
        | {COMPARISONS[name]: comparison.estimate for name, comparison in part.comparisons.items()}
        for part in evaluation.parts
        if part.comparisons
    }
    if curve:
        plot_comparisons(curve, folder)
    else:
        (folder / COMPARISON_PLOT).unlink(missing_ok=True)
