"""Export of the network to an ONNX graph for ONNX Runtime, once per checkpoint; the cache folder keeps the graph.

ONNX Runtime takes 0.16 CPU seconds per face, PyTorch 0.58.
"""

from __future__ import annotations

import hashlib
import json
import sys
import warnings
from pathlib import Path

import numpy as np

from dfscan.arrays import Float32Array
from dfscan.cache import package_version
from dfscan.detector.checkpoint import CARD_KEY, Checkpoint, load_network, read_card
from dfscan.detector.selftest import SELF_TEST_TOLERANCE, self_test_input
from dfscan.errors import CheckpointError
from dfscan.files import write_bytes
from dfscan.graphs import cached_graph, export_failure, open_session, run_child

CLASSIFIER_EXPORT_FORMAT = 1
"""Increase this when the graph of the same checkpoint changes: its inputs, outputs or export method."""

INPUT_NAME = "pixels"
OUTPUT_NAMES = ("logit", "cam")


def onnx_graph(checkpoint: Checkpoint) -> bytes:
    """Return the network as a serialised ONNX graph, from the cache or newly exported, which takes seconds.

    The input ``pixels`` is float32 [B, 3, S, S]. The outputs ``logit`` [B, 1] and ``cam`` [B, h, w] are those of
    `DeepfakeDetector.forward_with_cam`. The graph has been compared with PyTorch on the checkpoint's self-test input.

    Raises:
        CheckpointError: if the weights cannot be used, or the graph does not give PyTorch's logits.
        DfscanError: if the export fails for another reason.
    """
    facts = [checkpoint.sha256, CLASSIFIER_EXPORT_FORMAT, package_version("torch"), package_version("onnx")]
    key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]
    return cached_graph(key, _subject(checkpoint), lambda path: _export_in_child(checkpoint, path))


def write_onnx(checkpoint: Checkpoint, out: Path) -> None:
    """Write the graph of `onnx_graph` for other programs, with the card as JSON in its metadata.

    The metadata has the entries ``dfscan``, the card as in the checkpoint, and ``dfscan_checkpoint_sha256``.

    Raises:
        CheckpointError, DfscanError: as `onnx_graph`.
        OutputError: the file cannot be written.
    """
    import onnx

    model = onnx.load_model_from_string(onnx_graph(checkpoint))
    entries = {CARD_KEY: checkpoint.card.model_dump_json(), "dfscan_checkpoint_sha256": checkpoint.sha256}
    onnx.helper.set_model_props(model, entries)
    write_bytes(out, model.SerializeToString())


def _subject(checkpoint: Checkpoint) -> str:
    return f"checkpoint {checkpoint.path}"


def _export_in_child(checkpoint: Checkpoint, graph_path: Path) -> None:
    child = run_child(__name__, [str(checkpoint.path), checkpoint.sha256, str(graph_path)])
    message = child.stderr.strip()
    if child.returncode == EXIT_CHECKPOINT:
        raise CheckpointError(message)
    if child.returncode:
        raise export_failure(_subject(checkpoint), child.returncode, message)


# In the child process

EXIT_CHECKPOINT = 3


def main(arguments: list[str]) -> int:
    """Run the child process with the arguments CHECKPOINT SHA256 GRAPH; report an error as one line on stderr."""
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
    """Export the checkpoint's network and compare the graph's logits with PyTorch's.

    Raises:
        CheckpointError: if the weights do not fit the architecture, or the logits differ.
    """
    import torch

    from dfscan.detector.network import DetectorWithCam

    network = DetectorWithCam(load_network(checkpoint)).eval()
    pixels = torch.from_numpy(self_test_input(checkpoint.card))
    with warnings.catch_warnings():
        # The old exporter is deprecated but takes 7.5 s. dynamo=True takes 25 s, needs onnxscript, gives equal logits.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.filterwarnings("ignore", "Constant folding", UserWarning)  # of padding; ONNX Runtime folds it
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


def _compare(checkpoint: Checkpoint, graph_path: Path, expected: Float32Array) -> None:
    session = open_session(graph_path.read_bytes())
    got = session.run(list(OUTPUT_NAMES), {INPUT_NAME: self_test_input(checkpoint.card)})[0][:, 0]
    if not np.all(np.abs(got - expected) <= SELF_TEST_TOLERANCE):  # a NaN must fail
        raise CheckpointError(
            f"checkpoint {checkpoint.path}: ONNX Runtime gives the logits {got.tolist()}, but PyTorch gives "
            f"{expected.tolist()}; install other versions of torch or onnxruntime, or use --device cuda"
        )
