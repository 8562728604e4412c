"""Train with configs/learning-proof.toml and check that the network learns, in a quarter of an hour on two cores."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from dfscan.cli import app
from dfscan.detector.checkpoint import read_card

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "learning-proof.toml"


@pytest.mark.slow
@pytest.mark.shared
def test_training_on_portraits_detects_forgeries_of_unseen_people(shared_data: Path, tmp_path: Path) -> None:
    prepare = ["prepare", str(shared_data / "faces" / "manifest.csv"), "--out", str(tmp_path / "faces")]
    options = "--label real --path-column file --group-column person --val 0.3 --test 0 --max-crop-px 256"
    done = CliRunner().invoke(app, [*prepare, *options.split()])
    assert done.exit_code == 0, done.stderr
    train = ["train", "--config", str(CONFIG), "--data", str(tmp_path / "faces"), "--out", str(tmp_path / "proof")]
    done = CliRunner().invoke(app, train)
    assert done.exit_code == 0, done.stderr
    metrics = read_card(tmp_path / "proof" / "best.safetensors").card.metrics
    assert metrics is not None
    assert metrics["validation"]["frame"]["roc_auc"]["low"] > 0.65
