"""``dfscan info``."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from dfscan.cli import options
from dfscan.cli.guard import guarded, start_logging
from dfscan.errors import DfscanError


@guarded
def info(
    checkpoint: options.CheckpointFile = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show versions, devices and what the checkpoint says of itself.

    Examples:

    \b
      dfscan info
      dfscan info --checkpoint lab.safetensors
      dfscan info --json > info.json
    """
    from dfscan.detector.checkpoint import default_checkpoint_path, read_card

    start_logging()
    path = checkpoint or default_checkpoint_path()
    card = read_card(path) if path else None
    document: dict[str, Any] = {"versions": _versions(), "devices": _devices(), "checkpoint": None}
    if card:
        document["checkpoint"] = {"path": str(card.path), "sha256": card.sha256, **card.card.model_dump(mode="json")}
    typer.echo(json.dumps(document, indent=2) if as_json else "\n".join(_lines(document)))


def _versions() -> dict[str, str]:
    import av  # noqa: F401  its presence makes versions() name FFmpeg's

    from dfscan.report.meta import versions

    return versions()


def _devices() -> list[str]:
    """Devices that can be used; refuses where torch and torchvision were built for different systems."""
    try:
        import torch
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError, OSError) as error:
        raise DfscanError(
            f"torch and torchvision do not fit together ({error}). Install both anew from one index: "
            "pip install --force-reinstall torch torchvision"
        ) from error
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return ["cpu", *(f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(count))]


def _lines(document: dict[str, Any], indent: str = "") -> list[str]:
    if document.get("checkpoint", 0) is None:
        document = {**document, "checkpoint": "none built in; name one with --checkpoint"}
    lines: list[str] = []
    for name, value in document.items():
        if isinstance(value, dict):
            lines += [f"{indent}{name}:", *_lines(value, indent + "  ")]
        else:
            shown = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else value
            lines.append(f"{indent}{name}: {'-' if shown is None else shown}")
    return lines
