"""MTCNN's three networks in ONNX Runtime, with the weights of facenet-pytorch.

A child process exports them once, so that a scan on a CPU never imports PyTorch.
"""

from __future__ import annotations

import base64
import hashlib
import json
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dfscan.arrays import Float32Array
from dfscan.cache import package_version
from dfscan.graphs import cached_graph, export_failure, open_session, run_child

SIDES_PX = {"pnet": 12, "rnet": 24, "onet": 48}
"""Names of the networks in the library, and the minimum input side of each."""
MTCNN_EXPORT_FORMAT = 2
MAX_EXPORT_ERROR = 1e-4
SUBJECT = "the face detector"


class OnnxNetworks:
    """The networks in ONNX Runtime, on the CPU; several threads may use them at once."""

    def __init__(self) -> None:
        """Load the networks; export them first if necessary.

        Raises:
            DfscanError: the export failed.
        """
        versions = (package_version(name) for name in ("facenet-pytorch", "torch", "onnx"))
        facts = json.dumps(["mtcnn", MTCNN_EXPORT_FORMAT, *versions])
        graphs = json.loads(cached_graph(hashlib.sha256(facts.encode()).hexdigest()[:32], SUBJECT, _export_in_child))
        self._sessions = {name: open_session(base64.b64decode(graphs[name])) for name in SIDES_PX}

    def propose(self, picture: Float32Array) -> tuple[Float32Array, Float32Array]:
        """See `mtcnn_numpy.Networks`."""
        offsets, probs = self._run("pnet", picture)
        return offsets[0], probs[0, 1]

    def refine(self, crops: Float32Array) -> tuple[Float32Array, Float32Array]:
        """See `mtcnn_numpy.Networks`."""
        offsets, probs = self._run("rnet", crops)
        return offsets, probs[:, 1]

    def decide(self, crops: Float32Array) -> tuple[Float32Array, Float32Array, Float32Array]:
        """See `mtcnn_numpy.Networks`."""
        offsets, landmarks, probs = self._run("onet", crops)
        return offsets, landmarks, probs[:, 1]

    def _run(self, name: str, pictures: Float32Array) -> Sequence[Float32Array]:
        outputs: list[Float32Array] = self._sessions[name].run(None, {"pictures": pictures})
        return outputs


def library_networks() -> dict[str, Any]:
    """Return facenet-pytorch's ``pnet``, ``rnet`` and ``onet`` with their weights, in eval mode."""
    from facenet_pytorch.models.mtcnn import ONet, PNet, RNet

    return {"pnet": PNet().eval(), "rnet": RNet().eval(), "onet": ONet().eval()}


def _export_in_child(path: Path) -> None:
    child = run_child(__name__, [str(path)])
    if child.returncode:
        raise export_failure(SUBJECT, child.returncode, child.stderr.strip())


# The functions below run in the child process.


def main(arguments: list[str]) -> int:
    """Export the networks to the path in `arguments`; report an error as one line on stderr."""
    try:
        write_graphs(Path(arguments[0]))
    except Exception as error:  # shown by the parent as one line instead of a traceback
        sys.stderr.write(f"{type(error).__name__}: {' '.join(str(error).split())}\n")
        return 1
    return 0


def write_graphs(path: Path) -> None:
    """Export the networks and compare the outputs of the graphs with PyTorch.

    The three graphs are small, so the file is one JSON document that has them in base64 by name.

    Raises:
        ArithmeticError: the outputs differ.
    """
    import torch

    graphs = {}
    graph_path = path.with_suffix(".part")
    for name, network in library_networks().items():
        axes = {0: "pictures"} | ({2: "height", 3: "width"} if name == "pnet" else {})
        pictures = torch.linspace(-1, 1, 2 * 3 * SIDES_PX[name] ** 2).reshape(2, 3, SIDES_PX[name], SIDES_PX[name])
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore", DeprecationWarning)  # as in detector.export
            expected = network(pictures)
            torch.onnx.export(
                _fast(network),
                (pictures,),
                graph_path,
                dynamo=False,
                input_names=["pictures"],
                dynamic_axes={"pictures": axes},
            )
        graph = graph_path.read_bytes()
        graphs[name] = base64.b64encode(graph).decode()
        got = open_session(graph).run(None, {"pictures": pictures.numpy()})
        for mine, theirs in zip(got, expected, strict=True):
            if not np.all(np.abs(mine - theirs.numpy()) <= MAX_EXPORT_ERROR):  # a NaN must fail
                raise ArithmeticError(f"{name} gives different results in ONNX Runtime and PyTorch")
    path.write_bytes(json.dumps(graphs).encode())


def _fast(network: Any) -> Any:
    """Replace PRelu by equivalent operations, which halves the time: ONNX Runtime spends half of it on PRelu.

    The channels between the first two convolutions are padded with zeros to a multiple of 8.
    """
    import torch
    from torch.nn import Parameter
    from torch.nn.functional import pad

    class Prelu(torch.nn.Module):
        def __init__(self, slopes: Any) -> None:
            super().__init__()
            self.slopes = slopes

        def forward(self, x: Any) -> Any:
            slopes = self.slopes.reshape(-1, *[1] * (x.ndim - 2))
            return x * slopes + torch.relu(x) * (1 - slopes)

    layers = dict(network.named_children())
    for name, layer in layers.items():
        if isinstance(layer, torch.nn.PReLU):
            setattr(network, name, Prelu(layer.weight))
    conv, prelu, following = layers["conv1"], network.prelu1, layers["conv2"]
    if missing := -conv.out_channels % 8:
        conv.weight = Parameter(pad(conv.weight, (0, 0, 0, 0, 0, 0, 0, missing)))
        conv.bias = Parameter(pad(conv.bias, (0, missing)))
        prelu.slopes = Parameter(pad(prelu.slopes, (0, missing)))
        following.weight = Parameter(pad(following.weight, (0, 0, 0, 0, 0, missing)))
    return network
