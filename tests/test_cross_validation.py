"""Calibration on held-out folds of several runs, and the second output used in training."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from dfscan.cli import app
from dfscan.dataset.manifest import MANIFEST_NAME, Sample, Split, TrueLabel, read_manifest, write_manifest
from dfscan.detector.checkpoint import load_network, read_card
from dfscan.detector.network import create_network
from dfscan.errors import ConfigError, DataError
from dfscan.train.cross_validation import HELD_OUT, read_held_out
from dfscan.train.folder import VALIDATION_COLUMNS
from dfscan.train.kinds import KIND_CLASSES, KindTeacher, kind_class, kind_loss
from dfscan.train.run import load_samples
from dfscan.train.settings import TrainSettings
from tests.datasets import write_sample

FLAGS = (
    "--architecture test_efficientnet --no-pretrained --input-size-px 64 --resize-px 70 --batch-size 4 --epochs 1 "
    "--workers 0 --device cpu --kind-weight 0.5 --faces-per-epoch 16 --forgeries self-blended"
).split()


def write_folds(folder: Path) -> list[Sample]:
    """Write two folds with two reals and two fakes each, and two portraits without a fold."""
    samples = []
    plan: list[tuple[TrueLabel, str]] = [("real", "0"), ("fake", "0"), ("real", "1"), ("fake", "1"), ("real", "")] * 2
    for number, (label, fold) in enumerate(plan):
        split: Split = "val" if number == 9 else "train"
        domain = f"page {fold}" if fold else "portraits"
        samples.append(write_sample(folder, number, split=split, label=label, domain=domain, fold=fold))
    write_manifest(folder / MANIFEST_NAME, samples)
    return samples


def test_a_held_out_fold_is_used_for_validation_only(tmp_path: Path) -> None:
    write_folds(tmp_path)
    samples = load_samples(TrainSettings(data=tmp_path, held_out_folds="1", pretrained=False))
    assert {sample.split for sample in samples if sample.fold == "1"} == {"val"}
    assert {sample.split for sample in samples if sample.fold != "1"} == {"train"}
    assert len(samples) == 10
    with pytest.raises(ConfigError, match="there is no fold '7'; existing folds: 0, 1"):
        load_samples(TrainSettings(data=tmp_path, held_out_folds="7"))


def test_groups_of_the_held_out_fold_are_dropped_from_training(tmp_path: Path) -> None:
    samples = write_folds(tmp_path)
    shared = write_sample(tmp_path, 50, split="train", group=samples[2].group)  # a portrait of a person in fold 1
    write_manifest(tmp_path / MANIFEST_NAME, [*samples, shared])
    kept = load_samples(TrainSettings(data=tmp_path, held_out_folds="1", pretrained=False))
    assert shared.crop not in {sample.crop for sample in kept}


def test_domain_and_fold_are_optional_columns_of_the_manifest(tmp_path: Path) -> None:
    written = write_folds(tmp_path)
    read = read_manifest(tmp_path)
    assert [(each.domain, each.fold) for each in read] == [(each.domain, each.fold) for each in written]
    lines = (tmp_path / MANIFEST_NAME).read_text().splitlines()
    (tmp_path / "old.csv").write_text("\n".join(line.rsplit(",", 2)[0] for line in lines) + "\n")
    assert {(each.domain, each.fold) for each in read_manifest(tmp_path / "old.csv")} == {("", "")}


def test_a_checkpoint_is_calibrated_on_the_held_out_faces_of_all_runs(tmp_path: Path) -> None:
    write_folds(tmp_path / "faces")
    runner = CliRunner()
    data = ["--data", str(tmp_path / "faces")]
    for fold in ("0", "1"):
        made = runner.invoke(app, ["train", *FLAGS, *data, "--held-out-folds", fold, "--out", str(tmp_path / fold)])
        assert made.exit_code == 0, made.stderr
    assert runner.invoke(app, ["train", *FLAGS, *data, "--out", str(tmp_path / "all")]).exit_code == 0
    final, out = tmp_path / "all" / "best.safetensors", tmp_path / "final.safetensors"
    done = runner.invoke(
        app,
        ["calibrate-folds", str(tmp_path / "0"), str(tmp_path / "1"), "--checkpoint", str(final), "--out", str(out)],
    )
    assert done.exit_code == 0, done.stderr
    assert "calibrated on 8 videos in 8 groups" in done.stderr
    card = read_card(out).card
    assert (card.calibration.num_real_videos, card.calibration.num_fake_videos) == (4, 4)
    assert card.base_sha256 == read_card(final).sha256
    assert card.metrics is not None
    assert card.metrics[HELD_OUT]["num_videos"] == 8
    kinds = card.metrics[f"{HELD_OUT}, ROC AUC of videos by kind"]
    assert set(kinds["within sources"]) == {"all", "face swap"}
    assert kinds["num_fakes within sources, face swap"] == 4
    x = torch.zeros(1, 3, 64, 64)
    for one, other in zip(read_networks(final), read_networks(out), strict=True):
        assert torch.equal(one(x), other(x))


def read_networks(path: Path) -> list[torch.nn.Module]:
    return [load_network(read_card(path)).eval()]


def write_run(folder: Path, rows: list[dict[str, Any]], columns: tuple[str, ...] = VALIDATION_COLUMNS) -> Path:
    folder.mkdir()
    lines = [",".join(columns), *(",".join(str(row.get(name, "")) for name in columns) for row in rows)]
    (folder / "validation.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_forgeries_are_excluded_and_overlapping_runs_are_rejected(tmp_path: Path) -> None:
    row = {"crop": "a", "source": "a.mp4", "group": "a", "label": "real", "logit": -1.5}
    forged = {**row, "label": "fake", "made_by": "swapped", "source": "a.mp4#swapped"}
    one = write_run(tmp_path / "one", [row, forged])
    faces = read_held_out([one])
    assert faces.sources == ["a.mp4"]
    assert faces.logits.tolist() == [-1.5]
    with pytest.raises(DataError, match=r"a\.mp4: held out by .*one and by .*two; give one run per fold"):
        read_held_out([one, write_run(tmp_path / "two", [row])])
    with pytest.raises(DataError, match="lacks the columns kind, domain"):
        read_held_out(
            [write_run(tmp_path / "old", [row], tuple(c for c in VALIDATION_COLUMNS if c not in ("kind", "domain")))]
        )
    with pytest.raises(DataError, match=r"cannot be read .*give folders of finished runs"):
        read_held_out([tmp_path / "nothing"])


@pytest.mark.parametrize(
    ("is_fake", "made_by", "manipulation", "name"),
    [
        (False, None, "", "real"),
        (True, "warped", "", "warped"),
        (True, None, "face swap", "swapped"),
        (True, None, "Lip-sync (diffusion)", "lip-sync"),
        (True, None, "talking head", "generated"),
        (True, None, "", "generated"),
    ],
)
def test_class_of_manipulation(is_fake: bool, made_by: Any, manipulation: str, name: str) -> None:
    assert KIND_CLASSES[kind_class(is_fake, made_by, manipulation)] == name


def test_the_second_output_does_not_change_the_logit() -> None:
    network = create_network("test_efficientnet", seed=0).eval()
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(3, 3, 64, 64)).astype(np.float32))
    logits, kinds = KindTeacher(network)(x)
    torch.testing.assert_close(logits, network(x))
    assert kinds.shape == (3, len(KIND_CLASSES))
    assert kind_loss(kinds, torch.tensor([0, 1, 2])).item() == pytest.approx(np.log(len(KIND_CLASSES)))


def test_a_run_with_a_second_output_can_be_resumed(tmp_path: Path) -> None:
    write_folds(tmp_path / "faces")
    runner = CliRunner()
    flags = ["train", *FLAGS, "--data", str(tmp_path / "faces"), "--out", str(tmp_path / "run")]
    assert runner.invoke(app, flags).exit_code == 0
    resumed = runner.invoke(app, [*flags, "--resume"])
    assert resumed.exit_code == 0, resumed.stderr
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["event"] for row in rows] == ["step"] * 2 + ["epoch"]
