"""The ``dfscan info`` command."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dfscan.cli import options
from dfscan.cli.guard import guarded, start_logging
from dfscan.config import ScanSettings
from dfscan.errors import DfscanError

if TYPE_CHECKING:
    from dfscan.dataset.manifest import TrueLabel
    from dfscan.detector.card import Calibration, CheckpointCard
    from dfscan.detector.checkpoint import Checkpoint

CPU_INDEX = "https://download.pytorch.org/whl/cpu"
GPU_PACKAGES = ("nvidia-", "cuda-", "triton")
"""Name prefixes of the packages that only PyTorch builds for GPUs install."""
ESTIMATE_KEYS = {"value", "low", "high"}
"""Keys of a measured value with its interval, as in a card's metrics."""


@guarded
@options.with_settings("checkpoint")
def info(
    *,
    settings: ScanSettings,
    as_json: Annotated[bool, typer.Option("--json", help="Print the information as JSON.")] = False,
) -> None:
    """Show versions, devices, sandbox and checkpoint details.

    Examples:

    \b
      dfscan info
      dfscan info --checkpoint lab.safetensors
      dfscan info --json > info.json
    """
    import av  # noqa: F401  versions() reports FFmpeg's version only if av is imported

    from dfscan.detector.checkpoint import default_checkpoint_path
    from dfscan.media import sandbox
    from dfscan.report.meta import versions
    from dfscan.scan.setup import find_checkpoints, only_one

    start_logging()
    card = only_one(find_checkpoints(settings)) if settings.checkpoint or default_checkpoint_path() else None
    document: dict[str, Any] = {
        "versions": versions(),
        "devices": _devices(),
        "pytorch": _pytorch_build(),
        "sandbox": "; ".join(sandbox.missing())
        or f"Landlock ABI {sandbox.landlock_abi()}, seccomp filter, memory limit",
        "checkpoint": None,
    }
    if card:
        document["checkpoint"] = {"path": str(card.path), "sha256": card.sha256, **card.card.model_dump(mode="json")}
        if card.source:
            document["checkpoint"]["source"] = card.source
    if as_json:
        typer.echo(json.dumps(document, indent=2))
        return
    shown = _model_card(card) if card else "none built in; give one with --checkpoint"
    typer.echo("\n".join(_lines({**document, "checkpoint": shown})))


def _devices() -> list[str]:
    """List the usable devices; raise `DfscanError` if torch and torchvision are incompatible builds."""
    try:
        import torch
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError, OSError) as error:
        raise DfscanError(
            f"torch and torchvision are incompatible ({error}). Reinstall both from the same index: "
            f"pip install --force-reinstall torch torchvision (without a GPU: add --index-url {CPU_INDEX})"
        ) from error
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return ["cpu", *(f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(count))]


def _pytorch_build() -> str:
    """Describe the installed PyTorch build, and the space that a CPU build would save if no GPU is usable."""
    import importlib.metadata  # a tenth of the time of `dfscan --help`

    import torch

    platform = f"CUDA {torch.version.cuda}" if torch.version.cuda else "ROCm" if torch.version.hip else ""
    if not platform:
        return "built for CPUs"
    if torch.cuda.is_available():
        return f"built for {platform}"
    gpu_bytes = 0
    for distribution in importlib.metadata.distributions():
        is_whole = distribution.name.lower().startswith(GPU_PACKAGES)
        for file in distribution.files or [] if is_whole or distribution.name == "torch" else []:
            gpu_bytes += (file.size or 0) if is_whole or "cuda" in file.name else 0
    return (
        f"built for {platform}, but no usable GPU was found: a build for CPUs saves {gpu_bytes / 1e9:.1f} GB; "
        f"pip install --force-reinstall torch torchvision --index-url {CPU_INDEX}"
    )


# The card as text


def _model_card(checkpoint: Checkpoint) -> dict[str, Any]:
    from dfscan.detector.card import quality_validations
    from dfscan.detector.describe import INTENDED_USE, describe_card

    card = checkpoint.card
    quality = {
        f"sharpness {words}": f"fake {_from(level.fake_threshold, 'at least')}, "
        f"real {_from(level.real_threshold, 'at most')}; measured on {level.num_real_groups} groups of real and "
        f"{level.num_fake_groups} of fake videos"
        for level, words, _ in quality_validations(card)
    }
    seen = "not recorded: a scan cannot recognise training videos"
    if card.seen is not None:
        seen = ", ".join(f"{count} in {use}" for use, count in card.seen.counts().items())
        seen += "" if card.seen.is_complete else "; others are not recorded"
    facts = {name.lower(): text for name, text in describe_card(checkpoint.document()).items()}
    return {
        "path": str(checkpoint.path),
        "sha256": checkpoint.sha256,
        "intended use": INTENDED_USE,
        **facts,
        "calibration": calibration_facts(card),
        "quality": quality if card.quality else "not measured: it does not affect verdicts",
        "training": card.training,
        "seen files": seen,
        "metrics": card.metrics,
    }


def calibration_facts(card: CheckpointCard) -> dict[str, Any]:
    """Return the calibration as text, by name: the temperature, and when each verdict is given."""
    from dfscan.detector.card import own_limit, withheld

    of, document = card.calibration, card.model_dump()
    if not of.trained:
        return {"trained": "no: its scores mean nothing, and its verdict is always inconclusive"}
    if not of.is_set:
        return {"trained": "yes", "calibrated": "no: it has no thresholds, and its verdict is always inconclusive"}
    fake = real = "never"
    if of.fake_threshold is not None:
        stated = _stated(of, of.real_called_fake_rate, of.real_called_fake_interval, "real")
        limits = _also(own_limit(document, "fake")) + _but(withheld(document, "fake"))
        fake = f"score at least {of.fake_threshold:.6f}{stated}{limits}"
    if of.real_threshold is not None:
        stated = _stated(of, of.fake_called_real_rate, of.fake_called_real_interval, "fake")
        limits = _also(own_limit(document, "real")) + _but(withheld(document, "real"))
        real = f"score at most {of.real_threshold:.6f}{stated}{limits}"
    elif of.num_fake_videos == 0:
        real = "never, it was calibrated on genuine videos alone"
    else:
        real = "never, the detector is too weak for this verdict"
    return {"trained": "yes", "fake": fake, "real": real}


def _from(threshold: float | None, words: str) -> str:
    return "never" if threshold is None else f"{words} {threshold:.6f}"


def _also(limit: str | None) -> str:
    return f"; {limit}" if limit else ""


def _but(why: str | None) -> str:
    return f"; withheld: {why}" if why else ""


def _stated(of: Calibration, rate: float | None, interval: tuple[float, float] | None, truth: TrueLabel) -> str:
    if rate is None:
        return ""
    num_videos, num_groups = (
        (of.num_real_videos, of.num_real_groups) if truth == "real" else (of.num_fake_videos, of.num_fake_groups)
    )
    counted = num_videos if num_groups is None else num_groups
    unit = "videos" if counted == num_videos else "groups"
    kind = f"{truth} {unit}" if of.own_footage else f"{truth} validation {unit}"
    vouched = "" if interval is None else f" (95 % interval {interval[0]:.1%} to {interval[1]:.1%})"
    return f", met by {rate:.1%} of {'' if counted is None else f'{counted} '}{kind}{vouched}"


def _lines(document: dict[str, Any], indent: str = "") -> list[str]:
    from dfscan.text import printable

    lines: list[str] = []
    for name, value in document.items():
        start = f"{indent}{printable(str(name))}:"
        if isinstance(value, dict) and set(value) != ESTIMATE_KEYS:
            lines += [start, *_lines(value, indent + "  ")]
        elif isinstance(value, list) and any(isinstance(item, str) and " " in item for item in value):
            lines += [start, *(f"{indent}  - {printable(str(item))}" for item in value)]
        else:
            lines.append(f"{start} {printable(_shown(value))}")
    return lines


def _shown(value: Any) -> str:
    """Format a value on one line: an estimate with its interval, a list with commas."""
    if isinstance(value, dict):
        low, high = _shown(value["low"]), _shown(value["high"])
        return _shown(value["value"]) + ("" if value["low"] is None else f" [{low}, {high}]")
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_shown, value))
    if isinstance(value, float):
        return f"{value:.4g}"
    return "-" if value is None else str(value)
