import math

import pytest
import torch

from dfscan.detector.network import create_network
from dfscan.train.optim import create_optimizer, create_schedule, update_average
from dfscan.train.settings import TrainSettings


def test_head_and_backbone_have_separate_rates_and_cover_every_weight() -> None:
    network = create_network("test_efficientnet", seed=0)
    optimizer = create_optimizer(network, TrainSettings())
    head, backbone = optimizer.param_groups
    assert (head["name"], head["lr"], head["weight_decay"]) == ("head", 8e-5, 2e-5)
    assert (backbone["name"], backbone["lr"], backbone["weight_decay"]) == ("backbone", 8e-6, 2e-5)
    given = [id(p) for group in (head, backbone) for p in group["params"]]
    assert sorted(given) == sorted(id(p) for p in network.parameters())
    assert {id(p) for p in head["params"]} == {id(p) for p in network.head.parameters()}


def rates(num_steps: int, **changes: float) -> list[tuple[float, float]]:
    settings = TrainSettings(**changes)
    network = create_network("test_efficientnet", seed=0)
    optimizer = create_optimizer(network, settings)
    schedule = create_schedule(optimizer, settings, num_steps=num_steps)
    seen = []
    for _ in range(num_steps):
        seen.append(tuple(group["lr"] for group in optimizer.param_groups))
        optimizer.step()
        schedule.step()
    return seen


def test_rates_rise_and_fall_along_cosines() -> None:
    """Compare with the one-cycle formula and PyTorch's factors: 1/25 at the start, 1/250,000 at the end."""
    num_steps, top = 200, 8e-5
    seen = [head for head, _ in rates(num_steps)]
    peak = 0.1 * num_steps - 1
    for step, rate in enumerate(seen):
        if step <= peak:
            start, end, share = top / 25, top, step / peak
        else:
            start, end, share = top, top / 25 / 1e4, (step - peak) / (num_steps - 1 - peak)
        assert rate == pytest.approx(end + (start - end) / 2 * (1 + math.cos(math.pi * share)), rel=1e-6)
    assert max(seen) == pytest.approx(top)


def test_the_rate_of_the_backbone_is_always_a_tenth_of_the_heads() -> None:
    assert all(backbone == pytest.approx(head / 10) for head, backbone in rates(50))


def test_betas_are_constant() -> None:
    optimizer = create_optimizer(create_network("test_efficientnet", seed=0), TrainSettings())
    schedule = create_schedule(optimizer, TrainSettings(), num_steps=20)
    for _ in range(10):
        optimizer.step()
        schedule.step()
    assert [group["betas"] for group in optimizer.param_groups] == [(0.9, 0.999)] * 2


@pytest.mark.parametrize("num_steps", [1, 2, 3, 5, 9, 10, 11])
def test_short_runs_have_a_valid_schedule(num_steps: int) -> None:
    seen = rates(num_steps)
    assert all(0 < head <= 8e-5 * (1 + 1e-9) for head, _ in seen)
    assert torch.isfinite(torch.tensor(seen)).all()


@pytest.mark.parametrize(
    ("decay", "steps_done", "stays"), [(0.9, 0, 0.1), (0.9, 89, 0.9), (0.9, 10**6, 0.9), (0.5, 4, 5 / 14)]
)
def test_the_moving_average_follows_its_formula(decay: float, steps_done: int, stays: float) -> None:
    """Weights and batch norm statistics are averaged, counters are copied."""
    average, network = (create_network("test_efficientnet", seed=seed) for seed in (0, 1))
    network.train()(torch.rand(4, 3, 64, 64))
    before = {name: value.clone() for name, value in average.state_dict().items()}
    update_average(average, network, decay=decay, steps_done=steps_done)
    for name, now in average.state_dict().items():
        theirs = network.state_dict()[name]
        wanted = stays * before[name] + (1 - stays) * theirs if now.is_floating_point() else theirs
        assert torch.allclose(now, wanted.to(now.dtype), atol=1e-6), name
