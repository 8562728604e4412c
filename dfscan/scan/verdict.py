"""From tracks of judged faces to one verdict. Pure functions; nothing here looks at pixels or files.

A track's score is the sigmoid of its mean logit: averaging logits over the frames of one person is what makes weak
single-frame evidence strong (Bonettini et al. 2020, "Video Face Manipulation Detection Through Ensemble of CNNs",
section IV, average the frames of a video likewise). The mean is drawn towards a neutral logit as if `prior_faces`
undecided faces had been seen too, so that a crowd of short tracks does not raise a false alarm by its number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dfscan.detector.card import Use
from dfscan.types import Label, Reason, Track, Verdict, sigmoid

UNTRAINED = Reason("untrained", "the checkpoint is untrained: its scores mean nothing")
TOO_WEAK = "this checkpoint is too weak to call a video real"


@dataclass(frozen=True, slots=True)
class Rules:
    """What the checkpoint and the user say about turning scores into labels."""

    fake_threshold: float | None
    """Score from which a video is `fake`; None: nothing is `fake`, see `no_fake`."""
    real_threshold: float | None
    """Score up to which a video is `real`; None: nothing is `real`, see `no_real`."""
    min_faces: int
    """Faces that a track needs to decide."""
    prior_faces: float
    """How many undecided faces each track is credited with."""
    neutral_logit: float
    """The logit of an undecided face."""
    no_fake: Reason = UNTRAINED
    """Why nothing is `fake`, where there is no `fake_threshold`."""
    no_real: str = TOO_WEAK
    """Why nothing is `real`, where there is no `real_threshold`."""


def track_score(track: Track, rules: Rules) -> float:
    """P(fake) of one person, in [0, 1]."""
    total = sum(face.logit for face in track.faces) + rules.prior_faces * rules.neutral_logit
    return sigmoid(total / (len(track.faces) + rules.prior_faces))


def decide(
    tracks: Sequence[Track],
    rules: Rules,
    *,
    damage: Reason | None = None,
    crowd: Reason | None = None,
    is_hdr: bool = False,
    used_for: Use | None = None,
    notes: Sequence[Reason] = (),
) -> Verdict:
    """Judge one video that could be decoded.

    Args:
        tracks: its people; each with at least one face.
        rules: thresholds and evidence rules.
        damage: why only a part of the video was seen, or None. Such a video is never `real`.
        crowd: why some people were not judged, or None. Such a video is never `real`.
        is_hdr: whether its colours are outside what the detector was made for. Such a video is never `real`.
        used_for: what the checkpoint has seen this video for, or None. The reason says so, and the label stays.
        notes: what else a reader must know of how frames and faces were looked for; they do not change the label.

    Returns:
        The verdict of the track with the highest score among those with enough faces, or of the highest of all,
        `inconclusive` then, where none has enough.
    """
    limits = [reason for reason in (damage, crowd, HDR if is_hdr else None) if reason]
    if not tracks:
        return Verdict("no_face", threshold=rules.fake_threshold, reason=joined([*limits, *notes]))
    qualified = [track for track in tracks if len(track.faces) >= rules.min_faces]
    deciding = max(qualified or tracks, key=lambda track: (track_score(track, rules), -track.track_id))
    score = track_score(deciding, rules)
    label, reason = _label(score, rules) if qualified else ("inconclusive", _too_few(tracks, rules))
    if label == "real" and limits:
        label = "inconclusive"
    reasons = [each for each in (reason, *limits, _SEEN[used_for] if used_for else None, *notes) if each]
    return Verdict(label, score, rules.fake_threshold, deciding.track_id, joined(reasons))


def joined(reasons: Sequence[Reason]) -> Reason | None:
    """All of them as one: the first gives the code, and none is lost."""
    if not reasons:
        return None
    return Reason(reasons[0].code, "; ".join([reasons[0].text, *(str(reason) for reason in reasons[1:])]))


_SEEN: dict[Use, Reason] = {
    "training": Reason("seen_in_training", "the checkpoint was trained on this file; its score proves nothing"),
    "validation": Reason("seen_in_validation", "the checkpoint was calibrated on this file; its score proves nothing"),
}
HDR = Reason("hdr", "high dynamic range; its colours are not those that the detector was trained on")


def _label(score: float, rules: Rules) -> tuple[Label, Reason | None]:
    fake_threshold, real_threshold = rules.fake_threshold, rules.real_threshold
    if fake_threshold is not None and score >= fake_threshold:
        return "fake", None
    if real_threshold is not None and score <= real_threshold:
        return "real", None
    if fake_threshold is None:
        return "inconclusive", rules.no_fake
    if real_threshold is None:
        return "inconclusive", Reason("below_threshold", f"not enough for fake; {rules.no_real}")
    if real_threshold >= fake_threshold:  # where the two cross there is no band between them: one threshold serves
        return "real", None
    return "inconclusive", Reason("between_thresholds", f"above {real_threshold:.6f}, the limit for real")


def _too_few(tracks: Sequence[Track], rules: Rules) -> Reason:
    most = max(len(track.faces) for track in tracks)
    return Reason("too_few_faces", f"at most {most} of one person where {rules.min_faces} are needed")
