"""The detector network: a backbone (EfficientNet-B4 by default), global average pooling and a two-layer head.

This module imports PyTorch; import it only inside functions that need it.
"""

from __future__ import annotations

import math

import timm  # noqa: TID253
import torch  # noqa: TID253
from timm.layers.conv2d_same import Conv2dSame  # noqa: TID253
from timm.models._efficientnet_blocks import DepthwiseSeparableConv, InvertedResidual  # noqa: TID253
from torch import Tensor, nn  # noqa: TID253

from dfscan.errors import CheckpointError

EFFICIENTNETS = ("efficientnet_b0", "efficientnet_b1", "efficientnet_b2", "efficientnet_b3", "efficientnet_b4")
"""The EfficientNet family from smallest to largest. No member is narrower or shallower than its predecessor."""

PADDED_FOR_380 = "tf_efficientnet_b4_pad380"
"""``tf_efficientnet_b4`` as the package efficientnet_pytorch 0.7.1 builds it. Its strided convolutions are padded for
inputs of 380 px, whatever the size of the input; timm pads for the actual size. Both are equal at 380 px only."""
BARE_STEM = f"{PADDED_FOR_380}_bare_stem"
"""The same, but the first convolution has no padding: DeepfakeBench replaces it by a plain one."""

ARCHITECTURES = (
    "efficientnet_b4",
    *EFFICIENTNETS[:-1],
    "tf_efficientnet_b4",
    PADDED_FOR_380,
    BARE_STEM,
    "resnet10t",
    "test_efficientnet",
)
"""Available backbones, the default first. ``efficientnet_b0`` is small, for CPUs and as a first training stage;
``tf_efficientnet_b4`` is a B4 with TensorFlow's padding, of which public weights exist; ``resnet10t`` trains on a CPU
within minutes; ``test_efficientnet`` is a toy model of timm with 0.1 M weights."""


class Head(nn.Sequential):
    """Map pooled features [B, K] to the logit [B, 1]; the layers are in the order of application."""

    def __init__(self, num_features: int, num_hidden: int = 512) -> None:
        super().__init__()
        self.dropout_in = nn.Dropout(0.4)
        self.hidden = nn.Linear(num_features, num_hidden)
        self.norm = nn.BatchNorm1d(num_hidden)
        self.relu = nn.ReLU()
        self.dropout_out = nn.Dropout(0.2)
        self.output = nn.Linear(num_hidden, 1)

    def gradient(self, pooled: Tensor) -> Tensor:
        """Compute the gradient [B, K] of the logit with respect to pooled features [B, K], in eval mode.

        In eval mode, batch norm is a fixed scale and shift. The head is therefore piecewise linear, and its gradient is
        the product of its matrices with the ReLU mask between them.
        """
        gate = (self.norm(self.hidden(pooled)) > 0).to(pooled.dtype)
        assert self.norm.running_var is not None
        scale = self.norm.weight / torch.sqrt(self.norm.running_var + self.norm.eps)
        gradient: Tensor = (gate * (self.output.weight * scale)) @ self.hidden.weight
        return gradient


class DeepfakeDetector(nn.Module):
    """Compute one logit per face: P(fake) = sigmoid(logit).

    The default backbone is timm's EfficientNet (Tan and Le 2019, table 1, scaled to B0 to B4), up to the activation
    after the last convolution.
    """

    def __init__(self, backbone: nn.Module, *, num_features: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = Head(num_features)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits [B, 1] of normalised faces [B, 3, H, W]."""
        logit: Tensor = self.head(self.pooled(x))
        return logit

    def pooled(self, x: Tensor) -> Tensor:
        """Return the pooled features [B, K] of normalised faces [B, 3, H, W], the input of the head."""
        return self._features(x).mean(dim=(2, 3))

    def embed(self, x: Tensor) -> Tensor:
        """Return the hidden features [B, 512] of normalised faces [B, 3, H, W], the input of the head's last layer."""
        hidden = self.pooled(x)
        for layer in list(self.head)[:-1]:
            hidden = layer(hidden)
        return hidden

    def forward_with_cam(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits and Grad-CAM maps of normalised faces [B, 3, H, W]; eval mode only.

        Grad-CAM (Selvaraju et al. 2017, section 3) weights channel k by the mean over positions of
        d logit / d A_k(i, j). Only average pooling and the head follow A, so this derivative is the head's gradient
        divided by h * w at every position. It needs no backward pass, and the same formula works in ONNX.

        Returns:
            The logits [B, 1] and the Grad-CAM maps [B, h, w] of the fake logit on the last feature map, non-negative
            and not normalised (12 x 12 for a face of 380 px).

        Raises:
            RuntimeError: in training mode, where batch norm makes a face's score depend on its batch.
        """
        if self.training:
            raise RuntimeError("Grad-CAM needs eval mode: call network.eval() first")
        features = self._features(x).float()
        with torch.autocast(x.device.type, enabled=False):  # float16 represents a logit of 70 only to 0.06
            pooled = features.mean(dim=(2, 3))
            channel_weights = self.head.gradient(pooled) / (features.shape[2] * features.shape[3])
            cam = (channel_weights[:, :, None, None] * features).sum(dim=1).relu()
            return self.head(pooled), cam

    def _features(self, x: Tensor) -> Tensor:
        features: Tensor = self.backbone.forward_features(x)  # type: ignore[operator]
        return features


class DetectorWithCam(nn.Module):
    """A wrapper for the ONNX export whose forward is `DeepfakeDetector.forward_with_cam`."""

    def __init__(self, network: DeepfakeDetector) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Call `DeepfakeDetector.forward_with_cam`."""
        return self.network.forward_with_cam(x)


def create_network(
    architecture: str = ARCHITECTURES[0], *, pretrained: bool = False, seed: int | None = None
) -> DeepfakeDetector:
    """Build a network with new weights, in training mode.

    Args:
        architecture: one of `ARCHITECTURES`.
        pretrained: start the backbone from timm's ImageNet weights, downloaded unless they are cached.
        seed: makes the new weights reproducible; the global random state is not changed.

    Raises:
        CheckpointError: for an unknown architecture, or if the ImageNet weights are not available.
    """
    if architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise CheckpointError(f"unknown architecture {architecture!r}: this version of dfscan supports {known}")
    name = "tf_efficientnet_b4" if architecture in (PADDED_FOR_380, BARE_STEM) else architecture
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        try:
            backbone: nn.Module = timm.create_model(name, pretrained=pretrained, num_classes=0, global_pool="")
        except Exception as error:  # the Hugging Face client raises the errors of its HTTP library
            if not pretrained:
                raise
            raise CheckpointError(
                f"the ImageNet weights of {architecture} are not available ({error}): connect to the internet once to "
                "cache them, or start from random weights with --no-pretrained"
            ) from error
        if name != architecture:
            _pad_for_380(backbone, has_bare_stem=architecture == BARE_STEM)
        return DeepfakeDetector(backbone, num_features=backbone.num_features)  # type: ignore[arg-type]


def start_shallow(backbone: nn.Module) -> None:
    """Zero the last scale of every residual branch, so that only blocks without a skip connection act at first.

    A deep network with random weights then learns from the start, and its branches gradually become active. Source:
    Goyal et al. 2017, section 5.1. timm does the same for its ResNets.
    """
    for block in backbone.modules():
        if isinstance(block, (InvertedResidual, DepthwiseSeparableConv)) and block.has_skip:
            make_identity(block)


def make_identity(block: nn.Module) -> None:
    """Zero the last norm of a block with a skip connection, so that the block initially returns its input.

    Args:
        block: a timm `InvertedResidual` or `DepthwiseSeparableConv`.
    """
    last = block.bn3 if isinstance(block, InvertedResidual) else block.bn2
    nn.init.zeros_(last.weight)  # type: ignore[arg-type, union-attr]
    nn.init.zeros_(last.bias)  # type: ignore[arg-type, union-attr]


class _PaddedConv2d(nn.Conv2d):
    """A convolution with the weights of another one and a fixed number of zeros on each side of its input."""

    def __init__(self, conv: nn.Conv2d, *, before: int, after: int) -> None:
        side_px, stride, groups = conv.kernel_size, conv.stride, conv.groups
        super().__init__(conv.in_channels, conv.out_channels, side_px, stride, groups=groups, bias=False)  # type: ignore[arg-type]
        self.weight = conv.weight
        self.zeros = (before, after, before, after)

    def forward(self, x: Tensor) -> Tensor:
        """Pad and convolve."""
        return super().forward(nn.functional.pad(x, self.zeros))


def _pad_for_380(backbone: nn.Module, *, has_bare_stem: bool) -> None:
    """Replace TensorFlow's padding, which depends on the input's size, by that of an input of 380 px."""
    side_px = 380
    for name, conv in list(backbone.named_modules()):
        if isinstance(conv, Conv2dSame):  # exactly the convolutions with a stride of 2
            halved_px = math.ceil(side_px / 2)
            total = 0 if has_bare_stem and name == "conv_stem" else (halved_px - 1) * 2 + conv.kernel_size[0] - side_px
            backbone.set_submodule(name, _PaddedConv2d(conv, before=total // 2, after=total - total // 2))
            side_px = halved_px
