"""Runtimes give PyTorch's scores for every batch, devices are resolved, and exported graphs are cached safely."""

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from dfscan import cache as cache_module
from dfscan.detector import checkpoint as checkpoint_module
from dfscan.detector import export, runtime
from dfscan.detector.checkpoint import (
    Checkpoint,
    create_untrained,
    default_checkpoint_path,
    load_network,
    read_card,
)
from dfscan.detector.preprocess import to_input
from dfscan.detector.runtime import OnnxRuntime, Runtime, TorchRuntime, choose_device, create_runtime
from dfscan.detector.verify import MIXED_TOLERANCE, verify_logits
from dfscan.errors import CheckpointError, ConfigError, DfscanError
from dfscan.faces.crop import crop_face
from dfscan.graphs import export_failure
from tests.pictures import FACE_XYXY, astronaut, moved, other_person


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "dfscan"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.safetensors"
    return create_untrained(path, seed=1, architecture="test_efficientnet", input_size_px=64)


@pytest.fixture(scope="module")
def graph(tiny: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("graph") / "graph.onnx"
    export.write_graph(tiny, path)
    return path.read_bytes()


def faces(num_faces: int, size_px: int = 64) -> np.ndarray:
    return np.random.default_rng(7).normal(size=(num_faces, 3, size_px, size_px)).astype(np.float32)


def by_torch(checkpoint: Checkpoint, batch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    import torch

    with torch.inference_mode():
        logits, cams = load_network(checkpoint).forward_with_cam(torch.from_numpy(batch))
    return logits.flatten().numpy(), cams.numpy()


@pytest.fixture(params=["onnx", "torch"])
def any_runtime(request: pytest.FixtureRequest, tiny: Checkpoint, graph: bytes) -> Runtime:
    if request.param == "onnx":
        return OnnxRuntime(graph)
    # 16 is a multiple of the SIMD width; otherwise a layer computes its last face differently, with other bits.
    return TorchRuntime(load_network(tiny), device="cpu", batch_size=16)


# Every runtime


@pytest.mark.parametrize("num_faces", [1, 3, 16, 18])
def test_runtimes_equal_pytorch(any_runtime: Runtime, tiny: Checkpoint, num_faces: int) -> None:
    batch = faces(num_faces)
    logits, cams = any_runtime.predict(batch)
    expected_logits, expected_cams = by_torch(tiny, batch)

    assert (logits.dtype, cams.dtype) == (np.float32, np.float32)
    assert np.ptp(expected_logits) > 1e-4 or num_faces == 1
    np.testing.assert_allclose(logits, expected_logits, atol=1e-5)
    np.testing.assert_allclose(cams, expected_cams, rtol=1e-3, atol=1e-4 * float(expected_cams.max()))


def test_the_small_efficientnet_runs_in_onnx_and_passes_its_self_test(tmp_path: Path) -> None:
    small = create_untrained(tmp_path / "b0.safetensors", seed=1, architecture="efficientnet_b0", input_size_px=64)
    export.write_graph(small, tmp_path / "graph.onnx")
    runs = OnnxRuntime((tmp_path / "graph.onnx").read_bytes())
    verify_logits(runs, small)
    verify_logits(TorchRuntime(load_network(small), device="cpu", batch_size=4), small)
    logits, cams = runs.predict(faces(3))
    expected_logits, expected_cams = by_torch(small, faces(3))
    np.testing.assert_allclose(logits, expected_logits, atol=1e-4)
    np.testing.assert_allclose(cams, expected_cams, rtol=1e-3, atol=1e-4 * float(expected_cams.max()))


def test_the_score_of_a_face_does_not_depend_on_its_batch(any_runtime: Runtime) -> None:
    batch = faces(18)
    together = any_runtime.predict(batch)[0]
    alone = [any_runtime.predict(batch[i : i + 1])[0][0] for i in range(18)]
    loud = np.concatenate([batch[:1], 100 * batch[1:3]])

    assert together.tolist() == alone
    assert any_runtime.predict(loud)[0][0] == together[0]


def test_an_empty_batch_gives_no_scores(any_runtime: Runtime) -> None:
    logits, cams = any_runtime.predict(faces(0))

    assert (len(logits), len(cams)) == (0, 0)


@pytest.mark.parametrize("batch", [faces(1).astype(np.float64), faces(1)[0], faces(1).transpose(0, 2, 3, 1)])
def test_refuses_invalid_batches(any_runtime: Runtime, batch: np.ndarray) -> None:
    with pytest.raises(ValueError, match="a batch must be float32"):
        any_runtime.predict(batch)


def test_runtimes_pass_the_self_test(any_runtime: Runtime, tiny: Checkpoint) -> None:
    verify_logits(any_runtime, tiny)


def test_self_test_detects_changed_weights(tiny: Checkpoint) -> None:
    network = load_network(tiny)
    network.head.output.bias.data += 0.01

    with pytest.raises(CheckpointError, match="fails its self-test"):
        verify_logits(TorchRuntime(network, device="cpu", batch_size=2), tiny)


# PyTorch


def test_mixed_precision_is_accurate_and_does_not_depend_on_the_batch(tiny: Checkpoint) -> None:
    runtime = TorchRuntime(load_network(tiny), device="cpu", batch_size=4, mixed_precision=True)
    batch = faces(6)
    logits, cams = runtime.predict(batch)
    expected_logits, expected_cams = by_torch(tiny, batch)

    assert (logits.dtype, cams.dtype) == (np.float32, np.float32)
    assert 0 < np.abs(logits - expected_logits).max() <= MIXED_TOLERANCE
    np.testing.assert_allclose(cams, expected_cams, atol=0.03 * float(expected_cams.max()))
    assert logits.tolist() == [runtime.predict(batch[i : i + 1])[0][0] for i in range(6)]


def test_the_embedded_checkpoint_is_accurate_in_the_precision_that_its_self_test_permits() -> None:
    path = default_checkpoint_path()
    assert path is not None
    checkpoint = read_card(path)
    box, preprocessing = np.array(FACE_XYXY, np.float32), checkpoint.card.preprocessing
    frames = [moved(picture, 0, 0, zoom) for picture in (astronaut(), other_person()) for zoom in (1, 0.7)]
    crops = [
        crop_face(each, box, margin=preprocessing.crop_margin, size=preprocessing.input_size_px) for each in frames
    ]
    batch = to_input(crops, preprocessing)
    runtime = TorchRuntime(load_network(checkpoint), device="cpu", batch_size=4, mixed_precision=True)
    verify_logits(runtime, checkpoint)  # float16 shifts the logits of these faces by 0.02 to 0.05
    logits, expected = runtime.predict(batch)[0], by_torch(checkpoint, batch)[0]
    assert np.abs(expected).max() < 20
    assert np.abs(logits - expected).max() <= MIXED_TOLERANCE


def test_the_self_test_keeps_accurate_mixed_precision(tiny: Checkpoint, cache: Path) -> None:
    runtime = TorchRuntime(load_network(tiny), device="cpu", batch_size=2, mixed_precision=True)
    verify_logits(runtime, tiny)
    assert runtime.mixed_precision
    assert len(list(cache.glob("verified-*"))) == 1


def test_the_self_test_disables_inaccurate_mixed_precision(
    tiny: Checkpoint, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    runtime = TorchRuntime(load_network(tiny), device="cpu", batch_size=2, mixed_precision=True)
    run = runtime._run

    def overflowing(x: object) -> tuple[np.ndarray, np.ndarray]:
        logits, cams = run(x)
        return logits * np.float32(np.nan if runtime.mixed_precision else 1), cams

    monkeypatch.setattr(runtime, "_run", overflowing)
    with caplog.at_level(logging.WARNING, "dfscan"):
        verify_logits(runtime, tiny)
    assert not runtime.mixed_precision
    assert "continuing in float32" in caplog.text
    assert list(cache.glob("verified-*")) == []  # tested again next time
    np.testing.assert_allclose(runtime.predict(faces(3))[0], by_torch(tiny, faces(3))[0], atol=1e-5)


def test_the_self_test_disables_mixed_precision_that_is_inaccurate_on_smooth_images_only(
    tiny: Checkpoint, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    runtime = TorchRuntime(load_network(tiny), device="cpu", batch_size=2, mixed_precision=True)
    run = runtime._run

    def inaccurate(x: object) -> tuple[np.ndarray, np.ndarray]:
        logits, cams = run(x)
        is_smooth = x.diff(dim=3).abs().mean(dim=(1, 2, 3)).numpy() < 0.2
        return logits + np.float32(0.05) * (is_smooth & runtime.mixed_precision), cams

    monkeypatch.setattr(runtime, "_run", inaccurate)
    with caplog.at_level(logging.WARNING, "dfscan"):
        verify_logits(runtime, tiny)
    assert not runtime.mixed_precision
    assert "by 0.05" in caplog.text


def test_faces_that_overflow_float16_are_scored_in_float32(tiny: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = TorchRuntime(load_network(tiny), device="cpu", batch_size=4, mixed_precision=True)
    forward = runtime._forward

    def overflowing(x: object, *, mixed_precision: bool) -> tuple[np.ndarray, np.ndarray]:
        logits, cams = forward(x, mixed_precision=mixed_precision)
        if mixed_precision:
            logits[1], cams[2, 0, 0] = np.nan, np.inf
        return logits, cams

    expected_logits, expected_cams = by_torch(tiny, faces(4))
    half = runtime.predict(faces(4))[0]
    monkeypatch.setattr(runtime, "_forward", overflowing)
    logits, cams = runtime.predict(faces(4))
    np.testing.assert_allclose(logits[1:3], expected_logits[1:3], atol=1e-5)
    np.testing.assert_allclose(cams[1:3], expected_cams[1:3], atol=1e-4 * float(expected_cams.max()))
    assert logits[[0, 3]].tolist() == half[[0, 3]].tolist()


class Memory:
    """A replacement for a network's forward that runs out of memory above `max_faces` faces."""

    def __init__(self, network: object, max_faces: int) -> None:
        self.forward, self.max_faces, self.sizes = network.forward_with_cam, max_faces, []

    def __call__(self, x: object) -> object:
        import torch

        self.sizes.append(len(x))
        if len(x) > self.max_faces:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.forward(x)


class PretendedGpu(TorchRuntime):
    """A runtime on the CPU that reports a GPU as its device until it moves to the CPU."""

    def _run(self, batch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        name, self.device = self.device, "cpu"
        try:
            return super()._run(batch)
        finally:
            self.device = name


def pretended_gpu(tiny: Checkpoint, *, max_faces: int, batch_size: int) -> tuple[PretendedGpu, Memory]:
    network = load_network(tiny)
    memory = network.forward_with_cam = Memory(network, max_faces)
    gpu = PretendedGpu(network, device="cpu", batch_size=batch_size)
    gpu.device = "cuda:7"
    return gpu, memory


def test_batch_size_is_halved_when_memory_runs_out(tiny: Checkpoint, caplog: pytest.LogCaptureFixture) -> None:
    gpu, memory = pretended_gpu(tiny, max_faces=2, batch_size=8)

    with caplog.at_level(logging.WARNING, "dfscan"):
        logits, _ = gpu.predict(faces(5))

    assert memory.sizes == [8, 4, 2, 2, 2]
    assert gpu.batch_size == 2
    assert [record.message[-2:] for record in caplog.records] == [" 4", " 2"]
    np.testing.assert_allclose(logits, by_torch(tiny, faces(5))[0], atol=1e-5)


def test_without_memory_for_one_face_the_cpu_takes_over(
    tiny: Checkpoint, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu, memory = pretended_gpu(tiny, max_faces=0, batch_size=4)
    move = gpu._move_to_cpu

    def moved() -> None:
        move()
        memory.max_faces = 9

    monkeypatch.setattr(gpu, "_move_to_cpu", moved)
    logits, _ = gpu.predict(faces(5))

    assert memory.sizes == [4, 2, 1, 1, 1, 1, 1, 1]
    assert gpu.device == "cpu"
    assert [record.message[-2:] for record in caplog.records[:2]] == [" 2", " 1"]
    assert "continuing on the CPU" in caplog.records[2].message
    np.testing.assert_allclose(logits, by_torch(tiny, faces(5))[0], atol=1e-3)


def test_a_self_test_that_ends_on_the_cpu_is_not_recorded_for_the_gpu(
    tiny: Checkpoint, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu, memory = pretended_gpu(tiny, max_faces=0, batch_size=1)
    gpu.mixed_precision = True
    move = gpu._move_to_cpu
    monkeypatch.setattr(gpu, "_move_to_cpu", lambda: (move(), setattr(memory, "max_faces", 9)))
    verify_logits(gpu, tiny)
    assert (gpu.device, gpu.mixed_precision) == ("cpu", False)
    assert list(cache.glob("verified-*")) == []


def test_running_out_of_memory_on_a_cpu_is_a_clear_error(tiny: Checkpoint) -> None:
    network = load_network(tiny)
    network.forward_with_cam = Memory(network, max_faces=0)

    with pytest.raises(DfscanError, match="cannot run on cpu"):
        TorchRuntime(network, device="cpu", batch_size=1).predict(faces(1))


def test_a_failing_device_is_a_clear_error(tiny: Checkpoint) -> None:
    with pytest.raises(DfscanError, match=r"cannot run on meta.*--device cpu"):
        TorchRuntime(load_network(tiny), device="meta").predict(faces(1))


@pytest.mark.cuda
def test_cuda_passes_the_self_test(tiny: Checkpoint) -> None:
    verify_logits(create_runtime(tiny, device="cuda"), tiny)


# Devices


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "CPU", "cuda:-1", ""])
def test_unknown_devices_list_the_valid_names(name: str) -> None:
    with pytest.raises(ConfigError, match="use auto, cpu, cuda"):
        choose_device(name)


@pytest.mark.parametrize(
    ("name", "num_devices", "chosen"),
    [("cpu", 2, "cpu"), ("auto", 2, "cuda:0"), ("auto", 0, "cpu"), ("cuda", 1, "cuda:0"), ("cuda:1", 2, "cuda:1")],
)
def test_devices_are_resolved(name: str, num_devices: int, chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "_may_have_cuda", lambda: True)
    monkeypatch.setattr(runtime, "_num_cuda_devices", lambda: num_devices)
    assert choose_device(name) == chosen


@pytest.mark.parametrize(("name", "num_devices"), [("cuda", 0), ("cuda:2", 2)])
def test_absent_gpus_suggest_a_remedy(name: str, num_devices: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "_num_cuda_devices", lambda: num_devices)
    with pytest.raises(ConfigError, match=f"PyTorch finds {num_devices} CUDA devices; use --device cpu"):
        choose_device(name)


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"threads": 0}])
def test_numbers_below_one_are_refused(wrong: dict[str, int], tiny: Checkpoint) -> None:
    with pytest.raises(ConfigError, match="at least 1, got 0"):
        create_runtime(tiny, device="cpu", **wrong)


# The exported graph


@pytest.fixture
def exports(graph: bytes, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Replace the export by a copy of `graph`, and record the calls."""
    calls: list[str] = []

    def copy(checkpoint: Checkpoint, graph_path: Path) -> None:
        calls.append(checkpoint.label)
        graph_path.write_bytes(graph)

    monkeypatch.setattr(export, "_export_in_child", copy)
    return calls


def test_a_full_size_network_exported_in_the_child_equals_pytorch(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, export_in_child: Callable[..., None]
) -> None:
    monkeypatch.setattr(export, "_export_in_child", export_in_child)
    checkpoint = create_untrained(tmp_path / "b4.safetensors", seed=3)
    onnx_runtime = create_runtime(checkpoint, device="cpu")
    verify_logits(onnx_runtime, checkpoint)
    batch = faces(3, 380)
    logits, cams = onnx_runtime.predict(batch)
    expected_logits, expected_cams = by_torch(checkpoint, batch)

    assert cams.shape == (3, 12, 12)
    np.testing.assert_allclose(logits, expected_logits, atol=1e-3)
    np.testing.assert_allclose(cams, expected_cams, rtol=1e-2, atol=1e-3 * float(expected_cams.max()))
    assert sorted(path.suffix for path in cache.iterdir()) == ["", ".onnx"]

    code = (
        "import sys; from dfscan.detector.checkpoint import read_card; from dfscan.detector.runtime import "
        "create_runtime; create_runtime(read_card(sys.argv[1]), device='cpu'); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(checkpoint.path)], check=True)


def test_graphs_are_cached_and_verified(tiny: Checkpoint, exports: list[str], graph: bytes, cache: Path) -> None:
    assert export.onnx_graph(tiny) == graph
    assert export.onnx_graph(tiny) == graph
    assert len(exports) == 1

    (cached,) = cache.iterdir()
    for damage in (graph[:1000], b"", graph[:-1] + b"?"):
        cached.write_bytes(damage)
        assert export.onnx_graph(tiny) == graph
        assert cached.read_bytes() == graph
    assert len(exports) == 4
    assert list(cache.iterdir()) == [cached]


def test_another_version_exports_again(tiny: Checkpoint, exports: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    export.onnx_graph(tiny)
    monkeypatch.setattr(export, "package_version", lambda name: "99.0")
    export.onnx_graph(tiny)

    assert len(exports) == 2


def test_an_unwritable_cache_is_reported(
    tiny: Checkpoint,
    exports: list[str],
    graph: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))

    assert export.onnx_graph(tiny) == graph
    assert export.onnx_graph(tiny) == graph
    assert len(exports) == 2
    assert "exported again each time" in caplog.text
    assert not [path for path in os.listdir(tmp_path) if path.endswith(".onnx")]


def test_without_a_home_folder_there_is_no_cache(
    tiny: Checkpoint, exports: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(cache_module.Path, "home", no_home)

    assert cache_module.cache_dir() is None
    assert export.onnx_graph(tiny)


def test_the_child_reports_why_a_checkpoint_is_refused(
    tiny: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, export_in_child: Callable[..., None]
) -> None:
    monkeypatch.setattr(export, "_export_in_child", export_in_child)
    path = tmp_path / "copy.safetensors"
    path.write_bytes(tiny.path.read_bytes())
    checkpoint = checkpoint_module.read_card(path)
    path.write_bytes(b"PK\x03\x04")

    with pytest.raises(CheckpointError, match="pickle or zip") as error:
        export.onnx_graph(checkpoint)
    assert "Traceback" not in str(error.value)


@pytest.mark.parametrize(
    ("returncode", "message", "expected"),
    [(1, "noise\nOSError: broken", "OSError: broken"), (-9, "", "signal 9"), (5, "", "exit status 5")],
)
def test_a_failing_child_is_reported_on_one_line(
    returncode: int, message: str, expected: str, tiny: Checkpoint
) -> None:
    failure = export_failure(str(tiny.path), returncode, message)

    assert type(failure) is DfscanError
    assert expected in str(failure)
    assert "\n" not in str(failure)


def test_a_graph_with_wrong_scores_is_refused(tiny: Checkpoint, graph: bytes, tmp_path: Path) -> None:
    (tmp_path / "graph.onnx").write_bytes(graph)
    expected = np.asarray(tiny.card.self_test.expected_logits, np.float32)

    export._compare(tiny, tmp_path / "graph.onnx", expected)
    with pytest.raises(CheckpointError, match="ONNX Runtime gives"):
        export._compare(tiny, tmp_path / "graph.onnx", expected + 0.01)
