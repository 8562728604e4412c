"""A grown network gives the same logits as the small one, and can train all of its channels."""

import pytest
import torch
from torch import Tensor, nn

from dfscan.detector.network import DeepfakeDetector, create_network
from dfscan.errors import CheckpointError
from dfscan.train.grow import grow
from tests.test_network import with_lively_norms

PAIRS = [
    ("efficientnet_b0", "efficientnet_b4"),
    ("efficientnet_b0", "efficientnet_b1"),
    ("efficientnet_b1", "efficientnet_b4"),
]


def trained(architecture: str) -> DeepfakeDetector:
    """Create a network with varied weights and statistics, as after training, and varied logits."""
    network = with_lively_norms(create_network(architecture, seed=1))
    for module in network.backbone.modules():
        if isinstance(module, nn.Conv2d) and module.bias is not None:
            nn.init.uniform_(module.bias, -0.5, 0.5, generator=torch.Generator().manual_seed(5))
    return network


def faces(num_faces: int = 4, size_px: int = 96) -> Tensor:
    return torch.randn(num_faces, 3, size_px, size_px, generator=torch.Generator().manual_seed(2))


def without_dropout(network: DeepfakeDetector) -> DeepfakeDetector:
    network.train()
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return network


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_logits_stay_the_same_in_both_modes(source: str, target: str) -> None:
    small = trained(source)
    large = grow(small, source=source, target=target, seed=0)
    assert large.training
    with torch.no_grad():
        expected, got = small.eval()(faces()), large.eval()(faces())
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)
        expected, got = without_dropout(small)(faces()), without_dropout(large)(faces())
    assert expected.std() > 0.01
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-3)


def test_every_channel_has_the_statistics_of_the_channel_it_copies() -> None:
    small = trained("efficientnet_b0")
    large = grow(small, source="efficientnet_b0", target="efficientnet_b4", seed=0)
    for old, new in ((small.backbone.bn1, large.backbone.bn1), (small.backbone.bn2, large.backbone.bn2)):
        for name in ("running_mean", "running_var", "weight", "bias"):
            before, after = getattr(old, name), getattr(new, name)
            torch.testing.assert_close(after[: len(before)], before)
            assert set(after.tolist()) == set(before.tolist())
    torch.testing.assert_close(large.head.norm.running_mean, small.head.norm.running_mean)


def test_the_seed_determines_all_weights() -> None:
    small = trained("efficientnet_b0")
    first, again, other = (
        grow(small, source="efficientnet_b0", target="efficientnet_b2", seed=seed).state_dict() for seed in (0, 0, 1)
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    name = "backbone.conv_head.weight"
    assert not torch.equal(first[name], other[name])


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_copies_of_a_channel_differ_after_the_first_step(optimizer: type[torch.optim.Optimizer]) -> None:
    small = trained("efficientnet_b0")
    large = grow(small, source="efficientnet_b0", target="efficientnet_b4", seed=0)
    conv = large.backbone.conv_stem  # grown from 32 channels to 48
    originals = conv.weight[:32].detach()
    sources = [int((originals - copy).abs().sum(dim=(1, 2, 3)).argmin()) for copy in conv.weight[32:].detach()]
    assert torch.equal(conv.weight[32:], conv.weight[sources])
    stepper = optimizer(large.parameters(), lr=0.01)
    nn.functional.binary_cross_entropy_with_logits(large(faces()), torch.tensor([[0.0], [1], [0], [1]])).backward()
    stepper.step()
    apart = (conv.weight[32:] - conv.weight[sources]).abs().amax(dim=(1, 2, 3))
    assert (apart > 0).all()


@pytest.mark.parametrize(
    ("source", "target", "words"),
    [
        ("efficientnet_b4", "efficientnet_b0", "efficientnet_b4 cannot be grown to efficientnet_b0.*--architecture"),
        ("efficientnet_b0", "resnet10t", "efficientnet_b0 cannot be grown to resnet10t.*efficientnet_b1"),
        ("test_efficientnet", "efficientnet_b4", "test_efficientnet cannot be grown"),
    ],
)
def test_unsuitable_architectures_are_rejected(source: str, target: str, words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        grow(create_network("test_efficientnet"), source=source, target=target, seed=0)
