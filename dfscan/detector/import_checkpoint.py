"""Import the weights of other projects' EfficientNet-B4 detectors, with the preprocessing that they were trained with.

Layouts were read from the projects' public code in November 2026. This module imports PyTorch; import it only inside
functions that need it.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

import safetensors.torch
import torch  # noqa: TID253
from timm.models._efficientnet_blocks import DepthwiseSeparableConv  # noqa: TID253
from torch import Tensor, nn  # noqa: TID253

from dfscan.detector.card import Calibration, CheckpointCard
from dfscan.detector.checkpoint import CARD_KEY, Checkpoint, save_checkpoint
from dfscan.detector.network import BARE_STEM, PADDED_FOR_380, DeepfakeDetector, Head, create_network
from dfscan.detector.preprocess import Preprocessing
from dfscan.errors import CheckpointError, ConfigError

Rgb = tuple[float, float, float]
NORMALISATIONS: Final[dict[str, tuple[Rgb, Rgb]]] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}
"""Mean and standard deviation of R, G and B in [0, 1], by name."""
IMPORTED_ARCHITECTURES: Final = ("efficientnet_b4", "tf_efficientnet_b4", PADDED_FOR_380, BARE_STEM)
LICENCE: Final = "Look up the project's licence: some forbid commercial use."
CLASSES: Final = (1, 2)
"""Numbers of outputs that a detector can have."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Names of the tensors of one project, and everything else that its scores depend on."""

    project: str
    prefix: str
    """Start of the names of the backbone's tensors."""
    head: str
    """Name of the linear layer after the pooling."""
    preprocessing: Preprocessing
    architecture: str | None
    """One of `IMPORTED_ARCHITECTURES`; None if the weights do not reveal it."""
    fake_class: int | None
    """Index of the class `fake`; None if unknown. With a single output, 0 means that it is the logit of `real`."""
    is_timm: bool = False
    """True if the backbone has timm's names, false if it has those of efficientnet_pytorch."""


def _preprocessing(input_size_px: int, normalisation: str, **crop: Any) -> Preprocessing:
    mean, std = NORMALISATIONS[normalisation]
    return Preprocessing(input_size_px=input_size_px, mean=mean, std=std, **crop)


WEIGHT_LAYOUTS: Final[dict[str, Layout]] = {
    # src/inference/preprocess.py: each side of RetinaFace's box gets 1/8 of its length on both ends.
    "sbi": Layout(
        "https://github.com/mapooon/SelfBlendedImages",
        prefix="net.",
        head="net._fc",
        preprocessing=_preprocessing(380, "none", crop="box", crop_margin=1.25, interpolation="linear"),
        architecture="tf_efficientnet_b4",
        fake_class=1,
    ),
    # preprocessing/preprocess.py: five of dlib's points are aligned with a margin of 1.3. MTCNN's landmarks are closer
    # together, the eyes' centres instead of points on the lids: the same crop is 1.38 times the template.
    "deepfakebench": Layout(
        "https://github.com/SCLBD/DeepfakeBench",
        prefix="backbone.efficientnet.",
        head="backbone.last_layer",
        preprocessing=_preprocessing(256, "half", crop="aligned", crop_margin=1.38, interpolation="linear"),
        architecture=BARE_STEM,
        fake_class=1,
    ),
    # blazeface/face_extract.py and isplutils/utils.py: the square around BlazeFace's box, with margins of 0.4 of its
    # height at the top and 0.2 elsewhere, has 1.3 times the longer side of MTCNN's box and the same centre.
    "icpr2020dfdc": Layout(
        "https://github.com/polimi-ispl/icpr2020dfdc",
        prefix="efficientnet.",
        head="classifier",
        preprocessing=_preprocessing(224, "imagenet", crop_margin=1.3, interpolation="antialiased_linear"),
        architecture=PADDED_FOR_380,
        fake_class=1,
    ),
    "timm": Layout(
        "https://github.com/huggingface/pytorch-image-models",
        prefix="",
        head="classifier",
        preprocessing=_preprocessing(380, "imagenet"),
        architecture=None,
        fake_class=None,
        is_timm=True,
    ),
}


def import_weights(
    path: str | Path,
    out: str | Path,
    *,
    layout: str = "auto",
    architecture: str | None = None,
    fake_class: int | None = None,
    input_size_px: int | None = None,
    normalisation: str | None = None,
) -> Checkpoint:
    """Write another project's detector as a checkpoint. It is not calibrated, so its verdict is always inconclusive.

    The checkpoint gives the logits of the original network; of two classes, the difference. No code in the file is run.

    Args:
        path: file of `torch.save` or of safetensors.
        out: checkpoint to write; replaced if it exists.
        layout: one of `WEIGHT_LAYOUTS`, or ``auto`` to recognise it.
        architecture: one of `IMPORTED_ARCHITECTURES`. This and the following default to the values of the layout.
        fake_class: index of the class `fake`; with a single output, 0 means that it is the logit of `real`.
        input_size_px: side of the network's input.
        normalisation: one of `NORMALISATIONS`.

    Raises:
        CheckpointError: the file cannot be read, or is not an EfficientNet-B4 with one linear layer.
        ConfigError: an argument is unknown, or missing for this layout.
        OutputError: the checkpoint cannot be written.
    """
    path = Path(path)
    for name, value, known in (
        ("layout", layout, ("auto", *WEIGHT_LAYOUTS)),
        ("architecture", architecture, IMPORTED_ARCHITECTURES),
        ("normalisation", normalisation, NORMALISATIONS),
        ("fake_class", fake_class, (0, 1)),
    ):
        if value is not None and value not in known:
            raise ConfigError(f"unknown {name} {value!r}: use {', '.join(map(str, known))}")
    try:
        if not path.is_file():  # also prevents opening a FIFO or a device
            _refuse(path, "no such file", "check the path")
        data = path.read_bytes()
    except OSError as error:
        _refuse(path, f"cannot be read ({error.strerror})", "check its permissions")
    tensors, wrapper = _unwrap(path, _load(path, data))
    if layout == "auto":
        matching = [
            name
            for name, each in WEIGHT_LAYOUTS.items()
            if {f"{each.prefix}{'' if each.is_timm else '_'}conv_stem.weight", f"{each.head}.weight"} <= tensors.keys()
        ]
        if not matching:
            _refuse(path, f"its layout is unknown: {_describe(tensors)}", _OTHERS)
        layout = matching[0]
    source = WEIGHT_LAYOUTS[layout]
    architecture = architecture or source.architecture
    fake_class = source.fake_class if fake_class is None else fake_class
    if architecture is None or fake_class is None:
        raise ConfigError(
            f"{path} has the layout {layout}, whose weights reveal neither the padding nor the order of the classes: "
            "give --architecture efficientnet_b4 or tf_efficientnet_b4, and --fake-class 0 or 1"
        )
    changes: dict[str, Any] = {} if input_size_px is None else {"input_size_px": input_size_px}
    if normalisation:
        changes["mean"], changes["std"] = NORMALISATIONS[normalisation]
    card = CheckpointCard(
        architecture=architecture,
        preprocessing=source.preprocessing.model_copy(update=changes),
        calibration=Calibration(trained=True),
        training={
            "imported_from": source.project,
            "layout": layout,
            "file": path.name,
            "file_sha256": hashlib.sha256(data).hexdigest(),
            "weights": wrapper or "the whole file",
            "fake_class": fake_class,
            "licence": LICENCE,
        },
    )
    network = create_network(architecture, seed=0)
    _fill(path, network, tensors, layout, fake_class)
    return save_checkpoint(out, network, card)


# Reading


def _refuse(path: Path, cause: str, remedy: str, *, origin: Exception | None = None) -> NoReturn:
    raise CheckpointError(f"{path}: {cause}; {remedy}") from origin


_DOWNLOAD = "download the file again"
_OTHERS = "import an EfficientNet-B4 with one linear layer, see the page `Own detector` of the documentation"


def _load(path: Path, data: bytes) -> object:
    """Read a file of safetensors, or of `torch.save` with PyTorch's unpickler for tensors and containers only."""
    if data[8:9] == b"{":
        try:
            tensors = safetensors.torch.load(data)
            metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__", {})
        except (safetensors.SafetensorError, KeyError, ValueError, TypeError) as error:
            _refuse(path, f"its tensors cannot be read ({error})", _DOWNLOAD, origin=error)
        if CARD_KEY in metadata:
            _refuse(path, "it is a checkpoint of dfscan already", "use it with --checkpoint")
        return tensors
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about forms of pickle that it does not know
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # PyTorch's restricted unpickler raises various exceptions on damaged files
        # Its messages are not repeated: they recommend to switch the restriction off.
        found = re.search(r"GLOBAL ([\w.]+)|(TorchScript)", str(error))
        if not found:
            _refuse(path, "it is not a file of tensors, or it is damaged", _DOWNLOAD, origin=error)
        _refuse(
            path,
            f"it contains code, not only tensors ({found[1] or found[2]}); nothing was run",
            "save only the network's state_dict, on a system where you trust the file",
            origin=error,
        )


_WRAPPERS = (
    *("state_dict_ema", "model_ema", "ema_state_dict", "ema"),
    *("state_dict", "model_state_dict", "model_state", "model", "net"),
)
"""Keys under which programs save the weights, averaged ones first, as timm takes them."""
_PREFIXES = ("module.", "_orig_mod.", "model.", "ema_model.")
"""Prefixes of DataParallel, torch.compile, Lightning and averaging."""


def _unwrap(path: Path, found: object) -> tuple[dict[str, Tensor], str]:
    """Return the tensors by name, without prefixes that all have in common, and the keys above them."""
    keys: list[str] = []
    while isinstance(found, Mapping) and (key := next((k for k in _WRAPPERS if isinstance(found.get(k), Mapping)), "")):
        found = found[key]
        keys.append(key)
    items = found.items() if isinstance(found, Mapping) else ()
    named = {name: each for name, each in items if isinstance(name, str) and isinstance(each, Tensor)}
    # sparse tensors and those on the device `meta` cannot be weights
    tensors = {n: each for n, each in named.items() if each.layout == torch.strided and each.device.type == "cpu"}
    if not tensors:
        what = f"the keys {_few(map(str, found))}" if isinstance(found, Mapping) else f"a {type(found).__name__}"
        _refuse(path, f"it contains no weights, but {what}", _OTHERS)
    tensors.pop("n_averaged", None)  # of torch.optim.swa_utils.AveragedModel
    while prefix := next((each for each in _PREFIXES if all(name.startswith(each) for name in tensors)), ""):
        tensors = {name.removeprefix(prefix): each for name, each in tensors.items()}
    return tensors, ".".join(keys)


def _few(names: Iterable[str], limit: int = 3) -> str:
    shown = list(names)
    more = f" and {len(shown) - limit} more" if len(shown) > limit else ""
    return ", ".join(shown[:limit]) + more


# Recognition

_FAMILY = {1280: "B0 or B1", 1408: "B2", 1536: "B3", 1792: "B4", 2048: "B5", 2304: "B6", 2560: "B7"}
"""Members of the EfficientNet family by the number of channels of the last convolution."""


def _describe(tensors: Mapping[str, Tensor]) -> str:
    last = next((each for name, each in tensors.items() if name.endswith("conv_head.weight")), None)
    what = "found"
    if last is not None and last.ndim == 4:
        what = f"found an EfficientNet-{_FAMILY.get(last.shape[0], f'like network with {last.shape[0]} features')} with"
    elif any(name.endswith("layer1.0.conv1.weight") for name in tensors):
        what = "found a ResNet with"
    return f"{what} {len(tensors)} tensors, {_few(tensors)}"


# Conversion


def _fill(path: Path, network: DeepfakeDetector, tensors: Mapping[str, Tensor], layout: str, fake_class: int) -> None:
    """Copy the weights into a new network.

    Raises:
        CheckpointError: they do not fit.
    """
    source = WEIGHT_LAYOUTS[layout]
    wanted = network.backbone.state_dict()
    names = {name: name for name in wanted} if source.is_timm else _efficientnet_pytorch_names(network.backbone)
    weight, bias = (tensors.get(f"{source.head}.{each}") for each in ("weight", "bias"))
    num_classes = len(weight) if weight is not None and weight.ndim else 0
    num_features = network.head.hidden.in_features
    shapes = {source.prefix + names[name]: each.shape for name, each in wanted.items() if not name.endswith(_COUNTER)}
    shapes |= {
        f"{source.head}.weight": torch.Size([num_classes, num_features]),
        f"{source.head}.bias": torch.Size([num_classes]),
    }
    if problems := _problems(shapes, tensors):
        _refuse(path, f"it does not fit the layout {layout}: {_few(problems)}; {_describe(tensors)}", _OTHERS)
    if num_classes not in CLASSES:
        _refuse(path, f"its linear layer has {num_classes} classes; a detector has one or two", _OTHERS)
    assert weight is not None and bias is not None
    state = {name: tensors[source.prefix + names[name]] for name in wanted if not name.endswith(_COUNTER)}
    network.backbone.load_state_dict(wanted | state)
    _fit_head(network.head, weight.float(), bias.float(), fake_class)


_COUNTER = "num_batches_tracked"
"""Counters of batch norm, which no score depends on."""


def _problems(shapes: Mapping[str, torch.Size], tensors: Mapping[str, Tensor]) -> list[str]:
    given = {name: each for name, each in tensors.items() if not name.endswith(_COUNTER)}
    problems = [f"{name} is missing" for name in shapes if name not in given]
    problems += [f"{name} is unknown" for name in given if name not in shapes]
    for name in shapes.keys() & given.keys():
        if given[name].shape != shapes[name]:
            problems.append(f"{name} is {tuple(given[name].shape)} instead of {tuple(shapes[name])}")
        elif not given[name].is_floating_point() or not given[name].isfinite().all():
            problems.append(f"{name} contains values that are not finite numbers")
        elif name.endswith("running_var") and (given[name] < 0).any():
            problems.append(f"{name} contains negative variances")
    return sorted(problems)


_STEM_AND_HEAD = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1"}
_SQUEEZE = {"se.conv_reduce": "_se_reduce", "se.conv_expand": "_se_expand"}
_BLOCK = _SQUEEZE | {
    **{"conv_pw": "_expand_conv", "bn1": "_bn0", "conv_dw": "_depthwise_conv", "bn2": "_bn1"},
    **{"conv_pwl": "_project_conv", "bn3": "_bn2"},
}
_BLOCK_WITHOUT_EXPANSION = _SQUEEZE | {
    **{"conv_dw": "_depthwise_conv", "bn1": "_bn1", "conv_pw": "_project_conv", "bn2": "_bn2"}
}


def _efficientnet_pytorch_names(backbone: nn.Module) -> dict[str, str]:
    """Map timm's names of a backbone's tensors to those of efficientnet_pytorch, which has blocks but no stages."""
    stages: Any = backbone.blocks
    blocks = [(f"blocks.{i}.{j}", block) for i, stage in enumerate(stages) for j, block in enumerate(stage)]
    modules = dict(_STEM_AND_HEAD)
    for number, (name, block) in enumerate(blocks):
        parts = _BLOCK_WITHOUT_EXPANSION if isinstance(block, DepthwiseSeparableConv) else _BLOCK
        modules |= {f"{name}.{ours}": f"_blocks.{number}.{theirs}" for ours, theirs in parts.items()}
    split = {name: name.rpartition(".") for name in backbone.state_dict()}
    return {name: f"{modules[module]}.{tensor}" for name, (module, _, tensor) in split.items()}


def _fit_head(head: Head, weight: Tensor, bias: Tensor, fake_class: int) -> None:
    """Make the head compute one linear function of the features, exactly.

    With hidden units ``a`` and ``-a`` and an identity norm, ``relu(a) - relu(-a)`` is ``a``. The other hidden units
    have no influence. They keep their random weights, so that later training can use them.

    Args:
        head: modified in place.
        weight: [C, K], for one or two classes.
        bias: [C].
        fake_class: see `import_checkpoint`.
    """
    sign = 1 if fake_class == 1 else -1
    if len(weight) == 2:
        weight, bias = weight[1:] - weight[:1], bias[1:] - bias[:1]
    norm, hidden, output = head.norm, head.hidden, head.output
    with torch.no_grad():
        hidden.weight[:2] = torch.cat([sign * weight, -sign * weight])
        hidden.bias[:2] = torch.cat([sign * bias, -sign * bias])
        assert norm.running_var is not None
        norm.running_var.fill_(1 - norm.eps)
        output.weight.zero_()
        output.weight[0, :2] = torch.tensor([1.0, -1.0])
        output.bias.zero_()
