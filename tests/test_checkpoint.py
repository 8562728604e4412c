"""Checkpoints: round trips, and refusals of foreign, damaged or hostile files."""

import hashlib
import json
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from dfscan.detector import checkpoint as checkpoint_module
from dfscan.detector import selftest
from dfscan.detector.card import Calibration, CheckpointCard
from dfscan.detector.checkpoint import (
    Checkpoint,
    create_untrained,
    default_checkpoint_path,
    load_network,
    read_card,
    save_checkpoint,
)
from dfscan.detector.selftest import self_test_input
from dfscan.detector.verify import verify_logits
from dfscan.errors import CheckpointError, OutputError

TINY = "test_efficientnet"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "dfscan"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.safetensors"
    return create_untrained(path, seed=1, architecture=TINY, input_size_px=64)


def split(checkpoint: Checkpoint) -> tuple[dict[str, Any], bytes]:
    data = checkpoint.path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def write(path: Path, header: object, tensors: bytes = b"") -> Path:
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + tensors)
    return path


def with_document(tiny: Checkpoint, path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    header, tensors = split(tiny)
    document = json.loads(header["__metadata__"]["dfscan"])
    change(document)
    header["__metadata__"]["dfscan"] = json.dumps(document)
    return write(path, header, tensors)


# Round trips


def test_round_trip(tiny: Checkpoint) -> None:
    again = read_card(tiny.path)

    assert again == tiny
    assert again.sha256 == hashlib.sha256(tiny.path.read_bytes()).hexdigest()
    assert again.label == f"untrained-1@{again.sha256[:12]}"


def test_card_defaults() -> None:
    card = CheckpointCard()

    assert card.architecture == "efficientnet_b4"
    assert card.class_order == ("real", "fake")
    assert card.sampling.num_frames == 32
    assert (card.detection.threshold, card.detection.min_face_px, card.detection.max_faces) == (0.95, 48, 20)
    assert card.aggregation.min_faces == 3
    assert (card.calibration.temperature, card.calibration.trained) == (1.0, False)


def test_a_card_of_an_older_version_is_read(tiny: Checkpoint, tmp_path: Path) -> None:
    """It lacks what was added since; the crops were square then."""

    def make_old(document: dict[str, Any]) -> None:
        del document["preprocessing"]["crop"], document["seen"], document["calibration"]["num_real_videos"]

    old = read_card(with_document(tiny, tmp_path / "old.safetensors", make_old))

    assert old.card.preprocessing.crop == "square"
    assert load_network(old)


def test_label_falls_back_to_the_stem(tiny: Checkpoint, tmp_path: Path) -> None:
    path = with_document(tiny, tmp_path / "my model.safetensors", lambda document: document.pop("name"))

    assert read_card(path).label.startswith("my model@")


def test_the_same_seed_gives_the_same_bytes(tiny: Checkpoint, tmp_path: Path) -> None:
    same, other = (
        create_untrained(tmp_path / f"{seed}.safetensors", seed=seed, architecture=TINY, input_size_px=64)
        for seed in (1, 2)
    )

    assert same.sha256 == tiny.sha256
    assert other.sha256 != tiny.sha256
    assert sorted(os.listdir(tmp_path)) == ["1.safetensors", "2.safetensors"]


def test_reading_a_card_needs_no_torch(tiny: Checkpoint) -> None:
    code = (
        "import sys; from dfscan.detector.checkpoint import read_card; "
        "read_card(sys.argv[1]); assert not {'torch', 'timm', 'onnxruntime'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(tiny.path)], check=True)


def test_expected_logits_are_those_of_the_loaded_network(tiny: Checkpoint) -> None:
    import torch

    network = load_network(tiny)
    with torch.inference_mode():
        logits = network(torch.from_numpy(self_test_input(tiny.card)))

    assert not network.training
    np.testing.assert_allclose(logits.flatten(), tiny.card.self_test.expected_logits, atol=1e-6)
    assert len(set(tiny.card.self_test.expected_logits)) == 2


def test_half_stores_fp16_matrices_and_their_expected_logits(tiny: Checkpoint, tmp_path: Path) -> None:
    import torch

    network = load_network(tiny)
    network.backbone.bn1.running_var.fill_(1e5)  # exceeds the range of fp16
    full = save_checkpoint(tmp_path / "full.safetensors", network, tiny.card)
    half = save_checkpoint(tmp_path / "half.safetensors", network, tiny.card, fp16=True)
    again = load_network(half)

    assert half.path.stat().st_size < 0.55 * full.path.stat().st_size
    assert {parameter.dtype for parameter in again.parameters()} == {torch.float32}
    assert torch.equal(again.head.hidden.weight, network.head.hidden.weight.half().float())
    assert torch.equal(again.backbone.bn1.running_var, network.backbone.bn1.running_var)
    with torch.inference_mode():
        logits = again(torch.from_numpy(self_test_input(half.card))).flatten()
    np.testing.assert_allclose(logits, half.card.self_test.expected_logits, atol=1e-6)
    assert full.card.self_test.expected_logits != half.card.self_test.expected_logits


def test_self_test_input_is_a_fixed_formula() -> None:
    card = CheckpointCard()
    pixels = self_test_input(card).transpose(0, 2, 3, 1) * card.preprocessing.std + card.preprocessing.mean

    assert pixels.shape == (2, 380, 380, 3)
    tiles = np.rint(pixels[:, ::16, ::16] * 255).astype(int)
    assert tiles[0, 0, 0].tolist() == [int(each) for each in np.random.PCG64(1).random_raw(1).view(np.uint8)[:3]]
    assert len(np.unique(tiles)) == 256


def test_a_failed_save_keeps_the_old_file(tiny: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "old.safetensors"
    path.write_bytes(b"old")

    def full_disk(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OutputError, match="No space left"):
        save_checkpoint(path, load_network(tiny), tiny.card)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["old.safetensors"]


def test_saving_refuses_weights_that_are_not_finite(tiny: Checkpoint, tmp_path: Path) -> None:
    network = load_network(tiny)
    network.head.output.bias.data.fill_(float("nan"))

    with pytest.raises(CheckpointError, match=r"head\.output\.bias contains values that are not finite"):
        save_checkpoint(tmp_path / "nan.safetensors", network, tiny.card)


def test_default_checkpoint_is_the_embedded_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_module, "__file__", str(tmp_path / "detector" / "checkpoint.py"))
    assert default_checkpoint_path() is None

    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "b4.safetensors").touch()
    assert default_checkpoint_path() == tmp_path / "weights" / "b4.safetensors"


@pytest.mark.parametrize(
    ("calibration", "message"),
    [
        ({"fake_threshold": 0.5}, "untrained"),
        ({"real_threshold": 0.5}, "untrained"),
        ({"trained": True, "real_threshold": 0.5}, "needs a fake_threshold"),
        ({"trained": True, "real_threshold": 0.6, "fake_threshold": 0.5}, "above"),
        ({"temperature": 0}, "greater than 0"),
        ({"trained": True, "fake_threshold": 1.5}, "less than or equal to 1"),
        ({"temperature": float("nan")}, "finite|greater"),
    ],
)
def test_contradictory_calibration_is_refused(calibration: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Calibration.model_validate(calibration)


# Foreign, damaged and hostile files


def refused(path: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        load_network(read_card(path))
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    return str(error.value)


class Touch:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.path), "w")


def test_a_pickle_is_never_opened(tmp_path: Path) -> None:
    import torch

    proof = tmp_path / "proof"
    for name, protocol in (("a.pt", 2), ("b.pt", 5), ("c.safetensors", 0)):
        (tmp_path / name).write_bytes(pickle.dumps(Touch(proof), protocol=protocol))
        refused(tmp_path / name)
    torch.save({"weights": Touch(proof)}, tmp_path / "d.pt")

    assert "pickle or zip" in refused(tmp_path / "d.pt")
    assert not proof.exists()


def test_files_truncated_anywhere_are_refused(tiny: Checkpoint, tmp_path: Path) -> None:
    data = tiny.path.read_bytes()
    header_end = 8 + int.from_bytes(data[:8], "little")
    path = tmp_path / "cut.safetensors"
    for length in (0, 1, 7, 8, 9, 500, header_end - 1, header_end, header_end + 1, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        refused(path)


def test_bytes_after_the_end_are_refused(tiny: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "long.safetensors"
    path.write_bytes(tiny.path.read_bytes() + b"x")
    assert "damaged" in refused(path)


@pytest.mark.parametrize("length", [2**64 - 1, 10_000_001, 0, 1])
def test_a_header_length_out_of_bounds_is_refused(length: int, tmp_path: Path) -> None:
    path = tmp_path / "huge.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + b"{}" * 10)
    assert "does not begin like" in refused(path)


@pytest.mark.parametrize("text", [b"\xff\xfe{}", b"[" * 100_000, b"[1, 2]  ", b"not json at all"])
def test_a_header_that_is_not_an_object_is_refused(text: bytes, tmp_path: Path) -> None:
    path = tmp_path / "odd.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    assert re.search("header is not (a )?JSON", refused(path))


@pytest.mark.parametrize(
    "header",
    [
        {"w": {"dtype": "F32", "shape": [1], "data_offsets": [0]}},
        {"w": 3},
        {"w": {"data_offsets": [0, "4"]}},
        {"w": {"data_offsets": [0, float("inf")]}},
        {"w": {"data_offsets": [0, 10**30]}},
        {},
        {"__metadata__": {}},
        {"__metadata__": {"format": "pt"}},
        {"__metadata__": {"dfscan": "{"}},
        {"__metadata__": {"dfscan": "[]"}},
        {"__metadata__": {"dfscan": 1}},
    ],
)
def test_foreign_headers_are_refused(header: object, tmp_path: Path) -> None:
    refused(write(tmp_path / "foreign.safetensors", header))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda document: document.update(format_version=2), "format version is 2"),
        (lambda document: document.pop("format_version"), "without dfscan's own metadata"),
        (lambda document: document.update(colour="red"), "colour: Extra inputs"),
        (lambda document: document["calibration"].update(temprature=2), "calibration.temprature: Extra"),
        (lambda document: document["preprocessing"].update(input_size_px=10**9), "input_size_px"),
        (lambda document: document.update(class_order=["fake", "real"]), "class_order"),
        (lambda document: document.update(name="=1+1\n"), "name"),
        (lambda document: document["self_test"].update(expected_logits=[]), "exactly one expected logit per input"),
        (lambda document: document.update(architecture="resnet50"), "unknown architecture 'resnet50'"),
        (lambda document: document.update(architecture="efficientnet_b4"), "do not fit efficientnet_b4"),
    ],
)
def test_invalid_metadata_is_refused(
    tiny: Checkpoint, tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    assert message in refused(with_document(tiny, tmp_path / "changed.safetensors", change))


def resaved(tiny: Checkpoint, path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    from safetensors.numpy import load, save_file

    state = load(tiny.path.read_bytes())
    change(state)
    save_file(state, path, metadata=split(tiny)[0]["__metadata__"])
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("head.output.bias"), "head.output.bias is missing"),
        (lambda state: state.update(extra=np.zeros(3)), "extra is unknown"),
        (
            lambda state: state.update({"head.output.weight": np.zeros((1, 7), np.float32)}),
            "head.output.weight is (1, 7) instead of (1, 512)",
        ),
        (
            lambda state: state.update({"head.output.bias": np.zeros(1, np.int64)}),
            "head.output.bias is torch.int64 instead of torch.float32",
        ),
        (
            lambda state: state["head.output.bias"].fill(np.inf),
            "head.output.bias contains values that are not finite",
        ),
        (lambda state: state.clear(), "more"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(
    tiny: Checkpoint, tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    assert message in refused(resaved(tiny, tmp_path / "changed.safetensors", change))


def test_a_wrong_tensor_shape_in_the_header_is_refused(tiny: Checkpoint, tmp_path: Path) -> None:
    header, tensors = split(tiny)
    header["head.output.bias"]["shape"] = [2]
    assert "tensors cannot be read" in refused(write(tmp_path / "wrong.safetensors", header, tensors))


def test_a_file_replaced_after_its_card_was_read_is_refused(tiny: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "changing.safetensors"
    path.write_bytes(tiny.path.read_bytes())
    checkpoint = read_card(path)
    resaved(tiny, path, lambda state: state["head.output.bias"].fill(3))

    with pytest.raises(CheckpointError, match="has changed"):
        load_network(checkpoint)


def test_absent_files_folders_and_fifos_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.safetensors")

    assert "no such file" in refused(tmp_path / "absent.safetensors")
    assert "no such file" in refused(tmp_path)
    assert "no such file" in refused(tmp_path / "fifo.safetensors")


# Self-test


class FakeRuntime:
    batch_size, mixed_precision = 1, False

    def __init__(self, logits: tuple[float, ...], device: str = "cpu") -> None:
        self.logits, self.device, self.num_calls = logits, device, 0

    def predict(self, batch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.num_calls += 1
        return np.asarray(self.logits, np.float32), np.zeros((len(batch), 2, 2), np.float32)


def promised(tiny: Checkpoint, *, change: float = 0.0) -> FakeRuntime:
    return FakeRuntime(tuple(logit + change for logit in tiny.card.self_test.expected_logits))


def test_verify_caches_a_pass(tiny: Checkpoint, cache: Path) -> None:
    runtime = promised(tiny)
    verify_logits(runtime, tiny)
    verify_logits(runtime, tiny)

    assert runtime.num_calls == 1
    assert len(list(cache.iterdir())) == 1


def test_verify_runs_again_for_another_device_or_version(tiny: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = promised(tiny), promised(tiny)
    second.device = "cuda:0"
    verify_logits(first, tiny)
    verify_logits(second, tiny)
    monkeypatch.setattr(selftest, "package_version", lambda name: "99.0")
    verify_logits(first, tiny)

    assert (first.num_calls, second.num_calls) == (2, 1)


@pytest.mark.parametrize("change", [0.002, -0.002, float("nan"), float("inf")])
def test_verify_refuses_wrong_scores_every_time(tiny: Checkpoint, change: float) -> None:
    runtime = promised(tiny, change=change)
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"fails its self-test on cpu.*torch \d.*install") as error:
            verify_logits(runtime, tiny)
    assert f"{tiny.card.self_test.expected_logits[0]:.6f}" in str(error.value)


def test_verify_accepts_rounding_errors(tiny: Checkpoint) -> None:
    verify_logits(promised(tiny, change=0.0005), tiny)


@pytest.mark.parametrize("kind", ["a file in its place", "none"])
def test_verify_without_a_cache(kind: str, tiny: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file") if kind != "none" else "relative")
    runtime = promised(tiny)
    verify_logits(runtime, tiny)
    verify_logits(runtime, tiny)

    assert runtime.num_calls == 2
