"""Runtimes of the network with a common interface: ONNX Runtime on a CPU, PyTorch on a GPU."""

from __future__ import annotations

import logging
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from dfscan.arrays import Float32Array
from dfscan.config import ScanSettings
from dfscan.detector.checkpoint import Checkpoint, load_network
from dfscan.detector.export import INPUT_NAME, OUTPUT_NAMES, onnx_graph
from dfscan.errors import ConfigError, DfscanError
from dfscan.gpu import BusyClock, GpuModel, is_out_of_memory
from dfscan.graphs import open_session

if TYPE_CHECKING:
    from torch import Tensor

    from dfscan.detector.network import DeepfakeDetector

log = logging.getLogger("dfscan")


DEFAULT_CUDA_BATCH_SIZE = ScanSettings.batch_size
MAX_GPU_THREADS = 4
"""One thread waits for the GPU, the others prepare batches. With dumps, each waiting batch holds its frames."""


class Runtime(Protocol):
    """Scores preprocessed faces."""

    device: str
    """``cpu``, ``cuda:0``, ..."""
    batch_size: int
    """Maximum number of faces in one forward pass; `predict` accepts more."""
    threads: int
    """Maximum number of threads that may call `predict` at the same time."""
    mixed_precision: bool
    """True if convolutions run in float16; `verify` disables this if it changes the logits too much."""
    clock: BusyClock
    """Measures the seconds that the GPU, or its driver, was busy."""

    def predict(self, batch: Float32Array) -> tuple[Float32Array, Float32Array]:
        """Score faces; the logit of a face does not depend on the other faces of the batch.

        Args:
            batch: float32 [B, 3, S, S] from `preprocess.to_input`; B may be 0.

        Returns:
            The network's logits [B], not divided by the checkpoint's temperature, and its Grad-CAM maps [B, h, w],
            non-negative and not normalised; both float32.
        """
        ...


class OnnxRuntime:
    """ONNX Runtime on the CPU, one face at a time in each thread, with bit-identical results.

    One face at a time is fastest at 380 px: a server core takes 114 ms per face, but 118 ms in batches of 2, 126 ms in
    batches of 4 and 138 ms in batches of 8. At 112 px, where reading the weights dominates, batches of 4 would take
    12 ms per face instead of 14.3 ms.
    """

    def __init__(self, graph: bytes, *, threads: int = 1) -> None:
        self.device = "cpu"
        self.batch_size = 1
        self.threads = threads
        self.mixed_precision = False
        self.clock = BusyClock()
        self._session = open_session(graph)

    def predict(self, batch: Float32Array) -> tuple[Float32Array, Float32Array]:
        """Score faces; see `Runtime.predict`."""
        _check(batch)
        names = list(OUTPUT_NAMES)
        faces = (batch[i : i + 1] for i in range(len(batch)))
        return _join([self._session.run(names, {INPUT_NAME: face}) for face in faces])


class TorchRuntime(GpuModel):
    """PyTorch, intended for a GPU: in fp32 (TF32 off), or with `mixed_precision` in float16 where autocast uses it.

    When the CPU takes over, the network moves there permanently, which is slow but changes logits by less than 1e-3.
    """

    NAME = "the network"
    HALVED = "continuing with --batch-size %d"
    ON_CPU = "continuing on the CPU, slowly; end other programs that use the GPU"

    def __init__(
        self,
        network: DeepfakeDetector,
        *,
        device: str,
        batch_size: int = DEFAULT_CUDA_BATCH_SIZE,
        threads: int = 1,
        mixed_precision: bool = False,
    ) -> None:
        import torch

        super().__init__(device, BusyClock())
        self.batch_size = batch_size
        self.threads = threads
        self.mixed_precision = mixed_precision
        self._network = network.eval().float()
        try:
            # torch's type stubs lack the overload of Module.to with both device and memory_format.
            self._network = network.to(device).to(memory_format=torch.channels_last)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise self._failure(error) from error
            self._move_to_cpu()

    def predict(self, batch: Float32Array) -> tuple[Float32Array, Float32Array]:
        """Score faces; see `Runtime.predict`.

        Raises:
            DfscanError: if the device fails, or memory is not sufficient even on the CPU.
        """
        _check(batch)
        batches = self._run_batches(batch, self._run, lambda: self.batch_size)
        return _join([(logits[:num_faces], cams[:num_faces]) for num_faces, (logits, cams) in batches])

    def _run(self, x: Tensor) -> tuple[Float32Array, Float32Array]:
        logits, cams = self._forward(x, mixed_precision=self.mixed_precision)
        if self.mixed_precision:
            is_broken = ~(np.isfinite(logits) & np.isfinite(cams).all(axis=(1, 2)))
            if is_broken.any():  # beyond the range of float16
                exact_logits, exact_cams = self._forward(x, mixed_precision=False)
                logits[is_broken], cams[is_broken] = exact_logits[is_broken], exact_cams[is_broken]
        return logits, cams

    def _forward(self, x: Tensor, *, mixed_precision: bool) -> tuple[Float32Array, Float32Array]:
        import torch

        x = x.to(self.device, non_blocking=True).contiguous(memory_format=torch.channels_last)
        kind = torch.device(self.device).type
        with torch.inference_mode(), torch.autocast(kind, torch.float16, enabled=mixed_precision):
            logits, cams = self._network.forward_with_cam(x)
        return logits[:, 0].cpu().numpy(), cams.cpu().numpy()

    def _halve(self) -> None:
        self.batch_size //= 2

    def _use_cpu(self, failure: DfscanError) -> None:
        if self.device == "cpu":
            raise failure
        self._move_to_cpu()

    def _move_to_cpu(self) -> None:
        import torch

        log.warning("%s is out of memory even for one face: %s", self.device, self.ON_CPU)
        self.device, self.batch_size, self.mixed_precision = "cpu", 1, False
        self._network = self._network.to("cpu").to(memory_format=torch.channels_last)


def _check(batch: Float32Array) -> None:
    if batch.dtype != np.float32 or batch.ndim != 4 or batch.shape[1] != 3:
        raise ValueError(f"a batch must be float32 [B, 3, S, S], got {batch.dtype} {list(batch.shape)}")


def _join(results: list[tuple[Float32Array, Float32Array]]) -> tuple[Float32Array, Float32Array]:
    if not results:
        return np.empty(0, np.float32), np.empty((0, 0, 0), np.float32)
    logits, cams = zip(*results, strict=True)
    return np.concatenate([each.reshape(-1) for each in logits]), np.concatenate(cams)


def create_runtime(
    checkpoint: Checkpoint, *, device: str = "auto", batch_size: int | None = None, threads: int = 1
) -> Runtime:
    """Load a checkpoint on a device. Call `verify.verify` afterwards to check its scores there.

    Args:
        checkpoint: checkpoint from `checkpoint.read_card`.
        device: see `choose_device`.
        batch_size: number of faces that a GPU scores at once, 32 if None; a CPU always scores one at a time.
        threads: number of threads that will call `predict` at the same time.

    Raises:
        ConfigError: for a device that does not exist, or a number below 1.
        CheckpointError: if the checkpoint's weights cannot be used.
        DfscanError: if the network cannot be exported, or the device fails.
    """
    batch_size = DEFAULT_CUDA_BATCH_SIZE if batch_size is None else batch_size
    for name, value in (("batch size", batch_size), ("number of threads", threads)):
        if value < 1:
            raise ConfigError(f"the {name} must be at least 1, got {value}")
    device = choose_device(device)
    if device == "cpu":
        return OnnxRuntime(onnx_graph(checkpoint), threads=threads)
    return TorchRuntime(
        load_network(checkpoint),
        device=device,
        batch_size=batch_size,
        threads=min(threads, MAX_GPU_THREADS),
        mixed_precision=True,
    )


def choose_device(name: str) -> str:
    """Resolve ``auto``, ``cpu``, ``cuda`` or ``cuda:N`` to ``cpu`` or ``cuda:N``.

    PyTorch takes seconds to import, so it is imported only if a GPU may exist: not for ``cpu``, and not for ``auto`` on
    a system without the device file of a GPU.

    Raises:
        ConfigError: for another name, or a GPU that PyTorch cannot use.
    """
    if name == "cpu" or (name == "auto" and not _may_have_cuda()):
        return "cpu"
    if not re.fullmatch(r"auto|cuda(:\d{1,3})?", name):
        raise ConfigError(f"unknown device {name!r}: use auto, cpu, cuda or cuda:N")
    num_devices = _num_cuda_devices()
    if name == "auto":
        return "cuda:0" if num_devices else "cpu"
    index = int(name.partition(":")[2] or 0)
    if index >= num_devices:
        raise ConfigError(
            f"device {name} does not exist: PyTorch finds {num_devices} CUDA devices; use --device cpu or auto, or "
            "check the driver and that this PyTorch is built for CUDA"
        )
    return f"cuda:{index}"


def _may_have_cuda() -> bool:
    if sys.platform == "darwin":
        return False
    device_files = ("nvidia*", "nvmap", "dxg", "kfd")  # NVIDIA, NVIDIA Jetson, WSL, AMD
    return sys.platform != "linux" or any(any(Path("/dev").glob(each)) for each in device_files)


def _num_cuda_devices() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0
