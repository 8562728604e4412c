"""GPU helpers shared by the classifier and the face detector: exact arithmetic, busy time, out-of-memory errors."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


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
