"""Weights of other projects: the same logits on the original's own preprocessing, and refusals of everything else.

The originals are built with efficientnet_pytorch as the projects' public code builds them. Their preprocessing is
written here again, from the same code, with NumPy, OpenCV and Pillow.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime
import pytest
import timm
import torch
from efficientnet_pytorch import EfficientNet
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dfscan.detector import export
from dfscan.detector.card import Calibration, CheckpointCard
from dfscan.detector.checkpoint import Checkpoint, create_untrained, load_network, read_card, save_checkpoint
from dfscan.detector.import_checkpoint import WEIGHT_LAYOUTS, import_weights
from dfscan.detector.network import DeepfakeDetector, create_network
from dfscan.detector.preprocess import Preprocessing, to_input
from dfscan.detector.runtime import OnnxRuntime
from dfscan.detector.selftest import mosaic, self_test_input
from dfscan.errors import CheckpointError, ConfigError
from dfscan.faces.crop import TEMPLATE, crop_square_xyxy
from dfscan.faces.detect import Detection
from dfscan.scan.detect import FaceCropper
from dfscan.types import Frame
from tests.pictures import astronaut
from tests.test_cli import run
from tests.test_cli import surroundings as surroundings
from tests.test_network import grad_cam_by_autograd

PROJECTS = ("sbi", "deepfakebench", "icpr2020dfdc")
NUM_FACES = 2
"""More make the test slower; 20 gave the numbers of the design notes."""
TOLERANCE = 1e-4
SMALL_PX = 32
"""Input size of the imports whose scores do not matter, so that their self-test takes no time."""

Pixels = np.ndarray
State = dict[str, Tensor]


# The originals


class Sbi(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = EfficientNet.from_name("efficientnet-b4", num_classes=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class DeepfakeBench(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.efficientnet = EfficientNet.from_name("efficientnet-b4")
        self.backbone.efficientnet._conv_stem = nn.Conv2d(3, 48, kernel_size=3, stride=2, bias=False)
        self.backbone.efficientnet._fc = nn.Identity()
        self.backbone.last_layer = nn.Linear(1792, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.backbone.last_layer(self.backbone.efficientnet.extract_features(x).mean(dim=(2, 3)))


class Icpr2020Dfdc(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.efficientnet = EfficientNet.from_name("efficientnet-b4")
        self.classifier = nn.Linear(1792, 1)
        del self.efficientnet._fc

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.efficientnet.extract_features(x).mean(dim=(2, 3)))


def randomised(network: nn.Module) -> nn.Module:
    """Give random statistics to all batch norms, near those of pictures; with others the logits would be huge."""
    norms = [each for each in network.modules() if isinstance(each, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None
        nn.init.uniform_(norm.weight, 0.8, 1.2)
        nn.init.uniform_(norm.bias, -0.2, 0.2)
    mosaics = [mosaic(1, num_tiles, 128, seed=1)[0] for num_tiles in (5, 13, 24)]
    images = [*mosaics, *(frame for frame, _ in turned_faces(3))]
    with torch.no_grad():
        network.train()(torch.from_numpy(to_input(images, Preprocessing(input_size_px=128))))
        for norm in norms:
            norm.running_mean += torch.randn_like(norm.running_mean) * norm.running_var.sqrt() / 10
            norm.running_var *= torch.rand_like(norm.running_var) / 2 + 0.75
            norm.running_var.clamp_(min=float(norm.running_var.mean()) / 3)
    return network.eval()


def resized(pixels: Pixels, side_px: int) -> Pixels:
    return cv2.resize(pixels, (side_px, side_px))


def prepared_for_sbi(frame: Pixels, face: Detection) -> Pixels:
    x0, y0, x1, y1 = face.box_xyxy.astype(float)
    width, height = x1 - x0, y1 - y0
    rows = slice(max(0, int(y0 - height / 8)), min(frame.shape[0], int(y1 + height / 8) + 1))
    columns = slice(max(0, int(x0 - width / 8)), min(frame.shape[1], int(x1 + width / 8) + 1))
    return resized(frame[rows, columns], 380) / 255


def prepared_for_deepfakebench(frame: Pixels, face: Detection, margin: float = 1.38) -> Pixels:
    wanted = TEMPLATE * 256 / 112
    wanted = (wanted + 256 * (margin - 1) / 2) * 256 / (256 + 256 * (margin - 1))
    unknowns = [row for x, y in face.landmarks for row in ((x, -y, 1, 0), (y, x, 0, 1))]
    (a, b, shift_x, shift_y), *_ = np.linalg.lstsq(np.array(unknowns, float), wanted.ravel())
    aligned = cv2.warpAffine(frame, np.array([[a, -b, shift_x], [b, a, shift_y]]), (256, 256))
    return (aligned / 255 - 0.5) / 0.5


def prepared_for_icpr(frame: Pixels, face: Detection) -> Pixels:
    """Take the square that stands for BlazeFace's box with its margins as given."""
    square = crop_square_xyxy(face.box_xyxy, margin=1.3)
    crop = np.asarray(Image.fromarray(frame).crop(square).resize((224, 224), Image.Resampling.BILINEAR))
    return (crop / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]


@dataclass(frozen=True)
class Original:
    network: type[nn.Module]
    prepared: Callable[[Pixels, Detection], Pixels]
    input_size_px: int


ORIGINALS = {
    "sbi": Original(Sbi, prepared_for_sbi, 380),
    "deepfakebench": Original(DeepfakeBench, prepared_for_deepfakebench, 256),
    "icpr2020dfdc": Original(Icpr2020Dfdc, prepared_for_icpr, 224),
}


def random_original(layout: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(PROJECTS.index(layout))
        return randomised(ORIGINALS[layout].network())


@pytest.fixture(scope="session")
def sbi() -> nn.Module:
    return random_original("sbi")


LANDMARKS = np.float32([[204.6, 100.5], [247.2, 103.5], [224.2, 129.0], [201.3, 140.7], [243.8, 142.8]])
BOX_CORNERS = np.float32([[178.8, 61.0], [269.3, 61.0], [269.3, 176.4], [178.8, 176.4]])


def turned_faces(num_faces: int, *, is_one_cut_off: bool = True) -> list[tuple[Pixels, Detection]]:
    """Return frames with one face each: turned, enlarged and moved, the first one perhaps beyond the right border."""
    found = []
    for number in range(num_faces):
        rng = np.random.default_rng(number)
        matrix = cv2.getRotationMatrix2D((224, 118), rng.uniform(-12, 12), rng.uniform(0.5, 2))
        matrix[:, 2] += (240, 120) if is_one_cut_off and number == 0 else (0, 140)
        frame = cv2.warpAffine(astronaut(), matrix, (512, 512))
        corners, landmarks = (points @ matrix[:, :2].T + matrix[:, 2] for points in (BOX_CORNERS, LANDMARKS))
        box = np.float32([*corners.min(axis=0), *corners.max(axis=0)])
        found.append((frame, Detection(box, np.float32(landmarks), 0.99)))
    return found


def logits_of_fake(network: nn.Module, batch: Pixels) -> Pixels:
    with torch.inference_mode():
        outputs = torch.cat([network(face) for face in torch.from_numpy(batch).split(1)])
    return (outputs[:, 1] - outputs[:, 0] if outputs.shape[1] == 2 else outputs[:, 0]).numpy()


@dataclass(frozen=True)
class Comparison:
    pixels: float
    torch: float
    onnx: float
    spread: float
    """Standard deviation of the original's logits."""


def compare(layout: str, folder: Path, num_faces: int) -> tuple[DeepfakeDetector, Comparison]:
    """Import a random network; return it, and the largest differences from the original over a number of faces."""
    original = random_original(layout)
    torch.save(original.state_dict(), folder / "original.pth")
    imported = import_weights(folder / "original.pth", folder / "imported.safetensors")
    # The original of icpr2020dfdc shifts a square that reaches beyond the frame; dfscan fills it up with black.
    faces = turned_faces(num_faces, is_one_cut_off=layout != "icpr2020dfdc")
    cropper = FaceCropper([imported.card.preprocessing])
    theirs = np.stack([ORIGINALS[layout].prepared(*each) for each in faces]).transpose(0, 3, 1, 2).astype(np.float32)
    crops = [cropper.crop_faces(Frame(frame, i, 0.0, 0), [face]).crops[0] for i, (frame, face) in enumerate(faces)]
    ours = to_input([crop.pixels for crop in crops], imported.card.preprocessing)
    expected = logits_of_fake(original, theirs)
    export.write_graph(imported, folder / "graph.onnx")
    by_onnx, _ = OnnxRuntime((folder / "graph.onnx").read_bytes()).predict(ours)
    network = load_network(imported)
    by_torch = logits_of_fake(network, ours)
    pairs = ((ours, theirs), (by_torch, expected), (by_onnx, expected))
    differences = (float(np.abs(got - wanted).max()) for got, wanted in pairs)
    return network, Comparison(*differences, spread=float(expected.std()))


@pytest.mark.parametrize("layout", PROJECTS)
def test_logits_and_heat_maps_are_those_of_the_original(layout: str, tmp_path: Path) -> None:
    network, found = compare(layout, tmp_path, NUM_FACES)

    assert max(found.pixels, found.torch, found.onnx) < min(TOLERANCE, found.spread / 100)
    x = torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(4))
    peaks = []
    for _ in ("fake", "real"):
        expected = grad_cam_by_autograd(network, x)
        with torch.inference_mode():
            _, cam = network.forward_with_cam(x)
        torch.testing.assert_close(cam, expected, rtol=1e-3, atol=1e-4 * float(expected.max()))
        peaks.append(float(expected.max()))
        network.head.output.weight.data.neg_()
    assert max(peaks) > 0


def test_the_three_paddings_differ() -> None:
    """Otherwise one architecture would do for all layouts."""
    x = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(4))
    for_actual_size, for_380, bare = (
        create_network(f"tf_efficientnet_b4{suffix}", seed=1).backbone.eval()
        for suffix in ("", "_pad380", "_pad380_bare_stem")
    )
    with torch.inference_mode():
        stems = [backbone.conv_stem(x) for backbone in (for_actual_size, for_380, bare)]
        assert torch.equal(stems[0], stems[1])
        assert torch.equal(stems[0][:, :, :31, :31], stems[2])
        maps = torch.rand(1, 32, 16, 16)
        assert not torch.allclose(for_actual_size.blocks[2](maps), for_380.blocks[2](maps))


# What the card says


def test_the_card_states_the_origin_and_that_nothing_is_calibrated(sbi: nn.Module, tmp_path: Path) -> None:
    torch.save({"model": sbi.state_dict(), "epoch": 3}, tmp_path / "sbi.tar")

    done = run(
        "import-checkpoint", tmp_path / "sbi.tar", "--input-size-px", SMALL_PX, "--out", tmp_path / "a.safetensors"
    )

    assert done.exit_code == 0, done.stderr
    assert "not calibrated" in done.stderr
    assert "licence" in done.stderr
    card = read_card(tmp_path / "a.safetensors").card
    assert card.calibration.trained
    assert card.calibration.fake_threshold is None
    assert card.training == {
        "imported_from": "https://github.com/mapooon/SelfBlendedImages",
        "layout": "sbi",
        "file": "sbi.tar",
        "file_sha256": hashlib.sha256((tmp_path / "sbi.tar").read_bytes()).hexdigest(),
        "weights": "model",
        "fake_class": 1,
        "licence": "Look up the project's licence: some forbid commercial use.",
    }
    shown = run("info", "--checkpoint", tmp_path / "a.safetensors").stdout
    assert "calibrated: no" in shown
    assert card.training["file_sha256"] in shown


def test_its_verdict_is_inconclusive_until_it_is_calibrated(untrained: Path, clips: Path, tmp_path: Path) -> None:
    """The tiny network stands for an imported one."""
    tiny, path, dumps = read_card(untrained), tmp_path / "detector.safetensors", tmp_path / "dumps"
    how = WEIGHT_LAYOUTS["deepfakebench"].preprocessing.model_copy(update={"input_size_px": 96})
    card = tiny.card.model_copy(update={"calibration": Calibration(trained=True), "preprocessing": how, "name": None})
    save_checkpoint(path, load_network(tiny), card)
    options = ("--checkpoint", path, "--device", "cpu", "--num-frames", 4)

    done = run(
        "scan", clips / "one.mp4", *options, "--format", "jsonl", "--html", tmp_path / "a.html", "--explain", dumps
    )

    row = json.loads(done.stdout)
    assert (row["verdict"], row["reason"].partition(":")[0]) == ("inconclusive", "uncalibrated")
    assert row["score"] is not None
    assert "error rates" not in done.stderr
    page = (tmp_path / "a.html").read_text()
    assert "Checkpoint without calibration" in page
    assert "Untrained checkpoint" not in page
    assert len(list(dumps.rglob("*frame*"))) > 0
    refused = run("scan", clips / "one.mp4", *options, "--threshold", 0.5)
    assert refused.exit_code == 2
    assert "dfscan calibrate" in refused.stderr


# What can be read


def small(path: Path, out: Path, **how: Any) -> Checkpoint:
    return import_weights(path, out, **{"input_size_px": SMALL_PX, **how})


def test_wrappers_prefixes_and_formats(sbi: nn.Module, tmp_path: Path) -> None:
    plain = sbi.state_dict()
    other = {name: torch.zeros_like(tensor) for name, tensor in plain.items()}
    parallel = {f"module.{name}": tensor for name, tensor in plain.items()}
    torch.save({"state_dict": other, "state_dict_ema": parallel}, tmp_path / "state_dict_ema")
    averaged = {"ema": {"n_averaged": torch.tensor(4), **parallel}}
    torch.save(averaged, tmp_path / "ema", _use_new_zipfile_serialization=False)
    save_file(plain, tmp_path / "the whole file")
    for name in ("state_dict_ema", "ema", "the whole file"):
        imported = small(tmp_path / name, tmp_path / "a.safetensors")
        weight = load_file(imported.path)["head.hidden.weight"][0]
        assert torch.equal(weight, plain["net._fc.weight"][1] - plain["net._fc.weight"][0])
        assert imported.card.training["weights"] == name


@pytest.mark.parametrize("num_classes", [1, 2])
def test_a_b4_of_timm_needs_its_padding_and_its_classes(num_classes: int, tmp_path: Path) -> None:
    original = timm.create_model("efficientnet_b4", num_classes=num_classes)
    torch.save(original.state_dict(), tmp_path / "b4.pth")
    with pytest.raises(ConfigError, match=r"--architecture .* --fake-class"):
        small(tmp_path / "b4.pth", tmp_path / "a.safetensors")

    how = {"architecture": "efficientnet_b4", "fake_class": 0, "normalisation": "half"}
    imported = small(tmp_path / "b4.pth", tmp_path / "a.safetensors", **how)

    x = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        outputs, got = original.eval()(x), load_network(imported)(x)
    torch.testing.assert_close(got[:, 0], outputs[:, 0] - outputs[:, 1] if num_classes == 2 else -outputs[:, 0])
    assert imported.card.preprocessing.mean == (0.5, 0.5, 0.5)


# What is refused


class Hostile:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("form", ["pickle", "torch"])
def test_code_in_a_file_is_never_run(form: str, tmp_path: Path) -> None:
    target, path = tmp_path / "made-by-the-file", tmp_path / "hostile.pth"
    document = {"model": {"net._fc.weight": Hostile(target)}}
    if form == "pickle":
        path.write_bytes(pickle.dumps(document, protocol=2))
    else:
        torch.save(document, path)

    done = run("import-checkpoint", path, "--out", tmp_path / "a.safetensors")

    assert done.exit_code == 2
    assert not target.exists()
    assert not (tmp_path / "a.safetensors").exists()
    assert "mkdir" in done.stderr
    assert "nothing was run" in done.stderr
    torch.load(path, weights_only=False) if form == "torch" else pickle.loads(path.read_bytes())
    assert target.is_dir(), "the file is not hostile, so the test proves nothing"


def changed(state: State, **changes: Tensor | None) -> State:
    state = {**state, **{name.replace("__", "."): each for name, each in changes.items() if each is not None}}
    return {name: each for name, each in state.items() if changes.get(name.replace(".", "__"), each) is not None}


def resnet() -> State:
    return timm.create_model("resnet10t", num_classes=2).state_dict()


def b0() -> State:
    return {f"net.{name}": each for name, each in EfficientNet.from_name("efficientnet-b0").state_dict().items()}


def imagenet(state: State) -> State:
    return changed(state, net___fc__weight=torch.zeros(1000, 1792), net___fc__bias=torch.zeros(1000))


def with_other_layers(state: State) -> State:
    stem = torch.zeros(48, 1, 3, 3)
    return changed(state, net___conv_stem__weight=stem, net___bn1__bias=None, net__attconv__weight=torch.zeros(1))


def with_odd_values(state: State) -> State:
    bias, variances = torch.tensor([0.0, np.nan]), -torch.ones(1792)
    return changed(state, net___fc__bias=bias, net___bn1__running_var=variances, net___bn1__bias=torch.ones(1792).int())


FOUND: dict[str, tuple[Callable[[State], object], tuple[str, ...]]] = {
    "a ResNet": (lambda state: resnet(), ("found a ResNet with",)),
    "a B0": (lambda state: b0(), ("found an EfficientNet-B0",)),
    "other layers": (
        with_other_layers,
        (
            "net._conv_stem.weight is (48, 1, 3, 3) instead of (48, 3, 3, 3)",
            "net._bn1.bias is missing",
            "net.attconv.weight is unknown",
            "found an EfficientNet-B4",
        ),
    ),
    "odd values": (
        with_odd_values,
        (
            "net._bn1.bias contains values that are not finite numbers",
            "net._bn1.running_var contains negative variances",
            "net._fc.bias contains values that are not finite numbers",
        ),
    ),
    "ImageNet's classes": (imagenet, ("1000 classes; a detector has one or two",)),
    "no tensors": (lambda state: {"epoch": 3, "args": ["a"]}, ("no weights, but the keys epoch, args",)),
    "a list": (lambda state: [1, 2], ("no weights, but a list",)),
    "tensors without data": (lambda state: {"conv_stem.weight": torch.zeros(1, device="meta")}, ("no weights",)),
}


@pytest.mark.parametrize("case", FOUND)
def test_other_contents_are_refused_with_what_was_found(case: str, sbi: nn.Module, tmp_path: Path) -> None:
    make, messages = FOUND[case]
    torch.save(make(sbi.state_dict()), tmp_path / "weights.pth")

    done = run("import-checkpoint", tmp_path / "weights.pth", "--out", tmp_path / "a.safetensors")

    assert done.exit_code == 2
    assert [each for each in ("weights.pth", *messages) if each not in done.stderr] == []
    assert not (tmp_path / "a.safetensors").exists()


def test_the_wrong_origin_is_refused(sbi: nn.Module, tmp_path: Path) -> None:
    torch.save(sbi.state_dict(), tmp_path / "weights.pth")
    for layout in ("icpr2020dfdc", "deepfakebench"):
        with pytest.raises(CheckpointError, match=f"does not fit the layout {layout}: .* is missing"):
            small(tmp_path / "weights.pth", tmp_path / "a.safetensors", layout=layout)
    with pytest.raises(ConfigError, match="unknown layout 'sb': use auto, sbi"):
        small(tmp_path / "weights.pth", tmp_path / "a.safetensors", layout="sb")


def test_damaged_files_and_files_of_dfscan_are_refused(tmp_path: Path) -> None:
    whole, out = tmp_path / "whole.pth", tmp_path / "a.safetensors"
    torch.save({"a": torch.zeros(1000)}, whole)
    data = whole.read_bytes()
    tiny = create_untrained(tmp_path / "tiny.safetensors", seed=1, architecture="test_efficientnet", input_size_px=32)
    cases = {
        "half": (data[: len(data) // 2], "damaged"),
        "empty": (b"", "damaged"),
        "text": (b"weights\n" * 9, "damaged"),
        "a pickle of a newer protocol": (pickle.dumps({"a": 1}, protocol=4), "not a file of tensors"),
        "half of a safetensors file": (tiny.path.read_bytes()[:-9], "cannot be read"),
        "own": (tiny.path.read_bytes(), "already; use it with --checkpoint"),
    }
    for name, (content, message) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=message) as error:
            import_weights(tmp_path / name, out)
        assert name in str(error.value)
    os.mkfifo(tmp_path / "fifo")
    for name in ("fifo", "absent", "."):
        with pytest.raises(CheckpointError, match="no such file"):
            import_weights(tmp_path / name, out)
    assert not out.exists()


def test_an_existing_file_is_kept_without_force(untrained: Path, tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("kept")
    for command in (("import-checkpoint", tmp_path / "a.pth"), ("export-onnx", untrained)):
        done = run(*command, "--out", tmp_path / "kept")
        assert done.exit_code == 2
        assert "--force" in done.stderr
    assert (tmp_path / "kept").read_text() == "kept"


# Graphs for other programs


def test_an_exported_graph_has_the_card_and_the_logits(untrained: Path, tmp_path: Path) -> None:
    checkpoint = read_card(untrained)

    done = run("export-onnx", untrained, "--out", tmp_path / "a.onnx")

    assert done.exit_code == 0, done.stderr
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx", providers=["CPUExecutionProvider"])
    entries = session.get_modelmeta().custom_metadata_map
    assert CheckpointCard.model_validate_json(entries["dfscan"]) == checkpoint.card
    assert entries["dfscan_checkpoint_sha256"] == checkpoint.sha256
    logits, cam = session.run(["logit", "cam"], {"pixels": self_test_input(checkpoint.card)})
    np.testing.assert_allclose(logits[:, 0], checkpoint.card.self_test.expected_logits, atol=1e-3)
    assert cam.shape == (2, 3, 3)
