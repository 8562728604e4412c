"""Calibration: fit the temperature and both thresholds to the logits of validation videos."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from dfscan.arrays import BoolArray, Float64Array
from dfscan.detector.card import Aggregation, Calibration
from dfscan.errors import DataError, TrainingError
from dfscan.evaluation.metrics import clopper_pearson, likelihood_ratio

TEMPERATURES = (0.05, 100.0)
EVEN_ODDS = 0.5
Zone = Literal["fake", "inconclusive", "real"]
SINGLE_PICTURES = "Calibrated mostly on single pictures, each standing for a video."
"""Limitation that a card lists where it applies."""
MIN_REAL_ADVANTAGE = 2.0
"""Minimum ratio of the rates of reals and fakes at or below the real threshold, by their confidence bounds."""


def fit_calibration(
    logits: ArrayLike,
    is_fake: ArrayLike,
    *,
    aggregation: Aggregation,
    num_frames: int,
    max_fpr: float = 0.01,
    max_fnr: float = 0.05,
) -> Calibration:
    """Fit the temperature and both thresholds to a validation split.

    The temperature (Guo et al. 2017, section 4.2) minimises the negative log-likelihood of the scores of videos with
    `num_frames` faces. Reals and fakes have equal total weight, so a score of 0.5 means even odds whatever the mix of
    the split. Labels are smoothed as in Platt (1999, section 2.2); otherwise a split without errors would make every
    score 0 or 1.

    `fake_threshold` is the midpoint between the highest score that must stay below it and the next higher score of any
    validation video. This gives the same decisions as the lowest threshold with a rate of at most `max_fpr`,
    with a margin on both sides. It is never below even odds. `real_threshold` is set the same way from the other end,
    and is at most `fake_threshold`. It is None unless the rate of reals at or below it is at least twice that of
    fakes, comparing the lower and upper bounds of Clopper-Pearson intervals.

    Args:
        logits: (V,) mean raw logit of each validation video.
        is_fake: (V,).
        aggregation: defines the number of neutral prior faces added to each track.
        num_frames: faces of a track that lasts the whole video.
        max_fpr: maximum rate of real videos at or above `fake_threshold`.
        max_fnr: maximum rate of fake videos at or below `real_threshold`.

    Raises:
        DataError: there are no videos, or only one class.
        TrainingError: logits are not finite, or so large that scores saturate.
    """
    values, labels = np.asarray(logits, np.float64), np.asarray(is_fake, np.bool_)
    if values.shape != labels.shape or values.ndim != 1:
        raise ValueError(f"logits and labels must be 1-D and equally long, got {values.shape} and {labels.shape}")
    if not len(values):
        raise DataError("there are no validation videos to calibrate on; put some groups into the split val")
    if num_bad := int((~np.isfinite(values)).sum()):
        raise TrainingError(
            f"{num_bad} of {len(values)} validation videos have a non-finite logit: training has diverged; "
            "start again with a lower learning rate"
        )
    if labels.all() or not labels.any():
        only, other = ("fake", "real") if labels.all() else ("real", "fake")
        raise DataError(
            f"all {len(values)} validation videos are {only}, but thresholds need both classes; put {other} videos "
            "into the split val" + (", or train with --forgeries self-blended" if other == "fake" else "")
        )
    temperature = fit_temperature(lambda t: _video_logits(values, t, aggregation, num_frames), labels)
    scores = expit(_video_logits(values, temperature, aggregation, num_frames))
    return fit_thresholds(
        scores, labels, temperature=temperature, max_fpr=max_fpr, max_fnr=max_fnr, num_allowed=num_allowed_on_average
    )


def fit_thresholds(
    scores: Float64Array,
    is_fake: BoolArray,
    *,
    temperature: float,
    max_fpr: float,
    max_fnr: float,
    num_allowed: Callable[[int, float], int],
) -> Calibration:
    """Set both thresholds as `fit_calibration` does, for scores with a known temperature.

    Args:
        scores: (V,) in [0, 1].
        is_fake: (V,). Without fakes there is no `real_threshold`, and nothing is stated about fakes.
        temperature: temperature of the scores.
        max_fpr: see `fit_calibration`.
        max_fnr: see `fit_calibration`.
        num_allowed: returns how many of N videos of a class may be beyond their threshold for a maximum rate.
    """
    reals, fakes = scores[~is_fake], scores[is_fake]
    fake_threshold = _fake_threshold(scores, is_fake, num_allowed(len(reals), max_fpr))
    real_threshold = None
    if len(fakes):
        real_threshold = _real_threshold(scores, is_fake, num_allowed(len(fakes), max_fnr), fake_threshold)
    zones = verdict_zones(scores, fake_threshold, real_threshold)
    is_wrong = zones["fake"][~is_fake]
    is_missed = None if real_threshold is None else zones["real"][is_fake]
    return Calibration(
        trained=True,
        temperature=temperature,
        fake_threshold=fake_threshold,
        real_threshold=real_threshold,
        num_real_videos=len(reals),
        num_fake_videos=len(fakes),
        max_real_called_fake=max_fpr,
        max_fake_called_real=max_fnr if len(fakes) else None,
        real_called_fake_rate=float(is_wrong.mean()),
        real_called_fake_interval=_interval(is_wrong),
        fake_called_real_rate=None if is_missed is None else float(is_missed.mean()),
        fake_called_real_interval=None if is_missed is None else _interval(is_missed),
        likelihood_ratios=verdict_ratios(scores, is_fake, fake_threshold, real_threshold),
    )


def verdict_ratios(
    scores: Float64Array, is_fake: BoolArray, fake_threshold: float, real_threshold: float | None
) -> dict[Zone, tuple[float, float, float]]:
    """Compute the likelihood ratio of each verdict that occurs, as `likelihood_ratio` does; none without fakes.

    Args:
        scores: (V,) in [0, 1], of independent videos.
        is_fake: (V,).
        fake_threshold: minimum score of the verdict fake.
        real_threshold: maximum score of the verdict real, if there is one.
    """
    num_fakes, num_reals = int(is_fake.sum()), int((~is_fake).sum())
    return {
        verdict: likelihood_ratio(int(zone[is_fake].sum()), num_fakes, int(zone[~is_fake].sum()), num_reals)
        for verdict, zone in verdict_zones(scores, fake_threshold, real_threshold).items()
        if num_fakes and zone.any()
    }


def verdict_zones(
    scores: Float64Array, fake_threshold: float | None, real_threshold: float | None
) -> dict[Zone, BoolArray]:
    """Return which of the scores get each verdict; a threshold of None is never reached."""
    is_fake = np.zeros(len(scores), np.bool_) if fake_threshold is None else scores >= fake_threshold
    is_real = np.zeros(len(scores), np.bool_) if real_threshold is None else (scores <= real_threshold) & ~is_fake
    return {"fake": is_fake, "real": is_real, "inconclusive": ~is_fake & ~is_real}


def _video_logits(logits: Float64Array, temperature: float, aggregation: Aggregation, num_frames: int) -> Float64Array:
    """Return the logits behind `scan.verdict.track_score` for `num_frames` faces with these mean logits."""
    total = logits / temperature * num_frames + aggregation.prior_faces * aggregation.neutral_logit
    return total / (num_frames + aggregation.prior_faces)


def expit(logits: Float64Array) -> Float64Array:
    """Return the logistic function of each logit, without overflow."""
    power = np.exp(-np.abs(logits))
    return np.where(logits >= 0, 1.0, power) / (1.0 + power)


def fit_temperature(video_logits: Callable[[float], Float64Array], is_fake: BoolArray) -> float:
    """Return the temperature that fits the scores of labelled videos best, see `fit_calibration`.

    Args:
        video_logits: returns the logits (V,) behind the scores of the videos, given the temperature.
        is_fake: (V,), with both classes.
    """
    from scipy.optimize import minimize_scalar

    num_fake = int(is_fake.sum())
    num_real = len(is_fake) - num_fake
    targets = np.where(is_fake, (num_fake + 1) / (num_fake + 2), 1 / (num_real + 2))

    def loss(log_temperature: float) -> float:
        videos = video_logits(math.exp(log_temperature))
        losses = np.logaddexp(0.0, videos) - targets * videos
        return float(losses[is_fake].mean() + losses[~is_fake].mean()) / 2

    # The loss is convex in 1/T, so it has a single minimum in log T too.
    bounds = tuple(map(math.log, TEMPERATURES))
    return math.exp(float(minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-6}).x))


def _fake_threshold(scores: Float64Array, is_fake: BoolArray, num_allowed: int) -> float:
    reals = np.sort(scores[~is_fake])[::-1]
    below = float(reals[num_allowed]) if num_allowed < len(reals) else 0.0
    if below >= 1:
        raise TrainingError(
            "a real validation video scores 1.0 at any temperature: training has diverged; start again with a "
            "lower learning rate"
        )
    above = scores[scores > below]
    middle = (below + float(above.min())) / 2 if len(above) else 0.0
    return max(middle, math.nextafter(below, 1), EVEN_ODDS)


def _real_threshold(scores: Float64Array, is_fake: BoolArray, num_allowed: int, fake_threshold: float) -> float | None:
    fakes = np.sort(scores[is_fake])
    above = float(fakes[num_allowed]) if num_allowed < len(fakes) else 1.0
    if above <= 0:
        return None
    below = scores[scores < above]
    middle = (above + float(below.max())) / 2 if len(below) else 1.0
    threshold = min(middle, math.nextafter(above, 0), fake_threshold)
    is_low = (scores <= threshold) & (scores < fake_threshold)
    min_reals, _ = clopper_pearson(int(is_low[~is_fake].sum()), int((~is_fake).sum()))
    _, max_fakes = clopper_pearson(int(is_low[is_fake].sum()), len(fakes))
    return threshold if min_reals >= MIN_REAL_ADVANTAGE * max_fakes else None


def num_allowed_on_average(count: int, max_rate: float) -> int:
    """Return how many of `count` videos may be beyond a threshold so that the rate also holds for new videos.

    This is floor((n + 1) r) - 1: the rank of a new video among n others is uniform (Vovk et al. 2005, "Algorithmic
    Learning in a Random World", proposition 2.4), so the rate holds on average over validation sets of this size.
    """
    return max(0, math.floor((count + 1) * max_rate + 1e-9) - 1)  # 100 * 0.29 is 28.999999999999996


def _interval(is_wrong: BoolArray) -> tuple[float, float]:
    return clopper_pearson(int(is_wrong.sum()), len(is_wrong))


def video_scores(
    logits: ArrayLike, calibration: Calibration, *, aggregation: Aggregation, num_frames: int
) -> Float64Array:
    """Return the scores (V,) that a scan would give videos whose faces have these mean raw logits (V,)."""
    values = np.asarray(logits, np.float64)
    return expit(_video_logits(values, calibration.temperature, aggregation, num_frames))
