"""Temperature and thresholds on data with known results."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from dfscan.cli import app
from dfscan.detector.card import Aggregation, Calibration
from dfscan.detector.checkpoint import load_network, read_card, save_checkpoint
from dfscan.errors import DataError, DfscanError, TrainingError
from dfscan.evaluation.calibrate import fit_calibration
from dfscan.scan.verdict import Rules, track_score
from dfscan.types import Face, FaceScore, Track

PLAIN = Aggregation(prior_faces=0)


def fit(reals: object, fakes: object, **options: float) -> Calibration:
    reals, fakes = np.asarray(reals, np.float64), np.asarray(fakes, np.float64)
    is_fake = np.arange(len(reals) + len(fakes)) >= len(reals)
    return fit_calibration(np.concatenate([reals, fakes]), is_fake, aggregation=PLAIN, num_frames=32, **options)


def score(logit: float, calibration: Calibration) -> float:
    return 1 / (1 + math.exp(-logit / calibration.temperature))


def mirrored(num: int, seed: int = 1) -> np.ndarray:
    """Draw N(m, 2m) logits with m = 1: with the negatives as reals, these are calibrated log-odds."""
    return np.random.default_rng(seed).normal(1, math.sqrt(2), num)


@pytest.mark.parametrize("factor", [0.5, 1.0, 7.0])
def test_temperature_recovers_a_known_factor(factor: float) -> None:
    logits = mirrored(20_000) * factor
    assert fit(-logits, logits).temperature == pytest.approx(factor, rel=0.03)


def test_temperature_does_not_depend_on_the_class_balance() -> None:
    logits = mirrored(20_000)
    assert fit(-logits[:1000], logits).temperature == pytest.approx(1.0, rel=0.1)


def test_temperature_accounts_for_prior_faces() -> None:
    """With as many prior faces as real ones, logits are halved, so the temperature must be halved too."""
    logits = np.concatenate([-mirrored(5000), mirrored(5000, 2)])
    is_fake = np.arange(10_000) >= 5000
    plain = fit_calibration(logits, is_fake, aggregation=PLAIN, num_frames=8).temperature
    shrunk = fit_calibration(logits, is_fake, aggregation=Aggregation(prior_faces=8.0), num_frames=8).temperature
    assert shrunk == pytest.approx(plain / 2, rel=1e-3)


def test_thresholds_apply_to_the_scores_of_a_scan() -> None:
    """The highest real is just below the threshold according to the scan's own `track_score`."""
    aggregation = Aggregation(prior_faces=3.0, neutral_logit=0.7)
    reals, fakes = [-3.0, -2.0, -1.0, 1.0], [0.0, 1.001, 2.0, 3.0]
    is_fake = np.array([False] * 4 + [True] * 4)
    found = fit_calibration(np.array(reals + fakes), is_fake, aggregation=aggregation, num_frames=5)
    assert found.fake_threshold is not None
    rules = Rules(None, None, 3, aggregation.prior_faces, aggregation.neutral_logit)
    face = Face(0, 0.0, 0, np.zeros(4, np.float32), np.zeros((5, 2), np.float32), 1.0, np.zeros(1, np.float32))
    below, above = (
        track_score(Track(0, (FaceScore(face, logit / found.temperature),) * 5), rules) for logit in (1.0, 1.001)
    )
    assert below < found.fake_threshold < above


def test_one_percent_of_200_reals_allows_one_false_positive() -> None:
    """Only the highest real, 2.99, reaches the threshold. The second of 1 % of 201 is reserved for a new video."""
    reals = np.arange(200) / 100 + 1.0
    found = fit(reals, np.linspace(0.5, 6, 100))
    assert found.fake_threshold is not None
    assert score(2.98, found) < found.fake_threshold <= score(2.99, found)
    assert found.real_called_fake_rate == 0.005
    assert found.real_called_fake_interval == pytest.approx((0.0001, 0.0275), abs=1e-4)
    assert (found.num_real_videos, found.num_fake_videos) == (200, 100)


def test_with_few_reals_none_reaches_the_threshold() -> None:
    found = fit([-1.0, 0.5, 2.0], [1.0, 3.0, 4.0])
    assert found.fake_threshold is not None
    assert score(2.0, found) < found.fake_threshold < score(3.0, found)
    assert found.fake_threshold == pytest.approx((score(2.0, found) + score(3.0, found)) / 2)
    assert found.real_called_fake_rate == 0


def test_tied_reals_are_on_the_same_side_of_the_threshold() -> None:
    """The two highest of 100 reals score the same, so allowing one false positive would give two: neither is one."""
    found = fit([*np.linspace(-2, 0, 98), 1.0, 1.0], [2.0, 3.0] * 20)
    assert found.fake_threshold is not None
    assert found.fake_threshold > score(1.0, found)
    assert found.real_called_fake_rate == 0


def test_threshold_is_above_the_reals_even_if_no_fake_is() -> None:
    found = fit([-1.0, 0.0, 5.0], [1.0, 2.0, 5.0])
    assert found.fake_threshold is not None
    assert score(5.0, found) < found.fake_threshold <= 1


def test_requested_rates_are_kept() -> None:
    logits = mirrored(1000)
    found = fit(-logits, mirrored(1000, 2), max_fpr=0.1, max_fnr=0.2)
    assert found.real_called_fake_rate == pytest.approx(0.099)
    assert found.fake_called_real_rate == pytest.approx(0.199)
    assert found.real_threshold is not None
    assert found.fake_threshold is not None
    assert found.real_threshold < found.fake_threshold


def test_five_percent_of_fakes_may_be_called_real() -> None:
    """Four of 100 fakes may be below the real threshold; the four lowest are, with 60 of the reals."""
    fakes = [*np.linspace(-2, -1, 4), *np.linspace(0.1, 6, 96)]
    reals = [*np.linspace(-3, 0, 60), *np.linspace(0.2, 5.9, 40)]
    found = fit(reals, fakes)
    assert found.real_threshold is not None
    assert found.fake_called_real_rate == 0.04
    assert score(0.0, found) < found.real_threshold < score(0.1, found)
    assert found.fake_called_real_interval == pytest.approx((0.0110, 0.0993), abs=1e-4)


def test_crossing_thresholds_become_equal() -> None:
    found = fit(np.linspace(-6, -1, 50), np.linspace(1, 6, 50))
    assert found.real_threshold == found.fake_threshold == 0.5
    assert found.real_called_fake_rate == found.fake_called_real_rate == 0
    assert found.fake_called_real_interval is not None
    assert found.fake_called_real_interval[1] > 0.05  # fifty videos cannot show less


def test_scores_of_an_error_free_split_are_not_extreme() -> None:
    """50 videos without an error support odds of about 51 to 1, not certainty."""
    found = fit([-40.0] * 50, [40.0] * 50)
    assert score(40.0, found) == pytest.approx(51 / 52, abs=1e-3)


@pytest.mark.parametrize("num", [10, 300])
def test_a_useless_detector_calls_nothing_real(num: int) -> None:
    rng = np.random.default_rng(3)
    found = fit(rng.normal(size=num), rng.normal(size=num))
    assert found.real_threshold is None
    assert found.fake_called_real_rate is found.fake_called_real_interval is None
    assert found.fake_threshold is not None


def test_too_few_videos_give_no_real_threshold() -> None:
    """Five reals score below five fakes; still, only 48 % of reals but up to 52 % of fakes may be that low."""
    assert fit(np.linspace(-6, -1, 5), np.linspace(1, 6, 5)).real_threshold is None


@pytest.mark.parametrize(
    ("reals", "fakes", "error", "message"),
    [
        ([], [], DataError, "there are no validation videos"),
        ([1.0], [], DataError, "all 1 validation videos are real"),
        ([], [1.0, 2.0], DataError, "all 2 validation videos are fake"),
        ([0.0, float("nan")], [1.0], TrainingError, "non-finite"),
        ([1e9], [1e9], TrainingError, "diverged"),
    ],
)
def test_unusable_splits_are_rejected(
    reals: list[float], fakes: list[float], error: type[DfscanError], message: str
) -> None:
    with pytest.raises(error, match=message):
        fit(reals, fakes)


def test_cards_without_newer_fields_can_be_read() -> None:
    old = '{"trained": true, "temperature": 2.0, "fake_threshold": 0.9, "real_called_fake_rate": 0.01}'
    assert Calibration.model_validate_json(old).num_real_videos is None
    new = fit([-1.0, 0.5], [1.0, 3.0])
    assert Calibration.model_validate_json(new.model_dump_json()) == new


def test_info_shows_calibration_and_metrics(untrained: Path, tmp_path: Path) -> None:
    checkpoint = read_card(untrained)
    calibration = fit(np.arange(200) / 100 + 1.0, np.linspace(0.5, 6, 100))
    metrics = {"roc_auc": {"value": 0.91, "low": 0.85, "high": 0.95}, "eer": {"value": 0.2, "low": None, "high": None}}
    card = checkpoint.card.model_copy(
        update={
            "calibration": calibration,
            "training": {"num_crops": 1200, "limits": ["sees face swaps only", "posed\x1badults"]},
            "metrics": {"validation": {"video": metrics}},
        }
    )
    save_checkpoint(tmp_path / "c.safetensors", load_network(checkpoint), card)
    shown = [CliRunner().invoke(app, ["info", "--checkpoint", str(tmp_path / "c.safetensors"), *more]).stdout
             for more in ([], ["--json"])]  # fmt: skip
    lines = [line.strip() for line in shown[0].splitlines()]
    assert f"temperature: {calibration.temperature:.4g}" in lines
    assert (
        f"fake: score at least {calibration.fake_threshold:.6f}, met by 0.5% of 200 real validation videos "
        "(95 % interval 0.0% to 2.8%)" in lines
    )
    assert "real: never, the detector is too weak for this verdict" in lines
    assert "roc_auc: 0.91 [0.85, 0.95]" in lines
    assert {"eer: 0.2", "num_crops: 1200", "- sees face swaps only", "- posed\\x1badults"} <= set(lines)
    assert json.loads(shown[1])["checkpoint"]["calibration"] == calibration.model_dump(mode="json")


def test_info_warns_of_an_untrained_checkpoint(untrained: Path) -> None:
    shown = CliRunner().invoke(app, ["info", "--checkpoint", str(untrained)]).stdout
    assert "trained: no: its scores mean nothing, and its verdict is always inconclusive" in shown


def test_the_false_positive_rate_holds_for_new_videos() -> None:
    """Averaged over many validation sets, the rate of new real videos at the threshold is at most the requested one."""
    rng = np.random.default_rng(0)
    for num_reals in (50, 200, 1000):
        reached = []
        for _ in range(300):
            found = fit(rng.normal(size=num_reals), rng.normal(2, 1, size=200), max_fpr=0.05)
            assert found.fake_threshold is not None
            fresh = rng.normal(size=400)
            reached.append(np.mean([score(logit, found) >= found.fake_threshold for logit in fresh]))
        assert np.mean(reached) <= 0.05 + 3 * np.std(reached) / np.sqrt(len(reached))
