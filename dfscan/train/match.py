"""Feature distillation: restore ImageNet features after the conversion from EfficientNet-Lite.

`lite.start_from_lite` copies weights, but SiLU differs from ReLU6 and timm's padding from TensorFlow's. The copy is
therefore first trained to give the original's features on faces (Hinton et al. 2015, "Distilling the Knowledge in a
Neural Network"; Romero et al. 2015, "FitNets", section 2).

This module imports PyTorch: import it only inside functions that need it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch  # noqa: TID253
from torch import Tensor, nn  # noqa: TID253
from torch.nn import functional  # noqa: TID253
from torch.optim import AdamW  # noqa: TID253
from torch.optim.lr_scheduler import OneCycleLR  # noqa: TID253

from dfscan.detector.network import DeepfakeDetector
from dfscan.detector.preprocess import Preprocessing
from dfscan.train.dataset import Faces
from dfscan.train.lite import LITE_MEAN, LITE_STD, SHARPNESS
from dfscan.train.validation import normalised

MATCH_LEARNING_RATE = 1e-3
GRID_SHIFT_PX = 31
"""Shift of the last features' centres by TensorFlow's padding, to the right and down, compared with timm's networks."""
NUM_REPORTS = 4


def match_features(
    network: DeepfakeDetector,
    teacher: nn.Module,
    batches: Iterable[Faces],
    *,
    num_batches: int,
    precision: torch.dtype,
    tell: Callable[[str], None],
) -> None:
    """Train a backbone to give the last features of an EfficientNet-Lite.

    Args:
        network: converted from `teacher`; its backbone is trained in place, on its current device.
        teacher: EfficientNet-Lite with TensorFlow's padding and its own normalisation.
        batches: batches of faces.
        num_batches: number of batches, which is the length of the learning rate schedule.
        precision: precision of the forward passes; float32 disables autocast.
        tell: called at intervals with the explained variance of the teacher's features.
    """
    device = next(network.parameters()).device
    teacher = teacher.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    optimizer = AdamW(network.backbone.parameters(), lr=MATCH_LEARNING_RATE)
    schedule = OneCycleLR(optimizer, MATCH_LEARNING_RATE, total_steps=max(num_batches, 3), cycle_momentum=False)
    of_teacher = Preprocessing(mean=(LITE_MEAN,) * 3, std=(LITE_STD,) * 3)
    network.train()
    for number, faces in enumerate(batches, 1):
        with torch.autocast(device.type, precision, enabled=precision != torch.float32):
            with torch.no_grad():
                x = normalised(faces, of_teacher, device)
                # Shift the content right and down, so that the features of both networks are aligned.
                shifted = functional.pad(x, (GRID_SHIFT_PX, 0, GRID_SHIFT_PX, 0), mode="reflect")
                wanted = _features(teacher, shifted[:, :, : x.shape[2], : x.shape[3]])
            features = _features(network.backbone, normalised(faces, Preprocessing(), device))
        # A wider last layer starts with repeated channels, so only the first ones are compared.
        features = features.float()[:, : wanted.shape[1]] / SHARPNESS
        error = functional.mse_loss(features, wanted.float()) / wanted.float().var()
        error.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        if number % max(1, num_batches // NUM_REPORTS) == 0:
            tell(f"batch {number} of {num_batches}: {1 - error.item():.0%} of the features' variance matched")


def _features(network: Any, x: Tensor) -> Tensor:
    features: Tensor = network.forward_features(x)
    return features
