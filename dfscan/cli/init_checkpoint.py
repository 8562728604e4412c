"""The ``dfscan init-checkpoint`` command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dfscan.cli.guard import guarded, start_logging
from dfscan.errors import ConfigError


@guarded
def init_checkpoint(
    out: Annotated[Path, typer.Argument(help="File to write: NAME.safetensors.", show_default=False, metavar="FILE")],
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random weights.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
) -> None:
    """Write an untrained checkpoint for trying out dfscan.

    Its scores mean nothing, and its verdict is always inconclusive. The same seed gives the same weights.

    Examples:

    \b
      dfscan init-checkpoint untrained.safetensors
      dfscan init-checkpoint other.safetensors --seed 7
      dfscan scan ./videos --checkpoint untrained.safetensors --out report.csv
    """
    from dfscan.detector.checkpoint import create_untrained

    start_logging()
    if out.exists() and not force:
        raise ConfigError(f"{out} exists; choose another name, or use --force to replace it")
    made = create_untrained(out, seed=seed)
    typer.echo(f"{made.path}: untrained, seed {seed}, sha256 {made.sha256}")
