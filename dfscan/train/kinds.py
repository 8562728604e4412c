"""Tell kinds of manipulation apart while training, so that the detector does not lump them into one class.

Several kinds of fake under one label hurt each other (Cheng et al. 2024, "Can We Leave Deepfake Data Behind in Training
Deepfake Detector?", arXiv 2408.17052). A second output therefore names the kind from the same 512 hidden features as
the logit. It exists only in training: checkpoints hold the detector alone. This module is PyTorch's own: import it
only inside functions.
"""

from __future__ import annotations

import torch  # noqa: TID253
from torch import Tensor, nn  # noqa: TID253

from dfscan.detector.network import DeepfakeDetector
from dfscan.forgery.names import ForgeryKind

KIND_CLASSES = ("real", "self-blended", "swapped", "warped", "reconstructed", "lip-sync", "generated")
"""Classes of the second output: real faces, made forgeries by kind, and true fakes by family."""


def kind_class(is_fake: bool, made_by: ForgeryKind | None, manipulation: str) -> int:
    """Index in `KIND_CLASSES` of a face.

    Args:
        is_fake: label of the face.
        made_by: how training made the fake; None for real faces and true fakes.
        manipulation: kind of a true fake as the data set words it; a face swap counts as ``swapped``, and whatever is
            neither a swap nor lip-sync as ``generated``.
    """
    if not is_fake:
        name = "real"
    elif made_by:
        name = made_by
    elif "swap" in manipulation.lower():
        name = "swapped"
    elif "lip" in manipulation.lower():
        name = "lip-sync"
    else:
        name = "generated"
    return KIND_CLASSES.index(name)


class KindTeacher(nn.Module):
    """A detector with the second output, as it is trained."""

    def __init__(self, detector: DeepfakeDetector) -> None:
        super().__init__()
        self.detector = detector
        self.kinds = nn.Linear(detector.head.output.in_features, len(KIND_CLASSES))
        nn.init.zeros_(self.kinds.weight)  # a start that no random state decides: all kinds are equally likely
        nn.init.zeros_(self.kinds.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """From normalised faces [B, 3, H, W] to the logit [B, 1] and the logits of `KIND_CLASSES` [B, K]."""
        hidden = self.detector.embed(x)
        return self.detector.head.output(hidden), self.kinds(hidden)


def kind_loss(kind_logits: Tensor, classes: Tensor) -> Tensor:
    """Mean cross-entropy of the second output, a scalar in fp32.

    Args:
        kind_logits: [B, K].
        classes: int64 [B], indices in `KIND_CLASSES`.
    """
    return nn.functional.cross_entropy(kind_logits.float(), classes.to(kind_logits.device, torch.int64))
