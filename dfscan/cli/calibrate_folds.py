"""The ``dfscan calibrate-folds`` command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dfscan.cli.guard import guarded, say, start_logging
from dfscan.extras import require


@guarded
def calibrate_folds(
    runs: Annotated[
        list[Path],
        typer.Argument(
            help="Run folders of `dfscan train --held-out-folds`, one per held-out fold.",
            show_default=False,
            metavar="RUN",
        ),
    ],
    checkpoint: Annotated[
        str,
        typer.Option("--checkpoint", "-c", help="Checkpoint to calibrate, trained on all folds.", show_default=False),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="File for the calibrated copy.", show_default=False)],
    max_fpr: Annotated[float, typer.Option(min=0.001, max=1, help="Maximum proportion of reals called fake.")] = 0.01,
    max_fnr: Annotated[float, typer.Option(min=0.001, max=1, help="Maximum proportion of fakes called real.")] = 0.05,
    fp16: Annotated[bool, typer.Option("--fp16", help="Store the weights in fp16.")] = False,
) -> None:
    """Set a checkpoint's thresholds from the runs of a cross-validation.

    A detector's scores on its own training videos are too optimistic for calibration. Train the same recipe once per
    fold, each time holding that fold out. Every video is then scored once by a run that has not seen it, and the
    thresholds come from these scores.

    Examples:

    \b
      dfscan train --config recipe.toml --data ./faces --held-out-folds 0 --out ./fold0
      dfscan train --config recipe.toml --data ./faces --out ./final
      dfscan calibrate-folds ./fold0 ./fold1 --checkpoint ./final/best.safetensors --out detector.safetensors
    """
    require("train", "dfscan calibrate-folds")
    from dfscan.detector.checkpoint import read_card
    from dfscan.train.cross_validation import calibrate_on_runs, held_out_result

    start_logging()
    card = calibrate_on_runs(
        read_card(checkpoint),
        runs,
        out,
        max_fpr=max_fpr,
        max_fnr=max_fnr,
        fp16=fp16,
    )
    say(f"{out}: calibrated on {held_out_result(card)}; see `dfscan info --checkpoint {out}`")
