"""The sentences of the statement: one wording per verdict and reason, with measured numbers, and never a claim."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

import pytest

from dfscan.detector.card import Aggregation, Calibration, CheckpointCard, validations
from dfscan.evaluation.calibrate import fit_calibration
from dfscan.evaluation.metrics import clopper_pearson, likelihood_ratio
from dfscan.report.statement import NO_CONCLUSION, statement
from dfscan.scan.ledger import from_json, to_json
from dfscan.scan.verdict import HDR, SINGLE_FRAME, UNCALIBRATED, UNTRAINED, Rules, decide
from dfscan.types import Bounded, FileFacts, Reason, Remarks, Validation, Verdict, VideoInfo, VideoResult
from tests.test_verdict import logit, track

INFO = VideoInfo(1000, "0" * 64, 640, 480, 25.0, 100, 4.0, "h264")
MEASURED = Validation(Bounded(2 / 212, 0.0011, 0.0337), 212, likelihood_ratio=Bounded(23.1, 4.24, 212.0))
FORBIDDEN = re.compile(r"authentic|deepfake|detected|proven|certain|\d %[^.]{0,20}(fake|likely|sure)|probabl", re.I)


def result(
    label: Literal["fake", "real", "inconclusive"], score: float, code: str = "", **fields: object
) -> VideoResult:
    reason = Reason(code, "a sentence") if code else None
    verdict = Verdict(label, score, 0.75, 0, reason, MEASURED if label == "fake" else None)
    tracks = (track(0, [logit(score)] * 5),)
    return replace(VideoResult("a.mp4", "ok", verdict, INFO, 32, tracks, remarks=Remarks()), **fields)  # type: ignore[arg-type]


NOBODY = VideoResult("a.mp4", "ok", Verdict("no_face"), INFO, 32, remarks=Remarks())
BROKEN = VideoResult("a.mp4", "error", Verdict("error", reason=Reason("encrypted", "it is")), VideoInfo(None))


def test_fake() -> None:
    assert statement(result("fake", 0.9)) == (
        "The score 0.9000 reaches 0.7500, the threshold for fake. "
        "This is consistent with manipulation of 5 faces of track 0 from 0.0 s to 1.0 s. "
        "It does not establish that the video was manipulated, or by whom. "
        "Of 212 genuine videos of the validation set, 2 got this verdict (0.94 %, 95 % interval 0.11 to 3.37 %). "
        "This verdict is 23.1 times as frequent among manipulated validation videos as among genuine ones (likelihood "
        "ratio; 95 % interval 4.24 to 212). This ratio applies only to the kinds of manipulation in those videos. "
        "Not examined: the parts between the 32 sampled frames, everything except faces."
    )


def test_real_is_no_proof_of_a_genuine_video() -> None:
    assert statement(result("real", 0.05)) == (
        "The score 0.0500 is at or below the threshold for real. "
        "No sign of the kinds of manipulation that the detector was trained on was found in 5 faces of track 0 from "
        "0.0 s to 1.0 s. This does not show that the video is genuine. "
        "No measured error rate is known for this verdict. "
        "Not examined: the parts between the 32 sampled frames, everything except faces."
    )


def test_without_a_conclusion() -> None:
    text = statement(result("inconclusive", 0.5, "between_thresholds"))
    assert text.startswith(
        "No conclusion is drawn: the score lies between the thresholds, where genuine and manipulated"
    )
    assert "The score 0.5000 rests on 5 faces of track 0" in text
    assert "error rate" not in text
    assert statement(NOBODY).startswith(
        "No face was found in the 32 frames examined. Nothing can be said about the video. Not"
    )
    assert statement(BROKEN) == "The file could not be examined. Nothing can be said about it."


def test_own_footage_counts_groups() -> None:
    own = replace(MEASURED, counts_groups=True, is_own_footage=True, likelihood_ratio=Bounded(1.5, 0.8, 3.0))
    plain = result("fake", 0.9)
    text = statement(replace(plain, verdict=replace(plain.verdict, validation=own)))
    assert "Of 212 genuine groups of videos of the user's own footage, 2 got this verdict" in text
    assert "1.5 times as frequent among manipulated own videos" in text
    assert "95 % interval 0.8 to 3; the interval includes 1, so the verdict favours neither)." in text


def test_what_was_not_examined() -> None:
    info = replace(INFO, num_skipped_streams=2, num_frames=32)
    remarks = Remarks(
        damage=Reason("damaged", "cut off"),
        crowd=Reason("too_many_faces", "30"),
        used_for="training",
        notes=(Reason("faces_too_small", "10 px"),),
    )
    seen = result("fake", 0.9, "damaged", info=info, facts=FileFacts(num_audio_streams=1), remarks=remarks)
    text = statement(seen)
    assert text.endswith(
        "Not examined: the rest of the video, some of the people, 2 other video streams, faces that are too small, "
        "the sound, everything except faces."
    )
    assert "The checkpoint was trained on this file, so its score proves nothing." in text
    assert "the sound" not in statement(replace(seen, facts=FileFacts(num_audio_streams=0)))


def all_results() -> Iterator[VideoResult]:
    uses: tuple[Literal["training", "validation"] | None, ...] = (None, "training", "validation")
    for use, ratio in itertools.product(uses, (None, Bounded(0.5, 0.1, 2.0), Bounded(1500.0, 3.0, 2e4))):
        remarks = Remarks(Reason("damaged", "x"), Reason("too_many_faces", "x"), used_for=use)
        for own, groups in itertools.product((False, True), repeat=2):
            validation = Validation(Bounded(0.99, 0.9, 1.0), 99, groups, own, likelihood_ratio=ratio)
            for label, code in (("fake", ""), ("real", ""), *(("inconclusive", code) for code in NO_CONCLUSION)):
                one = result(label, 0.9, code, remarks=remarks)  # type: ignore[arg-type]
                yield replace(one, verdict=replace(one.verdict, validation=validation))
    yield from (NOBODY, BROKEN)


def test_no_wording_claims_more_than_was_measured() -> None:
    texts = {statement(each) for each in all_results()}
    assert len(texts) > 100
    assert [text for text in texts if FORBIDDEN.search(text)] == []
    assert all(text.endswith(".") and "  " not in text and "None" not in text for text in texts)
    assert FORBIDDEN.search("99 % fake")
    assert FORBIDDEN.search("Deepfake detected")


@pytest.mark.parametrize("reason", [UNTRAINED, UNCALIBRATED, SINGLE_FRAME, HDR])
def test_every_reason_has_its_wording(reason: Reason) -> None:
    assert reason.code in NO_CONCLUSION


# Likelihood ratios


def test_ratio_is_limited_by_the_number_of_videos() -> None:
    value, low, high = likelihood_ratio(352, 352, 0, 152)
    assert value == high == 152
    assert low == pytest.approx(clopper_pearson(352, 352, 0.975)[0] / clopper_pearson(0, 152, 0.975)[1])
    assert likelihood_ratio(0, 20, 30, 30)[:2] == (1 / 20, 1 / 20)


def test_ratio_of_a_weak_detector_includes_one() -> None:
    """The embedded checkpoint calls 10 of 352 fakes and 0 of 152 reals fake."""
    value, low, high = likelihood_ratio(10, 352, 0, 152)
    assert value == pytest.approx(11 / 354 * 154)
    assert low < 1 < high == 152


@pytest.mark.parametrize("rates", [(0.3, 0.02), (0.5, 0.5), (0.05, 0.2)])
def test_ratio_interval_holds_the_truth(rates: tuple[float, float]) -> None:
    import numpy as np

    rng = np.random.default_rng(1)
    draws = zip(rng.binomial(100, rates[0], 300), rng.binomial(150, rates[1], 300), strict=True)
    bounds = [likelihood_ratio(int(fakes), 100, int(reals), 150)[1:] for fakes, reals in draws]
    assert np.mean([low <= rates[0] / rates[1] <= high for low, high in bounds]) >= 0.95


def test_calibration_measures_every_verdict() -> None:
    reals, fakes = [-3.0] * 95 + [0.0] * 5 + [4.0] * 1, [3.0] * 60 + [0.0] * 30 + [-3.0] * 4
    labels = [False] * len(reals) + [True] * len(fakes)
    plain = Aggregation(prior_faces=0)
    found = fit_calibration(reals + fakes, labels, aggregation=plain, num_frames=8, max_fpr=0.03, max_fnr=0.06)
    assert found.likelihood_ratios == {
        "fake": likelihood_ratio(60, 94, 1, 101),
        "inconclusive": likelihood_ratio(30, 94, 5, 101),
        "real": likelihood_ratio(4, 94, 95, 101),
    }


RATED = Calibration(
    trained=True,
    fake_threshold=0.9,
    real_threshold=0.1,
    real_called_fake_rate=0.01,
    real_called_fake_interval=(0.0, 0.05),
    num_real_videos=100,
    num_fake_videos=30,
    likelihood_ratios={"fake": (9.0, 2.0, 40.0), "inconclusive": (1.1, 0.7, 1.9)},
)


def test_verdict_has_the_numbers_of_its_checkpoint() -> None:
    measured = validations(CheckpointCard(calibration=RATED))
    rules = Rules(0.9, 0.1, 3, 0.0, 0.0, validations=measured)
    fake = decide([track(0, [5.0] * 4)], rules)
    assert fake.validation == Validation(Bounded(0.01, 0.0, 0.05), 100, likelihood_ratio=Bounded(9.0, 2.0, 40.0))
    between, real = (decide([track(0, [value] * 4)], rules).validation for value in (0.0, -5.0))
    assert between == Validation(likelihood_ratio=Bounded(1.1, 0.7, 1.9))
    assert real == Validation(None, 30)
    for remarks in (Remarks(Reason("damaged", "x")), Remarks(is_picture=True), Remarks(used_for="training")):
        assert decide([track(0, [5.0] * 4)], rules, remarks).validation is None
    assert decide([track(0, [5.0] * 4)], rules, is_hdr=True).validation is None
    assert decide([track(0, [5.0] * 2)], rules).validation is None, "too few faces"


def test_a_withheld_verdict_leaves_no_ratio_between_the_thresholds() -> None:
    few = RATED.model_copy(update={"num_fake_videos": 5})
    measured = validations(CheckpointCard(calibration=few))
    assert measured["inconclusive"].likelihood_ratio is None
    assert measured["fake"].likelihood_ratio


def test_ledger_keeps_the_numbers() -> None:
    whole = result("fake", 0.9)
    assert from_json(to_json(whole)).verdict == whole.verdict
    old = to_json(whole)
    del old["verdict"]["validation"]
    assert from_json(old).verdict == replace(whole.verdict, validation=None)
    assert "No measured error rate is known for this verdict." in statement(from_json(old))
