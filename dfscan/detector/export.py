"""The network as an ONNX graph, for ONNX Runtime: exported once for each checkpoint, then kept in the cache folder.

ONNX Runtime needs 0.16 CPU-seconds for a face where PyTorch needs 0.58. The export runs in a child process, so that
a scan never holds PyTorch's 0.9 GB.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dfscan.detector.cache import cache_dir, write_atomically
from dfscan.detector.checkpoint import Checkpoint, load_network, read_card
from dfscan.detector.selftest import SELF_TEST_TOLERANCE, package_version, self_test_input
from dfscan.errors import CheckpointError, DfscanError

_log = logging.getLogger("dfscan")

EXPORT_FORMAT = 1
"""Raise it when the graph of the same checkpoint changes: inputs, outputs or the way it is exported."""

INPUT_NAME = "pixels"
OUTPUT_NAMES = ("logit", "cam")


def onnx_graph(checkpoint: Checkpoint) -> bytes:
    """The network as a serialised ONNX graph, from the cache or newly exported (seconds).

    Its input ``pixels`` is float32 [B, 3, S, S], its outputs are ``logit`` [B, 1] and ``cam`` [B, h, w], as of
    `DeepfakeDetector.forward_with_cam`. It has been compared with PyTorch on the checkpoint's self-test input.

    Raises:
        CheckpointError: if the checkpoint has no such graph.
        DfscanError: if the export fails for another reason.
    """
    key = _cache_key(checkpoint)
    graph = _recall(key)
    if graph is None:
        _log.info("exporting %s to ONNX, once for each checkpoint: about 10 s", checkpoint.label)
        graph = _export_in_child(checkpoint)
        _remember(key, graph)
    return graph


def _cache_key(checkpoint: Checkpoint) -> str:
    facts = [checkpoint.sha256, EXPORT_FORMAT, package_version("torch"), package_version("onnx")]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


def _recall(key: str) -> bytes | None:
    """The cached graph, unless it is damaged: its name ends in its own sha256."""
    if (folder := cache_dir()) is None:
        return None
    for path in sorted(folder.glob(f"{key}-*.onnx")):
        try:
            graph = path.read_bytes()
        except OSError:
            continue
        if path.name == _cache_name(key, graph):
            return graph
        _log.warning("the cached graph %s is damaged and will be exported anew", path)
    return None


def _cache_name(key: str, graph: bytes) -> str:
    return f"{key}-{hashlib.sha256(graph).hexdigest()}.onnx"


def _remember(key: str, graph: bytes) -> None:
    folder = cache_dir()
    try:
        if folder is None:
            raise OSError("no home directory and no XDG_CACHE_HOME")
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / _cache_name(key, graph), graph)
    except OSError as error:
        _log.warning(
            "the ONNX graph cannot be cached (%s) and will be exported anew each time: "
            "set XDG_CACHE_HOME to a writable folder",
            error,
        )


def _export_in_child(checkpoint: Checkpoint) -> bytes:
    try:
        with tempfile.TemporaryDirectory(prefix="dfscan-") as folder:
            graph_path = Path(folder) / "graph.onnx"
            _run_child(checkpoint, graph_path)
            return graph_path.read_bytes()
    except OSError as error:
        raise DfscanError(
            f"checkpoint {checkpoint.path} cannot be exported to ONNX ({error}): "
            "it needs a writable temporary folder with some 200 MB, see TMPDIR"
        ) from error


# The child imports from where its parent does, and from nowhere else: `python -m` would put the working directory,
# perhaps a folder of untrusted files, first.
_CHILD = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from dfscan.detector.export import main; sys.exit(main(sys.argv[2:]))"
)


def _run_child(checkpoint: Checkpoint, graph_path: Path) -> None:
    command = [sys.executable, "-P", "-c", _CHILD, json.dumps(sys.path)]
    command += [str(checkpoint.path), checkpoint.sha256, str(graph_path)]
    child = subprocess.run(
        command,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    if child.returncode:
        raise _failure(checkpoint, child.returncode, child.stderr.strip())


def _failure(checkpoint: Checkpoint, returncode: int, message: str) -> DfscanError:
    if returncode == EXIT_CHECKPOINT:
        return CheckpointError(message)
    if returncode < 0:
        message = f"its process was ended by signal {-returncode}; the export needs about 2.5 GB of memory"
    last_line = message.rpartition("\n")[2] or f"exit status {returncode}"
    return DfscanError(
        f"checkpoint {checkpoint.path} cannot be exported to ONNX: {last_line}. "
        "Check that torch, onnx and onnxruntime are whole with `dfscan info`"
    )


# In the child

EXIT_CHECKPOINT = 3


def main(arguments: list[str]) -> int:
    """Run the child: CHECKPOINT SHA256 GRAPH. What goes wrong is one message on stderr."""
    checkpoint_path, sha256, graph_path = arguments
    try:
        checkpoint = read_card(checkpoint_path)
        if checkpoint.sha256 != sha256:
            raise CheckpointError(f"checkpoint {checkpoint_path}: the file has changed since it was opened")
        write_graph(checkpoint, Path(graph_path))
    except CheckpointError as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_CHECKPOINT
    except Exception as error:  # shown by the parent as one line instead of a traceback
        sys.stderr.write(f"{type(error).__name__}: {' '.join(str(error).split())}\n")
        return 1
    return 0


def write_graph(checkpoint: Checkpoint, graph_path: Path) -> None:
    """Export the checkpoint's network and compare the graph with it.

    Raises:
        CheckpointError: if the weights do not fit, or ONNX Runtime does not give PyTorch's logits.
    """
    import torch

    from dfscan.detector.network import DetectorWithCam

    network = DetectorWithCam(load_network(checkpoint)).eval()
    pixels = torch.from_numpy(self_test_input(checkpoint.card))
    with warnings.catch_warnings():
        # Deprecated, but it takes 7.5 s where dynamo=True takes 25 s and onnxscript; the logits are equal.
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            network,
            (pixels,),
            graph_path,
            dynamo=False,
            input_names=[INPUT_NAME],
            output_names=list(OUTPUT_NAMES),
            dynamic_axes={name: {0: "batch"} for name in (INPUT_NAME, *OUTPUT_NAMES)},
        )
    with torch.inference_mode():
        expected = network(pixels)[0].flatten().numpy()
    _compare(checkpoint, graph_path, expected)


def _compare(checkpoint: Checkpoint, graph_path: Path, expected: NDArray[np.float32]) -> None:
    from dfscan.detector.runtime import OnnxRuntime

    got, _ = OnnxRuntime(graph_path.read_bytes()).predict(self_test_input(checkpoint.card))
    if not np.all(np.abs(got - expected) <= SELF_TEST_TOLERANCE):  # a NaN must fail
        raise CheckpointError(
            f"checkpoint {checkpoint.path}: ONNX Runtime gives the logits {got.tolist()} where PyTorch gives "
            f"{expected.tolist()}; install other versions of torch or onnxruntime, or use --device cuda"
        )
