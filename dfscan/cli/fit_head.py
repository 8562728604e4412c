"""The ``dfscan fit-head`` command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dfscan.cli.guard import guarded, say, start_logging
from dfscan.extras import require


@guarded
def fit_head(
    checkpoint: Annotated[
        str, typer.Argument(help="Checkpoint whose backbone is kept.", show_default=False, metavar="CHECKPOINT")
    ],
    data: Annotated[
        Path,
        typer.Option(help="Data set folder written by `dfscan prepare`, with folds and domains.", show_default=False),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Checkpoint to write.", show_default=False)],
    grow_to: Annotated[
        str | None,
        typer.Option(help="Larger architecture to store the detector in; scores do not change.", show_default=False),
    ] = None,
    input_size_px: Annotated[
        int | None,
        typer.Option(min=32, max=1024, help="Side of the network's input in pixels.", show_default="the checkpoint's"),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name in the checkpoint's card.", show_default=False)] = None,
    fp16: Annotated[bool, typer.Option("--fp16", help="Store the checkpoint's weights in fp16.")] = False,
    max_fpr: Annotated[float, typer.Option(min=0.001, max=1, help="Maximum proportion of reals called fake.")] = 0.01,
    max_fnr: Annotated[float, typer.Option(min=0.001, max=1, help="Maximum proportion of fakes called real.")] = 0.05,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    workers: Annotated[int, typer.Option(min=0, help="Data loading processes.")] = 1,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only errors to stderr.")] = False,
) -> None:
    """Fit a trained detector's last layers to true fakes, and calibrate it.

    Use this when there are too few true fakes to train the whole network, a few hundred clips from several sources.
    The backbone stays as it is; it must not have been trained on any face of a fold. Fakes are compared with real
    videos of the same domain, so give the clips of one page or data set the same domain. Thresholds and metrics come
    from held-out folds: each fold is scored by a head that was fitted to the other folds.

    Examples:

    \b
      dfscan fit-head run/best.safetensors --data ./faces --out detector.safetensors
      dfscan fit-head b0.safetensors --data ./faces --grow-to efficientnet_b4 --out b4.safetensors
      dfscan fit-head run/best.safetensors --data ./faces --device cuda --workers 8 --out detector.safetensors
    """
    require("train", "dfscan fit-head")
    from dfscan.train.cross_validation import held_out_result
    from dfscan.train.fit_head import fit_to_folds

    start_logging(is_quiet=quiet)
    card = fit_to_folds(
        checkpoint,
        data,
        out,
        grow_to=grow_to,
        input_size_px=input_size_px,
        name=name,
        fp16=fp16,
        max_fpr=max_fpr,
        max_fnr=max_fnr,
        device=device,
        num_workers=workers,
        tell=(lambda _: None) if quiet else say,
    )
    if not quiet:
        say(f"{out}: fitted; held-out folds: {held_out_result(card)}; see `dfscan info --checkpoint {out}`")
