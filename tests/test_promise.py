"""A checkpoint gives a verdict only if enough validation videos support its promised error rate."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Literal

import pytest
from typer.testing import CliRunner, Result

from dfscan.cli import app
from dfscan.detector.card import Calibration, CheckpointCard, min_videos, withheld
from dfscan.detector.checkpoint import load_network, read_card, save_checkpoint
from dfscan.errors import ConfigError
from dfscan.train.settings import build_train_settings
from tests.test_cli import surroundings as surroundings

ONE_REAL = "calibrated on 1 real video; a false positive rate of at most 1 % needs at least 99"
THREE_FAKES = "calibrated on 3 fake videos; calling at most 5 % of fakes real needs at least 19"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def scan(checkpoint: Path, clips: Path, *more: object) -> tuple[int, dict[str, Any]]:
    """Scan one video with a face; return exit code and row."""
    common = ("--device", "cpu", "--num-frames", 4, "--format", "jsonl")
    done = run("scan", clips / "one.mp4", "--checkpoint", checkpoint, *common, *more)
    return done.exit_code, json.loads(done.stdout)


def calibrated(untrained: Path, path: Path, *, training: dict[str, Any] | None = None, **fields: Any) -> Path:
    """Write a checkpoint that calls every score fake, unless `fields` override that."""
    old = read_card(untrained)
    calibration = Calibration(**{"trained": True, "fake_threshold": 0.0, **fields})
    save_checkpoint(
        path, load_network(old), old.card.model_copy(update={"calibration": calibration, "training": training})
    )
    return path


@pytest.mark.parametrize(
    ("max_rate", "num"),
    [(0.01, 99), (0.05, 19), (0.1, 9), (0.03, 33), (0.07, 14), (1 / 3, 2), (0.5, 1), (0.001, 999), (1.0, 0)],
)
def test_minimum_number_of_videos_follows_the_conformal_bound(max_rate: float, num: int) -> None:
    assert min_videos(max_rate) == num
    assert math.floor((num + 1) * max_rate + 1e-9) >= 1
    assert num == 0 or math.floor(num * max_rate + 1e-9) == 0, "one video fewer would do"


@pytest.mark.parametrize(
    ("verdict", "fields", "why"),
    [
        ("fake", {"num_real_videos": 1}, ONE_REAL),
        ("fake", {"num_real_videos": 0}, ONE_REAL.replace("1 real video", "0 real videos")),
        ("fake", {"num_real_videos": 98}, ONE_REAL.replace("1 real video", "98 real videos")),
        ("fake", {"num_real_videos": 99, "max_real_called_fake": 0.01}, None),
        ("fake", {"num_real_videos": 19, "max_real_called_fake": 0.05}, None),
        (
            "fake",
            {"num_real_videos": 18, "max_real_called_fake": 0.05},
            "calibrated on 18 real videos; a false positive rate of at most 5 % needs at least 19",
        ),
        ("fake", {"num_real_videos": 1, "fake_threshold": None, "real_threshold": None}, None),
        ("fake", {}, None),
        ("real", {"num_fake_videos": 3}, THREE_FAKES),
        ("real", {"num_fake_videos": 19}, None),
        ("real", {"num_fake_videos": 9, "max_fake_called_real": 0.1}, None),
        ("real", {"num_fake_videos": 3, "real_threshold": None}, None),
    ],
)  # fmt: skip
def test_withheld_verdicts_and_their_reasons(
    verdict: Literal["fake", "real"], fields: dict[str, Any], why: str | None
) -> None:
    calibration = Calibration(**{"trained": True, "fake_threshold": 0.9, "real_threshold": 0.1, **fields})
    assert withheld(CheckpointCard(calibration=calibration).model_dump(), verdict) == why


def test_an_old_card_promises_the_rates_in_its_training_settings() -> None:
    calibration = Calibration(trained=True, fake_threshold=0.9, num_real_videos=40)
    assert withheld(CheckpointCard(calibration=calibration).model_dump(), "fake")
    for name in ("max_fpr", "real_called_fake"):  # the second is the former name
        training: dict[str, Any] = {"settings": {name: 0.05}}
        assert withheld(CheckpointCard(calibration=calibration, training=training).model_dump(), "fake") is None
    for settings in ([], None, {"real_called_fake": "low"}, {"real_called_fake": 0.0}, {"real_called_fake": -1.0}):
        card = CheckpointCard(calibration=calibration, training={"settings": settings}).model_dump()
        assert withheld(card, "fake") == ONE_REAL.replace("1 real video", "40 real videos")


@pytest.mark.parametrize("name", ["max_fpr", "max_fnr"])
def test_training_refuses_a_rate_that_no_number_of_videos_can_support(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        build_train_settings({name: 0.0})


def test_fake_is_withheld_from_a_scan_unless_the_user_gives_a_threshold(
    untrained: Path, clips: Path, tmp_path: Path
) -> None:
    checkpoint = calibrated(untrained, tmp_path / "c.safetensors", num_real_videos=1)
    code, row = scan(checkpoint, clips)
    assert (code, row["verdict"], row["threshold"], row["fake_face_ratio"]) == (0, "inconclusive", None, None)
    assert row["score"] > 0
    assert row["reason"] == f"too_few_validation_videos: fake is withheld: {ONE_REAL}"
    code, row = scan(checkpoint, clips, "--threshold", "0")
    assert (code, row["verdict"], row["threshold"], row["reason"]) == (1, "fake", 0.0, None)


@pytest.mark.parametrize(
    "fields", [{"num_real_videos": 99}, {"num_real_videos": 19, "max_real_called_fake": 0.05}, {}], ids=str
)
def test_with_enough_videos_a_scan_can_report_fake(
    fields: dict[str, Any], untrained: Path, clips: Path, tmp_path: Path
) -> None:
    code, row = scan(calibrated(untrained, tmp_path / "c.safetensors", **fields), clips)
    assert (code, row["verdict"], row["threshold"], row["reason"]) == (1, "fake", 0.0, None)


def test_real_needs_enough_fakes_but_no_reals(untrained: Path, clips: Path, tmp_path: Path) -> None:
    low = {"fake_threshold": 1.0, "real_threshold": 0.9999}
    few = calibrated(untrained, tmp_path / "few.safetensors", **low, num_real_videos=200, num_fake_videos=3)
    code, row = scan(few, clips)
    assert (code, row["verdict"], row["threshold"]) == (0, "inconclusive", 1.0)
    assert row["reason"] == f"below_threshold: not enough for fake; real is withheld: {THREE_FAKES}"
    enough = calibrated(untrained, tmp_path / "enough.safetensors", **low, num_real_videos=1, num_fake_videos=19)
    code, row = scan(enough, clips)
    assert (code, row["verdict"], row["threshold"], row["reason"]) == (0, "real", None, None)


def test_info_and_page_show_withheld_verdicts(untrained: Path, clips: Path, tmp_path: Path) -> None:
    fields = {"real_threshold": 0.0, "real_called_fake_rate": 0.0, "num_real_videos": 1, "num_fake_videos": 3}
    checkpoint = calibrated(untrained, tmp_path / "c.safetensors", **fields)
    shown = run("info", "--checkpoint", checkpoint).stdout
    assert f"met by 0.0% of 1 real validation videos; withheld: {ONE_REAL}\n" in shown
    assert f"real: score at most 0.000000; withheld: {THREE_FAKES}\n" in shown
    scan(checkpoint, clips, "--html", tmp_path / "page.html")
    page = " ".join((tmp_path / "page.html").read_text().split())
    assert f"<strong>Too few videos:</strong> {ONE_REAL}. A scan calls no video fake unless" in page
    assert f"<strong>Too few videos:</strong> {THREE_FAKES}. A scan calls no video real." in page
