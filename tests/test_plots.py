"""Plots of complete, partial and empty data."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from dfscan.errors import OutputError
from dfscan.evaluation.metrics import Estimate
from dfscan.evaluation.plots import plot_history, plot_robustness, plot_scores

STEPS: list[dict[str, Any]] = [
    {"event": "step", "step": i, "loss": 1 / i, "lr_head": 8e-5, "lr_backbone": 8e-6} for i in range(1, 9)
]
EPOCHS: list[dict[str, Any]] = [
    {"event": "epoch", "epoch": 1, "step": 4, "train_loss": 0.5, "val_loss": None, "val_auc": None, "val_f1": 0.4},
    {"event": "epoch", "epoch": 2, "step": 8, "train_loss": 0.3, "val_loss": 0.4, "val_auc": 0.8, "val_f1": 0.6},
]


def ink(path: Path) -> int:
    """Count the coloured pixels of a plot."""
    picture = cv2.imread(str(path))
    assert picture is not None
    assert min(picture.shape[:2]) >= 400
    return int((np.ptp(picture.astype(int), axis=2) > 40).sum())


def test_history(tmp_path: Path) -> None:
    paths = plot_history([*STEPS, *EPOCHS, {"event": "other"}], tmp_path)
    assert [path.name for path in paths] == ["losses.png", "auc.png", "learning_rate.png"]
    assert all(ink(path) > 500 for path in paths)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in paths)


@pytest.mark.parametrize("rows", [[], [{"event": "step", "step": 1, "loss": float("nan")}], [{"event": "epoch"}]])
def test_history_without_data(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    assert all(not ink(path) for path in plot_history(rows, tmp_path))


def test_scores(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    is_fake = np.arange(60) % 3 == 0
    scores = np.clip(rng.normal(0.4, 0.2, 60) + 0.3 * is_fake, 0, 1)
    paths = plot_scores(scores, is_fake, tmp_path, thresholds=(0.2, 0.8), title="sixty videos")
    assert [path.name for path in paths] == ["roc.png", "calibration.png", "histogram.png"]
    assert all(ink(path) > 500 for path in paths)


@pytest.mark.parametrize(("scores", "is_fake"), [([], []), ([0.0, 1.0], [False, False]), ([1.0], [True])])
def test_scores_of_one_class_or_none(tmp_path: Path, scores: list[float], is_fake: list[bool]) -> None:
    plot_scores(scores, is_fake, tmp_path, thresholds=(None, 0.5))
    assert (tmp_path / "roc.png").stat().st_size > 1000


def test_robustness(tmp_path: Path) -> None:
    known, unsure, unknown = Estimate(0.8, 0.7, 0.9), Estimate(0.6, None, None), Estimate(None, None, None)
    curve = {"original": {"video": known, "frame": known}, "CRF 40": {"video": unknown, "frame": unsure}, "blur": {}}
    (path,) = plot_robustness(curve, tmp_path)
    assert ink(path) > 300
    assert not ink(plot_robustness({}, tmp_path)[0])


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="Create its directory"):
        plot_robustness({}, tmp_path / "absent")


def test_pyplot_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # importing it fails now
    assert plot_scores([0.1, 0.9], [False, True], tmp_path)
