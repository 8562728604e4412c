"""GPU code shared by the classifier and the face detector: batches, memory errors, exact arithmetic and busy time."""

from __future__ import annotations

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from dfscan.errors import DfscanError

if TYPE_CHECKING:
    from torch import Tensor

    from dfscan.arrays import Float32Array

Result = TypeVar("Result")

log = logging.getLogger("dfscan")


class BusyClock:
    """Wall time in seconds during which at least one thread was working; overlapping work counts once."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._num_at_work = 0
        self._since_s = 0.0
        self._lock = threading.Lock()

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Count the time spent in the ``with`` block."""
        with self._lock:
            if not self._num_at_work:
                self._since_s = time.perf_counter()
            self._num_at_work += 1
        try:
            yield
        finally:
            with self._lock:
                self._num_at_work -= 1
                if not self._num_at_work:
                    self.seconds += time.perf_counter() - self._since_s


class GpuModel(ABC):
    """Base class of models that run on a GPU, one batch at a time; other threads prepare their batches meanwhile.

    Batches are padded, so that the result for an item does not depend on the number of items: kernels are selected by
    batch size. When memory runs out, batches are halved. If it is not sufficient for one item, the CPU takes over.
    """

    NAME: ClassVar[str]
    """Subject of errors, such as "the face detector"."""
    HALVED: ClassVar[str]
    """Warning after halving, a format for the batch size."""
    ON_CPU: ClassVar[str]
    """Warning when the CPU takes over."""

    def __init__(self, device: str, clock: BusyClock) -> None:
        use_exact_arithmetic()
        self.device = device
        self.clock = clock
        self._is_working = True
        """False if `_use_cpu` has replaced this model by another one."""
        self._lock = threading.Lock()

    @abstractmethod
    def _halve(self) -> None:
        """Halve the batch size, or the limit that it is computed from."""

    @abstractmethod
    def _use_cpu(self, failure: DfscanError) -> None:
        """Use the CPU from now on, or raise `failure` if it is already in use."""

    def _run_batches(
        self, items: Sequence[Any] | Float32Array, compute: Callable[[Tensor], Result], batch_size: Callable[[], int]
    ) -> Iterator[tuple[int, Result]]:
        """Yield the number of items in each batch, and the result of the padded batch; stop early if not working.

        Args:
            items: arrays of equal shape and type.
            compute: computes a batch, a tensor on the CPU (pinned if there is a GPU) with one item per row.
            batch_size: returns the current batch size.

        Raises:
            DfscanError: the device fails.
        """
        while len(items) and self._is_working:
            batch = self._padded(items, batch_size())
            with self._lock, self.clock.at_work():
                result = self._attempt(batch, compute)
                if isinstance(result, DfscanError):
                    self._make_room(len(batch), batch_size, result)
                    continue
            num_items = min(len(items), len(batch))
            yield num_items, result
            items = items[num_items:]

    def _padded(self, items: Sequence[Any] | Float32Array, num_rows: int) -> Tensor:
        """Copy the first items into one tensor, padded with zeros."""
        import torch

        kind = getattr(torch, items[0].dtype.name)
        is_pinned = self.device != "cpu" and torch.cuda.is_available()
        try:
            batch = torch.zeros((num_rows, *items[0].shape), dtype=kind, pin_memory=is_pinned)
        except RuntimeError as error:
            raise self._failure(error) from error
        for row, item in zip(batch.numpy(), items, strict=False):
            row[...] = item
        return batch

    def _attempt(self, batch: Tensor, compute: Callable[[Tensor], Result]) -> Result | DfscanError:
        """Compute a batch. If memory ran out, return the failure, because an exception would keep the tensors alive."""
        try:
            return compute(batch)
        except RuntimeError as error:
            failure = self._failure(error)
            if not is_out_of_memory(error):
                raise failure from error
            return failure

    def _make_room(self, num_tried: int, batch_size: Callable[[], int], failure: DfscanError) -> None:
        import torch

        if batch_size() < num_tried or not self._is_working:
            pass  # another thread has already made room
        elif num_tried > 1:
            while batch_size() >= num_tried:
                self._halve()
            log.warning(f"%s is out of memory: {self.HALVED}", self.device, batch_size())
        else:
            self._use_cpu(failure)
        torch.cuda.empty_cache()

    def _failure(self, error: RuntimeError) -> DfscanError:
        cause = str(error).partition("\n")[0]
        return DfscanError(f"{self.NAME} cannot run on {self.device}: {cause}; try --device cpu")


def use_exact_arithmetic() -> None:
    """Make PyTorch compute fp32 without TF32 and use deterministic kernels."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic = True


def is_out_of_memory(error: RuntimeError) -> bool:
    """Return whether `error` is a GPU out-of-memory error from PyTorch, cuDNN or cuBLAS."""
    import torch

    return isinstance(error, torch.OutOfMemoryError) or "ALLOC_FAILED" in str(error)


def device_name(device: str) -> str:
    """Return the product name of a GPU, ``none`` if it is missing; any other device name is returned unchanged."""
    if not device.startswith("cuda"):
        return device
    import torch

    return torch.cuda.get_device_name(device) if torch.cuda.is_available() else "none"
