"""Metrics of binary classification with confidence intervals from a cluster bootstrap.

Errors on faces of one video, and on videos of one person or take, are correlated. The bootstrap therefore resamples
whole groups instead of single faces (Field and Welsh 2007, "Bootstrapping clustered data", section 2).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dfscan.arrays import BoolArray, Float64Array

NUM_BINS = 15
"""Bins of the calibration error and of the reliability diagram, as in Guo et al. 2017."""
CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Estimate:
    """A measured value and its 95 % interval; fields are None if undefined for the data."""

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """A comparison of fakes with reals of the same source or take, with the sample sizes."""

    estimate: Estimate
    num_compared: int
    """Sources or takes with both classes."""
    num_left_out: int
    """Sources or takes with only one class."""
    num_fakes: int
    """Fakes in the compared sources or takes."""
    num_reals: int
    """Reals in the compared sources or takes."""
    num_groups: int
    """Groups in the compared sources or takes."""


@dataclass(frozen=True, slots=True, eq=False)
class VideoScores:
    """One entry per source video, sorted by name; all arrays are (V,)."""

    sources: NDArray[np.str_]
    logits: Float64Array
    """Mean raw logit of the video's faces."""
    is_fake: BoolArray
    groups: NDArray[np.str_]
    num_faces: NDArray[np.int64]


def by_source(logits: ArrayLike, is_fake: ArrayLike, sources: Sequence[str], groups: Sequence[str]) -> VideoScores:
    """Average the logits of each source video.

    Args:
        logits: (F,) logit of each face.
        is_fake: (F,) label of each face. A video gets the label and the group of its first face.
        sources: (F,) name of each face's video.
        groups: (F,) group of each face's video.
    """
    names, first, index, counts = np.unique(sources, return_index=True, return_inverse=True, return_counts=True)
    means = np.bincount(index, weights=np.asarray(logits, np.float64), minlength=len(names)) / counts
    return VideoScores(
        sources=names.astype(np.str_),
        logits=means,
        is_fake=np.asarray(is_fake, np.bool_)[first],
        groups=np.asarray(groups, np.str_)[first],
        num_faces=counts.astype(np.int64),
    )


def quick(logits: ArrayLike, is_fake: ArrayLike) -> dict[str, float | None]:
    """Compute accuracy and F1 at P(fake) = 0.5, and ROC AUC, for validation after each epoch.

    Args:
        logits: (F,) raw logits; none of the three metrics depends on the temperature.
        is_fake: (F,).

    Returns:
        `accuracy`, `roc_auc` (None if there is only one class or a logit is not finite) and `f1` (None if nothing is
        fake and nothing is classified as fake). All are None without faces.
    """
    values, labels = np.asarray(logits, np.float64), np.asarray(is_fake, np.bool_)
    if not len(values):
        return {"accuracy": None, "roc_auc": None, "f1": None}
    decided = _decisions(values >= 0, labels, np.ones(len(labels)))
    auc = None
    if _has_both(labels) and np.isfinite(values).all():
        from sklearn.metrics import roc_auc_score

        auc = float(roc_auc_score(labels, values))
    return {"accuracy": _known(decided["accuracy"]), "roc_auc": auc, "f1": _known(decided["f1"])}


def measure(
    scores: ArrayLike,
    is_fake: ArrayLike,
    groups: Sequence[str],
    *,
    fake_threshold: float | None,
    num_resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Compute all metrics of a set of scores, each with a 95 % percentile interval of a bootstrap over groups.

    The bootstrap draws as many groups as there are, with replacement. Draws that lack a class of the data are repeated.
    If a class has fewer than two groups, there are no intervals, since the variation between groups is unknown. With
    only a few groups the intervals are too narrow, and the interval of a perfect result has zero width.

    Args:
        scores: (N,) P(fake) in [0, 1].
        is_fake: (N,).
        groups: (N,) cluster of correlated entries: a person, or a take with the fakes made from it.
        fake_threshold: scores at or above it are classified as fake; if None, metrics that need it are None.
        num_resamples: bootstrap draws.
        seed: seed of the bootstrap; the same seed gives the same intervals.

    Returns:
        Estimates by name; every name is always present:

        * `roc_auc` and `average_precision` (scikit-learn's step-wise sum, without interpolation);
        * `eer`: false positive rate at which the linearly interpolated ROC has equal false positive and false negative
          rates;
        * `tpr_at_fpr_1`, `tpr_at_fpr_5`: maximum true positive rate of any threshold with a false positive rate of at
          most 1 % or 5 %, without interpolation;
        * `log_loss` in nats, and `brier`, the mean of (score - label)^2;
        * `ece`: sum over 15 bins of equal width of (proportion of scores in the bin) * |mean label - mean score|
          (Guo et al. 2017, equation 3, with P(fake) in place of confidence); a bin includes its lower edge;
        * `accuracy`, `precision`, `recall` and `f1` at the threshold. Precision is None if nothing is classified as
          fake.

        With only one class, all but `log_loss`, `brier`, `ece` and `accuracy` are None.

    Raises:
        ValueError: there are no scores, or some are not in [0, 1].
    """
    values, labels = np.asarray(scores, np.float64), np.asarray(is_fake, np.bool_)
    if not len(values) or not ((values >= 0) & (values <= 1)).all():
        raise ValueError("there must be at least one score, and all must be in [0, 1]")
    table = _Table(values, labels, fake_threshold)
    return _bootstrap(table.metrics, labels, groups, num_resamples=num_resamples, seed=seed)


def proportion(flags: ArrayLike, groups: Sequence[str], *, num_resamples: int = 1000, seed: int = 0) -> Estimate:
    """Compute the proportion of true flags, with an interval as in `measure`; all None without flags."""
    values = np.asarray(flags, np.float64)
    if not len(values):
        return Estimate(None, None, None)
    one_class = np.ones(len(values), np.bool_)
    estimates = _bootstrap(
        lambda weights: {"share": _mean(values, weights)}, one_class, groups, num_resamples=num_resamples, seed=seed
    )
    return estimates["share"]


def within_source_auc(
    scores: ArrayLike,
    is_fake: ArrayLike,
    sources: Sequence[str],
    groups: Sequence[str],
    *,
    num_resamples: int = 1000,
    seed: int = 0,
) -> Comparison:
    """Compute the probability that a fake scores above a real of the same source; ties count half.

    The overall ROC AUC also compares fakes and reals of different sources, so it rewards a detector that only separates
    sources. Here every fake is compared with the reals of its own source. This is the covariate-adjusted AUC of Janes
    and Pepe 2009, "Adjusting for covariate effects on classification accuracy using the covariate-adjusted ROC curve",
    with the source as the covariate.

    Each fake counts once, so the weight of a source is its number of fakes. Weighting by pairs would let one source
    with many fakes and many reals dominate the result.

    The interval comes from a bootstrap over groups, as in `measure`. Groups are drawn from all sources together, since
    a person may appear in several. Sources that lack a class in a draw are left out of that draw. The interval covers
    the choice of people or takes, but not the choice of sources: there are usually too few to resample. To resample
    sources instead, pass them as `groups`.

    Args:
        scores: (N,) scores of any monotonic scale, such as logits or P(fake).
        is_fake: (N,).
        sources: (N,) origin of each entry, such as a web page, a data set or a repository.
        groups: (N,) cluster of correlated entries, as in `measure`.
        num_resamples: bootstrap draws.
        seed: seed of the bootstrap; the same seed gives the same interval.

    Returns:
        The AUC and the sample sizes. The AUC is None if no source has both classes or a score is NaN.
    """
    return _compare(scores, is_fake, sources, groups, by_pair=False, num_resamples=num_resamples, seed=seed)


def paired_accuracy(
    scores: ArrayLike,
    is_fake: ArrayLike,
    takes: Sequence[str],
    groups: Sequence[str],
    *,
    num_resamples: int = 1000,
    seed: int = 0,
) -> Comparison:
    """Compute the proportion of (fake, real) pairs of a take in which the fake scores higher; ties count half.

    Every pair counts once. Arguments, interval and result are as in `within_source_auc`, with takes in place of
    sources. A take is one recording with the fakes made from it, or one person.
    """
    return _compare(scores, is_fake, takes, groups, by_pair=True, num_resamples=num_resamples, seed=seed)


def clopper_pearson(num_hits: float, num_trials: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Compute the exact two-sided interval of a proportion (Clopper and Pearson 1934) from beta quantiles.

    For a fractional number of hits, it is an interpolation.

    Returns:
        (low, high) in [0, 1]; (0, 1) if there are no trials.
    """
    from scipy.stats import beta

    tail, num_misses = (1 - confidence) / 2, num_trials - num_hits
    low = float(beta.ppf(tail, num_hits, num_misses + 1)) if num_hits else 0.0
    high = float(beta.ppf(1 - tail, num_hits + 1, num_misses)) if num_misses else 1.0
    return low, high


def likelihood_ratio(num_fakes: int, of_fakes: int, num_reals: int, of_reals: int) -> tuple[float, float, float]:
    """Compute how many times as frequent an outcome is among fakes as among reals, with a 95 % interval.

    The outcome is a verdict, not a score: a few hundred videos do not give the density at one score, and the ratio of
    the tails beyond a score is higher than that of the densities there. The frequencies follow Laplace's rule of
    succession, ``(k + 1) / (n + 2)``. The interval divides the bounds of two Clopper-Pearson intervals of 97.5 %, which
    hold together with at least 95 % (Bonferroni). Nothing is below ``1 / of_fakes`` or above `of_reals`, because these
    numbers of videos support no more.

    Args:
        num_fakes: number of fakes with the outcome.
        of_fakes: number of fakes, at least 1.
        num_reals: number of reals with the outcome.
        of_reals: number of reals, at least 1.

    Returns:
        (value, low, high), all greater than 0.
    """
    confidence = 1 - (1 - CONFIDENCE) / 2
    fakes_low, fakes_high = clopper_pearson(num_fakes, of_fakes, confidence)
    reals_low, reals_high = clopper_pearson(num_reals, of_reals, confidence)
    value = (num_fakes + 1) / (of_fakes + 2) / ((num_reals + 1) / (of_reals + 2))
    high = fakes_high / reals_low if reals_low else math.inf
    lowest, highest = 1 / of_fakes, float(of_reals)
    value, low, high = (min(max(bound, lowest), highest) for bound in (value, fakes_low / reals_high, high))
    return value, low, high


# The bootstrap


def _bootstrap(
    statistic: Callable[[Float64Array], dict[str, float]],
    is_fake: BoolArray,
    groups: Sequence[str],
    *,
    num_resamples: int,
    seed: int,
) -> dict[str, Estimate]:
    """Compute statistics of all data and their percentiles over draws.

    `statistic` takes the number of times that each entry was drawn.
    """
    statistics = statistic(np.ones(len(is_fake)))
    draws = [statistic(weights) for weights in _draws(is_fake, groups, num_resamples=num_resamples, seed=seed)]
    tail = (1 - CONFIDENCE) / 2 * 100
    estimates = {}
    for name, value in statistics.items():
        drawn = np.array([draw[name] for draw in draws])
        drawn = drawn[~np.isnan(drawn)]
        if not len(drawn) or np.isnan(value):
            estimates[name] = Estimate(_known(value), None, None)
        else:
            low, high = np.percentile(drawn, [tail, 100 - tail])
            estimates[name] = Estimate(value, float(low), float(high))
    return estimates


def _draws(is_fake: BoolArray, groups: Sequence[str], *, num_resamples: int, seed: int) -> Iterator[Float64Array]:
    names, index = np.unique(groups, return_inverse=True)
    classes = [is_fake == label for label in np.unique(is_fake)]
    if any(len(np.unique(index[members])) < 2 for members in classes):
        return
    generator = np.random.default_rng(seed)
    num_drawn = 0
    while num_drawn < num_resamples:
        picked = generator.integers(len(names), size=len(names))
        weights = np.bincount(picked, minlength=len(names))[index].astype(np.float64)
        if all(weights[members].any() for members in classes):
            num_drawn += 1
            yield weights


def _known(value: float) -> float | None:
    return None if np.isnan(value) else value


# Comparisons within a source or take


def _compare(
    scores: ArrayLike,
    is_fake: ArrayLike,
    strata: Sequence[str],
    groups: Sequence[str],
    *,
    by_pair: bool,
    num_resamples: int,
    seed: int,
) -> Comparison:
    values, labels = np.asarray(scores, np.float64), np.asarray(is_fake, np.bool_)
    names, index = np.unique(np.asarray(strata, np.str_), return_inverse=True)
    num_fakes = np.bincount(index[labels], minlength=len(names))
    num_reals = np.bincount(index[~labels], minlength=len(names))
    has_both = (num_fakes > 0) & (num_reals > 0)
    kept = has_both[index]
    kept_groups = np.asarray(groups, np.str_)[kept].tolist()
    estimate = Estimate(None, None, None)
    if kept.any() and not np.isnan(values).any():
        pairs = _Pairs(values[kept], labels[kept], index[kept], by_pair=by_pair)
        estimates = _bootstrap(
            lambda weights: {"share": pairs.proportion_won(weights)},
            labels[kept],
            kept_groups,
            num_resamples=num_resamples,
            seed=seed,
        )
        estimate = estimates["share"]
    return Comparison(
        estimate,
        num_compared=int(has_both.sum()),
        num_left_out=int((~has_both).sum()),
        num_fakes=int(num_fakes[has_both].sum()),
        num_reals=int(num_reals[has_both].sum()),
        num_groups=len(set(kept_groups)),
    )


class _Pairs:
    """All pairs of a fake and a real of the same stratum.

    Pairs are stored as ranks, so memory and time depend on the number of entries, not of pairs.
    """

    def __init__(self, scores: Float64Array, is_fake: BoolArray, strata: NDArray[np.int64], *, by_pair: bool) -> None:
        self._by_pair = by_pair
        self._fakes, reals = np.flatnonzero(is_fake), np.flatnonzero(~is_fake)
        self._reals = reals[np.lexsort((scores[reals], strata[reals]))]  # by stratum, then by score
        real_strata, fake_strata = strata[self._reals], strata[self._fakes]
        self._start = np.searchsorted(real_strata, fake_strata, side="left")
        self._stop = np.searchsorted(real_strata, fake_strata, side="right")
        # For each fake, reals [start, below) score lower, [below, above) equal, [above, stop) higher.
        self._below, self._above = self._start.copy(), self._start.copy()
        for stratum in np.unique(fake_strata):
            members = np.flatnonzero(fake_strata == stratum)
            start, stop = self._start[members[0]], self._stop[members[0]]
            sorted_scores, wanted = scores[self._reals[start:stop]], scores[self._fakes[members]]
            self._below[members] += np.searchsorted(sorted_scores, wanted, side="left")
            self._above[members] += np.searchsorted(sorted_scores, wanted, side="right")

    def proportion_won(self, weights: Float64Array) -> float:
        """Return the weighted proportion of pairs in which the fake scores higher; NaN if the draw has no pairs."""
        cumulative = np.concatenate([[0.0], np.cumsum(weights[self._reals])])
        won = (cumulative[self._below] + cumulative[self._above]) / 2 - cumulative[self._start]
        total = cumulative[self._stop] - cumulative[self._start]
        fake_weights = weights[self._fakes]
        if self._by_pair:
            return _ratio(float(fake_weights @ won), float(fake_weights @ total))
        has_reals = total > 0
        proportions = won[has_reals] / total[has_reals]
        return _ratio(float(fake_weights[has_reals] @ proportions), float(fake_weights[has_reals].sum()))


# Metrics of weighted scores; undefined values are NaN


class _Table:
    """Scores with all intermediate values that do not depend on the weights."""

    def __init__(self, scores: Float64Array, is_fake: BoolArray, fake_threshold: float | None) -> None:
        self._scores = scores
        self._is_fake = is_fake
        self._is_called_fake = None if fake_threshold is None else scores >= fake_threshold
        tiny = np.finfo(np.float64).eps
        self._log_losses = -np.log(np.clip(np.where(is_fake, scores, 1 - scores), tiny, 1))
        self._squares = np.square(scores - is_fake)
        self._bins = np.minimum((scores * NUM_BINS).astype(np.int64), NUM_BINS - 1)
        self._order = np.argsort(-scores, kind="stable")
        self._ends = np.flatnonzero(np.append(np.diff(scores[self._order]), -1))
        """Index in `_order` of the last entry of each score."""

    def metrics(self, weights: Float64Array) -> dict[str, float]:
        """Compute all metrics by name; weights are the number of times that each entry counts."""
        gaps = np.bincount(self._bins, weights=weights * (self._is_fake - self._scores))
        decided = dict.fromkeys(("accuracy", "precision", "recall", "f1"), np.nan)
        if self._is_called_fake is not None:
            found = _decisions(self._is_called_fake, self._is_fake, weights)
            decided |= found if _has_both(self._is_fake) else {"accuracy": found["accuracy"]}
        return {
            **self._curves(weights),
            "log_loss": _mean(self._log_losses, weights),
            "brier": _mean(self._squares, weights),
            "ece": float(np.abs(gaps).sum() / weights.sum()),
            **decided,
        }

    def _curves(self, weights: Float64Array) -> dict[str, float]:
        """Compute the metrics of all thresholds. The order of the scores is computed once, for all draws."""
        names = ("roc_auc", "average_precision", "eer", "tpr_at_fpr_1", "tpr_at_fpr_5")
        if not _has_both(self._is_fake):
            return dict.fromkeys(names, np.nan)
        ordered, is_fake = weights[self._order], self._is_fake[self._order]
        hits = np.append(0, np.cumsum(ordered * is_fake)[self._ends])
        false_alarms = np.append(0, np.cumsum(ordered * ~is_fake)[self._ends])
        tpr, fpr = hits / hits[-1], false_alarms / false_alarms[-1]
        precision = hits[1:] / np.maximum(hits + false_alarms, np.finfo(np.float64).tiny)[1:]
        equal_error = np.interp(0.0, fpr + tpr - 1, fpr)
        values = (
            np.trapezoid(tpr, fpr),
            np.diff(tpr) @ precision,
            equal_error,
            tpr[fpr <= 0.01].max(),
            tpr[fpr <= 0.05].max(),
        )
        return dict(zip(names, map(float, values), strict=True))


def _decisions(is_called_fake: BoolArray, is_fake: BoolArray, weights: Float64Array) -> dict[str, float]:
    hits = float(weights[is_called_fake & is_fake].sum())
    false_alarms = float(weights[is_called_fake & ~is_fake].sum())
    misses = float(weights[~is_called_fake & is_fake].sum())
    return {
        "accuracy": 1 - (false_alarms + misses) / float(weights.sum()),
        "precision": _ratio(hits, hits + false_alarms),
        "recall": _ratio(hits, hits + misses),
        "f1": _ratio(2 * hits, 2 * hits + false_alarms + misses),
    }


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else np.nan


def _mean(values: Float64Array, weights: Float64Array) -> float:
    return float(values @ weights / weights.sum())


def _has_both(is_fake: BoolArray) -> bool:
    return bool(is_fake.any() and not is_fake.all())
