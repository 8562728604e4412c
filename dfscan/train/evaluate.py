"""How well a checkpoint judges labelled videos, measured through the path of a real scan.

At *video* level a score is that of the verdict, at *frame* level that of every face found in a video, with the video's
label: in a fake with two people the face that nobody touched counts as fake too. Scores are calibrated for even odds,
so log-loss, Brier and calibration error are at their best on a set with as many fakes as reals.

Where sources or takes are known, videos are also compared *within* them: fakes of one origin against reals of another
differ in more than the forgery, so the overall figures reward a detector that only tells origins apart.
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
from dfscan.detector.card import Use
from dfscan.detector.checkpoint import Checkpoint
from dfscan.errors import ConfigError, VideoError
from dfscan.media.source import open_source
from dfscan.scan.pipeline import Engine, Listener, failed, scan_videos
from dfscan.scan.setup import load_engine, resolve
from dfscan.train.manifest import LABELS, Label
from dfscan.train.metrics import Comparison, Estimate, measure, paired_accuracy, share, within_source_auc
from dfscan.train.robustness import CONDITIONS, Condition, write_copies
from dfscan.train.sources import Source
from dfscan.types import LABELS as VERDICTS
from dfscan.types import Verdict, VideoResult

Level = Literal["video", "frame"]
LEVELS: tuple[Level, ...] = ("video", "frame")
ALL = "all"

log = logging.getLogger("dfscan")


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """A labelled video with what was found in it."""

    source: Source
    verdict: Verdict
    face_scores: tuple[float, ...] = ()

    def scores(self, level: Level) -> tuple[float, ...]:
        """The scores that it gives at a level; none where it could not be judged."""
        if level == "frame":
            return self.face_scores
        return () if self.verdict.score is None else (self.verdict.score,)


@dataclass(frozen=True, slots=True)
class Part:
    """What was measured on some of the videos."""

    level: Level
    subset: str
    num_videos: int
    num_groups: int
    metrics: Mapping[str, Estimate]
    comparisons: Mapping[str, Comparison] = field(default_factory=dict)
    """By name, at video level: ``within_source_auc`` where origins are known, ``paired_accuracy`` where a take or a
    group has both classes."""


@dataclass(frozen=True, slots=True)
class ConditionResult:
    """What was measured on worse copies of the videos."""

    name: str
    parts: list[Part]
    verdicts: dict[str, dict[str, int]]
    num_cut_short: int


@dataclass(slots=True)
class Evaluation:
    """All that an evaluation found."""

    checkpoint: Checkpoint
    settings: ScanSettings
    judged: list[Judged]
    parts: list[Part]
    seed: int
    num_resamples: int
    overlap: dict[str, Use] | None
    """Videos that the checkpoint has seen, and for what they were used; None where it does not record that."""
    conditions: list[ConditionResult] = field(default_factory=list)

    @property
    def thresholds(self) -> tuple[float | None, float | None]:
        """Score up to which a video is `real`, and from which it is `fake`."""
        return self.checkpoint.card.calibration.real_threshold, self.settings.threshold

    def find(self, level: Level, subset: str = ALL) -> Part | None:
        """The part of that level and subset."""
        return next((part for part in self.parts if (part.level, part.subset) == (level, subset)), None)


def evaluate(
    sources: Sequence[Source],
    settings: ScanSettings,
    *,
    with_robustness: bool = False,
    allow_overlap: bool = False,
    num_resamples: int = 1000,
    seed: int = 0,
    listener: Listener | None = None,
    on_planned: Callable[[int], None] | None = None,
    on_judged: Callable[[Sequence[Judged]], None] | None = None,
) -> Evaluation:
    """Scan labelled videos with the checkpoint's own settings and measure how well it does.

    Args:
        sources: the videos, each path once.
        settings: checkpoint, device and the like.
        with_robustness: also scan worse copies, which takes the time of eight scans and more.
        allow_overlap: go on although the checkpoint was trained or calibrated on some of the videos.
        num_resamples: draws of the bootstrap behind each interval.
        seed: of the bootstrap.
        listener: told how it goes on.
        on_planned: called with the number of videos that are going to be scanned, copies included, and again when some
            of them turn out to be unreadable, of which no copies are made.
        on_judged: called when all originals have been scanned, before anything can be found wrong with them.

    Raises:
        ConfigError: not one video could be judged, or the checkpoint has seen some of them.
        CheckpointError: there is no usable checkpoint.
        OutputError: a copy cannot be written.
    """
    settings, checkpoint = resolve(settings)
    overlap = find_overlap(sources, checkpoint)
    _check_overlap(overlap, len(sources), checkpoint, is_allowed=allow_overlap)
    if on_planned:
        on_planned(len(sources) * (1 + len(CONDITIONS) * with_robustness))
    engine = load_engine(settings, checkpoint)
    judged = judge(sources, engine, listener=listener)
    if on_judged:
        on_judged(judged)
    _check(judged)
    ruler = _Ruler(settings.threshold, num_resamples, seed)
    result = Evaluation(checkpoint, settings, judged, ruler.parts(judged), seed, num_resamples, overlap)
    if with_robustness:
        lost = [each for each in judged if each.verdict.label == "error"]
        readable = [each.source for each in judged if each.verdict.label != "error"]
        if on_planned:
            on_planned(len(sources) + len(CONDITIONS) * len(readable))
        for condition in CONDITIONS:
            found, num_cut_short = _judge_copies(condition, readable, engine, listener)
            parts, verdicts = ruler.overall([*found, *lost]), count_verdicts([*found, *lost])
            result.conditions.append(ConditionResult(condition.name, parts, verdicts, num_cut_short))
    return result


def find_overlap(sources: Sequence[Source], checkpoint: Checkpoint) -> dict[str, Use] | None:
    """The videos that a checkpoint was trained or calibrated on, by path; None where it does not record that.

    A file that cannot be read is left to the scan, which says why.
    """
    seen = checkpoint.card.seen
    if seen is None:
        return None
    found: dict[str, Use] = {}
    for source in sources:
        try:
            descriptor = open_source(source.path)
        except VideoError:
            continue
        with FileIO(descriptor) as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        if use := seen.use_of(sha256):
            found[source.path] = use
    return found


def _check_overlap(
    overlap: Mapping[str, Use] | None, num_videos: int, checkpoint: Checkpoint, *, is_allowed: bool
) -> None:
    seen = checkpoint.card.seen
    if checkpoint.card.calibration.trained and not (seen and seen.is_complete):
        log.warning(
            "%s does not record all its training videos; if some of these are among them, the results are too good",
            checkpoint.label,
        )
    if not overlap:
        return
    uses = Counter(overlap.values())
    counts = ", ".join(f"{count} in {use}" for use, count in sorted(uses.items()))
    more = f" and {len(overlap) - 3} more" if len(overlap) > 3 else ""
    named = ", ".join(f"'{path}'" for path in list(overlap)[:3]) + more
    found = f"{checkpoint.label} has seen {len(overlap)} of {num_videos} videos ({counts}): {named}"
    if not is_allowed:
        raise ConfigError(
            f"{found}. Leave them out, since results on them are too good, or measure all the same with --allow-overlap"
        )
    log.warning("%s; the results are too good", found)


def judge(
    sources: Sequence[Source], engine: Engine, *, copies: Mapping[str, str] | None = None, listener: Listener | None
) -> list[Judged]:
    """Scan videos, or their copies in their stead, in the order of `sources`; one without a copy is left out."""
    taken = sources if copies is None else [each for each in sources if each.path in copies]
    places = {each.path if copies is None else copies[each.path]: each for each in taken}
    found: dict[str, Judged] = {}
    for result, _ in scan_videos(list(places), engine, listener=listener):
        source = places[result.path]
        found[source.path] = _judged(source, result)
        if listener:
            listener.video_done(replace(result, path=source.path))
    return [found[each.path] for each in taken]


def _judged(source: Source, result: VideoResult) -> Judged:
    return Judged(source, result.verdict, tuple(face.score for track in result.tracks for face in track.faces))


def _check(judged: Sequence[Judged]) -> None:
    labels = {each.source.label for each in judged if each.verdict.score is not None}
    counts = Counter(each.verdict.label for each in judged)
    if not labels:
        listed = ", ".join(f"{count} {label}" for label, count in sorted(counts.items()))
        raise ConfigError(
            f"none of {len(judged)} videos could be judged ({listed}); give videos that show faces, and see the reasons"
        )
    num_without = sum(not each.source.domain for each in judged)
    if 0 < num_without < len(judged):
        log.warning("%d of %d videos name no source: figures within sources leave them out", num_without, len(judged))
    if len(labels) == 1:
        log.warning(
            "only %s videos could be judged: what needs both classes, such as ROC AUC, is left out", labels.pop()
        )


def _judge_copies(
    condition: Condition, sources: Sequence[Source], engine: Engine, listener: Listener | None
) -> tuple[list[Judged], int]:
    """Judge a worse copy of each video; also tells how many copies are not of the whole video."""
    with tempfile.TemporaryDirectory(prefix="dfscan-") as folder:
        copies = write_copies(
            [source.path for source in sources],
            condition,
            Path(folder),
            num_workers=engine.num_workers,
            limits=engine.limits,
        )
        judged = judge(sources, engine, copies=copies.paths, listener=listener)
    for source in sources:
        if reason := copies.failures.get(source.path):
            judged.append(Judged(source, Verdict("error", reason=reason)))
            if listener:
                listener.video_done(failed(source.path, reason))
    return judged, copies.num_cut_short


def count_verdicts(judged: Iterable[Judged]) -> dict[str, dict[str, int]]:
    """Number of videos by true label and verdict, zeros included."""
    counts = Counter((each.source.label, each.verdict.label) for each in judged)
    return {label: {verdict: counts[label, verdict] for verdict in VERDICTS} for label in LABELS}


# Measuring


@dataclass(frozen=True, slots=True)
class _Ruler:
    """Measures any set of judged videos in the same way."""

    fake_threshold: float | None
    num_resamples: int
    seed: int

    def parts(self, judged: Sequence[Judged]) -> list[Part]:
        """All videos, each kind of fake against all reals, and the shares of verdicts."""
        reals = [each for each in judged if each.source.label == "real"]
        parts = self.overall(judged)
        for kind in sorted({each.source.kind for each in judged if each.source.label == "fake"} - {""}):
            fakes = [each for each in judged if each.source.label == "fake" and each.source.kind == kind]
            parts += [self._part(level, f"kind: {kind}", [*reals, *fakes]) for level in LEVELS]
        return parts + [self._shares(label, judged) for label in LABELS]

    def overall(self, judged: Sequence[Judged]) -> list[Part]:
        """All videos at both levels."""
        return [self._part(level, ALL, judged) for level in LEVELS]

    def _part(self, level: Level, subset: str, judged: Sequence[Judged]) -> Part:
        """Without any score all metrics are absent; a part tells how many videos gave one."""
        judged = [each for each in judged if each.scores(level)]
        groups = [each.source.group for each in judged]
        metrics = self._metrics(level, judged) if judged else {}
        comparisons = self._comparisons(judged) if level == "video" else {}
        return Part(level, subset, len(judged), len(set(groups)), metrics, comparisons)

    def _comparisons(self, judged: Sequence[Judged]) -> dict[str, Comparison]:
        """Videos compared within their sources and takes; a group stands in for a take that is not named."""
        found = {}
        with_origin = [each for each in judged if each.source.domain]
        if with_origin:
            origins = [each.source.domain for each in with_origin]
            found["within_source_auc"] = self._compared(within_source_auc, with_origin, origins)
        pairs = self._compared(paired_accuracy, judged, [each.source.take or each.source.group for each in judged])
        if pairs.num_compared:
            found["paired_accuracy"] = pairs
        return found

    def _compared(
        self, compare: Callable[..., Comparison], judged: Sequence[Judged], strata: Sequence[str]
    ) -> Comparison:
        return compare(
            [score for each in judged for score in each.scores("video")],
            [each.source.label == "fake" for each in judged],
            strata,
            [each.source.group for each in judged],
            num_resamples=self.num_resamples,
            seed=self.seed,
        )

    def _metrics(self, level: Level, judged: Sequence[Judged]) -> dict[str, Estimate]:
        rows = [(score, each.source) for each in judged for score in each.scores(level)]
        return measure(
            [score for score, _ in rows],
            [source.label == "fake" for _, source in rows],
            [source.group for _, source in rows],
            fake_threshold=self.fake_threshold,
            num_resamples=self.num_resamples,
            seed=self.seed,
        )

    def _shares(self, label: Label, judged: Sequence[Judged]) -> Part:
        """How often each verdict falls on videos of one label, unjudged ones included."""
        verdicts = np.array([each.verdict.label for each in judged if each.source.label == label])
        groups = [each.source.group for each in judged if each.source.label == label]
        shares = {
            f"share_{verdict}": share(verdicts == verdict, groups, num_resamples=self.num_resamples, seed=self.seed)
            for verdict in VERDICTS
        }
        return Part("video", f"label: {label}", len(groups), len(set(groups)), shares)
