"""Reduce the tracks of a video to one verdict, with pure functions that read no pixels or files.

A track's score is the sigmoid of its mean logit. Averaging logits over the frames of one person turns weak
single-frame evidence into strong evidence (Bonettini et al. 2020, "Video Face Manipulation Detection Through Ensemble
of CNNs", section IV, also average over the frames of a video). The mean is shrunk towards a neutral logit, as if
`prior_faces` additional faces had that logit, so that a large number of short tracks does not cause false alarms.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from dfscan.detector.card import Use
from dfscan.types import (
    DetectorResult,
    Reason,
    Remarks,
    Track,
    Validation,
    Verdict,
    VerdictLabel,
    sigmoid,
)

UNTRAINED = Reason("untrained", "the checkpoint is untrained: its scores mean nothing")
UNCALIBRATED = Reason("uncalibrated", "the checkpoint has no thresholds; set them with `dfscan calibrate`")
TOO_WEAK = "this checkpoint is too weak to call a video real"
NO_REMARKS = Remarks()
AGREEMENT = (
    "A video is fake or real if at least two detectors give this verdict and none gives the other one. If only one of "
    "the detectors can give a verdict, it decides alone. If detectors give both, the video is inconclusive with the "
    "reason detectors_disagree. Score, threshold, tracks, faces and heat maps are those of the first detector."
)
"""How the verdicts of several detectors become one."""
GENUINE_ALONE = "this checkpoint was calibrated on genuine videos alone and calls no video real"


@dataclass(frozen=True, slots=True)
class QualityRules:
    """Thresholds that hold for tracks of one range of sharpness."""

    below: float | None
    """Upper limit of the sharpness, exclusive; None for the last range."""
    fake_threshold: float | None
    real_threshold: float | None
    reasons: Mapping[VerdictLabel, Reason]
    """By verdict: why the checkpoint's general threshold for it does not apply here. Only where it does not."""
    validations: Mapping[VerdictLabel, Validation]
    """What was measured for each verdict at this sharpness."""


@dataclass(frozen=True, slots=True)
class Rules:
    """Rules of the checkpoint and the user that turn scores into verdicts."""

    fake_threshold: float | None
    """Minimum score of a `fake` video; None if no video is called `fake`, see `no_fake`."""
    real_threshold: float | None
    """Maximum score of a `real` video; None if no video is called `real`, see `no_real`."""
    min_faces: int
    """Minimum number of faces of a track that decides the verdict."""
    prior_faces: float
    """Number of neutral faces added to each track."""
    neutral_logit: float
    """Logit of a neutral face."""
    no_fake: Reason = UNTRAINED
    """Reason given if there is no `fake_threshold`."""
    no_real: str = TOO_WEAK
    """Reason given if there is no `real_threshold`."""
    validations: Mapping[VerdictLabel, Validation] = field(default_factory=dict)
    """What was measured for each verdict with these thresholds."""
    levels: tuple[QualityRules, ...] = ()
    """Ranges of sharpness from low to high, if the checkpoint was measured at them."""


def track_score(track: Track, rules: Rules) -> float:
    """Return P(fake) of one track, in [0, 1]."""
    total = sum(face.logit for face in track.faces) + rules.prior_faces * rules.neutral_logit
    return sigmoid(total / (len(track.faces) + rules.prior_faces))


@dataclass(frozen=True, slots=True)
class _Judged:
    """One track with the verdict that it alone would give."""

    track: Track
    score: float
    label: VerdictLabel
    reason: Reason | None
    threshold: float | None
    validation: Validation | None

    @property
    def rank(self) -> tuple[int, float, int]:
        """Sort key: fake above inconclusive above real, then by score."""
        return _RANKS[self.label], self.score, -self.track.track_id


_RANKS: Mapping[VerdictLabel, int] = {"fake": 2, "inconclusive": 1, "real": 0}


def _judged(track: Track, rules: Rules) -> _Judged:
    score, sharpness = track_score(track, rules), track.sharpness
    label, reason = _label(score, rules.fake_threshold, rules.real_threshold, rules)
    level = None
    if sharpness is not None:
        level = next((each for each in rules.levels if each.below is None or sharpness < each.below), None)
    if level is None:
        return _Judged(track, score, label, reason, rules.fake_threshold, rules.validations.get(label))
    if label in level.reasons and _label(score, level.fake_threshold, level.real_threshold, rules)[0] != label:
        label, reason = "inconclusive", level.reasons[label]
    return _Judged(track, score, label, reason, level.fake_threshold, level.validations.get(label))


def decide(
    tracks: Sequence[Track],
    rules: Rules,
    remarks: Remarks = NO_REMARKS,
    *,
    is_hdr: bool = False,
) -> Verdict:
    """Judge one video that could be decoded.

    Args:
        tracks: tracks of the video, each with at least one face.
        rules: thresholds and evidence rules.
        remarks: what else is known of the video. With `damage` or `crowd` it is never `real`. A picture is
            `inconclusive`: the thresholds were measured on videos, where the faces of many frames are averaged, and no
            checkpoint has thresholds for single frames. The other remarks are added to the reason; the label stays.
        is_hdr: whether the video has high dynamic range, for which the detector is not trained. Such a video is never
            `real`.

    Returns:
        The verdict of the highest-scoring track with at least `min_faces` faces. If there is none, `inconclusive`
        with the highest-scoring track of all. With `Rules.levels`, each track is judged by the thresholds of its
        sharpness, and a track that is fake decides before a higher-scoring one that is not. The verdict has the
        rates of the validation videos if the video was examined as they were.
    """
    limits = [reason for reason in (remarks.damage, remarks.crowd, HDR if is_hdr else None) if reason]
    threshold = None if remarks.is_picture else rules.fake_threshold
    if not tracks:
        return Verdict("no_face", threshold=threshold, reason=joined([*limits, *remarks.notes]))
    qualified = [track for track in tracks if len(track.faces) >= rules.min_faces]
    deciding = max((_judged(track, rules) for track in qualified or tracks), key=lambda judged: judged.rank)
    label, reason, validation = deciding.label, deciding.reason, deciding.validation
    if not qualified or remarks.is_picture or limits or remarks.used_for:
        validation = None
    if not remarks.is_picture:
        threshold = deciding.threshold
    if not qualified:
        max_faces = max(len(track.faces) for track in tracks)
        text = f"at most {max_faces} of one person where {rules.min_faces} are needed"
        label, reason = "inconclusive", Reason("too_few_faces", text)
    if remarks.is_picture:
        label, reason = "inconclusive", SINGLE_FRAME
    if label == "real" and limits:
        label = "inconclusive"
    seen = _SEEN[remarks.used_for] if remarks.used_for else None
    reasons = [each for each in (reason, *limits, seen, *remarks.notes) if each]
    return Verdict(label, deciding.score, threshold, deciding.track.track_id, joined(reasons), validation)


def agreed(results: Sequence[DetectorResult], rules: Sequence[Rules]) -> Verdict:
    """Combine the verdicts of several detectors by `AGREEMENT`.

    Args:
        results: results of the detectors on one video.
        rules: rules of each detector, in the same order.

    Returns:
        The verdict of the first detector, with the label and the reason on which they agree. It has the rates of the
        validation videos only if no other detector can give a verdict.
    """
    first = results[0].verdict
    can_say: dict[VerdictLabel, list[bool]] = {
        "fake": [each.fake_threshold is not None for each in rules],
        "real": [each.real_threshold is not None for each in rules],
    }
    given = Counter(each.verdict.label for each in results)
    said = [label for label in can_say if given[label]]
    label, code = first.label, None
    if len(said) == 2:
        label, code = "inconclusive", "detectors_disagree"
    elif said and given[said[0]] >= min(2, sum(can_say[said[0]])):
        label, code = said[0], "detectors_agree"
    elif said:
        label, code = "inconclusive", "not_confirmed"
    voters = [each for each, *able in zip(results, *can_say.values(), strict=True) if any(able)]
    is_unanimous = all(each.verdict.label == label for each in (results[0], *voters))
    votes = None
    if code and not is_unanimous:
        votes = Reason(code, ", ".join(f"{each.name} says {each.verdict.label}" for each in voters))
    used = [(each.name, _SEEN[each.used_for]) for each in results[1:] if each.used_for]
    seen = [Reason(each.code, f"{name}: {each.text}") for name, each in used]
    reason = joined([each for each in (votes, first.reason, *seen) if each])
    validation = voters[0].verdict.validation if len(voters) == 1 else None
    return replace(first, label=label, reason=reason, validation=validation)


def joined(reasons: Sequence[Reason]) -> Reason | None:
    """Join reasons into one that has the code of the first and the texts of all; None if there are none."""
    if not reasons:
        return None
    return Reason(reasons[0].code, "; ".join([reasons[0].text, *(str(reason) for reason in reasons[1:])]))


_SEEN: dict[Use, Reason] = {
    "training": Reason("seen_in_training", "the checkpoint was trained on this file; its score proves nothing"),
    "validation": Reason("seen_in_validation", "the checkpoint was calibrated on this file; its score proves nothing"),
}
SINGLE_FRAME = Reason("single_frame", "a picture; the thresholds of this checkpoint are those for videos")
HDR = Reason("hdr", "high dynamic range; its colours are not those that the detector was trained on")


def _label(
    score: float, fake_threshold: float | None, real_threshold: float | None, rules: Rules
) -> tuple[VerdictLabel, Reason | None]:
    if fake_threshold is not None and score >= fake_threshold:
        return "fake", None
    if real_threshold is not None and score <= real_threshold:
        return "real", None
    if fake_threshold is None:
        return "inconclusive", rules.no_fake
    if real_threshold is None:
        return "inconclusive", Reason("below_threshold", f"not enough for fake; {rules.no_real}")
    return "inconclusive", Reason("between_thresholds", f"above {real_threshold:.6f}, the limit for real")
