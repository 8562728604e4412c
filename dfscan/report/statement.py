"""The statement of a result: sentences that can be quoted, with fixed wording for each verdict and reason.

A statement says what was found, how often validation videos got the same verdict, which faces the verdict rests on, and
what was not examined. It draws no conclusion beyond that: a score is neither the probability that a video is fake, nor
does a low one show that it is genuine.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from dfscan.types import Bounded, Track, Validation, VerdictLabel, VideoResult

NO_CONCLUSION: Final[Mapping[str, str]] = {
    "between_thresholds": "the score lies between the thresholds, where genuine and manipulated videos overlap",
    "below_threshold": "the score is too low for fake, and this checkpoint calls no video real",
    "too_few_faces": "too few faces of one person were found",
    "single_frame": "this is a single picture, and the thresholds are those for videos",
    "damaged": "a part of the video is damaged",
    "max_frames": "a limit cut the examination short",
    "skipped_streams": "a video stream was not examined",
    "hdr": "the video has high dynamic range, which the detector was not trained on",
    "too_many_faces": "some of the people were not examined",
    "untrained": "the checkpoint is untrained, and its scores mean nothing",
    "uncalibrated": "the checkpoint has no thresholds",
    "low_quality": "the checkpoint's error rates do not hold at this sharpness",
    "too_few_validation_videos": "the checkpoint has too few validation videos for a threshold",
    "detectors_disagree": "one detector says fake and another one real",
    "not_confirmed": "one detector gives a verdict that no other one confirms",
}
"""Why a verdict is inconclusive, by the code of its reason."""
SEEN: Final[Mapping[str, str]] = {
    "training": "The checkpoint was trained on this file, so its score proves nothing.",
    "validation": "The checkpoint was calibrated on this file, so its score proves nothing.",
}


def statement(result: VideoResult) -> str:
    """Return the statement of a result; it depends on nothing else."""
    verdict, validation = result.verdict, result.verdict.validation
    parts = list(_common_finding(result) if result.tracks and result.detectors else _finding(result))
    if validation and validation.error_rate:
        parts.append(error_rate(verdict.label, validation, validation.error_rate))
    elif verdict.label in ("fake", "real"):
        parts.append("No measured error rate is known for this verdict.")
    if validation and (ratio := validation.likelihood_ratio):
        whose = "own" if validation.is_own_footage else "validation"
        low, high = _number(ratio.low), _number(ratio.high)
        parts.append(
            f"This verdict is {_number(ratio.value)} times as frequent among manipulated {whose} videos as among "
            f"genuine ones (likelihood ratio; 95 % interval {low} to {high}"
            + ("; the interval includes 1, so the verdict favours neither)." if ratio.low <= 1 <= ratio.high else ").")
        )
        parts.append("This ratio applies only to the kinds of manipulation in those videos.")
    return " ".join([*parts, *_limits(result)])


def _finding(result: VideoResult) -> Iterator[str]:
    verdict = result.verdict
    track = result.decided
    if verdict.label == "error":
        yield "The file could not be examined. Nothing can be said about it."
    elif track is None:
        yield f"No face was found in the {_counted(result.num_frames, 'frame')} examined."
        yield "Nothing can be said about the video."
    elif verdict.label == "fake":
        yield f"The score {verdict.score:.4f} reaches {verdict.threshold:.4f}, the threshold for fake."
        yield f"This is consistent with manipulation of {_faces(track)}."
        yield "It does not establish that the video was manipulated, or by whom."
    elif verdict.label == "real":
        yield f"The score {verdict.score:.4f} is at or below the threshold for real."
        yield f"No sign of the kinds of manipulation that the detector was trained on was found in {_faces(track)}."
        yield "This does not show that the video is genuine."
    else:
        code = verdict.reason.code if verdict.reason else ""
        yield f"No conclusion is drawn: {NO_CONCLUSION.get(code, 'see the reason')}."
        yield f"The score {verdict.score:.4f} rests on {_faces(track)}."
    if track and result.remarks and result.remarks.used_for:
        yield SEEN[result.remarks.used_for]


def _common_finding(result: VideoResult) -> Iterator[str]:
    """Yield what several detectors found together, and each of them."""
    verdict = result.verdict
    names = [each.name for each in result.detectors if each.verdict.label == verdict.label]
    if verdict.label == "fake":
        yield f"Called fake by {_listed(names)}. This is consistent with manipulation."
        yield "It does not establish manipulation, nor who made it."
    elif verdict.label == "real":
        yield f"Called real by {_listed(names)}. No sign of the kinds of manipulation in their training was found."
        yield "This does not show that the video is genuine."
    else:
        code = verdict.reason.code if verdict.reason else ""
        yield f"No conclusion is drawn: {NO_CONCLUSION.get(code, 'see the reason')}."
    for each in result.detectors:
        own, track = each.verdict, each.decided
        assert track
        limit = "" if own.threshold is None else f" (threshold for fake {own.threshold:.4f})"
        yield f"{each.name}: {own.label}, with a score of {own.score:.4f}{limit} for {_faces(track)}."
        if each.used_for:
            yield SEEN[each.used_for]


def error_rate(label: VerdictLabel, validation: Validation, rate: Bounded) -> str:
    """Return the sentence on how often validation videos of the other class got the verdict `label`."""
    kind = "genuine" if label == "fake" else "manipulated"
    whose = "of the user's own footage" if validation.is_own_footage else "of the validation set"
    unit = "groups of videos" if validation.counts_groups else "videos"
    who = f"{kind} {unit} {whose}" + (f" with a sharpness {validation.quality}" if validation.quality else "")
    interval = f"95 % interval {100 * rate.low:.2f} to {100 * rate.high:.2f} %"
    if validation.num_videos is None:
        return f"Of the {who}, {100 * rate.value:.2f} % got this verdict ({interval})."
    count = round(rate.value * validation.num_videos)
    if abs(count - rate.value * validation.num_videos) > 0.001:  # groups that count in part
        return f"Of {validation.num_videos} {who}, {100 * rate.value:.2f} % got this verdict ({interval})."
    return f"Of {validation.num_videos} {who}, {count} got this verdict ({100 * rate.value:.2f} %, {interval})."


def _limits(result: VideoResult) -> Iterator[str]:
    """Yield what was not examined; nothing was if the file could not be."""
    if result.verdict.label == "error":
        return
    info, remarks, facts = result.info, result.remarks, result.facts
    parts = []
    if remarks and remarks.damage and remarks.damage.code != "skipped_streams":
        parts.append("the rest of the video")
    if remarks and remarks.crowd:
        parts.append("some of the people")
    if info.num_skipped_streams:
        parts.append(_counted(info.num_skipped_streams, "other video stream"))
    if remarks and any(note.code == "faces_too_small" for note in remarks.notes):
        parts.append("faces that are too small")
    if info.num_frames is None or info.num_frames > result.num_frames:
        parts.append(f"the parts between the {_counted(result.num_frames, 'sampled frame')}")
    if facts and facts.num_audio_streams:
        parts.append("the sound")
    parts.append("everything except faces")
    yield f"Not examined: {', '.join(parts)}."


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _faces(track: Track) -> str:
    of = _counted(len(track.faces), "face")
    if track.start_s == track.end_s:
        return f"{of} of track {track.track_id} at {track.start_s:.1f} s"
    return f"{of} of track {track.track_id} from {track.start_s:.1f} s to {track.end_s:.1f} s"


def _counted(number: int, name: str) -> str:
    return f"{number} {name}" if number == 1 else f"{number} {name}s"


def _number(value: float) -> str:
    return f"{value:.3g}" if value < 999.5 else f"{value:.0f}"
