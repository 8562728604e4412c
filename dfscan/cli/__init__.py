"""The command line interface. Its modules only parse options and print results; other packages do the work."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from dfscan.cli import (
    bench,
    bundle,
    calibrate,
    calibrate_folds,
    compare,
    evaluate,
    explain,
    export_onnx,
    fit_head,
    import_checkpoint,
    info,
    init_checkpoint,
    label,
    prepare,
    report,
    scan,
    schema,
    shortcuts,
    train,
    verify,
)
from dfscan.cli.help import SectionedCommand
from dfscan.version import __version__

app = typer.Typer(
    name="dfscan",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("scan", cls=SectionedCommand)(scan.scan)
app.command("report", cls=SectionedCommand)(report.report)
app.command("label", cls=SectionedCommand)(label.label)
app.command("bundle", cls=SectionedCommand)(bundle.bundle)
app.command("verify", cls=SectionedCommand)(verify.verify)
app.command("schema", cls=SectionedCommand)(schema.schema)
app.command("compare", cls=SectionedCommand)(compare.compare)
app.command("explain", cls=SectionedCommand)(explain.explain)
app.command("prepare", cls=SectionedCommand)(prepare.prepare)
app.command("shortcuts", cls=SectionedCommand)(shortcuts.shortcuts)
app.command("train", cls=SectionedCommand)(train.train)
app.command("preview-training", cls=SectionedCommand)(train.preview_training)
app.command("bench-training", cls=SectionedCommand)(train.bench_training)
app.command("calibrate", cls=SectionedCommand)(calibrate.calibrate)
app.command("calibrate-folds", cls=SectionedCommand)(calibrate_folds.calibrate_folds)
app.command("fit-head", cls=SectionedCommand)(fit_head.fit_head)
app.command("evaluate", cls=SectionedCommand)(evaluate.evaluate)
app.command("info", cls=SectionedCommand)(info.info)
app.command("bench", cls=SectionedCommand)(bench.bench)
app.command("init-checkpoint", cls=SectionedCommand)(init_checkpoint.init_checkpoint)
app.command("import-checkpoint", cls=SectionedCommand)(import_checkpoint.import_checkpoint)
app.command("export-onnx", cls=SectionedCommand)(export_onnx.export_onnx)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"dfscan {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option("--version", "-V", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """Find videos with manipulated faces.

    Start with `dfscan scan FOLDER --out report.csv`. A score is one model's estimate, not proof.
    """


def main() -> None:
    """Run the ``dfscan`` program."""
    name, *rest = sys.argv[1:] or [""]
    if rest and rest[-1] in ("-h", "--help"):
        # Skip the root command: parsing its options imports pydantic, which takes twice as long as the help itself.
        commands = typer.main.get_group(app).commands
        if name in commands:
            commands[name].main(["--help"], prog_name=f"dfscan {name}")
    app()
