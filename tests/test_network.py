"""The network compared with its specification layer by layer, and Grad-CAM with automatic differentiation."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from dfscan.detector import network as network_module
from dfscan.detector.network import ARCHITECTURES, DeepfakeDetector, create_network
from dfscan.errors import CheckpointError

# Channels and side length for an input of 380 px: stem, seven stages, head convolution.
STAGES = [(48, 190), (24, 190), (32, 95), (56, 48), (112, 24), (160, 24), (272, 12), (448, 12), (1792, 12)]


@pytest.fixture(scope="module")
def b4() -> DeepfakeDetector:
    return create_network(seed=1).eval()


def shapes_at_380_px(network: DeepfakeDetector) -> Iterator[tuple[int, ...]]:
    backbone, shapes = network.backbone, []
    parts = [backbone.conv_stem, *backbone.blocks, backbone.conv_head]
    hooks = [part.register_forward_hook(lambda *args: shapes.append(tuple(args[2].shape))) for part in parts]
    with torch.inference_mode():
        shapes.append(tuple(network(torch.zeros(1, 3, 380, 380)).shape))
    for hook in hooks:
        hook.remove()
    return iter(shapes)


def test_feature_maps_of_every_stage(b4: DeepfakeDetector) -> None:
    *maps, logit = shapes_at_380_px(b4)

    assert maps == [(1, channels, side, side) for channels, side in STAGES]
    assert logit == (1, 1)


def test_layers_of_the_head(b4: DeepfakeDetector) -> None:
    layers = list(b4.head)

    kinds = [nn.Dropout, nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Dropout, nn.Linear]
    assert [type(layer) for layer in layers] == kinds
    assert [layers[0].p, layers[4].p] == [0.4, 0.2]
    assert [(layers[i].in_features, layers[i].out_features) for i in (1, 5)] == [(1792, 512), (512, 1)]
    assert layers[2].num_features == 512


def test_number_of_weights(b4: DeepfakeDetector) -> None:
    num_backbone = sum(p.numel() for p in b4.backbone.parameters())
    num_head = sum(p.numel() for p in b4.head.parameters())

    assert num_backbone == 17_548_616  # timm's efficientnet_b4 (19.34 M) without its classifier of 1793 x 1000
    assert num_head == 1793 * 512 + 2 * 512 + 513


def test_backbone_has_no_classifier(b4: DeepfakeDetector) -> None:
    assert not list(b4.backbone.classifier.parameters())
    assert all(rate.p == 0 for rate in b4.backbone.modules() if isinstance(rate, nn.Dropout))


def test_pooling_is_the_global_average(b4: DeepfakeDetector) -> None:
    x = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        pooled = nn.functional.adaptive_avg_pool2d(b4.backbone.forward_features(x), 1).flatten(1)
        expected = b4.head(pooled)
        got = b4(x)

    torch.testing.assert_close(got, expected)


def with_lively_norms(network: DeepfakeDetector) -> DeepfakeDetector:
    """Move statistics and affine weights away from their initial 0 and 1, so that omitting one changes the result."""
    generator = torch.Generator().manual_seed(3)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            for tensor, low in (
                (module.weight.data, 0.5),
                (module.bias.data, -0.5),
                (module.running_mean, -0.5),
                (module.running_var, 0.5),
            ):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + low)
    return network.eval()


def grad_cam_by_autograd(network: DeepfakeDetector, x: Tensor) -> Tensor:
    """Compute Grad-CAM directly from Selvaraju et al. 2017, equations 1 and 2."""
    kept: list[Tensor] = []
    part = network.backbone.bn2
    hook = part.register_forward_hook(lambda *args: (args[2].retain_grad(), kept.append(args[2]))[0])
    network(x).sum().backward()
    hook.remove()
    (maps,) = kept
    alpha = maps.grad.mean(dim=(2, 3), keepdim=True)
    return torch.relu((alpha * maps.detach()).sum(dim=1))


@pytest.mark.parametrize(
    ("architecture", "side_px"), [("test_efficientnet", 160), ("efficientnet_b0", 64), ("efficientnet_b4", 96)]
)
def test_grad_cam_equals_automatic_differentiation(architecture: str, side_px: int) -> None:
    network = with_lively_norms(create_network(architecture, seed=2))
    x = torch.rand(3, 3, side_px, side_px, generator=torch.Generator().manual_seed(4))

    expected = grad_cam_by_autograd(network, x)
    with torch.inference_mode():
        logit, cam = network.forward_with_cam(x)
        plain = network(x)

    assert expected.max() > 0
    torch.testing.assert_close(cam, expected, rtol=1e-3, atol=1e-4 * float(expected.max()))
    torch.testing.assert_close(logit, plain)


def test_grad_cam_refuses_training_mode() -> None:
    with pytest.raises(RuntimeError, match="eval"):
        create_network("test_efficientnet").train().forward_with_cam(torch.zeros(2, 3, 64, 64))


def test_the_seed_determines_the_weights_and_keeps_the_global_state() -> None:
    before = torch.random.get_rng_state()
    first, second, other = (create_network("test_efficientnet", seed=seed).state_dict() for seed in (5, 5, 6))

    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["head.hidden.weight"], other["head.hidden.weight"])


def test_an_unknown_architecture_lists_the_supported_ones() -> None:
    with pytest.raises(CheckpointError, match="resnet50") as error:
        create_network("resnet50")
    assert all(name in str(error.value) for name in ARCHITECTURES)


def test_unavailable_pretrained_weights_suggest_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: object, **kwargs: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(network_module.timm, "create_model", unreachable)
    with pytest.raises(CheckpointError, match=r"no route to host.*--no-pretrained"):
        create_network(pretrained=True)
