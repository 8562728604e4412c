"""Sharpness and blockiness of faces, the levels of a card, and the verdicts at each level."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest

from dfscan.config import ScanSettings
from dfscan.dataset.sources import Source
from dfscan.detector.card import Calibration, CheckpointCard, QualityLevel, quality_validations
from dfscan.detector.checkpoint import Checkpoint, read_card, save_calibrated
from dfscan.errors import DataError
from dfscan.evaluation import evaluate
from dfscan.evaluation.evaluate import LabelledResult, run_evaluation
from dfscan.evaluation.metrics import clopper_pearson
from dfscan.evaluation.quality import quality_levels
from dfscan.evaluation.robustness import shrink
from dfscan.faces.quality import FaceQuality, measure_quality
from dfscan.forgery.degrade import blur, compress_jpeg
from dfscan.report.schema import bits_per_pixel
from dfscan.report.statement import statement
from dfscan.scan.pipeline import Engine
from dfscan.scan.verdict import QualityRules, Rules, decide
from dfscan.types import (
    Bounded,
    Face,
    FaceScore,
    FileFacts,
    Reason,
    Remarks,
    Track,
    Validation,
    Verdict,
    VideoInfo,
    VideoResult,
)
from tests.pictures import astronaut
from tests.test_verdict import logit

BOX = np.array([170, 60, 290, 200], np.float32)


def measured(pixels: np.ndarray, scale: float = 1.0) -> FaceQuality:
    found = measure_quality(pixels, BOX * np.float32(scale))
    assert found
    return found


def test_sharpness_falls_with_blur_size_and_compression() -> None:
    plain = measured(astronaut())
    assert 0 < plain.sharpness < 1
    blurred = [measured(blur(astronaut(), sigma_px=sigma)).sharpness for sigma in (1.0, 2.0, 4.0)]
    assert [plain.sharpness, *blurred] == sorted([plain.sharpness, *blurred], reverse=True)
    sizes = [measured(shrink(astronaut(), factor=factor), factor).sharpness for factor in (1 / 2, 1 / 4)]
    assert plain.sharpness > sizes[0] > sizes[1]
    enlarged = cv2.resize(shrink(astronaut(), factor=1 / 4), (512, 512), interpolation=cv2.INTER_CUBIC)
    assert measured(enlarged).sharpness == pytest.approx(sizes[1], rel=0.2), "enlarging adds no details"


def test_blockiness_rises_with_block_compression() -> None:
    values = [measured(compress_jpeg(astronaut(), quality=quality)).blockiness for quality in (90, 30, 10)]
    assert measured(astronaut()).blockiness == pytest.approx(1, abs=0.1)
    assert values == sorted(values)
    assert values[-1] > 1.5


def test_what_cannot_be_measured_is_missing() -> None:
    frame = astronaut()
    assert measure_quality(frame, np.array([505, 10, 600, 90], np.float32)) is None, "seven columns are in the frame"
    assert measure_quality(frame, np.array([-90, -90, -10, -10], np.float32)) is None
    flat = measure_quality(np.full((99, 99, 3), 7, np.uint8), np.array([0, 0, 99, 99], np.float32))
    assert flat == (0, 1)
    facts = FileFacts(bit_rate_bps=1_000_000)
    assert bits_per_pixel(VideoInfo(1, None, 400, 100, 25.0), facts) == 1.0
    assert bits_per_pixel(VideoInfo(1, None, 400, 100), facts) is None
    assert bits_per_pixel(VideoInfo(1, None, 400, 100, 25.0), None) is None


# Verdicts


def track(track_id: int, score: float, sharpness: float | None) -> Track:
    nothing, points = np.zeros(4, np.float32), np.zeros((5, 2), np.float32)
    faces = [Face(i, i / 4, 0, nothing, points, 0.99, nothing, sharpness=sharpness) for i in range(4)]
    return Track(track_id, tuple(FaceScore(face, logit(score)) for face in faces))


LOW_FAKE, LOW_REAL = Reason("low_quality", "fake does not hold"), Reason("low_quality", "real does not hold")
AT_LOW = Validation(Bounded(0.125, 0.01, 0.4), 8, counts_groups=True, quality="from 0.050 to 0.100")
RULES = Rules(
    fake_threshold=0.8,
    real_threshold=0.3,
    min_faces=3,
    prior_faces=0.0,
    neutral_logit=0.0,
    validations={"fake": Validation(Bounded(0.01, 0.0, 0.05), 100)},
    levels=(
        QualityRules(0.05, None, None, {"fake": LOW_FAKE, "real": LOW_REAL}, {}),
        QualityRules(0.1, 0.9, 0.3, {"fake": LOW_FAKE}, {"fake": AT_LOW}),
        QualityRules(None, 0.8, 0.3, {}, {}),
    ),
)


@pytest.mark.parametrize(
    ("score", "sharpness", "label", "threshold", "code"),
    [
        (0.95, 0.2, "fake", 0.8, None),
        (0.85, 0.2, "fake", 0.8, None),
        (0.95, 0.07, "fake", 0.9, None),
        (0.85, 0.07, "inconclusive", 0.9, "low_quality"),
        (0.5, 0.07, "inconclusive", 0.9, "between_thresholds"),
        (0.1, 0.07, "real", 0.9, None),
        (0.95, 0.01, "inconclusive", None, "low_quality"),
        (0.1, 0.01, "inconclusive", None, "low_quality"),
        (0.5, 0.01, "inconclusive", None, "between_thresholds"),
        (0.85, 0.1, "fake", 0.8, None),  # a limit belongs to the level above it
        (0.85, None, "fake", 0.8, None),  # sharpness was not measured
    ],
)
def test_thresholds_of_a_level(
    score: float, sharpness: float | None, label: str, threshold: float | None, code: str | None
) -> None:
    found = decide([track(0, score, sharpness)], RULES)
    assert (found.label, found.threshold, found.reason and found.reason.code) == (label, threshold, code)
    assert found.score == pytest.approx(score)


def test_a_sharp_fake_decides_before_a_blurred_face_with_a_higher_score() -> None:
    found = decide([track(0, 0.95, 0.01), track(1, 0.85, 0.2), track(2, 0.1, 0.2)], RULES)
    assert (found.label, found.track_id) == ("fake", 1)
    mixed = decide([track(0, 0.25, 0.2), track(1, 0.1, 0.01)], RULES)
    assert (mixed.label, mixed.track_id, mixed.reason) == ("inconclusive", 1, LOW_REAL), "not every face is real"


def test_statement_quotes_the_rate_at_this_quality() -> None:
    verdict = decide([track(0, 0.95, 0.07)], RULES)
    assert verdict.validation == AT_LOW
    result = VideoResult("a", "ok", verdict, VideoInfo(1, num_frames=4), 4, (track(0, 0.95, 0.07),), remarks=Remarks())
    assert (
        "Of 8 genuine groups of videos of the validation set with a sharpness from 0.050 to 0.100, 1 got this verdict "
        "(12.50 %, 95 % interval 1.00 to 40.00 %)." in statement(result)
    )
    low = decide([track(0, 0.95, 0.01)], RULES)
    text = statement(VideoResult("a", "ok", low, VideoInfo(1), 4, (track(0, 0.95, 0.01),), remarks=Remarks()))
    assert text.startswith("No conclusion is drawn: the checkpoint's error rates do not hold at this sharpness.")


# Levels of a card


def labelled(rows: Iterable[tuple[str, str, float, float]]) -> list[LabelledResult]:
    """Return results from label, group, score and sharpness."""
    return [
        LabelledResult(Source(f"{i}.mp4", label, group=group), Verdict("inconclusive", score), (), sharpness)  # type: ignore[arg-type]
        for i, (label, group, score, sharpness) in enumerate(rows)
    ]


CARD = CheckpointCard(calibration=Calibration(trained=True, fake_threshold=0.8, real_threshold=0.2))


def test_a_threshold_that_does_not_hold_is_withheld() -> None:
    """Blurred copies of 12 of 40 people score 0.9; blurred fakes score 0.1."""
    rows = [("real", f"r{i}", 0.5, 0.2 + i / 1000) for i in range(40)]
    rows += [("fake", f"f{i}", 0.9, 0.3 + i / 1000) for i in range(40)]
    rows += [("real", f"r{i}", 0.9 if i < 12 else 0.5, 0.1 + i / 1000) for i in range(40)]
    rows += [("fake", f"f{i}", 0.1, 0.05 + i / 10000) for i in range(40)]
    low, lower, upper, high = quality_levels(labelled(rows), CARD)
    assert (low.num_real_groups, low.num_fake_groups, low.fake_threshold, low.real_threshold) == (0, 40, 0.8, None)
    assert low.fake_called_real_at_calibrated == 1.0
    assert (lower.fake_threshold, lower.real_threshold, lower.num_real_groups) == (None, 0.2, 40)
    assert lower.real_called_fake_at_calibrated == 0.3
    assert lower.real_called_fake_rate is None
    for level, kind in ((upper, "real_called_fake"), (high, "fake_called_real")):
        assert (level.fake_threshold, level.real_threshold) == (0.8, 0.2)
        assert getattr(level, f"{kind}_rate") == 0
        assert getattr(level, f"{kind}_interval") == clopper_pearson(0, 40)
    assert high.below is None


def test_enough_groups_give_a_threshold_that_holds() -> None:
    rows = [("real", f"r{i}", 0.85 if i < 30 else 0.5, 0.1) for i in range(150)] + [("fake", "f", 0.95, 0.1)]
    (level,) = quality_levels(labelled(rows), CARD)
    assert level.real_called_fake_at_calibrated == 0.2
    assert level.fake_threshold == pytest.approx(0.9)
    assert level.real_called_fake_rate == 0


def test_few_errors_are_no_evidence_against_a_threshold() -> None:
    rows = [("real", f"r{i}", 0.9 if i == 0 else 0.5, 0.1) for i in range(20)]
    (level,) = quality_levels(labelled(rows), CARD)
    assert (level.fake_threshold, level.real_called_fake_rate) == (0.8, 0.05)
    (words,) = [words for _, words, _ in quality_validations(CARD.model_copy(update={"quality": (level,)}))]
    assert words == "of any value"


def test_copies_of_a_group_count_once() -> None:
    rows = [("real", "one", 0.9, 0.1)] * 15 + [("real", "one", 0.5, 0.1)] * 5
    rows += [("real", f"r{i}", 0.5, 0.1) for i in range(9)]
    (level,) = quality_levels(labelled(rows), CARD)
    assert level.num_real_groups == 10
    assert level.real_called_fake_rate == pytest.approx(0.075)
    assert level.fake_threshold == 0.8


def test_levels_need_thresholds_and_videos() -> None:
    videos = labelled([("real", "a", 0.5, 0.1)] * 8)
    with pytest.raises(DataError, match="no thresholds"):
        quality_levels(videos, CheckpointCard())
    with pytest.raises(DataError, match="7 videos and copies"):
        quality_levels(videos[1:], CARD)


def test_levels_are_measured_again_without_the_old_ones(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = read_card(trained)
    card = checkpoint.card.model_copy(update={"quality": (QualityLevel(),)})
    path = save_calibrated(tmp_path / "levels.safetensors", checkpoint, card).path
    used: list[tuple[QualityLevel, ...]] = []

    def load(_: object, checkpoints: Sequence[Checkpoint]) -> Engine:
        used.extend(each.card.quality for each in checkpoints)
        raise DataError("nothing is scanned here")

    monkeypatch.setattr(evaluate, "load_engine", load)
    settings = ScanSettings(checkpoint=(str(path),), device="cpu")
    for with_levels in (True, False):
        with pytest.raises(DataError, match="nothing is scanned"):
            run_evaluation([], settings, with_levels=with_levels)
    assert used == [card.quality, ()]


def test_ranges_in_words() -> None:
    levels = tuple(QualityLevel(below=below) for below in (0.05, 0.1234, None))
    words = [words for _, words, _ in quality_validations(CARD.model_copy(update={"quality": levels}))]
    assert words == ["below 0.0500", "from 0.0500 to 0.1234", "of at least 0.1234"]
