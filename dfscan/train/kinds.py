"""Auxiliary classification of the kind of manipulation during training.

Training on several kinds of fakes under a single label can hurt the detection of each (Cheng et al. 2024, "Can We Leave
Deepfake Data Behind in Training Deepfake Detector?", arXiv 2408.17052). A second output therefore classifies the kind
from the same 512 hidden features as the logit. It exists only during training: checkpoints contain only the detector.

This module imports PyTorch: import it only inside functions that need it.
"""

from __future__ import annotations

import torch  # noqa: TID253
from torch import Tensor, nn  # noqa: TID253

from dfscan.detector.network import DeepfakeDetector
from dfscan.forgery.names import ForgeryKind

KIND_CLASSES = ("real", "self-blended", "swapped", "warped", "reconstructed", "lip-sync", "generated")
"""Classes of the second output: real faces, kinds of forgeries, and families of fakes of the data set."""


def kind_class(is_fake: bool, forgery: ForgeryKind | None, manipulation: str) -> int:
    """Return the index of a face's class in `KIND_CLASSES`.

    Args:
        is_fake: label of the face.
        forgery: kind of a forgery made in training; None for real faces and fakes of the data set.
        manipulation: kind of a fake as given by the data set. Face swaps become ``swapped``, lip-sync becomes
            ``lip-sync``, and everything else ``generated``.
    """
    if not is_fake:
        name = "real"
    elif forgery:
        name = forgery
    elif "swap" in manipulation.lower():
        name = "swapped"
    elif "lip" in manipulation.lower():
        name = "lip-sync"
    else:
        name = "generated"
    return KIND_CLASSES.index(name)


class KindTeacher(nn.Module):
    """A detector with the second output, as used in training."""

    def __init__(self, detector: DeepfakeDetector) -> None:
        super().__init__()
        self.detector = detector
        self.kinds = nn.Linear(detector.head.output.in_features, len(KIND_CLASSES))
        nn.init.zeros_(self.kinds.weight)  # deterministic: all kinds start with equal probability
        nn.init.zeros_(self.kinds.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logit [B, 1] and the logits of `KIND_CLASSES` [B, K] of normalised faces [B, 3, H, W]."""
        hidden = self.detector.embed(x)
        return self.detector.head.output(hidden), self.kinds(hidden)


def kind_loss(kind_logits: Tensor, classes: Tensor) -> Tensor:
    """Compute the mean cross-entropy of the second output, a scalar in fp32.

    Args:
        kind_logits: [B, K].
        classes: int64 [B], indices in `KIND_CLASSES`.
    """
    return nn.functional.cross_entropy(kind_logits.float(), classes.to(kind_logits.device, torch.int64))
