"""The ``dfscan train`` command."""

from __future__ import annotations

import dataclasses
import inspect
import sys
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Self, get_args, get_type_hints

import typer

from dfscan.cli.guard import guarded, say, start_logging
from dfscan.errors import ConfigError
from dfscan.extras import require
from dfscan.train.settings import TRAIN_BEHAVIOUR, TrainSettings

MAX_PLAIN_LOSSES = 20
"""Maximum number of loss lines per run if stderr is not a terminal, in addition to one line per epoch."""


@guarded
def _train(
    *,
    config: Annotated[
        Path | None,
        typer.Option(
            help="TOML file with settings; flags take precedence.", rich_help_panel=TRAIN_BEHAVIOUR, show_default=False
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in --out.", rich_help_panel=TRAIN_BEHAVIOUR)
    ] = False,
    sheet: Annotated[
        Path | None,
        typer.Option(
            help="Only write a PNG with examples of the network's input, then exit.",
            rich_help_panel=TRAIN_BEHAVIOUR,
            show_default=False,
        ),
    ] = None,
    bench: Annotated[
        int | None,
        typer.Option(
            help="Only time this many steps with and without data loading, then exit.",
            min=1,
            rich_help_panel=TRAIN_BEHAVIOUR,
            show_default=False,
            metavar="STEPS",
        ),
    ] = None,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print only errors to stderr.", rich_help_panel=TRAIN_BEHAVIOUR)
    ] = False,
    **flags: Any,
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
    from dfscan.train import run
    from dfscan.train.settings import build_train_settings

    alone = [name for name, value in {"--sheet": sheet, "--bench": bench, "--resume": resume}.items() if value]
    if len(alone) > 1:
        raise ConfigError(f"{alone[0]} and {alone[1]} exclude each other; give only one of them")
    given = {name: value for name, value in flags.items() if value is not None}
    if given.get("pretrained") and (other := [name for name in ("start_from", "grow_from") if name in given]):
        raise ConfigError(
            f"--pretrained and --{other[0].replace('_', '-')} exclude each other: both select the initial weights; "
            "give only one of them"
        )
    settings = build_train_settings(given, config_path=config)
    start_logging(is_quiet=quiet)
    tell = (lambda _: None) if quiet else say
    if sheet:
        run.write_sheet(settings, sheet, tell=tell)
        say(f"{sheet}: each odd row shows real faces, the row below it their fakes")
    elif bench:
        _print_loading(run.measure_loading(settings, num_steps=bench, tell=tell))
    else:
        with _TrainProgressBar(is_quiet=quiet) as progress:
            made = run.run_training(settings, progress, is_resumed=resume)
        if made and not quiet:
            say(f"{made}: calibrated checkpoint of the best epoch; see `dfscan info --checkpoint {made}`")
            say(_validation(made))


def _validation(checkpoint: Path) -> str:
    from dfscan.detector.checkpoint import read_card

    metrics = read_card(checkpoint).card.metrics
    assert metrics
    measured = metrics["validation"]
    auc = measured["frame"]["roc_auc"]
    interval = "" if auc["low"] is None else f", 95 % interval {auc['low']:.3f} to {auc['high']:.3f}"
    of = f"{measured['num_faces']} validation faces in {measured['num_groups']} groups"
    return f"ROC AUC on {of}: {auc['value']:.3f}{interval}"


def _print_loading(figures: dict[str, float]) -> None:
    typer.echo(
        f"a step takes {figures['with_loader_s']:.3f} s with data loading and {figures['without_loader_s']:.3f} s "
        f"without, a ratio of {figures['ratio']:.2f}"
    )


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


def _with_flags(command: Any) -> Any:
    """Add a flag for each field of `TrainSettings` to a command's signature."""
    hints = get_type_hints(TrainSettings)
    own = [
        parameter
        for parameter in inspect.signature(command, eval_str=True).parameters.values()
        if parameter.name != "flags"
    ]
    flags = [_flag(field, hints[field.name]) for field in dataclasses.fields(TrainSettings)]
    command.__signature__ = inspect.Signature([*flags, *own])
    return command


def _flag(field: dataclasses.Field[Any], kind: Any) -> inspect.Parameter:
    name = field.name.replace("_", "-")
    names = [f"--{name}/--no-{name}"] if kind is bool else [f"--{name}"]
    choices = get_args(kind) if "Literal" in str(kind) else ()
    text = field.metadata["help"]
    if field.default is not None and "Default:" not in text:
        default = ("yes" if field.default else "no") if kind is bool else field.default
        text += f" Default: {default}."
    option = typer.Option(
        *names,
        help=text,
        rich_help_panel=field.metadata["panel"],
        show_default=False,
        metavar="|".join(choices) if choices else None,
    )
    parsed = str if choices else kind if type(None) in get_args(kind) else kind | None
    return inspect.Parameter(
        field.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[parsed | None if choices else parsed, option],
    )


train = _with_flags(_train)
