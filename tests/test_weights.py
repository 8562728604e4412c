"""The embedded checkpoint: complete, small, accurately described, and the default of a scan."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dfscan.cli import app
from dfscan.detector.checkpoint import default_checkpoint_path, read_card
from dfscan.detector.runtime import create_runtime
from dfscan.detector.verify import verify_logits
from dfscan.train.cross_validation import HELD_OUT
from dfscan.train.settings import FORMER_NAMES, TrainSettings, build_train_settings

MAX_BYTES = 40_000_000
CONFIG = Path(__file__).resolve().parents[1] / "configs" / "default-2-footage.toml"


@pytest.fixture(autouse=True)
def surroundings(session_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(session_cache))


@pytest.fixture(scope="module")
def path() -> Path:
    found = default_checkpoint_path()
    assert found is not None
    return found


def test_it_is_small_and_trained_with_the_specified_architecture(path: Path) -> None:
    card = read_card(path).card
    assert path.stat().st_size <= MAX_BYTES
    assert card.architecture == "efficientnet_b4"
    calibration = card.calibration
    assert calibration.trained
    assert calibration.fake_threshold is not None
    assert calibration.real_called_fake_rate is not None
    assert calibration.real_called_fake_rate <= 0.01
    assert calibration.num_real_videos
    assert calibration.num_real_videos >= 99


def test_its_training_settings_are_the_file_in_configs(path: Path) -> None:
    """The card was written before some settings were renamed, and stays as it is."""
    training = read_card(path).card.training
    assert training is not None
    recipe = build_train_settings({}, config_path=CONFIG)
    stored = training["settings"]
    assert {"half", "accumulate", "real_called_fake"} <= stored.keys()
    assert stored == {name: getattr(recipe, FORMER_NAMES.get(name, name)) for name in stored}
    assert set(stored) >= {"lr_head", "seed", "epochs"} & set(TrainSettings.__dataclass_fields__)
    assert training["grown_from"]
    assert training["calibrated_on"] == "held-out folds of 5 runs of the same recipe"


def test_its_model_card_has_the_numbers_of_the_file(path: Path) -> None:
    text = (path.parent / "MODEL_CARD.md").read_text()
    checkpoint = read_card(path)
    assert checkpoint.sha256 in text
    assert checkpoint.card.metrics is not None
    for level in ("video", "frame"):
        auc = checkpoint.card.metrics[HELD_OUT][level]["roc_auc"]
        assert f"{auc['value']:.3f} [{auc['low']:.3f}, {auc['high']:.3f}]" in text
    assert f"{checkpoint.card.calibration.fake_threshold:.3f}" in text


def test_it_passes_its_self_test(path: Path) -> None:
    checkpoint = read_card(path)
    verify_logits(create_runtime(checkpoint, device="cpu"), checkpoint)


def test_scan_uses_it_by_default(path: Path, clips: Path) -> None:
    result = CliRunner().invoke(app, ["scan", str(clips / "one.mp4"), "--device", "cpu", "--format", "jsonl"])
    assert result.exit_code in (0, 1), result.stderr
    row = json.loads(result.stdout)
    assert row["checkpoint"] == read_card(path).label
    assert 0 < row["score"] < 1
    assert row["num_faces"] == 10
