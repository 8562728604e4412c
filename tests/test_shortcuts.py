"""The trivial detector fails on sound forgeries, and detects forgeries with artefacts that leak the label."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

from dfscan.cli import app
from dfscan.errors import DataError
from dfscan.forgery import forgeries
from dfscan.forgery.degrade import blur, compress_jpeg
from dfscan.train import shortcuts
from dfscan.train.settings import TrainSettings
from dfscan.train.shortcuts import FEATURES, check_made_fakes, check_true_fakes, trivial_features
from tests.datasets import face_picture, write_dataset, write_sample

NUM_FACES = 60
SMALL = {"input_size_px": 96, "resize_px": 104}
MILD = {"noise_p": 0.0, "iso_noise_p": 0.0, "blur_p": 0.0, "downscale_p": 0.0, "jpeg_p": 0.0, "codec_p": 0.0}


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faces")
    write_dataset(folder, num_train=NUM_FACES)
    return folder


def settings(data: Path, forgeries: str, **changes: object) -> TrainSettings:
    return TrainSettings(**{**SMALL, "data": data, "forgeries": forgeries, **changes})


def features(pixels: NDArray[np.uint8]) -> dict[str, float]:
    return dict(zip(FEATURES, trivial_features(pixels, face_px=100.0), strict=True))


def test_features_respond_to_the_change_they_are_named_after() -> None:
    clean = face_picture(1)
    plain = features(clean)
    blurred, blocky = features(blur(clean, sigma_px=2)), features(compress_jpeg(clean, quality=10))
    for name in ("high_frequencies", "sharpness", "jpeg_bytes"):
        assert blurred[name] < plain[name] - 0.1
    assert blocky["blockiness"] > plain["blockiness"] + 0.1
    dark = features(clean // 2)
    assert dark["brightness"] == pytest.approx(plain["brightness"] / 2, abs=0.01)
    assert dark["contrast"] == pytest.approx(plain["contrast"] / 2, abs=0.01)
    grey = features(np.repeat(clean.mean(axis=2, keepdims=True), 3, axis=2).astype(np.uint8))
    assert grey["saturation"] == 0
    assert plain["face_px"] == pytest.approx(np.log(100))


def test_features_of_a_uniform_image_are_finite() -> None:
    assert np.isfinite(trivial_features(np.zeros((32, 32, 3), np.uint8), face_px=16.0)).all()


def test_forgeries_are_not_detected_by_trivial_features(faces: Path) -> None:
    found = check_made_fakes(settings(faces, "self-blended,swapped,warped"), num_faces=NUM_FACES, num_resamples=50)
    assert [each.subset for each in found] == ["self-blended", "swapped", "warped", "all"]
    for each in found:
        assert each.roc_auc.value is not None
        assert 0.4 <= each.roc_auc.value <= 0.6, each  # wider than the command's band, which is for hundreds of faces
        assert each.num_real == each.num_fake == NUM_FACES * (3 if each.subset == "all" else 1)
        assert each.num_groups == NUM_FACES
        assert set(each.coefficients) == set(FEATURES)


@pytest.mark.parametrize(
    "leak", [lambda pixels: blur(pixels, sigma_px=1.0), lambda pixels: compress_jpeg(pixels, quality=20)]
)
def test_forgeries_with_leaking_artefacts_are_detected(
    leak: Callable[[NDArray[np.uint8]], NDArray[np.uint8]], faces: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = forgeries.warp

    def leaky(*args: object, **options: object) -> forgeries.Blend:
        made = honest(*args, **options)  # type: ignore[arg-type]
        return replace(made, fake=leak(made.fake))

    monkeypatch.setattr(forgeries, "warp", leaky)
    (found,) = check_made_fakes(settings(faces, "warped", **MILD), num_faces=NUM_FACES, num_resamples=50)
    assert found.roc_auc.low is not None
    assert found.roc_auc.low > 0.55  # outside the band of the command


def test_too_few_people_are_rejected(tmp_path: Path) -> None:
    write_dataset(tmp_path, num_train=4)
    with pytest.raises(DataError, match="4 groups, but the check needs 5"):
        check_made_fakes(settings(tmp_path, "warped"), num_faces=10)


def test_reconstructed_faces_must_exist(faces: Path, tmp_path: Path) -> None:
    wanted = settings(faces, "reconstructed", reconstructions=tmp_path)
    with pytest.raises(DataError, match="reconstructed faces are missing; create them with `dfscan preview-training"):
        check_made_fakes(wanted, num_faces=10)


def test_fakes_of_a_data_set_are_checked_overall_and_by_fold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fakes are generated like the reals, so only chance can separate them."""
    samples = [write_sample(tmp_path, i, split="train", label="fake" if i % 2 else "real") for i in range(40)]

    class WithFold:
        def __init__(self, sample: object, fold: str) -> None:
            self._sample, self.fold = sample, fold

        def __getattr__(self, name: str) -> object:
            return getattr(self._sample, name)

    folded = [WithFold(sample, "ab"[i // 20]) for i, sample in enumerate(samples)]
    monkeypatch.setattr(shortcuts, "read_manifest", lambda _: folded)
    found = check_true_fakes(settings(tmp_path, "self-blended"), num_resamples=50)
    assert [(each.subset, each.level, each.num_real, each.num_fake) for each in found] == [
        ("all", "video", 20, 20),
        ("fold a", "video", 10, 10),
        ("fold b", "video", 10, 10),
    ]
    assert all(each.roc_auc.value is not None and 0 <= each.roc_auc.value <= 1 for each in found)
    assert [bool(each.coefficients) for each in found] == [True, False, False]
    config = tmp_path / "small.toml"
    config.write_text("input_size_px = 96\nresize_px = 104\n")
    code, *_ = run("--data", tmp_path, "--config", config, "--resamples", 20, "--out", tmp_path / "found.csv")
    assert code == 0
    table = pd.read_csv(tmp_path / "found.csv")
    assert table.subset.tolist() == ["all", "fold a", "fold b"]
    assert table[FEATURES[0]].notna().tolist() == [True, False, False]


def run(*arguments: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, ["shortcuts", *map(str, arguments)], env={"COLUMNS": "200"})
    return done.exit_code, done.stdout, done.stderr


def test_the_command(faces: Path, tmp_path: Path) -> None:
    config = tmp_path / "small.toml"
    config.write_text("input_size_px = 96\nresize_px = 104\n")
    given = ["--data", faces, "--config", config, "--forgeries", "warped", "--num-faces", 40, "--resamples", 20]
    code, out, _ = run(*given, "--tolerance", 0.5, "--out", tmp_path / "found.csv")
    assert code == 0
    assert "warped" in out
    assert "pass" in out
    table = pd.read_csv(tmp_path / "found.csv")
    assert (table.subset[0], table.num_fake[0]) == ("warped", 40)
    assert table.low[0] <= table.roc_auc[0] <= table.high[0]
    assert np.isfinite(table[list(FEATURES)].to_numpy()).all()
    code, out, err = run(*given, "--tolerance", 0, "--out", tmp_path / "found.jsonl")
    assert code == 1
    assert "FAIL" in out
    assert "warped fakes can be recognised by a shortcut; largest coefficients: " in err
    assert json.loads((tmp_path / "found.jsonl").read_text().splitlines()[0])["subset"] == "warped"


def test_nothing_to_check_is_an_error(faces: Path) -> None:
    code, _, err = run("--data", faces)
    assert code == 2
    assert "give --forgeries" in err
