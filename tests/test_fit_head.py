"""`dfscan fit-head`: a linear classifier on features that stay as they are, calibrated on held-out folds."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from dfscan.cli import app
from dfscan.dataset.manifest import MANIFEST_NAME, Sample, write_manifest
from dfscan.detector.card import Calibration, CheckpointCard, SeenFiles
from dfscan.detector.checkpoint import load_network, read_card, save_checkpoint
from dfscan.detector.network import create_network
from dfscan.detector.preprocess import Preprocessing
from dfscan.errors import DataError
from dfscan.train import fit_head as fitting
from dfscan.train.cross_validation import HELD_OUT
from dfscan.train.fit_head import fit_linear, held_out_logits, set_linear
from tests.test_cross_validation import write_folds


def faces(folder: Path, num: int = 120) -> tuple[np.ndarray, list[Sample]]:
    """Return features of two domains whose first feature tells fakes apart, and whose second one tells the domain."""
    like = write_folds(folder)[0]
    rng = np.random.default_rng(0)
    samples = []
    for number in range(num):
        label, place = ("real", "fake")[number % 2], str(number // 2 % 3)
        named = replace(
            like, label=label, domain=f"page {place}", fold=place, group=f"g{number // 4}", source=f"{number}"
        )
        samples.append(named)
    features = rng.normal(size=(num, 6))
    features[:, 0] += [2.0 * (sample.label == "fake") for sample in samples]
    features[:, 1] += [10.0 * int(sample.fold) for sample in samples]
    return features, samples


def test_differences_between_domains_are_not_learned(tmp_path: Path) -> None:
    features, samples = faces(tmp_path)
    kept = [sample.label == "fake" or sample.fold == "0" for sample in samples]  # domains 1 and 2 have only fakes
    some = [sample for sample, is_kept in zip(samples, kept, strict=True) if is_kept]
    weight, bias = fit_linear(features[kept], some, tmp_path)
    spread = np.abs(weight) * features.std(axis=0)
    assert spread.argmax() == 0
    assert spread[1] < spread[0] / 5
    logits = features @ weight + bias
    is_fake = np.array([sample.label == "fake" for sample in samples])
    assert logits[is_fake].mean() > 0 > logits[~is_fake & (features[:, 1] < 5)].mean()


def test_a_held_out_face_is_scored_by_others(tmp_path: Path) -> None:
    """Turning the labels of one fold around changes nothing in this fold's own scores, but those of the others."""
    features, samples = faces(tmp_path)
    other = {"real": "fake", "fake": "real"}
    turned = [replace(s, label=other[s.label]) if s.fold == "1" else s for s in samples]
    before, after = (held_out_logits(features, each, tmp_path) for each in (samples, turned))
    is_turned = np.array([sample.fold == "1" for sample in samples])
    assert np.array_equal(before[is_turned], after[is_turned])
    assert not np.isclose(before[~is_turned], after[~is_turned]).any()


def test_a_group_of_the_held_out_fold_is_left_out_of_other_folds(tmp_path: Path) -> None:
    features, samples = faces(tmp_path)
    of_0, of_1 = (next(i for i, sample in enumerate(samples) if sample.fold == fold) for fold in "01")
    shared = list(samples)
    shared[of_1] = replace(samples[of_1], group=samples[of_0].group)
    moved = features.copy()
    moved[of_1] += 50  # would be felt if it were used
    assert np.array_equal(
        held_out_logits(moved, shared, tmp_path)[of_0], held_out_logits(features, shared, tmp_path)[of_0]
    )


def test_the_head_computes_the_linear_classifier() -> None:
    network = create_network("test_efficientnet", seed=0).eval()
    num_features = network.head.hidden.in_features
    weight, bias = np.random.default_rng(0).normal(size=num_features), -0.7
    set_linear(network.head, weight, bias)
    pooled = torch.randn(20, num_features)
    with torch.inference_mode():
        logits = network.head(pooled).flatten().double().numpy()
    assert np.allclose(logits, pooled.double().numpy() @ weight + bias, atol=1e-4)
    assert (logits > 0).any()
    assert (logits < 0).any()


def test_the_command_writes_a_calibrated_checkpoint_whose_backbone_is_unchanged(tmp_path: Path) -> None:
    samples = write_folds(tmp_path)
    write_manifest(tmp_path / MANIFEST_NAME, samples)
    card = CheckpointCard(
        name="before", architecture="test_efficientnet", preprocessing=Preprocessing(input_size_px=64),
        calibration=Calibration(),
    )  # fmt: skip
    before, out = tmp_path / "before.safetensors", tmp_path / "after.safetensors"
    save_checkpoint(before, create_network("test_efficientnet", seed=0), card)
    arguments = ["fit-head", before, "--data", tmp_path, "--out", out, "--workers", "0", "--device", "cpu"]
    done = CliRunner().invoke(app, [*map(str, arguments), "--name", "after", "--input-size-px", "96"])
    assert done.exit_code == 0, done.stderr
    assert "held-out folds: 8 videos in 8 groups, ROC AUC" in done.stderr
    after = read_card(out)
    assert after.card.name == "after"
    assert after.card.preprocessing.input_size_px == 96
    assert after.card.calibration.trained
    assert after.card.metrics
    assert after.card.metrics[HELD_OUT]["num_videos"] == 8
    assert after.card.seen
    assert after.card.seen.counts() == {"training": len({s.source_sha256 for s in samples if s.fold}), "validation": 0}
    old, new = (load_network(read_card(path)).state_dict() for path in (before, out))
    assert all(torch.equal(old[name], new[name]) for name in old if name.startswith("backbone."))


def refused(tmp_path: Path, *arguments: object) -> str:
    data = ("--data", tmp_path, "--workers", "0", "--device", "cpu")
    done = CliRunner().invoke(app, ["fit-head", *map(str, (*arguments, *data))])
    assert done.exit_code == 2
    return done.stderr


def test_a_backbone_that_has_seen_a_fold_is_refused(tmp_path: Path) -> None:
    samples = write_folds(tmp_path)
    seen = SeenFiles.of([samples[0].source_sha256], [])
    card = CheckpointCard(
        architecture="test_efficientnet", preprocessing=Preprocessing(input_size_px=64),
        calibration=Calibration(trained=True), seen=seen,
    )  # fmt: skip
    save_checkpoint(tmp_path / "a.safetensors", create_network("test_efficientnet", seed=0), card)
    said = refused(tmp_path, tmp_path / "a.safetensors", "--out", tmp_path / "b.safetensors")
    assert "was trained on 1 of the videos in folds" in said
    assert "--held-out-folds" in said
    assert not (tmp_path / "b.safetensors").exists()


def test_what_cannot_work_is_refused_before_the_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_features(*_: object, **__: object) -> None:
        raise AssertionError("features were computed")

    monkeypatch.setattr(fitting, "_pooled_features", no_features)
    samples = write_folds(tmp_path)
    path = tmp_path / "a.safetensors"
    card = CheckpointCard(architecture="test_efficientnet", preprocessing=Preprocessing(input_size_px=64))
    save_checkpoint(path, create_network("test_efficientnet", seed=0), card)
    out = ("--out", tmp_path / "b.safetensors")
    assert "--name 'my head' is invalid" in refused(tmp_path, path, *out, "--name", "my head")
    assert "can only be stored as test_efficientnet" in refused(tmp_path, path, *out, "--grow-to", "efficientnet_b4")
    assert "would overwrite the input" in refused(tmp_path, path, "--out", path)
    write_manifest(tmp_path / MANIFEST_NAME, [sample for sample in samples if sample.fold != "1"])
    assert "at least two folds are needed" in refused(tmp_path, path, *out)
    boxed = card.model_copy(update={"preprocessing": Preprocessing(input_size_px=64, crop="box")})
    save_checkpoint(path, create_network("test_efficientnet", seed=0), boxed)
    assert "in another way than" in refused(tmp_path, path, *out)


def test_what_cannot_be_fitted_is_named(tmp_path: Path) -> None:
    features, samples = faces(tmp_path)
    joined = [replace(sample, group="one") for sample in samples]
    with pytest.raises(DataError, match="all groups of the other folds are in fold 0, too"):
        held_out_logits(features, joined, tmp_path / "manifest.csv")
    alone = [replace(sample, domain=sample.label) for sample in samples]
    with pytest.raises(DataError, match="no domain has both real and fake videos outside a fold"):
        fit_linear(features, alone, tmp_path / "manifest.csv")
