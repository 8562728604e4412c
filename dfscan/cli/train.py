"""``dfscan train``."""

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
from dfscan.train.settings import BEHAVIOUR, TrainSettings

MAX_PLAIN_LOSSES = 20
"""Off a terminal the loss is shown so many times in a whole run, besides a line an epoch."""


@guarded
def _train(
    *,
    config: Annotated[
        Path | None,
        typer.Option(help="TOML file of settings; flags win over it.", rich_help_panel=BEHAVIOUR, show_default=False),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out.", rich_help_panel=BEHAVIOUR)
    ] = False,
    sheet: Annotated[
        Path | None,
        typer.Option(
            help="Only draw what the network would see into this PNG.", rich_help_panel=BEHAVIOUR, show_default=False
        ),
    ] = None,
    bench: Annotated[
        int | None,
        typer.Option(
            help="Only time so many steps with and without loading.",
            min=1,
            rich_help_panel=BEHAVIOUR,
            show_default=False,
            metavar="STEPS",
        ),
    ] = None,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Say nothing but what went wrong.", rich_help_panel=BEHAVIOUR)
    ] = False,
    **flags: Any,
) -> None:
    """Train a detector on the face crops of `dfscan prepare`, and calibrate it.

    Without fakes of your own, train on real footage alone with --forgeries self-blended. On several GPUs:
    torchrun --nproc-per-node=N -m dfscan train ...

    Examples:

    \b
      dfscan train --config configs/train.toml --data ./faces --out ./run
      dfscan train --data ./faces --forgeries self-blended --out ./run
      dfscan train --data ./faces --out ./run --resume
    """
    require("train", "dfscan train")
    from dfscan.config import read_file
    from dfscan.train import run
    from dfscan.train.settings import build, model

    given = {name: value for name, value in flags.items() if value is not None}
    if given.get("pretrained") and (other := [name for name in ("start_from", "grow_from") if name in given]):
        raise ConfigError(
            f"--pretrained and --{other[0].replace('_', '-')} exclude each other: both name the weights to start from; "
            "give one of them"
        )
    settings = build({**(read_file(config, model()) if config else {}), **given})
    start_logging(is_quiet=quiet)
    tell = (lambda _: None) if quiet else say
    if sheet:
        run.write_sheet(settings, sheet, tell=tell)
        say(f"{sheet}: reals in the odd rows, fakes below them")
    elif bench:
        _print_loading(run.measure_loading(settings, num_steps=bench, tell=tell))
    else:
        with _Progress(is_quiet=quiet) as progress:
            made = run.run_training(settings, progress, is_resumed=resume)
        if made and not quiet:
            say(f"{made}: the best epoch's checkpoint, calibrated; `dfscan info --checkpoint {made}` shows its card")
            say(_validation(made))


def _validation(checkpoint: Path) -> str:
    from dfscan.detector.checkpoint import read_card

    metrics = read_card(checkpoint).card.metrics
    assert metrics
    found = metrics["validation"]
    auc = found["frame"]["roc_auc"]
    interval = "" if auc["low"] is None else f", 95 % interval {auc['low']:.3f} to {auc['high']:.3f}"
    of = f"{found['num_faces']} validation faces of {found['num_groups']} groups"
    return f"ROC AUC on {of}: {auc['value']:.3f}{interval}"


def _print_loading(figures: dict[str, float]) -> None:
    typer.echo(
        f"a step takes {figures['with_loader_s']:.3f} s with the loader and {figures['without_loader_s']:.3f} s "
        f"without: {figures['ratio']:.2f} times as long"
    )


class _Progress:
    """A bar on a terminal, a line now and then elsewhere; a training's listener."""

    def __init__(self, *, is_quiet: bool) -> None:
        self._is_quiet = is_quiet
        self._is_live = sys.stderr is not None and sys.stderr.isatty() and not is_quiet
        self._bar: Any = None
        self._num_steps = self._steps_done = 0

    def noted(self, text: str) -> None:
        """As `Listener.noted`."""
        self._say(text)

    def planned(self, num_steps: int, steps_done: int) -> None:
        """As `Listener.planned`."""
        from tqdm import tqdm

        self._num_steps, self._steps_done = num_steps, steps_done
        self._bar = tqdm(total=num_steps, initial=steps_done, unit="step", disable=not self._is_live)

    def stepped(self, loss: float) -> None:
        """As `Listener.stepped`."""
        self._steps_done += 1
        self._bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
        self._bar.update()
        if not self._is_live and self._steps_done % max(1, self._num_steps // MAX_PLAIN_LOSSES) == 0:
            self._say(f"step {self._steps_done} of {self._num_steps}: loss {loss:.4f}")

    def epoch_done(self, row: dict[str, Any], is_best: bool) -> None:
        """As `Listener.epoch_done`."""
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
    """Give a command a flag for each training setting, from their one table."""
    hints = get_type_hints(TrainSettings)
    own = [each for each in inspect.signature(command, eval_str=True).parameters.values() if each.name != "flags"]
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
