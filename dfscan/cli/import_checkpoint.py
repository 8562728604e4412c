"""The ``dfscan import-checkpoint`` command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dfscan.cli.guard import guarded, say, start_logging
from dfscan.errors import ConfigError

OTHER_TRAINING = "For weights trained differently from the published ones"


@guarded
def import_checkpoint(
    file: Annotated[Path, typer.Argument(help="Weights of another project.", show_default=False, metavar="FILE")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Checkpoint to write.", show_default=False)],
    layout: Annotated[
        str,
        typer.Option("--from", help="Origin: auto, sbi, deepfakebench, icpr2020dfdc or timm.", metavar="PROJECT"),
    ] = "auto",
    force: Annotated[bool, typer.Option("--force", help="Replace --out if it exists.")] = False,
    architecture: Annotated[
        str | None,
        typer.Option(
            help="Network, which differs in padding: efficientnet_b4, tf_efficientnet_b4, tf_efficientnet_b4_pad380 or "
            "tf_efficientnet_b4_pad380_bare_stem. Required for timm.",
            rich_help_panel=OTHER_TRAINING,
            show_default=False,
            metavar="NAME",
        ),
    ] = None,
    fake_class: Annotated[
        int | None,
        typer.Option(
            help="Index of the class fake, 0 or 1. With a single output, 0 means that it is high for real faces. "
            "Required for timm.",
            min=0,
            max=1,
            rich_help_panel=OTHER_TRAINING,
            show_default=False,
        ),
    ] = None,
    input_size_px: Annotated[
        int | None,
        typer.Option(
            help="Side of the network's input in pixels.",
            min=32,
            max=1024,
            rich_help_panel=OTHER_TRAINING,
            show_default=False,
        ),
    ] = None,
    normalisation: Annotated[
        str | None,
        typer.Option(
            help="Mean and standard deviation of the input: imagenet, half (0.5 and 0.5) or none (0 and 1).",
            rich_help_panel=OTHER_TRAINING,
            show_default=False,
            metavar="NAME",
        ),
    ] = None,
) -> None:
    """Turn another project's EfficientNet-B4 into a checkpoint.

    Its logits equal those of the original network. It is not calibrated: until you run `dfscan calibrate`, its verdict
    is always inconclusive. Files can contain code; dfscan reads only tensors and refuses everything else.

    Examples:

    \b
      dfscan import-checkpoint sbi.tar --out sbi.safetensors
      dfscan import-checkpoint effnb4_best.pth --from deepfakebench --out bench.safetensors
      dfscan import-checkpoint my_b4.pth --from timm --architecture efficientnet_b4 --fake-class 1 --out my.safetensors
    """
    from dfscan.detector.import_checkpoint import LICENCE, import_weights

    start_logging()
    if out.exists() and not force:
        raise ConfigError(f"{out} exists; choose another name, or use --force to replace it")
    made = import_weights(
        file,
        out,
        layout=layout,
        architecture=architecture,
        fake_class=fake_class,
        input_size_px=input_size_px,
        normalisation=normalisation,
    )
    card = made.card
    assert card.training
    origin, size_px = card.training["layout"], card.preprocessing.input_size_px
    typer.echo(f"{made.path}: from {origin}, {card.architecture}, {size_px} px, sha256 {made.sha256}")
    say(f"{made.path} is not calibrated: its verdict is always inconclusive until you run `dfscan calibrate`")
    say(f"the weights come from {card.training['imported_from']}. {LICENCE}")
