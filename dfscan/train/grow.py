"""Grow an EfficientNet detector: build a larger network that gives the same logits as the smaller one.

The method is Net2Net (Chen, Goodfellow and Shlens 2016, "Net2Net: Accelerating Learning via Knowledge Transfer",
sections 2.2 and 2.3). To widen a layer, every new channel copies an old one, and the layers that read it divide their
weights among the copies. To deepen a stage, every added block starts as the identity.

This module imports PyTorch: import it only inside functions that need it.
"""

from __future__ import annotations

from typing import Any

import torch  # noqa: TID253
from torch import Tensor, nn  # noqa: TID253

from dfscan.detector.network import EFFICIENTNETS, DeepfakeDetector, create_network, make_identity
from dfscan.errors import CheckpointError


def grow(small: DeepfakeDetector, *, source: str, target: str, seed: int) -> DeepfakeDetector:
    """Build a larger detector that gives the same logits, in eval mode and, without dropout, in training mode.

    Args:
        small: the trained detector; not modified.
        source: architecture of `small`, one of `EFFICIENTNETS`.
        target: architecture to build, of the same family and not smaller.
        seed: seed of the choice of copied channels, the division of weights, and the inner weights of added blocks.

    Returns:
        The grown detector, in training mode, on the CPU.

    Raises:
        CheckpointError: an architecture is not an EfficientNet, or the target is smaller than the source.
    """
    if source not in EFFICIENTNETS:
        raise CheckpointError(f"{source} cannot be grown; give a checkpoint of one of {', '.join(EFFICIENTNETS)}")
    larger = EFFICIENTNETS[EFFICIENTNETS.index(source) :]
    if target not in larger:
        raise CheckpointError(f"{source} cannot be grown to {target}; give --architecture {' or '.join(larger)}")
    large = create_network(target, seed=seed)
    widening = _Widening(seed)
    old: Any = small.backbone
    new: Any = large.backbone
    with torch.no_grad():
        inputs = widening.choose(old.conv_stem.out_channels, new.conv_stem.out_channels)
        _copy(old.conv_stem, new.conv_stem, inputs)
        _copy_norm(old.bn1, new.bn1, inputs)
        for old_blocks, new_blocks in zip(old.blocks, new.blocks, strict=True):
            outputs = widening.choose(_width(old_blocks), _width(new_blocks))
            for old_block, new_block in zip(old_blocks, new_blocks, strict=False):
                widening.grow_block(old_block, new_block, inputs, outputs)
                inputs = outputs  # residual connections add the blocks' outputs, so all blocks share one choice
            for added in new_blocks[len(old_blocks) :]:
                make_identity(added)
        features = widening.choose(old.conv_head.out_channels, new.conv_head.out_channels)
        widening.divide(old.conv_head, new.conv_head, rows=features, columns=inputs)
        _copy_norm(old.bn2, new.bn2, features)
        large.head.load_state_dict({**small.head.state_dict(), "hidden.weight": large.head.hidden.weight})
        hidden = torch.arange(small.head.hidden.out_features)
        widening.divide(small.head.hidden, large.head.hidden, rows=hidden, columns=features)
    return large


def _width(blocks: nn.Sequential) -> int:
    """Return the output channels of the last block."""
    last: Any = blocks[-1]
    return int(last.conv_pwl.out_channels if hasattr(last, "conv_pwl") else last.conv_pw.out_channels)


class _Widening:
    """Draws which channels are copied and how weights are divided among the copies."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def choose(self, num_old: int, num_new: int) -> Tensor:
        """Choose the old channel that each new channel copies: int64 [num_new].

        The first `num_old` channels copy the old ones in order; the rest are spread evenly over the old channels.
        """
        rounds = [torch.arange(num_old)]
        while len(rounds) * num_old < num_new:
            rounds.append(torch.randperm(num_old, generator=self._generator))
        return torch.cat(rounds)[:num_new]

    def divide(self, old: Any, new: Any, *, rows: Tensor, columns: Tensor) -> None:
        """Fill a linear layer or convolution whose inputs are copies; each copy gets a random fraction of the weight.

        The fractions of all copies of an input sum to 1. They are drawn separately for every output. With the same
        fractions for all outputs, the gradients of two copies would differ only by a factor, which Adam ignores.

        Args:
            old: the layer to copy from, with weight [O, I, ...].
            new: the layer to fill.
            rows: old output that each new output copies, [O'].
            columns: old input that each new input copies, [I'].
        """
        fractions = torch.rand(len(rows), len(columns), generator=self._generator) + 0.5
        totals = torch.zeros(len(rows), old.weight.shape[1]).index_add_(1, columns, fractions)
        fractions /= totals[:, columns]
        weight = old.weight[rows][:, columns]
        new.weight.copy_(weight * fractions.reshape(fractions.shape + (1,) * (weight.ndim - 2)))
        if old.bias is not None:
            new.bias.copy_(old.bias[rows])

    def grow_block(self, old: Any, new: Any, inputs: Tensor, outputs: Tensor) -> None:
        """Fill timm's `InvertedResidual` or `DepthwiseSeparableConv` from a narrower one."""
        if hasattr(old, "conv_pwl"):
            hidden = self.choose(old.conv_pw.out_channels, new.conv_pw.out_channels)
            self.divide(old.conv_pw, new.conv_pw, rows=hidden, columns=inputs)
            _copy_norm(old.bn1, new.bn1, hidden)
            _copy(old.conv_dw, new.conv_dw, hidden)
            _copy_norm(old.bn2, new.bn2, hidden)
            self._grow_excitation(old.se, new.se, hidden)
            self.divide(old.conv_pwl, new.conv_pwl, rows=outputs, columns=hidden)
            _copy_norm(old.bn3, new.bn3, outputs)
        else:
            _copy(old.conv_dw, new.conv_dw, inputs)
            _copy_norm(old.bn1, new.bn1, inputs)
            self._grow_excitation(old.se, new.se, inputs)
            self.divide(old.conv_pw, new.conv_pw, rows=outputs, columns=inputs)
            _copy_norm(old.bn2, new.bn2, outputs)

    def _grow_excitation(self, old: Any, new: Any, channels: Tensor) -> None:
        units = self.choose(old.conv_reduce.out_channels, new.conv_reduce.out_channels)
        self.divide(old.conv_reduce, new.conv_reduce, rows=units, columns=channels)
        self.divide(old.conv_expand, new.conv_expand, rows=channels, columns=units)


def _copy(old: Any, new: Any, channels: Tensor) -> None:
    """Copy the filters of a depthwise convolution, or of one whose inputs are not widened."""
    new.weight.copy_(old.weight[channels])


def _copy_norm(old: Any, new: Any, channels: Tensor) -> None:
    """Copy a batch norm's scale, shift and running statistics."""
    for name in ("weight", "bias", "running_mean", "running_var"):
        getattr(new, name).copy_(getattr(old, name)[channels])
    new.num_batches_tracked.copy_(old.num_batches_tracked)
