"""Evaluate a checkpoint on labelled videos with the code path of a real scan.

*Video*-level metrics use the score of each verdict. *Frame*-level metrics use the score of every face, labelled with
the label of its video: in a fake with two people, an untouched face counts as fake too. Scores are calibrated for even
odds, so log-loss, Brier score and calibration error are best on a set with as many fakes as reals.

If sources or takes are known, videos are also compared *within* them. Fakes and reals of different sources differ in
more than the forgery, so the overall metrics reward a detector that only separates sources.
"""

from __future__ import annotations

import hashlib
import logging
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from io import FileIO
from pathlib import Path
from typing import Literal

import numpy as np

from dfscan.config import ScanSettings
from dfscan.dataset.manifest import TRUE_LABELS, TrueLabel
from dfscan.dataset.sources import Source
from dfscan.detector.card import Use
from dfscan.detector.checkpoint import Checkpoint
from dfscan.errors import DataError, VideoError
from dfscan.evaluation.metrics import Comparison, Estimate, measure, paired_accuracy, proportion, within_source_auc
from dfscan.evaluation.robustness import CONDITIONS, Condition, write_copies
from dfscan.media.source import open_source
from dfscan.scan.pipeline import Engine, ScanListener, failed, scan_videos
from dfscan.scan.setup import ResolvedSettings, load_engine, only_one, resolve
from dfscan.types import VERDICT_LABELS, Verdict

Level = Literal["video", "frame"]
LEVELS: tuple[Level, ...] = ("video", "frame")
ALL = "all"

log = logging.getLogger("dfscan")


@dataclass(frozen=True, slots=True, eq=False)
class LabelledResult:
    """A labelled video with its verdict and face scores."""

    source: Source
    verdict: Verdict
    face_scores: tuple[float, ...] = ()
    sharpness: float | None = None
    """Sharpness of the track that decided; None if there is none."""
    sha256: str | None = None

    def scores(self, level: Level) -> tuple[float, ...]:
        """Return the scores at a level; empty if there are none."""
        if level == "frame":
            return self.face_scores
        return () if self.verdict.score is None else (self.verdict.score,)


@dataclass(frozen=True, slots=True)
class SubsetMetrics:
    """Metrics of a subset of the videos."""

    level: Level
    subset: str
    num_videos: int
    num_groups: int
    metrics: Mapping[str, Estimate]
    comparisons: Mapping[str, Comparison] = field(default_factory=dict)
    """By name, at video level: ``within_source_auc`` if sources are known, ``paired_accuracy`` if a take or group has
    both classes."""


@dataclass(frozen=True, slots=True)
class ConditionResult:
    """Metrics of degraded copies of the videos."""

    name: str
    parts: list[SubsetMetrics]
    verdicts: dict[str, dict[str, int]]
    num_cut_short: int
    results: list[LabelledResult]
    """Results of the copies."""


@dataclass(slots=True)
class Evaluation:
    """All results of an evaluation."""

    checkpoint: Checkpoint
    settings: ResolvedSettings
    results: list[LabelledResult]
    parts: list[SubsetMetrics]
    seed: int
    num_resamples: int
    overlap: dict[str, Use] | None
    """How training used each video that the checkpoint has seen, by path; None if the checkpoint does not record it."""
    conditions: list[ConditionResult] = field(default_factory=list)

    @property
    def thresholds(self) -> tuple[float | None, float | None]:
        """Maximum score of the verdict `real` and minimum score of the verdict `fake`."""
        return self.checkpoint.card.calibration.real_threshold, self.settings.threshold

    def find(self, level: Level, subset: str = ALL) -> SubsetMetrics | None:
        """Return the part with this level and subset, or None."""
        return next((part for part in self.parts if (part.level, part.subset) == (level, subset)), None)


def run_evaluation(
    sources: Sequence[Source],
    settings: ScanSettings,
    *,
    with_robustness: bool = False,
    with_levels: bool = True,
    allow_overlap: bool = False,
    num_resamples: int = 1000,
    seed: int = 0,
    listener: ScanListener | None = None,
    on_planned: Callable[[int], None] | None = None,
    on_scanned: Callable[[Sequence[LabelledResult]], None] | None = None,
) -> Evaluation:
    """Scan labelled videos with the checkpoint's own settings and compute metrics.

    Args:
        sources: the videos, each path once.
        settings: scan settings, such as checkpoint and device.
        with_robustness: also scan degraded copies, which takes at least eight times as long.
        with_levels: judge by the checkpoint's levels of quality, if it has some. False to measure them again.
        allow_overlap: continue even if the checkpoint was trained or calibrated on some of the videos.
        num_resamples: bootstrap draws for each interval.
        seed: seed of the bootstrap.
        listener: receives progress events.
        on_planned: called with the number of scans, copies included. Called again when unreadable videos are known,
            because these are not copied.
        on_scanned: called after all originals have been scanned, before the results are checked.

    Raises:
        DataError: no video got a score, or the checkpoint has seen some of the videos.
        CheckpointError: there is no usable checkpoint.
        OutputError: a copy cannot be written.
    """
    resolved, checkpoints = resolve(settings)
    checkpoint = only_one(checkpoints)
    overlap = find_overlap(sources, checkpoint)
    _check_overlap(overlap, len(sources), checkpoint, is_allowed=allow_overlap)
    if on_planned:
        on_planned(len(sources) * (1 + len(CONDITIONS) * with_robustness))
    if not with_levels:
        checkpoints = [replace(checkpoint, card=checkpoint.card.model_copy(update={"quality": ()}))]
    engine = load_engine(resolved, checkpoints)
    results = scan_labelled(sources, engine, listener=listener)
    if on_scanned:
        on_scanned(results)
    _check(results)
    metrics = _Metrics(resolved.threshold, num_resamples, seed)
    result = Evaluation(checkpoint, resolved, results, metrics.parts(results), seed, num_resamples, overlap)
    if with_robustness:
        lost = [video for video in results if video.verdict.label == "error"]
        readable = [video.source for video in results if video.verdict.label != "error"]
        if on_planned:
            on_planned(len(sources) + len(CONDITIONS) * len(readable))
        for condition in CONDITIONS:
            copied, num_cut_short = _scan_copies(condition, readable, engine, listener)
            parts, verdicts = metrics.overall([*copied, *lost]), count_verdicts([*copied, *lost])
            result.conditions.append(ConditionResult(condition.name, parts, verdicts, num_cut_short, copied))
    return result


def find_overlap(sources: Sequence[Source], checkpoint: Checkpoint) -> dict[str, Use] | None:
    """Find the videos that a checkpoint was trained or calibrated on.

    Unreadable files are skipped; the scan reports them.

    Returns:
        Use by path; None if the checkpoint does not record its videos.
    """
    seen = checkpoint.card.seen
    if seen is None:
        return None
    uses: dict[str, Use] = {}
    for source in sources:
        try:
            descriptor = open_source(source.path)
        except VideoError:
            continue
        with FileIO(descriptor) as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        if use := seen.use_of(sha256):
            uses[source.path] = use
    return uses


def _check_overlap(
    overlap: Mapping[str, Use] | None, num_videos: int, checkpoint: Checkpoint, *, is_allowed: bool
) -> None:
    seen = checkpoint.card.seen
    if checkpoint.card.calibration.trained and not (seen and seen.is_complete):
        log.warning(
            "%s does not record all its training videos; if they include some of these, the results are too optimistic",
            checkpoint.label,
        )
    if not overlap:
        return
    uses = Counter(overlap.values())
    counts = ", ".join(f"{count} in {use}" for use, count in sorted(uses.items()))
    more = f" and {len(overlap) - 3} more" if len(overlap) > 3 else ""
    named = ", ".join(f"'{path}'" for path in list(overlap)[:3]) + more
    overlap_text = f"{checkpoint.label} has seen {len(overlap)} of {num_videos} videos ({counts}): {named}"
    if not is_allowed:
        raise DataError(
            f"{overlap_text}. Results on these are too optimistic: remove them, or evaluate anyway with --allow-overlap"
        )
    log.warning("%s; the results are too optimistic", overlap_text)


def scan_labelled(
    sources: Sequence[Source], engine: Engine, *, copies: Mapping[str, str] | None = None, listener: ScanListener | None
) -> list[LabelledResult]:
    """Scan videos, or their copies if given, and return the results in the order of `sources`.

    Videos that are missing from `copies` are left out.
    """
    taken = sources if copies is None else [source for source in sources if source.path in copies]
    places = {source.path if copies is None else copies[source.path]: source for source in taken}
    result_of: dict[str, LabelledResult] = {}
    for result, _ in scan_videos(list(places), engine, listener=listener):
        source = places[result.path]
        scores = tuple(face.score for track in result.tracks for face in track.faces)
        sharpness = result.decided.sharpness if result.decided else None
        result_of[source.path] = LabelledResult(source, result.verdict, scores, sharpness, result.info.sha256)
        if listener:
            listener.video_done(replace(result, path=source.path))
    return [result_of[source.path] for source in taken]


def _check(results: Sequence[LabelledResult]) -> None:
    labels = {video.source.label for video in results if video.verdict.score is not None}
    counts = Counter(video.verdict.label for video in results)
    if not labels:
        listed = ", ".join(f"{count} {label}" for label, count in sorted(counts.items()))
        raise DataError(
            f"none of {len(results)} videos could be scored ({listed}); see the reasons, and give videos that show "
            "faces"
        )
    num_without = sum(not video.source.domain for video in results)
    if 0 < num_without < len(results):
        log.warning("%d of %d videos have no source: metrics within sources leave them out", num_without, len(results))
    if len(labels) == 1:
        log.warning(
            "only %s videos could be scored: metrics that need both classes, such as ROC AUC, are left out",
            labels.pop(),
        )


def _scan_copies(
    condition: Condition, sources: Sequence[Source], engine: Engine, listener: ScanListener | None
) -> tuple[list[LabelledResult], int]:
    """Scan a degraded copy of each video; also return how many copies were cut short."""
    with tempfile.TemporaryDirectory(prefix="dfscan-") as folder:
        copies = write_copies(
            [source.path for source in sources],
            condition,
            Path(folder),
            num_workers=engine.num_workers,
            limits=engine.limits,
        )
        results = scan_labelled(sources, engine, copies=copies.paths, listener=listener)
    for source in sources:
        if reason := copies.failures.get(source.path):
            results.append(LabelledResult(source, Verdict("error", reason=reason)))
            if listener:
                listener.video_done(failed(source.path, reason))
    return results, copies.num_cut_short


def count_verdicts(results: Iterable[LabelledResult]) -> dict[str, dict[str, int]]:
    """Count videos by true label and verdict, zeros included."""
    counts = Counter((video.source.label, video.verdict.label) for video in results)
    return {label: {verdict: counts[label, verdict] for verdict in VERDICT_LABELS} for label in TRUE_LABELS}


# Metrics


@dataclass(frozen=True, slots=True)
class _Metrics:
    """Computes the metrics of sets of scanned videos with fixed parameters."""

    fake_threshold: float | None
    num_resamples: int
    seed: int

    def parts(self, results: Sequence[LabelledResult]) -> list[SubsetMetrics]:
        """Measure all videos, each kind of fake against all reals, and the proportions of verdicts."""
        reals = [video for video in results if video.source.label == "real"]
        parts = self.overall(results)
        for kind in sorted({video.source.kind for video in results if video.source.label == "fake"} - {""}):
            fakes = [video for video in results if video.source.label == "fake" and video.source.kind == kind]
            parts += [self._part(level, f"kind: {kind}", [*reals, *fakes]) for level in LEVELS]
        return parts + [self._verdict_proportions(label, results) for label in TRUE_LABELS]

    def overall(self, results: Sequence[LabelledResult]) -> list[SubsetMetrics]:
        """Measure all videos at both levels."""
        return [self._part(level, ALL, results) for level in LEVELS]

    def _part(self, level: Level, subset: str, results: Sequence[LabelledResult]) -> SubsetMetrics:
        """Measure the videos that have scores at this level; without any score there are no metrics."""
        results = [video for video in results if video.scores(level)]
        rows = [(score, video.source) for video in results for score in video.scores(level)]
        metrics: dict[str, Estimate] = {}
        if rows:
            metrics = measure(
                [score for score, _ in rows],
                [source.label == "fake" for _, source in rows],
                [source.group for _, source in rows],
                fake_threshold=self.fake_threshold,
                num_resamples=self.num_resamples,
                seed=self.seed,
            )
        comparisons: dict[str, Comparison] = {}
        if level == "video":
            if with_origin := [video for video in results if video.source.domain]:
                origins = [video.source.domain for video in with_origin]
                comparisons["within_source_auc"] = self._compared(within_source_auc, with_origin, origins)
            takes = [video.source.take or video.source.group for video in results]
            pairs = self._compared(paired_accuracy, results, takes)
            if pairs.num_compared:
                comparisons["paired_accuracy"] = pairs
        num_groups = len({video.source.group for video in results})
        return SubsetMetrics(level, subset, len(results), num_groups, metrics, comparisons)

    def _compared(
        self, compare: Callable[..., Comparison], results: Sequence[LabelledResult], strata: Sequence[str]
    ) -> Comparison:
        return compare(
            [score for video in results for score in video.scores("video")],
            [video.source.label == "fake" for video in results],
            strata,
            [video.source.group for video in results],
            num_resamples=self.num_resamples,
            seed=self.seed,
        )

    def _verdict_proportions(self, label: TrueLabel, results: Sequence[LabelledResult]) -> SubsetMetrics:
        """Measure the proportion of each verdict among videos of one label, including those without a score."""
        verdicts = np.array([video.verdict.label for video in results if video.source.label == label])
        groups = [video.source.group for video in results if video.source.label == label]
        proportions = {
            f"share_{verdict}": proportion(
                verdicts == verdict, groups, num_resamples=self.num_resamples, seed=self.seed
            )
            for verdict in VERDICT_LABELS
        }
        return SubsetMetrics("video", f"label: {label}", len(groups), len(set(groups)), proportions)
