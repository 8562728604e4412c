"""Optimiser, learning rate schedule and weight averaging.

This module imports PyTorch: import it only inside functions that need it.
"""

from __future__ import annotations

import torch  # noqa: TID253
from torch import Tensor, nn  # noqa: TID253
from torch.optim import AdamW  # noqa: TID253
from torch.optim.lr_scheduler import OneCycleLR  # noqa: TID253

from dfscan.detector.network import DeepfakeDetector
from dfscan.train.settings import TrainSettings

MIN_WARMUP_STEPS = 2
"""OneCycleLR divides by the number of warm-up steps less one."""


def create_optimizer(network: DeepfakeDetector, settings: TrainSettings, kind_output: nn.Module | None = None) -> AdamW:
    """Create AdamW (Loshchilov and Hutter 2019) with two groups: ``head`` (with the second output) and ``backbone``."""
    head = [*network.head.parameters(), *(kind_output.parameters() if kind_output else ())]
    groups = [
        {"name": "head", "params": head, "lr": settings.lr_head},
        {"name": "backbone", "params": list(network.backbone.parameters()), "lr": settings.lr_backbone},
    ]
    return AdamW(groups, weight_decay=settings.weight_decay)


def create_schedule(optimizer: AdamW, settings: TrainSettings, *, num_steps: int) -> OneCycleLR:
    """Create a one-cycle schedule (Smith and Topin 2018) with cosine warm-up and decay; betas are constant.

    Args:
        optimizer: from `create_optimizer`.
        settings: maximum learning rates and the proportion of warm-up steps.
        num_steps: optimiser steps of the whole run, at least 1.
    """
    num_steps = max(num_steps, MIN_WARMUP_STEPS + 1)
    return OneCycleLR(
        optimizer,
        max_lr=[settings.lr_head, settings.lr_backbone],
        total_steps=num_steps,
        pct_start=max(settings.warmup, MIN_WARMUP_STEPS / num_steps),
        anneal_strategy="cos",
        cycle_momentum=False,
    )


def update_average(average: nn.Module, network: nn.Module, *, decay: float, steps_done: int) -> None:
    """Update an exponential moving average of a network's weights and batch norm statistics.

    The average follows Tarvainen and Valpola 2017, "Mean teachers are better role models", equation 1. The decay is
    lower in the first steps, so that the initial random weights do not persist.

    Args:
        average: network of the same architecture; updated in place.
        network: the trained network, just after an optimiser step.
        decay: decay of the average in (0, 1), reached after the first steps.
        steps_done: optimiser steps before this one.
    """
    weight = 1 - min(decay, (1 + steps_done) / (10 + steps_done))
    with torch.no_grad():
        pairs = list(zip(average.state_dict().values(), network.state_dict().values(), strict=True))
        floats: list[tuple[Tensor, Tensor]] = [pair for pair in pairs if pair[0].is_floating_point()]
        # One launch for all tensors: on a GPU, hundreds of small launches would take longer than the training step.
        torch._foreach_lerp_([mine for mine, _ in floats], [theirs for _, theirs in floats], weight)
        for mine, theirs in pairs:
            if not mine.is_floating_point():
                mine.copy_(theirs)
