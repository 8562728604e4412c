"""Options that commands share: by flag, by ``DFSCAN_`` and the name in the environment, or in the file of ``--config``.

Defaults stand in `dfscan.config`; here an option that was not given is None.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from dfscan.cli.guard import guarded

INPUT, SAMPLING, FACES, DETECTOR = "Input", "Sampling", "Faces", "Detector"
VERDICT, OUTPUT, EXPLAIN, BEHAVIOUR = "Verdict", "Output", "Explanation", "Behaviour"

_SOURCES = ("COMMANDLINE", "PROMPT", "ENVIRONMENT", "DEFAULT_MAP", "DEFAULT")
"""Where a value may come from; the first wins."""


def option(*flags: str, panel: str, help: str, **more: Any) -> Any:
    """An option with its environment variable, in its panel of the help."""
    name = flags[0].removeprefix("--").split("/")[0].replace("-", "_").upper()
    return typer.Option(
        *flags,
        envvar=f"DFSCAN_{name}",
        rich_help_panel=panel,
        help=help,
        show_default=False,
        show_envvar=False,
        **more,
    )


@guarded
def _read_config(context: typer.Context, path: Path | None) -> Path | None:
    from dfscan.config import ScanSettings, check_environment, read_file

    check_environment(os.environ, [ScanSettings])
    if path is not None:
        values = read_file(path, ScanSettings)
        if isinstance(values.get("fail_on"), list):
            values["fail_on"] = ",".join(values["fail_on"])  # as its flag has it
        if isinstance(values.get("out"), str):
            values["out"] = [values["out"]]
        context.default_map = {**(context.default_map or {}), **values}
    return path


Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        envvar="DFSCAN_CONFIG",
        callback=_read_config,
        is_eager=True,
        rich_help_panel=BEHAVIOUR,
        help="TOML file of settings; flags and environment win over it.",
    ),
]

Include = Annotated[
    list[str] | None,
    option("--include", panel=INPUT, help="In folders take files that match this glob, whatever they are. Repeatable."),
]
Exclude = Annotated[
    list[str] | None,
    option("--exclude", panel=INPUT, help="In folders skip files and folders that match this glob. Repeatable."),
]
FollowSymlinks = Annotated[
    bool | None,
    option("--follow-symlinks/--no-follow-symlinks", panel=INPUT, help="Follow links inside folders. Default: no."),
]

Out = Annotated[
    list[Path] | None,
    option(
        "--out",
        "-o",
        panel=OUTPUT,
        help="Report: .csv, .jsonl, .xlsx or .parquet by its name; - is stdout. Repeatable. Default: stdout.",
        metavar="FILE",
    ),
]
Format = Annotated[
    str | None,
    option("--format", panel=OUTPUT, help="csv, jsonl, xlsx or parquet. Default: by the name of --out, else csv."),
]
FramesOut = Annotated[
    Path | None,
    option("--frames-out", panel=OUTPUT, help="Also write one row per face here, in the format of its name."),
]
Html = Annotated[
    Path | None,
    option("--html", panel=OUTPUT, help="Also write a page for people: scores in time, faces, heat maps."),
]
HtmlMaxMb = Annotated[
    float | None,
    option("--html-max-mb", panel=OUTPUT, help="Most MB of pictures in the page. Default: 50.", metavar="MB"),
]
Excel = Annotated[
    bool | None,
    option("--excel/--no-excel", panel=OUTPUT, help="Mark CSV as UTF-8 so that Excel reads names right."),
]

Delimiter = Annotated[
    str | None,
    option(
        "--delimiter",
        panel=OUTPUT,
        help="Of CSV: , or ; which comes with decimal commas, as Excel reads it in Germany or France. Default: ,",
        metavar="CHARACTER",
    ),
]

NumFrames = Annotated[
    int | None,
    option(
        "--num-frames",
        panel=SAMPLING,
        help="Frames per video: evenly in short ones, in long ones in bursts of four. Default: 32.",
    ),
]
Every = Annotated[
    float | None,
    option(
        "--every",
        panel=SAMPLING,
        help="Instead of --num-frames: one frame every so many seconds.",
        metavar="SECONDS",
    ),
]
MaxFrames = Annotated[
    int | None,
    option("--max-frames", panel=SAMPLING, help="With --every: stop after so many, and mark the row partial."),
]
Stream = Annotated[
    str | None,
    option(
        "--stream",
        panel=SAMPLING,
        help="Video streams to look at: all, main, or the number that ffprobe gives one. Default: all.",
        metavar="STREAM",
    ),
]

DetectionThreshold = Annotated[
    float | None,
    option("--detection-threshold", panel=FACES, help="Least probability that it is a face. Default: 0.95."),
]
MinFacePx = Annotated[
    int | None, option("--min-face-px", panel=FACES, help="Least side of a face in pixels, from 20. Default: 48.")
]
MaxFaces = Annotated[
    int | None, option("--max-faces", panel=FACES, help="Maximum faces judged in one frame. Default: the checkpoint's.")
]

CheckpointFile = Annotated[
    Path | None, option("--checkpoint", panel=DETECTOR, help="Trained detector. Default: the built-in one.")
]
Device = Annotated[
    str | None, option("--device", panel=DETECTOR, help="auto, cpu, cuda or cuda:N. Default: auto.", metavar="DEVICE")
]
BatchSize = Annotated[
    int | None,
    option("--batch-size", panel=DETECTOR, help="Faces that a GPU judges at once; a CPU takes one. Default: 32."),
]

Threshold = Annotated[
    float | None,
    option("--threshold", panel=VERDICT, help="Score from which a video is fake. Default: the checkpoint's."),
]
MinFaces = Annotated[
    int | None, option("--min-faces", panel=VERDICT, help="Least faces of one person for a verdict. Default: 3.")
]

Workers = Annotated[
    int | None,
    option(
        "--workers",
        panel=BEHAVIOUR,
        help="Videos decoded at once. Default: half --threads, with a GPU all, and 2 at least.",
    ),
]
Threads = Annotated[
    int | None,
    option("--threads", panel=BEHAVIOUR, help="Threads that find and judge faces. Default: one a core, up to 8."),
]
Timeout = Annotated[
    float | None,
    option("--timeout", panel=BEHAVIOUR, help="Seconds of decoding that one video may cost. Default: 300."),
]
MaxMemory = Annotated[
    int | None,
    option("--max-memory", panel=BEHAVIOUR, help="MiB that one decoder may use. Default: 2048.", metavar="MIB"),
]
Sandbox = Annotated[
    bool | None,
    option(
        "--sandbox/--no-sandbox",
        panel=BEHAVIOUR,
        help="Keep decoders from files, network and other programs. Default: yes, as far as the system can.",
    ),
]
Quiet = Annotated[
    bool | None,
    option(
        "--quiet/--no-quiet",
        "-q",
        panel=BEHAVIOUR,
        help="Say nothing on stderr unless something is found or fails, or there is nothing to scan.",
    ),
]
LogFile = Annotated[
    Path | None, option("--log-file", panel=BEHAVIOUR, help="Append everything, with UTC times, to this file.")
]


def chosen(context: typer.Context) -> dict[str, Any]:
    """The settings among a command's parameters that were given by flag, environment or file."""
    from dfscan.config import ScanSettings

    given = {name: value for name, value in context.params.items() if name in ScanSettings.model_fields}
    values = {name: value for name, value in given.items() if value is not None and value != [] and value != ()}
    if {"every", "num_frames"} <= set(values):  # they exclude each other: a flag wins over a file here as well
        every, num_frames = (_rank(context, name) for name in ("every", "num_frames"))
        if every != num_frames:
            del values["every" if every > num_frames else "num_frames"]
    return values


def _rank(context: typer.Context, name: str) -> int:
    """Place of where a parameter's value comes from in `_SOURCES`."""
    source = context.get_parameter_source(name)
    assert source is not None
    return _SOURCES.index(source.name)
