"""Training state between two steps, from which an interrupted run resumes with identical results.

The state is one safetensors file: weights and moments are tensors, the rest is JSON, so loading never unpickles.

This module imports PyTorch: import it only inside functions that need it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor, nn  # noqa: TID253
from torch.amp.grad_scaler import GradScaler  # noqa: TID253
from torch.optim import AdamW  # noqa: TID253
from torch.optim.lr_scheduler import OneCycleLR  # noqa: TID253

from dfscan.detector.network import DeepfakeDetector
from dfscan.errors import ConfigError, DataError
from dfscan.files import write_bytes
from dfscan.train.settings import FORMER_NAMES

STATE_KEY = "dfscan_run"


@dataclass
class TrainProgress:
    """Progress of a run."""

    epoch: int = 0
    """Current epoch, from 0."""
    next_step: int = 0
    """Next optimiser step of this epoch, from 0."""
    steps_done: int = 0
    """Optimiser steps of the run so far."""
    loss_sum: float = 0.0
    """Sum of the losses of this epoch's steps."""
    best_auc: float | None = None
    best_epoch: int | None = None
    """Epoch with the best AUC, from 1."""
    stale_epochs: int = 0
    """Epochs since the best one."""
    seconds: float = 0.0
    """Training time, including that before interruptions."""


@dataclass(frozen=True, slots=True)
class TrainState:
    """Objects that an optimiser step changes."""

    network: DeepfakeDetector
    optimizer: AdamW
    schedule: OneCycleLR
    scaler: GradScaler
    average: DeepfakeDetector | None = None
    """Moving average of the network's weights, if enabled."""
    kind_output: nn.Module | None = None
    """Output layer that classifies the kind of fake, if enabled."""


def save_state(path: Path, state: TrainState, progress: TrainProgress, settings: Mapping[str, Any]) -> None:
    """Write the state atomically.

    Raises:
        OutputError: the state cannot be written; the previous one is kept.
    """
    optimizer = state.optimizer.state_dict()
    schedule = state.schedule.state_dict()  # also contains functions, which cannot be stored
    document = {
        "progress": dataclasses.asdict(progress),
        "settings": dict(settings),
        "schedule": {name: each for name, each in schedule.items() if isinstance(each, (int, float, list, str))},
        "scaler": state.scaler.state_dict(),
        "groups": optimizer["param_groups"],
    }
    tensors = {f"network/{name}": tensor for name, tensor in state.network.state_dict().items()}
    if state.average:
        tensors |= {f"average/{name}": tensor for name, tensor in state.average.state_dict().items()}
    if state.kind_output:
        tensors |= {f"kinds/{name}": tensor for name, tensor in state.kind_output.state_dict().items()}
    for index, moments in optimizer["state"].items():
        tensors |= {f"optimizer/{index}/{name}": tensor for name, tensor in moments.items()}
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    data = safetensors.torch.save(stored, metadata={STATE_KEY: json.dumps(document)})
    write_bytes(path, data, remedy="Free some space; --resume then continues from the previous state.")


def load_state(path: Path, state: TrainState, settings: Mapping[str, Any]) -> TrainProgress:
    """Restore a run from its saved state.

    Raises:
        DataError: there is no state, or it is damaged.
        ConfigError: it belongs to other settings; the message lists them.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            document = json.loads(file.metadata()[STATE_KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
    except (OSError, safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: no state to resume from ({error}); train without --resume") from error
    before = {FORMER_NAMES.get(name, name): value for name, value in document["settings"].items()}
    changed = [
        f"{name} was {before.get(name)!r}, is {settings.get(name)!r}"
        for name in sorted(before.keys() | settings.keys())
        if before.get(name) != settings.get(name)
    ]
    if changed:
        raise ConfigError(
            f"{path}: belongs to a run with other settings ({'; '.join(changed)}); restore them, or start a new run "
            "in another folder"
        )
    state.network.load_state_dict(_under(tensors, "network/"))
    if state.average:
        state.average.load_state_dict(_under(tensors, "average/"))
    if state.kind_output:
        state.kind_output.load_state_dict(_under(tensors, "kinds/"))
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in _under(tensors, "optimizer/").items():
        index, moment = name.split("/")
        moments.setdefault(int(index), {})[moment] = tensor
    state.optimizer.load_state_dict({"state": moments, "param_groups": document["groups"]})
    state.schedule.load_state_dict(document["schedule"])
    state.scaler.load_state_dict(document["scaler"])
    return TrainProgress(**document["progress"])


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
