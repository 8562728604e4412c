"""One process or many: the same code runs alone and under torchrun. Import this module only inside functions."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch  # noqa: TID253
from torch import distributed  # noqa: TID253

from dfscan.detector.runtime import choose_device

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class World:
    """The processes of a run, each with a device of its own."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def gather(self, part: list[T]) -> list[T]:
        """The parts of all processes in one list, in every process; parts may differ in length."""
        if self.size == 1:
            return part
        parts: list[Any] = [None] * self.size
        distributed.all_gather_object(parts, part)
        return [each for one in parts for each in one]

    def wait(self) -> None:
        """Until all processes are here: what the first has written can be read."""
        if self.size > 1:
            distributed.barrier()

    def share_buffers(self, network: torch.nn.Module) -> None:
        """Give every process the first one's batch norm statistics, with which the checkpoint is written."""
        if self.size > 1:
            for buffer in network.buffers():
                distributed.broadcast(buffer, src=0)

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """For each flag whether it is up in any process; all must ask at the same point."""
        if self.size == 1:
            return flags
        raised = torch.tensor(flags, dtype=torch.float32, device=self.device)
        distributed.all_reduce(raised, op=distributed.ReduceOp.MAX)
        return tuple(bool(value) for value in raised.tolist())


@contextmanager
def joined_world(device: str) -> Iterator[World]:
    """Join the processes that torchrun started, or stand alone; leave them at the end.

    Args:
        device: as `choose_device` takes it; ``auto`` and ``cuda`` give each local process a GPU of its own.

    Raises:
        ConfigError: the device is not there.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World(0, 1, torch.device(choose_device(device)))
        return
    if device in ("auto", "cuda") and torch.cuda.is_available():
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    chosen = torch.device(choose_device(device))
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    backend = "nccl" if chosen.type == "cuda" else "gloo"
    distributed.init_process_group(backend, timeout=timedelta(minutes=30))
    try:
        yield World(distributed.get_rank(), size, chosen)
    finally:
        distributed.destroy_process_group()
