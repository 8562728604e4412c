"""The optimiser and its schedule. This module is PyTorch's own: import it only inside functions that need it."""

from __future__ import annotations

from torch.optim import AdamW  # noqa: TID253
from torch.optim.lr_scheduler import OneCycleLR  # noqa: TID253

from dfscan.detector.network import DeepfakeDetector
from dfscan.train.settings import TrainSettings

MIN_WARMUP_STEPS = 2
"""OneCycleLR divides by the number of warm-up steps less one."""


def create_optimizer(network: DeepfakeDetector, settings: TrainSettings) -> AdamW:
    """AdamW (Loshchilov and Hutter 2019) with two groups: ``head``, then ``backbone``."""
    groups = [
        {"name": "head", "params": list(network.head.parameters()), "lr": settings.lr_head},
        {"name": "backbone", "params": list(network.backbone.parameters()), "lr": settings.lr_backbone},
    ]
    return AdamW(groups, weight_decay=settings.weight_decay)


def create_schedule(optimizer: AdamW, settings: TrainSettings, *, num_steps: int) -> OneCycleLR:
    """One cycle over all optimiser steps (Smith and Topin 2018): a cosine up, a cosine down; betas stay.

    Args:
        optimizer: from `create_optimizer`.
        settings: the highest rates and the share of steps in which they are reached.
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
