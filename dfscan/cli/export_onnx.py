"""The ``dfscan export-onnx`` command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dfscan.cli.guard import guarded, start_logging
from dfscan.errors import ConfigError


@guarded
def export_onnx(
    checkpoint: Annotated[
        str, typer.Argument(help="Checkpoint: a file or hf://owner/name.", show_default=False, metavar="CHECKPOINT")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write: NAME.onnx.", show_default=False)],
    force: Annotated[bool, typer.Option("--force", help="Replace --out if it exists.")] = False,
) -> None:
    """Write a checkpoint's network as an ONNX graph for other programs.

    The input `pixels` is float32 [batch, 3, S, S], normalised. The outputs are `logit` [batch, 1] and the heat map
    `cam` [batch, h, w]. The metadata contains the checkpoint's card: its preprocessing, its temperature and the rest.

    Examples:

    \b
      dfscan export-onnx run/best.safetensors --out detector.onnx
      dfscan export-onnx sbi.safetensors --out sbi.onnx
      dfscan export-onnx sbi.safetensors --out sbi.onnx --force
    """
    from dfscan.detector.checkpoint import read_card
    from dfscan.detector.export import write_onnx

    start_logging()
    if out.exists() and not force:
        raise ConfigError(f"{out} exists; choose another name, or use --force to replace it")
    read = read_card(checkpoint)
    write_onnx(read, out)
    typer.echo(f"{out}: {read.label}, input {read.card.preprocessing.input_size_px} px")
