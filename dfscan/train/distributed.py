"""Distributed training: the same code runs in one process and under torchrun.

This module imports PyTorch: import it only inside functions that need it.
"""

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
class DistContext:
    """The processes of a run, seen from one of them; each process has its own device."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """True in the process that writes files and reports progress."""
        return self.rank == 0

    def gather(self, part: list[T]) -> list[T]:
        """Concatenate the lists of all processes, in every process; lengths may differ."""
        if self.size == 1:
            return part
        parts: list[Any] = [None] * self.size
        distributed.all_gather_object(parts, part)
        return [each for one in parts for each in one]

    def barrier(self) -> None:
        """Wait for all processes, so that files written by the first one can be read."""
        if self.size > 1:
            distributed.barrier()

    def broadcast_buffers(self, network: torch.nn.Module) -> None:
        """Copy the first process's batch norm statistics, which the checkpoint contains, to all processes."""
        if self.size > 1:
            for buffer in network.buffers():
                distributed.broadcast(buffer, src=0)

    def any_rank(self, *flags: bool) -> tuple[bool, ...]:
        """Return for each flag whether it is set in any process; all processes must call this at the same point."""
        if self.size == 1:
            return flags
        raised = torch.tensor(flags, dtype=torch.float32, device=self.device)
        distributed.all_reduce(raised, op=distributed.ReduceOp.MAX)
        return tuple(bool(value) for value in raised.tolist())


@contextmanager
def joined_processes(device: str) -> Iterator[DistContext]:
    """Join the process group that torchrun started, if any, and leave it at the end.

    Args:
        device: as for `choose_device`; ``auto`` and ``cuda`` give each local process its own GPU.

    Raises:
        ConfigError: the device is not available.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield DistContext(0, 1, torch.device(choose_device(device)))
        return
    if device in ("auto", "cuda") and torch.cuda.is_available():
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    chosen = torch.device(choose_device(device))
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    backend = "nccl" if chosen.type == "cuda" else "gloo"
    distributed.init_process_group(backend, timeout=timedelta(minutes=30))
    try:
        yield DistContext(distributed.get_rank(), size, chosen)
    finally:
        distributed.destroy_process_group()
