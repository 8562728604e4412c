"""The ``dfscan explain`` command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dfscan.cli import options
from dfscan.cli.guard import guarded, start_logging
from dfscan.config import EXPLAIN, FACES, SAMPLING, ScanSettings, build_settings


@guarded
@options.with_settings(
    "threshold min_faces checkpoint device threads timeout max_memory sandbox log_file", SAMPLING, FACES
)
def explain(
    *,
    file: Annotated[str, typer.Argument(help="A video or an image.", show_default=False, metavar="FILE")],
    folder: Annotated[
        Path,
        typer.Option(
            "--out", "-o", rich_help_panel=EXPLAIN, help="Folder for the images and their index.", metavar="DIR"
        ),
    ],
    top: Annotated[
        int, typer.Option(min=1, rich_help_panel=EXPLAIN, help="Number of highest-scoring faces to show.")
    ] = ScanSettings.explain_top,
    picture_format: Annotated[
        str, typer.Option("--format", rich_help_panel=EXPLAIN, help="Image format: png or jpg.")
    ] = ScanSettings.explain_format,
    settings: ScanSettings,
    config: options.Config = None,
) -> None:
    """Show which regions of a video raised the fake score.

    Scores one video or image. Writes its highest-scoring faces with heat maps over the face and over the whole frame.
    Red regions raise the fake score; blue regions do not affect it. A heat map is not proof.

    Examples:

    \b
      dfscan explain clip.mp4 --out ./clip
      dfscan explain clip.mp4 --out ./clip --every 1 --top 10
      dfscan explain portrait.jpg --out ./portrait --format jpg
    """
    from dfscan.scan.run import explain_file
    from dfscan.text import display_path

    start_logging(log_path=settings.log_file)
    shown = {"explain_top": top, "explain_format": picture_format}
    result = explain_file(file, folder, build_settings(ScanSettings, {**vars(settings), **shown}))
    verdict = result.verdict
    score = "" if verdict.score is None else f", score {verdict.score:.3f}"
    typer.echo(f"{display_path(file)}: {verdict.label}{score}" + (f" ({verdict.reason})" if verdict.reason else ""))
    for each in result.detectors:
        own = "" if each.verdict.score is None else f", score {each.verdict.score:.3f}"
        typer.echo(f"  {each.name}: {each.verdict.label}{own}")
    for row in result.dumps:
        typer.echo(f"{row['time_s']:9.3f} s  score {row['score']:.3f}  {folder / row['frame_file']}")
    raise typer.Exit(2 if result.status == "error" else 0)
