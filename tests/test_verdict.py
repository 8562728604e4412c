"""Verdicts from the logits of tracks, in tables."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import numpy as np
import pytest

from dfscan.scan.verdict import Rules, decide, track_score
from dfscan.types import Face, FaceScore, Reason, Remarks, Track

RULES = Rules(fake_threshold=0.8, real_threshold=0.3, min_faces=3, prior_faces=2.0, neutral_logit=0.0)
NO_PRIOR = dataclasses.replace(RULES, prior_faces=0.0)
UNTRAINED = dataclasses.replace(NO_PRIOR, fake_threshold=None, real_threshold=None)
WEAK = dataclasses.replace(NO_PRIOR, real_threshold=None)
CROSSED = dataclasses.replace(NO_PRIOR, fake_threshold=0.5, real_threshold=0.7)
DAMAGE = Reason("damaged", "cut off")

Group = list[tuple[float, int]]
"""Score and number of faces of each track."""


def track(track_id: int, logits: list[float]) -> Track:
    nothing = np.zeros(4, np.float32)
    faces = [Face(i, i / 4, 0, nothing, np.zeros((5, 2), np.float32), 0.99, nothing) for i in range(len(logits))]
    return Track(track_id, tuple(FaceScore(face, logit) for face, logit in zip(faces, logits, strict=True)))


def logit(score: float) -> float:
    return math.log(score / (1 - score))


def tracks(group: Group) -> list[Track]:
    return [track(i, [logit(score)] * count) for i, (score, count) in enumerate(group)]


@pytest.mark.parametrize(
    ("group", "rules", "label", "score", "deciding", "code"),
    [
        ([], NO_PRIOR, "no_face", None, None, None),
        ([(0.9, 5)], NO_PRIOR, "fake", 0.9, 0, None),
        ([(0.1, 5)], NO_PRIOR, "real", 0.1, 0, None),
        ([(0.5, 5)], NO_PRIOR, "inconclusive", 0.5, 0, "between_thresholds"),
        ([(0.1, 5), (0.9, 5)], NO_PRIOR, "fake", 0.9, 1, None),
        ([(0.1, 5), (0.9, 2)], NO_PRIOR, "real", 0.1, 0, None),  # too short to be called fake
        ([(0.9, 2)], NO_PRIOR, "inconclusive", 0.9, 0, "too_few_faces"),
        ([(0.1, 2)], NO_PRIOR, "inconclusive", 0.1, 0, "too_few_faces"),
        ([(0.1, 1), (0.2, 2)], NO_PRIOR, "inconclusive", 0.2, 1, "too_few_faces"),
        (
            [(0.6, 5), (0.6, 5), (0.2, 9)],
            NO_PRIOR,
            "inconclusive",
            0.6,
            0,
            "between_thresholds",
        ),  # a tie: the first track decides
        ([(0.99, 5)], UNTRAINED, "inconclusive", 0.99, 0, "untrained"),
        ([(0.01, 5)], UNTRAINED, "inconclusive", 0.01, 0, "untrained"),
        ([(0.99, 1)], UNTRAINED, "inconclusive", 0.99, 0, "too_few_faces"),
        ([], UNTRAINED, "no_face", None, None, None),
        ([(0.01, 5)], WEAK, "inconclusive", 0.01, 0, "below_threshold"),
        ([(0.9, 5)], WEAK, "fake", 0.9, 0, None),
        ([(0.6, 5)], CROSSED, "fake", 0.6, 0, None),
        ([(0.49, 5)], CROSSED, "real", 0.49, 0, None),
    ],
)
def test_labels(
    group: Group, rules: Rules, label: str, score: float | None, deciding: int | None, code: str | None
) -> None:
    verdict = decide(tracks(group), rules)
    assert (verdict.label, verdict.track_id) == (label, deciding)
    assert verdict.score == (None if score is None else pytest.approx(score))
    assert verdict.threshold == rules.fake_threshold
    assert (verdict.reason.code if verdict.reason else None) == code


@pytest.mark.parametrize(
    ("change", "label"),
    [
        ({"fake_threshold": 0.5}, "fake"),  # at the threshold is fake
        ({"fake_threshold": math.nextafter(0.5, 1)}, "inconclusive"),
        ({"real_threshold": 0.5}, "real"),  # at the threshold is real
        ({"real_threshold": math.nextafter(0.5, 0)}, "inconclusive"),
        ({"fake_threshold": 0.5, "real_threshold": 0.5}, "fake"),
    ],
)
def test_thresholds_belong_to_their_labels(change: dict[str, float], label: str) -> None:
    rules = dataclasses.replace(NO_PRIOR, **change)  # type: ignore[arg-type]
    assert decide([track(0, [0.0] * 5)], rules).label == label


@pytest.mark.parametrize("score", [0.1, 0.5, 0.9])
@pytest.mark.parametrize(
    ("damage", "is_hdr", "code"),
    [(DAMAGE, False, "damaged"), (None, True, "hdr"), (DAMAGE, True, "damaged")],
)
def test_a_partial_or_hdr_video_may_be_fake_but_never_real(
    score: float, damage: Reason | None, is_hdr: bool, code: str
) -> None:
    verdict = decide(tracks([(score, 5)]), NO_PRIOR, Remarks(damage), is_hdr=is_hdr)
    assert verdict.label == ("fake" if score == 0.9 else "inconclusive")
    assert verdict.score == pytest.approx(score)
    assert verdict.reason is not None
    assert verdict.reason.code == ("between_thresholds" if score == 0.5 else code)


@pytest.mark.parametrize(("score", "label"), [(0.1, "real"), (0.9, "fake")])
def test_a_note_is_added_and_changes_no_label(score: float, label: str) -> None:
    note = Reason("few_frames", "short")
    verdict = decide(tracks([(score, 5)]), NO_PRIOR, Remarks(notes=(note,)))
    assert (verdict.label, verdict.reason) == (label, note)
    damaged = decide([], RULES, Remarks(DAMAGE, notes=(note,)))
    assert damaged.reason == Reason("damaged", f"{DAMAGE.text}; {note}")


CROWD = Reason("too_many_faces", "20 faces in one frame, of which 10 were not judged")


@pytest.mark.parametrize(
    ("score", "label", "code"), [(0.1, "inconclusive", "too_many_faces"), (0.9, "fake", "too_many_faces")]
)
def test_a_video_with_unscored_people_may_be_fake_but_never_real(score: float, label: str, code: str) -> None:
    verdict = decide(tracks([(score, 5)]), NO_PRIOR, Remarks(crowd=CROWD))
    assert (verdict.label, verdict.reason and verdict.reason.code) == (label, code)


def test_damage_is_reported_if_no_face_was_found() -> None:
    assert decide([], RULES, Remarks(DAMAGE)).reason == DAMAGE


@pytest.mark.parametrize(
    ("logits", "prior_faces", "neutral_logit", "expected"),
    [
        ([2.0, 4.0], 0.0, 0.0, 3.0),
        ([3.0, 3.0], 2.0, 0.0, 1.5),
        ([3.0, 3.0], 2.0, 1.0, 2.0),
        ([-3.0], 3.0, 1.0, 0.0),
        ([3.0] * 98, 2.0, 0.0, 2.94),
    ],
)
def test_track_score_is_the_mean_logit_shrunk_towards_neutral(
    logits: list[float], prior_faces: float, neutral_logit: float, expected: float
) -> None:
    rules = dataclasses.replace(RULES, prior_faces=prior_faces, neutral_logit=neutral_logit)
    assert track_score(track(0, logits), rules) == pytest.approx(1 / (1 + math.exp(-expected)))


def test_a_longer_track_of_equal_faces_has_a_more_extreme_score() -> None:
    high = [track_score(track(0, [2.0] * count), RULES) for count in (1, 3, 10, 100)]
    low = [track_score(track(0, [-2.0] * count), RULES) for count in (1, 3, 10, 100)]
    assert high == sorted(high)
    assert low == sorted(low, reverse=True)


def test_many_short_tracks_cause_no_false_positive() -> None:
    logits = np.random.default_rng(3).normal(-1.0, 2.0, (200, 3))  # all real, all noisy
    crowd = [track(i, [float(value) for value in row]) for i, row in enumerate(logits)]
    assert decide(crowd, NO_PRIOR).label == "fake", "the highest of so many is high by chance"
    assert decide(crowd, dataclasses.replace(RULES, prior_faces=8.0, neutral_logit=-1.0)).label != "fake"


def test_extreme_logits_stay_in_range() -> None:
    assert decide([track(0, [1e6] * 5)], NO_PRIOR).score == 1.0
    assert decide([track(0, [-1e6] * 5)], NO_PRIOR).score == 0.0


def test_joined_reasons_are_all_kept() -> None:

    short = decide([track(0, [5.0])], RULES, Remarks(DAMAGE), is_hdr=True)
    assert short.reason is not None
    assert short.reason.code == "too_few_faces"
    assert "; damaged: cut off; hdr: " in short.reason.text
    nobody = decide([], RULES, is_hdr=True)
    assert nobody.reason is not None
    assert nobody.reason.code == "hdr"


@pytest.mark.parametrize("logits", [[5.0] * 5, [0.0] * 5, [-5.0] * 5, [5.0]], ids=["fake", "between", "real", "few"])
@pytest.mark.parametrize("used_for", ["training", "validation"])
def test_a_seen_video_keeps_its_label_and_has_a_note(
    logits: list[float], used_for: Literal["training", "validation"]
) -> None:
    plain, seen = (decide([track(0, logits)], RULES, Remarks(used_for=use)) for use in (None, used_for))
    assert (seen.label, seen.score) == (plain.label, plain.score)
    assert f"seen_in_{used_for}: the checkpoint was " in str(seen.reason)
    assert "seen" not in str(plain.reason)


def test_without_a_fake_threshold_a_low_score_may_still_be_real() -> None:
    reason = Reason("too_few_validation_videos", "fake is withheld")
    rules = dataclasses.replace(RULES, fake_threshold=None, no_fake=reason)
    assert decide([track(0, [-9.0] * 5)], rules).label == "real"
    for logits in ([0.0] * 5, [9.0] * 5):
        found = decide([track(0, logits)], rules)
        assert (found.label, found.threshold, found.reason) == ("inconclusive", None, reason)
