"""Calibrate a checkpoint on the user's own footage: labelled videos, or genuine ones alone.

The threshold of `fake` is a tolerance limit (Wilks 1941, "Determination of sample sizes for setting tolerance limits").
Let k of n exchangeable genuine scores be at or above a threshold that was placed directly above the (k + 1)-th highest
score. The rate of new genuine scores at or above it is then at most Beta(k + 1, n - k) distributed, whatever the
distribution of scores. The number k is the largest for which this rate is at most the requested one with a probability
of 95 % over all possible sets of n videos. Conformal prediction (Vovk et al. 2005) only bounds the rate on average over
these sets: with 99 genuine videos and a rate of 1 %, the rate is higher for 37 % of the sets.

Videos of one person or camera have dependent scores, so groups are exchangeable and videos are not. A group therefore
counts once. Its score is the highest of its genuine videos, or the lowest of its fakes. The limit then holds for the
rate of new groups in which any video is wrong, and with it for a video from a new group.

With fakes, the temperature is fitted to the same videos. It does not change the order of videos with equally many
faces, on which alone the limit depends.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from dfscan.arrays import BoolArray, Float64Array
from dfscan.config import ScanSettings
from dfscan.dataset.manifest import TrueLabel
from dfscan.dataset.sources import Source
from dfscan.detector.card import Aggregation, Calibration, CheckpointCard, SeenFiles
from dfscan.detector.checkpoint import Checkpoint, save_calibrated
from dfscan.errors import ConfigError, DataError
from dfscan.evaluation.calibrate import SINGLE_PICTURES, expit, fit_temperature, fit_thresholds, verdict_ratios
from dfscan.evaluation.metrics import CONFIDENCE, measure
from dfscan.files import AtomicFile, spare_inputs
from dfscan.scan.outputs import ledger_path, named_files
from dfscan.scan.pipeline import ScanListener
from dfscan.scan.run import run_scan
from dfscan.scan.setup import find_checkpoints, only_one
from dfscan.types import VideoResult

OWN_FOOTAGE = "own footage"
"""Name of the metrics in a card."""
GENUINE_ALONE_LIMIT = (
    "Calibrated on genuine videos alone: the proportion of fakes that it finds in such footage is unknown, and it "
    "calls no video real."
)
"""Limitation that a card lists where it applies."""

log = logging.getLogger("dfscan")


def min_groups(max_rate: float) -> int:
    """Return the minimum number of groups for an error rate of at most `max_rate` with 95 % confidence.

    All n groups are within the strictest threshold with a probability of at most ``(1 - max_rate) ** n``, if the rate
    of new groups beyond it is higher: 1 % needs 299 groups, 2 % needs 149 and 5 % needs 59.
    """
    return math.ceil(math.log(1 - CONFIDENCE) / math.log1p(-max_rate) - 1e-9)


def min_rate(num_groups: int) -> float:
    """Return the lowest error rate that this number of groups supports with 95 % confidence."""
    return 1 - (1 - CONFIDENCE) ** (1 / num_groups) if num_groups else 1.0


def num_allowed(num_groups: int, max_rate: float) -> int:
    """Return how many of the groups may be beyond a threshold, for a rate of at most `max_rate` with 95 % confidence.

    Raises:
        ValueError: there are fewer than `min_groups`.
    """
    from scipy.stats import binom

    if num_groups < min_groups(max_rate):
        raise ValueError(f"{num_groups} groups cannot support a rate of {max_rate}")
    num = int(binom.ppf(1 - CONFIDENCE, num_groups, max_rate))
    return num if binom.cdf(num, num_groups, max_rate) <= 1 - CONFIDENCE else num - 1


@dataclass(frozen=True, slots=True, eq=False)
class Footage:
    """The videos that a calibration uses: judged, each content once, and not used in training."""

    sources: list[Source]
    sha256s: list[str]
    sums: Float64Array
    """(T,) sum of the raw logits of each track that can decide a verdict, grouped by video."""
    counts: Float64Array
    """(T,) number of faces of each of these tracks."""
    starts: list[int]
    """Index of the first track of each video."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Number of other videos, by reason."""

    @property
    def is_fake(self) -> BoolArray:
        """(V,)."""
        return np.array([source.label == "fake" for source in self.sources], np.bool_)

    def video_logits(self, temperature: float, aggregation: Aggregation) -> Float64Array:
        """Return the logits (V,) behind the scores that a scan gives the videos at this temperature."""
        totals = self.sums / temperature + aggregation.prior_faces * aggregation.neutral_logit
        tracks = totals / (self.counts + aggregation.prior_faces)
        videos: Float64Array = np.maximum.reduceat(tracks, self.starts)
        return videos


def calibrate_on_footage(
    sources: Sequence[Source],
    settings: ScanSettings,
    out: Path,
    *,
    max_fpr: float = 0.01,
    max_fnr: float = 0.05,
    listener: ScanListener | None = None,
    on_discovered: Callable[[int], None] | None = None,
) -> CheckpointCard:
    """Scan footage, and write a copy of the checkpoint with thresholds from its scores.

    Results that the ledger already has for this checkpoint and these settings are used again.

    Args:
        sources: genuine videos, or genuine and fake ones, each path once.
        settings: scan settings with a ledger; the checkpoint's own values for everything that affects scores.
        out: path of the copy.
        max_fpr: maximum rate of genuine groups at or above the fake threshold.
        max_fnr: maximum rate of fake groups at or below the real threshold; not used without fakes.
        listener: receives the progress of the scan.
        on_discovered: called with the number of videos.

    Returns:
        The card of the copy.

    Raises:
        ConfigError: the checkpoint is untrained, or an output would overwrite an input.
        DataError: there are too few videos, or the checkpoint cannot separate them from fakes.
        CheckpointError: there is no usable checkpoint.
        LockedError: another run is writing the ledger.
        OutputError: the ledger or the copy cannot be written.
    """
    checkpoint = only_one(find_checkpoints(settings))
    if not checkpoint.card.calibration.trained:
        raise ConfigError(f"{checkpoint.path} is untrained: its scores mean nothing at any threshold; train it first")
    ledger = ledger_path(settings)
    if ledger and os.path.realpath(ledger) == os.path.realpath(out):
        raise ConfigError(f"--out and --ledger are the same file, {out}; name different ones")
    spare_inputs([("--out", out), *named_files(settings)], [checkpoint.path, *(source.path for source in sources)])
    limits: dict[TrueLabel, float] = {"real": max_fpr, "fake": max_fnr}
    _check_numbers(sources, limits, Counter())
    AtomicFile(out).discard()  # only to check that the copy can be written
    results = _Results(listener)
    run_scan(
        [],
        dataclasses.replace(settings, out=()),
        listed=[source.path for source in sources],
        listener=results,
        on_discovered=on_discovered,
    )
    footage = usable_footage(sources, results.by_path, checkpoint)
    _check_numbers(footage.sources, limits, footage.left_out)
    for why, count in sorted(footage.left_out.items()):
        log.warning("left out %d of %d videos %s", count, len(sources), why)
    calibration = fit(footage, checkpoint.card, max_fpr=max_fpr, max_fnr=max_fnr)
    return save_calibrated(out, checkpoint, _card(checkpoint.card, calibration, footage)).card


@dataclass
class _Results:
    """A listener that keeps the results by path."""

    listener: ScanListener | None
    by_path: dict[str, VideoResult] = field(default_factory=dict)

    def faces_scored(self, count: int) -> None:
        if self.listener:
            self.listener.faces_scored(count)

    def video_done(self, result: VideoResult) -> None:
        self.by_path[result.path] = result
        if self.listener:
            self.listener.video_done(result)


def _check_numbers(sources: Sequence[Source], limits: Mapping[TrueLabel, float], left_out: Counter[str]) -> None:
    """Refuse too few groups of a class; genuine videos are always needed."""
    kinds: dict[TrueLabel, tuple[str, str]] = {"real": ("genuine", "--max-fpr"), "fake": ("fake", "--max-fnr")}
    for label, (kind, option) in kinds.items():
        num_videos = sum(source.label == label for source in sources)
        num_groups = len({source.group for source in sources if source.label == label})
        if num_groups >= (num_needed := min_groups(limits[label])) or (label == "fake" and not num_videos):
            continue
        lowest = math.ceil(min_rate(num_groups) * 1000) / 1000
        also = "".join(f", {count} more {why}" for why, count in sorted(left_out.items()))
        raise DataError(
            f"{num_videos} {kind} videos in {num_groups} groups are too few{also}: an error rate of at most "
            f"{100 * limits[label]:g} %, with 95 % confidence, needs at least {num_needed}; add {kind} videos"
            + (f", or give {option} {lowest:g}" if lowest < 0.5 else "")
            + (", or leave out the fakes to calibrate on genuine videos alone" if label == "fake" else "")
        )


def usable_footage(sources: Sequence[Source], results: Mapping[str, VideoResult], checkpoint: Checkpoint) -> Footage:
    """Return the videos whose scores can be used, and count the others.

    Left out are videos without a track that can decide a verdict, files that the checkpoint was trained on, because
    their scores are too good, and copies of a file, which would count it twice.
    """
    card = checkpoint.card
    kept, sha256s, left_out = list[Source](), list[str](), Counter[str]()
    sums, counts, starts = list[float](), list[int](), list[int]()
    label_of: dict[str, Source] = {}
    for source in sources:
        result = results[source.path]
        tracks = [track for track in result.tracks if len(track.faces) >= card.aggregation.min_faces]
        sha256 = result.info.sha256
        if not tracks or sha256 is None:
            left_out["without enough faces" if result.verdict.label != "error" else "that cannot be judged"] += 1
            continue
        first = label_of.setdefault(sha256, source)
        if first.label != source.label:
            raise DataError(f"{source.path} is {source.label}, but a copy of {first.path}: remove the wrong one")
        if first is not source:
            left_out["that are copies"] += 1
        elif card.seen and card.seen.use_of(sha256) == "training":
            left_out["that the checkpoint was trained on"] += 1
        else:
            kept.append(source)
            sha256s.append(sha256)
            starts.append(len(sums))
            for track in tracks:
                sums.append(sum(face.logit for face in track.faces) * card.calibration.temperature)
                counts.append(len(track.faces))
    return Footage(kept, sha256s, np.array(sums), np.array(counts, np.float64), starts, left_out)


def fit(footage: Footage, card: CheckpointCard, *, max_fpr: float, max_fnr: float) -> Calibration:
    """Set the temperature, if there are fakes, and the thresholds.

    Raises:
        DataError: more genuine groups score 1.0 than may be called fake.
    """
    is_fake, temperature = footage.is_fake, card.calibration.temperature
    if is_fake.any():
        temperature = fit_temperature(lambda t: footage.video_logits(t, card.aggregation), is_fake)
    scores = expit(footage.video_logits(temperature, card.aggregation))
    group_scores, is_fake_group = by_group(scores, is_fake, [source.group for source in footage.sources])
    num_reals = int((~is_fake_group).sum())
    num_certain = int((group_scores[~is_fake_group] >= 1).sum())
    if num_certain > (num_beyond := num_allowed(num_reals, max_fpr)):
        raise DataError(
            f"{num_certain} of {num_reals} genuine groups have a score of 1.0, and at most {num_beyond} may be called "
            "fake: this checkpoint cannot tell them from fakes; use another one, or raise --max-fpr"
        )
    calibration = fit_thresholds(
        group_scores,
        is_fake_group,
        temperature=temperature,
        max_fpr=max_fpr,
        max_fnr=max_fnr,
        num_allowed=num_allowed,
    )
    assert calibration.fake_threshold is not None
    first: dict[tuple[bool, str], int] = {}
    for i, (fake, source) in enumerate(zip(is_fake.tolist(), footage.sources, strict=True)):
        first.setdefault((fake, source.group), i)
    one_each = list(first.values())
    return calibration.model_copy(
        update={
            "own_footage": True,
            # The extreme score of a group would favour neither verdict, and the videos of a group depend on each other.
            "likelihood_ratios": verdict_ratios(
                scores[one_each], is_fake[one_each], calibration.fake_threshold, calibration.real_threshold
            ),
            "num_real_videos": int((~is_fake).sum()),
            "num_fake_videos": int(is_fake.sum()),
            "num_real_groups": num_reals,
            "num_fake_groups": int(is_fake_group.sum()),
        }
    )


def by_group(scores: Float64Array, is_fake: BoolArray, groups: Sequence[str]) -> tuple[Float64Array, BoolArray]:
    """Return the score (G,) and the label (G,) of each group: its highest genuine score, and its lowest fake score.

    A group with genuine and fake videos gives one of each.
    """
    of: dict[tuple[bool, str], float] = {}
    for score, fake, group in zip(scores.tolist(), is_fake.tolist(), groups, strict=True):
        worst = min if fake else max
        of[fake, group] = worst(score, of.get((fake, group), score))
    return np.array(list(of.values())), np.array([fake for fake, _ in of], np.bool_)


def _card(card: CheckpointCard, calibration: Calibration, footage: Footage) -> CheckpointCard:
    """Return the card with the calibration. Metrics measured with the former thresholds are dropped."""
    training = dict(card.training or {})
    training["limits"] = [
        limit for limit in training.get("limits", []) if limit not in (SINGLE_PICTURES, GENUINE_ALONE_LIMIT)
    ]
    if not calibration.num_fake_videos:
        training["limits"].append(GENUINE_ALONE_LIMIT)
    training["calibrated_on"] = (
        f"{calibration.num_real_videos} genuine and {calibration.num_fake_videos} fake own videos"
    )
    metrics = None  # genuine videos alone say nothing about how well fakes are found
    if calibration.num_fake_videos:
        scores = expit(footage.video_logits(calibration.temperature, card.aggregation))
        groups = [source.group for source in footage.sources]
        measured = measure(scores, footage.is_fake, groups, fake_threshold=calibration.fake_threshold)
        metrics = {
            OWN_FOOTAGE: {
                "video": {name: asdict(estimate) for name, estimate in measured.items()},
                "num_videos": len(scores),
                "num_groups": len(set(groups)),
            }
        }
    used = SeenFiles.of([], footage.sha256s, is_complete=card.seen is not None)
    return card.model_copy(
        update={
            "calibration": calibration,
            "quality": (),
            "training": training,
            "seen": card.seen.union(used) if card.seen else used,
            "metrics": metrics,
        }
    )
