"""The ``dfscan shortcuts`` command."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dfscan.cli.guard import guarded, say, start_logging
from dfscan.extras import require

if TYPE_CHECKING:
    from dfscan.train.shortcuts import Finding

EXIT_TOLD_APART = 1


@guarded
def shortcuts(
    data: Annotated[
        Path | None,
        typer.Option(help="Data set folder written by `dfscan prepare`.", show_default=False),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="TOML file with training settings; flags take precedence.", show_default=False),
    ] = None,
    forgeries: Annotated[
        str | None,
        typer.Option(help="Comma-separated kinds of forgeries to generate and check.", show_default=False),
    ] = None,
    reconstructions: Annotated[
        Path | None,
        typer.Option(help="Folder of reconstructed faces, for the kind `reconstructed`.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Also write the results to this file: .csv or .jsonl.", show_default=False),
    ] = None,
    num_faces: Annotated[
        int, typer.Option(min=10, help="Number of real faces to pair with a fake of each kind.")
    ] = 500,
    tolerance: Annotated[
        float, typer.Option(min=0, max=0.5, help="Maximum distance of the ROC AUC on generated fakes from 0.5.")
    ] = 0.05,
    resamples: Annotated[int, typer.Option(min=1, help="Bootstrap resamples per interval.")] = 1000,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print only errors and failed checks to stderr.")
    ] = False,
) -> None:
    """Check training fakes for shortcuts such as blur or size.

    If blur, compression, brightness or size alone separate fakes from real faces, a network learns this shortcut
    instead of the forgery. Therefore a logistic regression on such features must fail on the fakes that training
    generates ("made" in the table). Its cross-validated ROC AUC must be within --tolerance of 0.5, for each kind of
    forgery and for all kinds together. Fakes of the data set itself ("true") are checked too, but need not pass.

    Exit codes: 0 if all generated fakes pass, 1 if any of them fail, 2 after an error.

    Examples:

    \b
      dfscan shortcuts --data ./faces --forgeries self-blended,swapped
      dfscan shortcuts --data ./faces --config configs/train.toml --out shortcuts.csv
      dfscan shortcuts --data ./faces --forgeries warped --num-faces 2000
    """
    require("train", "dfscan shortcuts")
    from dfscan.errors import ConfigError
    from dfscan.train.settings import build_train_settings
    from dfscan.train.shortcuts import check_made_fakes, check_true_fakes

    start_logging(is_quiet=quiet)
    tell = (lambda _: None) if quiet else say
    flags = {"data": data, "forgeries": forgeries, "reconstructions": reconstructions}
    given = {name: value for name, value in flags.items() if value is not None}
    settings = build_train_settings(given, config_path=config)
    made = check_made_fakes(settings, num_faces=num_faces, num_resamples=resamples, tell=tell) if settings.kinds else []
    true = check_true_fakes(settings, num_resamples=resamples, tell=tell)
    if not made and not true:
        raise ConfigError("nothing to check: give --forgeries, or a data set that contains fakes")
    failed = [item for item in made if item.roc_auc.value is None or not abs(item.roc_auc.value - 0.5) <= tolerance]
    _print_table([*made, *true], failed)
    if out:
        _write(out, [*made, *true])
    for finding in failed:
        ranked = sorted(finding.coefficients.items(), key=lambda item: -abs(item[1]))
        largest = ", ".join(f"{name} {value:+.2f}" for name, value in ranked[:3])
        say(f"{finding.subset} fakes can be recognised by a shortcut; largest coefficients: {largest}")
    if failed:
        raise typer.Exit(EXIT_TOLD_APART)


def _print_table(findings: Sequence[Finding], failed: Sequence[Finding]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table("fakes", "subset", box=SIMPLE_HEAD, pad_edge=False)
    for name in ("real + fake", "ROC AUC [95 % interval]"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("result")
    for finding in findings:
        result = "" if finding.fakes == "true" else "FAIL" if finding in failed else "pass"
        unit = "faces" if finding.level == "frame" else "videos"
        sizes = f"{finding.num_real} + {finding.num_fake} {unit}"
        auc = finding.roc_auc
        shown = "-" if auc.value is None else f"{auc.value:.3f}"
        if auc.low is not None:
            shown += f" [{auc.low:.3f}, {auc.high:.3f}]"
        table.add_row(finding.fakes, escape(finding.subset), sizes, escape(shown), result)
    Console(highlight=False).print(table)


def _write(path: Path, findings: Sequence[Finding]) -> None:
    from dfscan.report.formats import format_for, open_writer
    from dfscan.report.schema import Column
    from dfscan.train.shortcuts import FEATURES

    columns = [
        *(Column(name, "text") for name in ("fakes", "subset", "level")),
        *(Column(name, "int") for name in ("num_real", "num_fake", "num_groups")),
        *(Column(name, "score") for name in ("roc_auc", "low", "high", *FEATURES)),
    ]
    with open_writer(path, columns, format=format_for(path)) as writer:
        for finding in findings:
            row: dict[str, Any] = asdict(finding)
            auc = row.pop("roc_auc")
            numbers = {"roc_auc": auc["value"], "low": auc["low"], "high": auc["high"]}
            writer.append(row | numbers | dict.fromkeys(FEATURES) | finding.coefficients)
