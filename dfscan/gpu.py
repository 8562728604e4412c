"""What the classifier and the face detector share on one GPU: arithmetic, a clock, and how memory runs out."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class BusyClock:
    """Wall seconds for which anybody was at work, from any thread; those of two at once count once."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._num_at_work = 0
        self._since_s = 0.0
        self._lock = threading.Lock()

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Count the block."""
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
    """Have PyTorch compute fp32 in fp32, not in TF32, and choose kernels that give the same bits each time."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic = True


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether a GPU's memory was too small, whichever of its libraries says so."""
    import torch

    return isinstance(error, torch.OutOfMemoryError) or "ALLOC_FAILED" in str(error)


def device_name(device: str) -> str:
    """The maker's name of a GPU; for the CPU its own."""
    if not device.startswith("cuda"):
        return device
    import torch

    return torch.cuda.get_device_name(device) if torch.cuda.is_available() else "none"
