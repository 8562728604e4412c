import math

import numpy as np
import pytest
import torch

from dfscan.train.loss import detection_loss, focal_loss
from dfscan.train.settings import TrainSettings

LOGITS = [-3.0, -0.4, 0.0, 0.7, 5.0]
LABELS = [0.0, 1.0, 1.0, 0.0, 1.0]


def by_hand(logit: float, label: float, *, alpha: float = 0.25, gamma: float = 2.0, balanced: bool = False) -> float:
    """Compute the loss from its definition, with Python floats."""
    p = 1 / (1 + math.exp(-logit))
    p_t = p if label else 1 - p
    weight = (alpha if label else 1 - alpha) if balanced else alpha
    return 0.5 * -math.log(p_t) + 0.5 * -weight * (1 - p_t) ** gamma * math.log(p_t)


@pytest.mark.parametrize(
    ("alpha", "gamma", "balanced"), [(0.25, 2.0, False), (0.25, 2.0, True), (0.6, 0.5, True), (1.0, 0.0, False)]
)
def test_the_loss_equals_its_definition(alpha: float, gamma: float, balanced: bool) -> None:
    settings = TrainSettings(focal_alpha=alpha, focal_gamma=gamma, focal_balanced=balanced)
    loss = detection_loss(torch.tensor(LOGITS)[:, None], torch.tensor(LABELS), settings)
    expected = [
        by_hand(*pair, alpha=alpha, gamma=gamma, balanced=balanced) for pair in zip(LOGITS, LABELS, strict=True)
    ]
    assert loss.item() == pytest.approx(np.mean(expected), rel=1e-5)


def test_the_loss_is_a_weighted_sum() -> None:
    logits, labels = torch.tensor(LOGITS), torch.tensor(LABELS)
    only_bce = detection_loss(logits, labels, TrainSettings(bce_weight=1.0, focal_weight=0.0))
    only_focal = detection_loss(logits, labels, TrainSettings(bce_weight=0.0, focal_weight=1.0))
    both = detection_loss(logits, labels, TrainSettings(bce_weight=0.3, focal_weight=2.0))
    assert both.item() == pytest.approx(0.3 * only_bce.item() + 2 * only_focal.item(), rel=1e-6)


@pytest.mark.parametrize("logit", [-1000.0, -90.0, 90.0, 1000.0])
def test_huge_logits_give_finite_loss_and_gradient(logit: float) -> None:
    logits = torch.tensor([logit, logit], requires_grad=True)
    loss = detection_loss(logits, torch.tensor([0.0, 1.0]), TrainSettings())
    loss.backward()
    assert math.isfinite(loss.item())
    assert torch.isfinite(logits.grad).all()
    assert loss.item() == pytest.approx(
        (0.5 + 0.5 * 0.25) * abs(logit) / 2, rel=1e-4
    )  # one of the two is confident and wrong


def test_the_focal_gradient_equals_its_finite_difference() -> None:
    logits = torch.tensor(LOGITS, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor(LABELS, dtype=torch.float64)
    cross_entropy = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    focal_loss(logits, labels, TrainSettings(), cross_entropy=cross_entropy).sum().backward()
    step = 1e-6
    for logit, label, gradient in zip(LOGITS, LABELS, logits.grad.tolist(), strict=True):
        focal = [2 * by_hand(x, label) - -math.log(sigmoid_t(x, label)) for x in (logit - step, logit + step)]
        assert gradient == pytest.approx((focal[1] - focal[0]) / (2 * step), rel=1e-4, abs=1e-8)


def sigmoid_t(logit: float, label: float) -> float:
    return 1 / (1 + math.exp(-logit if label else logit))


def test_half_precision_logits_are_summed_in_fp32() -> None:
    logits = torch.tensor(LOGITS, dtype=torch.bfloat16)
    loss = detection_loss(logits, torch.tensor(LABELS), TrainSettings())
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(detection_loss(logits.float(), torch.tensor(LABELS), TrainSettings()).item())
