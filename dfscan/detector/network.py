"""The network: a backbone, by default EfficientNet-B4, global average pooling and a two-layer head.

This module is PyTorch's own: import it only inside functions that need it.
"""

from __future__ import annotations

import timm  # noqa: TID253
import torch  # noqa: TID253
from timm.models._efficientnet_blocks import DepthwiseSeparableConv, InvertedResidual  # noqa: TID253
from torch import Tensor, nn  # noqa: TID253

from dfscan.errors import CheckpointError

EFFICIENTNETS = ("efficientnet_b0", "efficientnet_b1", "efficientnet_b2", "efficientnet_b3", "efficientnet_b4")
"""The EfficientNet family, smallest first. No member is narrower or shallower than the one before it."""

ARCHITECTURES = ("efficientnet_b4", *EFFICIENTNETS[:-1], "resnet10t", "test_efficientnet")
"""Backbones to choose from, the default first. ``efficientnet_b0`` is small, for CPUs and as a first stage;
``resnet10t`` learns on a CPU within minutes; ``test_efficientnet`` is timm's toy of 0.1 M weights."""


class Head(nn.Sequential):
    """From pooled features [B, K] to the logit [B, 1]; the layers in the order in which they apply."""

    def __init__(self, num_features: int, num_hidden: int = 512) -> None:
        super().__init__()
        self.dropout_in = nn.Dropout(0.4)
        self.hidden = nn.Linear(num_features, num_hidden)
        self.norm = nn.BatchNorm1d(num_hidden)
        self.relu = nn.ReLU()
        self.dropout_out = nn.Dropout(0.2)
        self.output = nn.Linear(num_hidden, 1)

    def gradient(self, pooled: Tensor) -> Tensor:
        """The logit's gradient with respect to the pooled features, [B, K] to [B, K], in eval mode.

        In eval mode batch norm is a fixed scale and shift, so the head is piecewise linear and the gradient is
        the product of its matrices with the ReLU's gate between them.
        """
        gate = (self.norm(self.hidden(pooled)) > 0).to(pooled.dtype)
        assert self.norm.running_var is not None
        scale = self.norm.weight / torch.sqrt(self.norm.running_var + self.norm.eps)
        gradient: Tensor = (gate * (self.output.weight * scale)) @ self.hidden.weight
        return gradient


class DeepfakeDetector(nn.Module):
    """Gives one logit for each face: P(fake) = sigmoid(logit).

    The backbone is EfficientNet (Tan and Le 2019, table 1, scaled to B0 to B4) as timm builds it, up to the activation
    after its last convolution.
    """

    def __init__(self, backbone: nn.Module, *, num_features: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = Head(num_features)

    def forward(self, x: Tensor) -> Tensor:
        """Score normalised faces [B, 3, H, W]: the logit [B, 1]."""
        logit: Tensor = self.head(self._features(x).mean(dim=(2, 3)))
        return logit

    def embed(self, x: Tensor) -> Tensor:
        """Hidden features [B, 512] of normalised faces [B, 3, H, W]: what the head's last layer sees."""
        hidden: Tensor = self._features(x).mean(dim=(2, 3))
        for layer in list(self.head)[:-1]:
            hidden = layer(hidden)
        return hidden

    def forward_with_cam(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Score normalised faces [B, 3, H, W] and tell where the network looked; eval mode only.

        Returns:
            The logit [B, 1], and Grad-CAM of the fake logit on the last feature map, [B, h, w], at least 0 and
            not normalised (12 x 12 for a face of 380 px).

        Raises:
            RuntimeError: in training mode, where batch norm ties the faces of a batch together.

        Selvaraju et al. 2017, section 3: channel k weighs the mean over positions of d logit / d A_k(i, j). Only
        the average pooling and the head follow A, so that derivative is the head's gradient over h * w at every
        position: no backward pass is needed, and the same formula runs in ONNX.
        """
        if self.training:
            raise RuntimeError("Grad-CAM needs eval mode: call network.eval() first")
        features = self._features(x).float()
        with torch.autocast(x.device.type, enabled=False):  # a logit of 70 is known to 0.06 in float16
            pooled = features.mean(dim=(2, 3))
            channel_weights = self.head.gradient(pooled) / (features.shape[2] * features.shape[3])
            cam = (channel_weights[:, :, None, None] * features).sum(dim=1).relu()
            return self.head(pooled), cam

    def _features(self, x: Tensor) -> Tensor:
        features: Tensor = self.backbone.forward_features(x)  # type: ignore[operator]
        return features


class DetectorWithCam(nn.Module):
    """The same network with `forward_with_cam` as its forward: what is exported."""

    def __init__(self, network: DeepfakeDetector) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """As `DeepfakeDetector.forward_with_cam`."""
        return self.network.forward_with_cam(x)


def create_network(
    architecture: str = ARCHITECTURES[0], *, pretrained: bool = False, seed: int | None = None
) -> DeepfakeDetector:
    """Build a network with new weights, in training mode.

    Args:
        architecture: one of `ARCHITECTURES`.
        pretrained: start the backbone from timm's ImageNet weights, which are fetched unless they are cached.
        seed: makes the new weights reproducible; the global random state stays as it was.

    Raises:
        CheckpointError: for an unknown architecture, or when the ImageNet weights cannot be had.
    """
    if architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise CheckpointError(f"unknown architecture {architecture!r}: this dfscan knows {known}")
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        backbone = _create_backbone(architecture, pretrained=pretrained)
        return DeepfakeDetector(backbone, num_features=backbone.num_features)  # type: ignore[arg-type]


def start_shallow(backbone: nn.Module) -> None:
    """Zero the last scale of every residual branch, so that a new backbone starts as its few blocks without a skip.

    A deep network with random weights then learns at once; its branches come in as they find something to add. Source:
    Goyal et al. 2017, section 5.1. timm does the same to its ResNets.
    """
    for block in backbone.modules():
        if isinstance(block, (InvertedResidual, DepthwiseSeparableConv)) and block.has_skip:
            make_identity(block)


def make_identity(block: nn.Module) -> None:
    """Zero the last norm of a block that has a skip: the block then returns its input and learns from there.

    Args:
        block: timm's `InvertedResidual` or `DepthwiseSeparableConv`.
    """
    last = block.bn3 if isinstance(block, InvertedResidual) else block.bn2
    nn.init.zeros_(last.weight)  # type: ignore[arg-type, union-attr]
    nn.init.zeros_(last.bias)  # type: ignore[arg-type, union-attr]


def _create_backbone(architecture: str, *, pretrained: bool) -> nn.Module:
    try:
        backbone: nn.Module = timm.create_model(architecture, pretrained=pretrained, num_classes=0, global_pool="")
    except Exception as error:  # the hub's client raises those of whatever HTTP library it uses
        if not pretrained:
            raise
        raise CheckpointError(
            f"the ImageNet weights of {architecture} cannot be had ({error}): connect once so that they are "
            "cached, or start from random weights with --no-pretrained"
        ) from error
    return backbone
