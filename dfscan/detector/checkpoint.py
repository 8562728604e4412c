"""Checkpoints: one ``.safetensors`` file with the weights and everything else that a score depends on.

The file's metadata has one entry, ``dfscan``, with the `CheckpointCard` as JSON. Nothing is ever unpickled, and reading
the card does not need PyTorch.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn

from pydantic import ValidationError

from dfscan.detector.card import FORMAT_VERSION, CheckpointCard
from dfscan.detector.hub import fetch, is_hub_name
from dfscan.detector.preprocess import Preprocessing, to_input
from dfscan.detector.selftest import library_versions, mosaic, self_test_input
from dfscan.errors import CheckpointError
from dfscan.files import write_bytes
from dfscan.version import __version__

if TYPE_CHECKING:
    from torch import Tensor

    from dfscan.detector.network import DeepfakeDetector

CARD_KEY = "dfscan"
SOURCE_KEY = "source"
"""Key of `Checkpoint.source` in `Checkpoint.document`; it is not a part of the card."""
MAX_HEADER_BYTES = 10_000_000


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint file whose card, but not its weights, has been read."""

    path: Path
    sha256: str
    """Lower-case hex digest of the whole file."""
    card: CheckpointCard
    source: str | None = None
    """Name with the commit, if the file comes from the Hugging Face Hub."""

    @property
    def name(self) -> str:
        """Name in the card, else the stem of the file."""
        return self.card.name or self.path.stem

    @property
    def label(self) -> str:
        """Short text for reports: the name and the first 12 digits of the SHA-256 digest."""
        return f"{self.name}@{self.sha256[:12]}"

    def document(self) -> dict[str, Any]:
        """Return the card for reports and ledgers: JSON values, without the seen files, and with the source, if any."""
        document = self.card.model_dump(mode="json", exclude={"seen"})
        return document if self.source is None else {**document, SOURCE_KEY: self.source}

    @property
    def base_sha256(self) -> str:
        """Digest of the file from which this one was calibrated, or of this one; equal if only calibrations differ."""
        return self.card.base_sha256 or self.sha256


def default_checkpoint_path() -> Path | None:
    """Return the path of the checkpoint built into the package, or None if there is none."""
    weights_dir = Path(__file__).resolve().parents[1] / "weights"
    return next(iter(sorted(weights_dir.glob("*.safetensors"))), None)


# Reading


def read_card(path: str | Path) -> Checkpoint:
    """Read a checkpoint's card and hash its file, without PyTorch and without reading the weights.

    Args:
        path: the file, or a name on the Hugging Face Hub, which must be a string; see `hub`.

    Raises:
        CheckpointError: if the file does not exist, cannot be downloaded, or is not a complete checkpoint of this
            format.
    """
    hub = fetch(path) if isinstance(path, str) and is_hub_name(path) else None
    path = Path(hub.path if hub else path)
    try:
        if not path.is_file():  # also prevents opening a FIFO or a device
            _refuse(path, "no such file", "check the path, or write a checkpoint with `dfscan init-checkpoint`")
        with path.open("rb") as file:
            header = _read_header(path, file)
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        _refuse(path, f"cannot be read ({error.strerror})", "check its permissions")
    if hub and sha256 != hub.sha256:
        cause = f"its sha256 is {sha256}, but the Hub states {hub.sha256}"
        _refuse(path, cause, f"delete {os.path.realpath(path)} to download it again")
    return Checkpoint(path=path, sha256=sha256, card=_parse_card(path, header), source=hub.source if hub else None)


def _refuse(path: Path, cause: str, remedy: str, *, origin: Exception | None = None) -> NoReturn:
    raise CheckpointError(f"checkpoint {path}: {cause}; {remedy}") from origin


_COPY_AGAIN = "copy or download the file again"
_NOT_OURS = "use a .safetensors file written by `dfscan train` or `dfscan init-checkpoint`"


def _read_header(path: Path, file: BinaryIO) -> dict[str, Any]:
    """Read the header and rewind. A safetensors file has 8 bytes of header length, a JSON header and the tensors."""
    start = file.read(8)
    if start[:2] in (b"PK", b"\x80\x02", b"\x80\x04", b"\x80\x05"):
        _refuse(path, "it is a pickle or zip file, as written by torch.save, which dfscan never opens", _NOT_OURS)
    num_bytes = int.from_bytes(start, "little")
    if len(start) < 8 or not 2 <= num_bytes <= MAX_HEADER_BYTES:
        _refuse(path, "it does not begin like a safetensors file", _NOT_OURS)
    text = file.read(num_bytes)
    if len(text) < num_bytes:
        _refuse(path, "its header is truncated", _COPY_AGAIN)
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        _refuse(path, "its header is not JSON", _NOT_OURS, origin=error)
    if not isinstance(header, dict):
        _refuse(path, "its header is not a JSON object", _NOT_OURS)
    try:
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        num_expected = 8 + num_bytes + int(max(ends, default=0))
    except (TypeError, KeyError, IndexError, ValueError, OverflowError) as error:
        _refuse(path, "its list of tensors is damaged", _COPY_AGAIN, origin=error)
    if (num_found := file.seek(0, 2)) != num_expected:
        _refuse(path, f"it is damaged: it has {num_found} bytes instead of {num_expected}", _COPY_AGAIN)
    file.seek(0)
    return header


def _parse_card(path: Path, header: Mapping[str, Any]) -> CheckpointCard:
    try:
        document = json.loads(header["__metadata__"][CARD_KEY])
        version = document["format_version"]
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        _refuse(path, "it is a safetensors file without dfscan's own metadata", _NOT_OURS, origin=error)
    if version != FORMAT_VERSION:
        _refuse(
            path,
            f"its format version is {version!r}, but dfscan {__version__} reads version {FORMAT_VERSION}",
            "use the dfscan that wrote it, or a later one",
        )
    try:
        card = CheckpointCard.model_validate(document)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()]
        _refuse(path, f"its metadata is not valid: {_first_few(problems)}", _COPY_AGAIN, origin=error)
    if len(card.self_test.expected_logits) != card.self_test.num_inputs:
        _refuse(path, "its self-test needs exactly one expected logit per input", _COPY_AGAIN)
    return card


def _first_few(problems: list[str], limit: int = 3) -> str:
    more = f" and {len(problems) - limit} more" if len(problems) > limit else ""
    return "; ".join(problems[:limit]) + more


# Weights


def load_network(checkpoint: Checkpoint) -> DeepfakeDetector:
    """Build the network with the checkpoint's weights, in fp32 and eval mode on the CPU.

    Raises:
        CheckpointError: if the file has changed since its card was read, or its tensors do not fit its architecture.
    """
    import safetensors
    import safetensors.torch

    try:
        state = safetensors.torch.load(_read_again(checkpoint))
    except (safetensors.SafetensorError, KeyError, ValueError, TypeError) as error:
        _refuse(checkpoint.path, f"its tensors cannot be read ({error})", _COPY_AGAIN, origin=error)
    return _build(checkpoint.path, checkpoint.card, state)


def _read_again(checkpoint: Checkpoint) -> bytes:
    """Return the content of the file, which must not have changed since its card was read."""
    try:
        data = checkpoint.path.read_bytes()
    except OSError as error:
        _refuse(checkpoint.path, f"cannot be read ({error.strerror})", "check that it still exists")
    if hashlib.sha256(data).hexdigest() != checkpoint.sha256:
        _refuse(checkpoint.path, "the file has changed since it was opened", "start again")
    return data


def _build(path: Path, card: CheckpointCard, state: Mapping[str, Tensor]) -> DeepfakeDetector:
    from dfscan.detector.network import create_network

    try:
        network = create_network(card.architecture)
    except CheckpointError as error:
        _refuse(path, str(error), "use the dfscan that wrote it, or a later one", origin=error)
    wanted = network.state_dict()
    problems = [f"{name} is missing" for name in wanted if name not in state]
    problems += [f"{name} is unknown" for name in state if name not in wanted]
    for name in wanted.keys() & state.keys():
        if wanted[name].shape != state[name].shape:
            problems.append(f"{name} is {tuple(state[name].shape)} instead of {tuple(wanted[name].shape)}")
        elif wanted[name].is_floating_point() != state[name].is_floating_point():
            problems.append(f"{name} is {state[name].dtype} instead of {wanted[name].dtype}")
        elif not state[name].isfinite().all():
            problems.append(f"{name} contains values that are not finite")
    if problems:
        _refuse(path, f"its weights do not fit {card.architecture}: {_first_few(sorted(problems))}", _NOT_OURS)
    network.load_state_dict(state)  # converts fp16 tensors to the fp32 parameters
    return network.eval()


# Writing


def save_checkpoint(
    path: str | Path, network: DeepfakeDetector, card: CheckpointCard, *, fp16: bool = False
) -> Checkpoint:
    """Write a checkpoint atomically: under a temporary name that is then renamed.

    Args:
        path: file to write; replaced if it exists.
        network: network on any device and in any mode; not modified.
        card: card to store. The expected logits of its self-test are computed from the weights as stored, and it has no
            `base_sha256`.
        fp16: store weight matrices and kernels in fp16. Biases and batch norm stay in fp32, because they are small and
            running variances can exceed the range of fp16.

    Raises:
        CheckpointError: if the weights do not fit the card's architecture or are not finite.
        OutputError: if the file cannot be written.
    """
    import safetensors.torch
    import torch

    path = Path(path)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    for name, tensor in state.items():
        if tensor.is_floating_point():
            state[name] = tensor.half() if fp16 and tensor.ndim > 1 else tensor.float()
    rebuilt = _build(path, card, state)
    with torch.inference_mode():
        logits = rebuilt(torch.from_numpy(self_test_input(card))).flatten().tolist()
    self_test = card.self_test.model_copy(update={"expected_logits": tuple(logits), "versions": library_versions()})
    card = card.model_copy(update={"self_test": self_test, "base_sha256": None})
    return _write(path, safetensors.torch.save(state, metadata={CARD_KEY: card.model_dump_json()}), card)


def save_calibrated(path: str | Path, checkpoint: Checkpoint, calibrated: CheckpointCard) -> Checkpoint:
    """Write a copy of a checkpoint with another calibration; its weights stay the same, byte for byte.

    Args:
        path: file to write; replaced if it exists.
        checkpoint: checkpoint to copy.
        calibrated: card of the copy, which differs from the original's only in what the calibration changes. Its
            `base_sha256` and `dfscan_version` are set here.

    Raises:
        CheckpointError: if the file has changed since its card was read.
        OutputError: if the file cannot be written.
    """
    data = _read_again(checkpoint)
    num_header_bytes = int.from_bytes(data[:8], "little")
    card = calibrated.model_copy(update={"base_sha256": checkpoint.base_sha256, "dfscan_version": __version__})
    header = json.loads(data[8 : 8 + num_header_bytes]) | {"__metadata__": {CARD_KEY: card.model_dump_json()}}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # safetensors aligns the tensors to 8 bytes
    return _write(Path(path), len(text).to_bytes(8, "little") + text + data[8 + num_header_bytes :], card)


def _write(path: Path, data: bytes, card: CheckpointCard) -> Checkpoint:
    write_bytes(path, data)
    return Checkpoint(path=path, sha256=hashlib.sha256(data).hexdigest(), card=card)


def create_untrained(
    path: str | Path, *, seed: int, architecture: str = "efficientnet_b4", input_size_px: int = 380
) -> Checkpoint:
    """Write an untrained checkpoint for trials. Its scores mean nothing, and its verdict is always inconclusive.

    The same seed gives the same weights with the same libraries on the same kind of machine.

    Raises:
        CheckpointError: for an unknown architecture.
        OutputError: if the file cannot be written.
    """
    from dfscan.detector.network import create_network

    card = CheckpointCard(
        name=f"untrained-{seed}",
        architecture=architecture,
        preprocessing=Preprocessing(input_size_px=input_size_px),
    )
    network = create_network(architecture, seed=seed)
    _settle_batch_norm(network, card, seed=seed)
    return save_checkpoint(path, network, card)


def _settle_batch_norm(network: DeepfakeDetector, card: CheckpointCard, *, seed: int) -> None:
    """Set the backbone's running statistics from mosaics, from coarse to fine.

    With the initial statistics of a new network, the signal vanishes within 32 blocks. Every face would get the same
    score, and a trial would show nothing.
    """
    import torch

    size_px = card.preprocessing.input_size_px
    images = [mosaic(1, num_tiles, size_px, seed=seed)[0] for num_tiles in (3, 5, 8, 13, 24, 48, 96, size_px)]
    network.eval()
    for module in network.backbone.modules():
        if isinstance(module, (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)):
            module.momentum = None  # cumulative average
            module.train()
    with torch.no_grad():
        network(torch.from_numpy(to_input(images, card.preprocessing)))
