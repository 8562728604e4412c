"""MTCNN's three networks with facenet-pytorch's weights, in ONNX Runtime.

They are exported once, by a child process, so that a scan on a CPU never imports PyTorch.
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
from numpy.typing import NDArray

from dfscan.cache import package_version
from dfscan.graphs import cached_graph, export_failure, open_session, run_child

Floats = NDArray[np.float32]

SIDES_PX = {"pnet": 12, "rnet": 24, "onet": 48}
"""The library's names of the networks, and the least side of what each takes."""
EXPORT_FORMAT = 2
MAX_EXPORT_ERROR = 1e-4
SUBJECT = "the face detector"


class OnnxNetworks:
    """The networks in ONNX Runtime, on the CPU; several threads may use them at once."""

    def __init__(self) -> None:
        """Load them, exported first if need be.

        Raises:
            DfscanError: they cannot be exported.
        """
        graphs = _unpacked(_graphs())
        self._sessions = {name: open_session(graphs[name]) for name in SIDES_PX}

    def propose(self, picture: Floats) -> tuple[Floats, Floats]:
        """As `mtcnn.Networks`."""
        corrections, chances = self._run("pnet", picture)
        return corrections[0], chances[0, 1]

    def refine(self, crops: Floats) -> tuple[Floats, Floats]:
        """As `mtcnn.Networks`."""
        corrections, chances = self._run("rnet", crops)
        return corrections, chances[:, 1]

    def decide(self, crops: Floats) -> tuple[Floats, Floats, Floats]:
        """As `mtcnn.Networks`."""
        corrections, landmarks, chances = self._run("onet", crops)
        return corrections, landmarks, chances[:, 1]

    def _run(self, name: str, pictures: Floats) -> Sequence[Floats]:
        outputs: list[Floats] = self._sessions[name].run(None, {"pictures": pictures})
        return outputs


def library_networks() -> dict[str, Any]:
    """facenet-pytorch's ``pnet``, ``rnet`` and ``onet`` with their weights, in eval mode."""
    from facenet_pytorch.models.mtcnn import ONet, PNet, RNet

    return {"pnet": PNet().eval(), "rnet": RNet().eval(), "onet": ONet().eval()}


def _graphs() -> bytes:
    """The three graphs, packed."""
    facts = ["mtcnn", EXPORT_FORMAT, *(package_version(name) for name in ("facenet-pytorch", "torch", "onnx"))]
    return cached_graph(hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32], SUBJECT, _export_in_child)


def _export_in_child(path: Path) -> None:
    child = run_child(__name__, [str(path)])
    if child.returncode:
        raise export_failure(SUBJECT, child.returncode, child.stderr.strip())


# In the child


def main(arguments: list[str]) -> int:
    """Export to the path that is named. What goes wrong is one message on stderr."""
    try:
        write_graphs(Path(arguments[0]))
    except Exception as error:  # shown by the parent as one line instead of a traceback
        sys.stderr.write(f"{type(error).__name__}: {' '.join(str(error).split())}\n")
        return 1
    return 0


def write_graphs(path: Path) -> None:
    """Export the networks and compare what the graphs give with PyTorch.

    Raises:
        ArithmeticError: they differ.
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
        graphs[name] = graph_path.read_bytes()
        got = open_session(graphs[name]).run(None, {"pictures": pictures.numpy()})
        for mine, theirs in zip(got, expected, strict=True):
            if not np.all(np.abs(mine - theirs.numpy()) <= MAX_EXPORT_ERROR):  # a NaN must fail
                raise ArithmeticError(f"ONNX Runtime does not give PyTorch's {name}")
    path.write_bytes(_packed(graphs))


def _fast(network: Any) -> Any:
    """The same function in other operations: half the time in ONNX Runtime, whose PRelu costs as much as all else."""
    import torch

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
    if layers["conv1"].out_channels % 8:
        _widen(layers["conv1"], network.prelu1, layers["conv2"])
    return network


def _widen(conv: Any, prelu: Any, following: Any) -> None:
    """Fill the channels between two convolutions up to a multiple of 8 with zeros."""
    from torch.nn import Parameter
    from torch.nn.functional import pad

    missing = -conv.out_channels % 8
    conv.weight = Parameter(pad(conv.weight, (0, 0, 0, 0, 0, 0, 0, missing)))
    conv.bias = Parameter(pad(conv.bias, (0, missing)))
    prelu.slopes = Parameter(pad(prelu.slopes, (0, missing)))
    following.weight = Parameter(pad(following.weight, (0, 0, 0, 0, 0, missing)))


def _packed(graphs: dict[str, bytes]) -> bytes:
    """As one document: the graphs are small."""
    return json.dumps({name: base64.b64encode(graph).decode() for name, graph in graphs.items()}).encode()


def _unpacked(data: bytes) -> dict[str, bytes]:
    return {name: base64.b64decode(graph) for name, graph in json.loads(data).items()}
