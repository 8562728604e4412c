"""Training loss: a weighted sum of binary cross-entropy and focal loss, computed from logits.

This module imports PyTorch: import it only inside functions that need it.
"""

from __future__ import annotations

from torch import Tensor  # noqa: TID253
from torch.nn import functional  # noqa: TID253

from dfscan.train.settings import TrainSettings


def detection_loss(logits: Tensor, is_fake: Tensor, settings: TrainSettings) -> Tensor:
    """Compute the mean loss of a batch, a scalar in fp32.

    Args:
        logits: [B, 1] or [B], any float type.
        is_fake: [B], 1 for fake and 0 for real.
        settings: weights of both losses, and alpha and gamma of the focal loss.
    """
    logits = logits.flatten().float()
    is_fake = is_fake.to(logits)
    cross_entropy = functional.binary_cross_entropy_with_logits(logits, is_fake, reduction="none")
    focal = focal_loss(logits, is_fake, settings, cross_entropy=cross_entropy)
    return (settings.bce_weight * cross_entropy + settings.focal_weight * focal).mean()


def focal_loss(logits: Tensor, is_fake: Tensor, settings: TrainSettings, *, cross_entropy: Tensor) -> Tensor:
    """Compute the focal loss of each face [B] (Lin et al. 2017, "Focal Loss for Dense Object Detection", section 3.2).

    The loss is ``-alpha (1 - p_t)^gamma log(p_t)``, with log(p_t) = -cross-entropy. 1 - p_t is computed as the sigmoid
    of the logit with its sign flipped for fakes, which avoids cancellation where p_t is close to 1.
    """
    wrong = (logits * (1 - 2 * is_fake)).sigmoid()
    alpha = settings.focal_alpha
    weight = alpha * is_fake + (1 - alpha) * (1 - is_fake) if settings.focal_balanced else alpha
    return weight * wrong**settings.focal_gamma * cross_entropy
