"""Measure for which sharpness of faces the thresholds of a checkpoint hold, from an evaluation with degraded copies.

The sharpness of the track that decided divides the videos and their copies into `NUM_LEVELS` levels of equal size. So a
level depends on what a scan also measures, not on how a copy was made. Copies of one video, and videos of one group,
have dependent scores. So each group counts once in a level, with the proportion of its videos that are wrong.

A threshold fails at a level if the lower bound of the 95 % interval of its error rate is above the limit of the
checkpoint. It is then set again on the groups of the level, or removed if they are too few for the limit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dfscan.arrays import BoolArray, Float64Array
from dfscan.dataset.manifest import TrueLabel
from dfscan.detector.card import CheckpointCard, QualityLevel, SeenFiles, max_rate, min_videos
from dfscan.detector.checkpoint import Checkpoint, save_calibrated
from dfscan.errors import DataError
from dfscan.evaluation.calibrate import fit_thresholds, num_allowed_on_average, verdict_zones
from dfscan.evaluation.evaluate import Evaluation, LabelledResult
from dfscan.evaluation.metrics import clopper_pearson
from dfscan.evaluation.own_footage import by_group

NUM_LEVELS = 4
MIN_VIDEOS = 8
"""Minimum number of videos, copies included, for levels to be made."""

MeasuredRate = tuple[float, tuple[float, float]]
"""A proportion and its 95 % interval."""


class Thresholds(NamedTuple):
    """Minimum score of `fake` and maximum score of `real`; None if there is none."""

    fake: float | None
    real: float | None


@dataclass(frozen=True, slots=True, eq=False)
class _Videos:
    """Scored videos of one level, or of all."""

    scores: Float64Array
    """(V,)."""
    is_fake: BoolArray
    """(V,)."""
    sharpness: Float64Array
    """(V,)."""
    groups: NDArray[np.str_]
    """(V,) names."""

    def where(self, chosen: BoolArray) -> _Videos:
        return _Videos(self.scores[chosen], self.is_fake[chosen], self.sharpness[chosen], self.groups[chosen])

    def num_groups(self, label: TrueLabel) -> int:
        return len(set(self.groups[self.is_fake == (label == "fake")]))


def write_quality(out: Path, evaluation: Evaluation) -> Checkpoint:
    """Write a copy of the evaluated checkpoint with what was measured at each level of sharpness.

    The files count as used in calibration, since thresholds may depend on them.

    Raises:
        DataError: the checkpoint has no thresholds, or too few videos were scored.
        OutputError: the copy cannot be written.
    """
    card = evaluation.checkpoint.card
    originals = evaluation.results
    results = [*originals, *(video for condition in evaluation.conditions for video in condition.results)]
    used = SeenFiles.of([], [video.sha256 for video in originals if video.sha256], is_complete=card.seen is not None)
    quality = quality_levels(results, card)
    seen = card.seen.union(used) if card.seen else used
    return save_calibrated(out, evaluation.checkpoint, card.model_copy(update={"quality": quality, "seen": seen}))


def quality_levels(results: Sequence[LabelledResult], card: CheckpointCard) -> tuple[QualityLevel, ...]:
    """Measure the thresholds of a card at each level of sharpness.

    Args:
        results: videos and degraded copies; those without a score and a sharpness are left out.
        card: card with thresholds.

    Returns:
        At most `NUM_LEVELS` levels, from low to high sharpness.

    Raises:
        DataError: the card has no thresholds, or there are fewer than `MIN_VIDEOS`.
    """
    if not card.calibration.is_set:
        raise DataError("the checkpoint has no thresholds to measure; calibrate it first with `dfscan calibrate`")
    known = [video for video in results if video.verdict.score is not None and video.sharpness is not None]
    if len(known) < MIN_VIDEOS:
        raise DataError(f"{len(known)} videos and copies have a score; levels of quality need at least {MIN_VIDEOS}")
    videos = _Videos(
        np.array([video.verdict.score for video in known], np.float64),
        np.array([video.source.label == "fake" for video in known], np.bool_),
        np.array([video.sharpness for video in known], np.float64),
        np.array([video.source.group for video in known]),
    )
    inner = np.quantile(videos.sharpness, np.arange(1, NUM_LEVELS) / NUM_LEVELS)
    edges = sorted({edge for each in inner if (edge := round(float(each), 4)) > 0})
    number = np.searchsorted(edges, videos.sharpness, side="right")
    return tuple(
        _level(videos.where(number == i), card, below)
        for i, below in enumerate([*edges, None])
        if below is None or (number == i).any()
    )


def _level(videos: _Videos, card: CheckpointCard, below: float | None) -> QualityLevel:
    calibrated = Thresholds(card.calibration.fake_threshold, card.calibration.real_threshold)
    document = card.model_dump()
    limits: dict[TrueLabel, float] = {"real": max_rate(document, "fake"), "fake": max_rate(document, "real")}
    before = {label: _rate(videos, label, calibrated) for label in limits}
    fake_threshold, real_threshold = calibrated
    if _is_broken(before["real"], limits["real"]):
        fake_threshold = _set_again(videos, card, limits, "real").fake
    if real_threshold is not None and _is_broken(before["fake"], limits["fake"]):
        real_threshold = _set_again(videos, card, limits, "fake").real
    held = Thresholds(fake_threshold, real_threshold)
    called_fake, called_real = (_rate(videos, label, held) for label in limits)
    return QualityLevel(
        below=below,
        fake_threshold=held.fake,
        real_threshold=held.real,
        num_real_groups=videos.num_groups("real"),
        num_fake_groups=videos.num_groups("fake"),
        real_called_fake_at_calibrated=before["real"] and before["real"][0],
        fake_called_real_at_calibrated=before["fake"] and before["fake"][0],
        real_called_fake_rate=called_fake and called_fake[0],
        real_called_fake_interval=called_fake and called_fake[1],
        fake_called_real_rate=called_real and called_real[0],
        fake_called_real_interval=called_real and called_real[1],
    )


def _rate(videos: _Videos, label: TrueLabel, thresholds: Thresholds) -> MeasuredRate | None:
    """Return the rate of wrong verdicts among videos of a class over groups; None without videos or threshold."""
    of_class = videos.is_fake == (label == "fake")
    if (thresholds.fake if label == "real" else thresholds.real) is None or not of_class.any():
        return None
    scores = videos.scores[of_class]
    is_wrong = verdict_zones(scores, *thresholds)["fake" if label == "real" else "real"]
    _, group = np.unique(videos.groups[of_class], return_inverse=True)
    shares = np.bincount(group, weights=is_wrong) / np.bincount(group)
    return float(shares.mean()), clopper_pearson(float(shares.sum()), len(shares))


def _is_broken(rate: MeasuredRate | None, limit: float) -> bool:
    return rate is not None and rate[1][0] > limit


def _set_again(
    videos: _Videos, card: CheckpointCard, limits: Mapping[TrueLabel, float], label: TrueLabel
) -> Thresholds:
    """Return both thresholds as fitted to the worst video of each group; both None if there are too few groups."""
    scores, is_fake = by_group(videos.scores, videos.is_fake, videos.groups.tolist())
    reals = scores[~is_fake]
    num_of_class = int((is_fake == (label == "fake")).sum())
    num_certain = int((reals >= 1).sum())
    if not len(reals) or num_of_class < min_videos(limits[label]):
        return Thresholds(None, None)
    if num_certain > num_allowed_on_average(len(reals), limits["real"]):
        return Thresholds(None, None)  # no score is above that of these reals
    fitted = fit_thresholds(
        scores,
        is_fake,
        temperature=card.calibration.temperature,
        max_fpr=limits["real"],
        max_fnr=limits["fake"],
        num_allowed=num_allowed_on_average,
    )
    return Thresholds(fitted.fake_threshold, fitted.real_threshold)
