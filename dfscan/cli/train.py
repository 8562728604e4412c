"""The commands ``dfscan train``, ``preview-training`` and ``bench-training``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Self

import typer

from dfscan.cli.guard import guarded, say, start_logging
from dfscan.cli.options import with_settings
from dfscan.errors import ConfigError
from dfscan.extras import require
from dfscan.train.settings import (
    AUGMENTATION,
    DATA,
    FORGERIES,
    LOSS,
    NETWORK,
    OPTIMISATION,
    TRAIN_BEHAVIOUR,
    TrainSettings,
)

MAX_PLAIN_LOSSES = 20
"""Maximum number of loss lines per run if stderr is not a terminal, in addition to one line per epoch."""

TrainConfig = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help="TOML file with settings; flags take precedence.",
        rich_help_panel=TRAIN_BEHAVIOUR,
        show_default=False,
        metavar="FILE",
    ),
]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Print only errors to stderr.", rich_help_panel=TRAIN_BEHAVIOUR)
]


@guarded
@with_settings(whole_file=True)
def train(
    *,
    context: typer.Context,
    settings: TrainSettings,
    config: TrainConfig = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in --out.", rich_help_panel=TRAIN_BEHAVIOUR)
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Train and calibrate a detector on a prepared data set.

    The data set comes from `dfscan prepare`. If it has no fakes, --forgeries self-blended makes them from the real
    faces.

    To use several GPUs: torchrun --nproc-per-node=N -m dfscan train ...

    Examples:

    \b
      dfscan train --config configs/train.toml --data ./faces --out ./run
      dfscan train --data ./faces --forgeries self-blended --out ./run
      dfscan train --data ./faces --out ./run --resume
    """
    require("train", "dfscan train")
    from dfscan.train.run import run_training

    start_from = [name for name in ("start_from", "grow_from") if context.params[name] is not None]
    if context.params["pretrained"] and start_from:
        raise ConfigError(
            f"--pretrained and --{start_from[0].replace('_', '-')} exclude each other: both select the initial "
            "weights; give only one of them"
        )
    start_logging(is_quiet=quiet)
    with _TrainProgressBar(is_quiet=quiet) as progress:
        made = run_training(settings, progress, is_resumed=resume)
    if made and not quiet:
        say(f"{made}: calibrated checkpoint of the best epoch; see `dfscan info --checkpoint {made}`")
        say(_validation(made))


@guarded
@with_settings(
    "data seed fake_share held_out_folds input_size_px patch_px crop_margin device",
    FORGERIES,
    AUGMENTATION,
    whole_file=True,
)
def preview_training(
    *,
    settings: TrainSettings,
    sheet: Annotated[
        Path, typer.Option("--out", "-o", help="PNG file to write.", rich_help_panel=DATA, metavar="FILE")
    ],
    config: TrainConfig = None,
    quiet: Quiet = False,
) -> None:
    """Write an image with examples of what `dfscan train` shows to the network.

    Odd rows show augmented real faces, and the row below each of them their fakes. Takes the settings of
    `dfscan train`. Missing reconstructed faces are created first, so this also prepares them for several GPUs.

    Examples:

    \b
      dfscan preview-training --data ./faces --forgeries self-blended --out preview.png
      dfscan preview-training --config configs/train.toml --data ./faces --out preview.png
      dfscan preview-training --data ./faces --forgeries warped --codec-p 1 --out preview.png
    """
    require("train", "dfscan preview-training")
    from dfscan.train.run import write_sheet

    start_logging(is_quiet=quiet)
    write_sheet(settings, sheet, tell=_tell(is_quiet=quiet))
    say(f"{sheet}: each odd row shows real faces, the row below it their fakes")


@guarded
@with_settings(
    "data seed repeat faces_per_epoch domain_exponent fake_share held_out_folds",
    FORGERIES,
    NETWORK,
    AUGMENTATION,
    LOSS,
    OPTIMISATION,
    TRAIN_BEHAVIOUR,
    whole_file=True,
)
def bench_training(
    *,
    settings: TrainSettings,
    steps: Annotated[int, typer.Option(min=1, help="Training steps to time.", rich_help_panel=TRAIN_BEHAVIOUR)] = 20,
    config: TrainConfig = None,
    quiet: Quiet = False,
) -> None:
    """Measure the time of a training step with and without data loading.

    Takes the settings of `dfscan train`, and writes nothing except missing reconstructed faces. A ratio well above 1
    means that the network waits for data: use more --workers.

    Examples:

    \b
      dfscan bench-training --config configs/train.toml --data ./faces
      dfscan bench-training --data ./faces --forgeries self-blended --steps 50
      dfscan bench-training --data ./faces --batch-size 64 --workers 8
    """
    require("train", "dfscan bench-training")
    from dfscan.train.run import measure_loading

    start_logging(is_quiet=quiet)
    figures = measure_loading(settings, num_steps=steps, tell=_tell(is_quiet=quiet))
    typer.echo(
        f"a step takes {figures['with_loader_s']:.3f} s with data loading and {figures['without_loader_s']:.3f} s "
        f"without, a ratio of {figures['ratio']:.2f}"
    )


def _tell(*, is_quiet: bool) -> Callable[[str], None]:
    return (lambda _: None) if is_quiet else say


def _validation(checkpoint: Path) -> str:
    from dfscan.detector.checkpoint import read_card

    metrics = read_card(checkpoint).card.metrics
    assert metrics
    measured = metrics["validation"]
    auc = measured["frame"]["roc_auc"]
    interval = "" if auc["low"] is None else f", 95 % interval {auc['low']:.3f} to {auc['high']:.3f}"
    of = f"{measured['num_faces']} validation faces in {measured['num_groups']} groups"
    return f"ROC AUC on {of}: {auc['value']:.3f}{interval}"


class _TrainProgressBar:
    """Training listener: shows a bar on a terminal and occasional lines elsewhere."""

    def __init__(self, *, is_quiet: bool) -> None:
        self._is_quiet = is_quiet
        self._is_live = sys.stderr is not None and sys.stderr.isatty() and not is_quiet
        self._bar: Any = None
        self._num_steps = self._steps_done = 0

    def noted(self, text: str) -> None:
        """Print a note; see `TrainListener.noted`."""
        self._say(text)

    def planned(self, num_steps: int, steps_done: int) -> None:
        """Create the bar; see `TrainListener.planned`."""
        from tqdm import tqdm

        self._num_steps, self._steps_done = num_steps, steps_done
        self._bar = tqdm(total=num_steps, initial=steps_done, unit="step", disable=not self._is_live)

    def stepped(self, loss: float) -> None:
        """Advance the bar; see `TrainListener.stepped`."""
        self._steps_done += 1
        self._bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
        self._bar.update()
        if not self._is_live and self._steps_done % max(1, self._num_steps // MAX_PLAIN_LOSSES) == 0:
            self._say(f"step {self._steps_done} of {self._num_steps}: loss {loss:.4f}")

    def epoch_done(self, row: dict[str, Any], is_best: bool) -> None:
        """Print the metrics of an epoch; see `TrainListener.epoch_done`."""
        self._say(
            f"epoch {row['epoch']}: train loss {row['train_loss']:.4f}, validation loss {row['val_loss']:.4f}, AUC "
            f"{row['val_auc']:.4f}, accuracy {row['val_accuracy']:.4f}{' (best)' if is_best else ''}"
        )

    def _say(self, text: str) -> None:
        if self._bar is not None and self._is_live:
            self._bar.write(f"dfscan: {text}", file=sys.stderr)
        elif not self._is_quiet:
            say(text)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
