"""Options shared by several commands, each read from a flag, a ``DFSCAN_*`` variable or the ``--config`` file.

The defaults are in `dfscan.config`; an option that was not given is None here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dfscan.cli.guard import guarded

INPUT, SAMPLING, FACES, DETECTOR = "Input", "Sampling", "Faces", "Detector"
VERDICT, OUTPUT, EXPLAIN, BEHAVIOUR = "Verdict", "Output", "Explanation", "Behaviour"
PROVENANCE = "Provenance"
CLUSTER = "Cluster"

_SOURCES = ("COMMANDLINE", "PROMPT", "ENVIRONMENT", "DEFAULT_MAP", "DEFAULT")
"""Sources of an option's value, in order of precedence."""


def option(*flags: str, panel: str, help: str, **more: Any) -> Any:
    """Create an option with an environment variable and a help panel."""
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
    from dfscan.config import ScanSettings, read_file

    if path is not None:
        values = read_file(path, ScanSettings)
        if isinstance(values.get("fail_on"), list):
            values["fail_on"] = ",".join(values["fail_on"])  # the form that the flag takes
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
        help="TOML file with settings; flags and environment variables take precedence.",
        metavar="FILE",
    ),
]

Include = Annotated[
    list[str] | None,
    option(
        "--include",
        panel=INPUT,
        help="In folders, scan only files that match this glob, whatever their type. Repeatable.",
        metavar="GLOB",
    ),
]
Exclude = Annotated[
    list[str] | None,
    option(
        "--exclude",
        panel=INPUT,
        help="In folders, skip files and folders that match this glob. Repeatable.",
        metavar="GLOB",
    ),
]
FollowSymlinks = Annotated[
    bool | None,
    option(
        "--follow-symlinks/--no-follow-symlinks",
        panel=INPUT,
        help="Follow symbolic links found in folders. Default: no.",
    ),
]

Images = Annotated[
    bool | None,
    option(
        "--images/--no-images",
        panel=INPUT,
        help="Also scan pictures: JPEG, PNG, WebP, HEIC and AVIF. Their verdict is inconclusive, because the "
        "thresholds are those for videos. Default: no.",
    ),
]

Out = Annotated[
    list[Path] | None,
    option(
        "--out",
        "-o",
        panel=OUTPUT,
        help="Report file; its extension selects the format: .csv, .jsonl, .xlsx or .parquet. Use - for stdout. "
        "Repeatable. Default: stdout.",
        metavar="FILE",
    ),
]
Format = Annotated[
    str | None,
    option(
        "--format",
        panel=OUTPUT,
        help="Report format: csv, jsonl, xlsx or parquet. Default: the extension of --out, else csv.",
        metavar="FORMAT",
    ),
]
FramesOut = Annotated[
    Path | None,
    option(
        "--frames-out",
        panel=OUTPUT,
        help="Also write a report with one row per face; its extension selects the format.",
        metavar="FILE",
    ),
]
Html = Annotated[
    Path | None,
    option(
        "--html",
        panel=OUTPUT,
        help="Also write an HTML page with scores over time, faces and heat maps.",
        metavar="FILE",
    ),
]
HtmlMaxMb = Annotated[
    float | None,
    option(
        "--html-max-mb",
        panel=OUTPUT,
        help="Maximum total size of the images in the page, in MB. Default: 50.",
        metavar="MB",
    ),
]
Excel = Annotated[
    bool | None,
    option(
        "--excel/--no-excel",
        panel=OUTPUT,
        help="Start CSV files with a byte order mark so that Excel reads them as UTF-8.",
    ),
]

Delimiter = Annotated[
    str | None,
    option(
        "--delimiter",
        panel=OUTPUT,
        help="CSV delimiter: , or ; (with decimal commas, as Excel expects in Germany or France). Default: ,",
        metavar="CHARACTER",
    ),
]

NumFrames = Annotated[
    int | None,
    option(
        "--num-frames",
        panel=SAMPLING,
        help="Frames to sample per video: evenly spaced in short videos, in bursts of four in long ones. Default: 32.",
    ),
]
Every = Annotated[
    float | None,
    option(
        "--every",
        panel=SAMPLING,
        help="Sample one frame every SECONDS seconds, instead of --num-frames.",
        metavar="SECONDS",
    ),
]
MaxFrames = Annotated[
    int | None,
    option("--max-frames", panel=SAMPLING, help="With --every: stop after this many frames and mark the row partial."),
]
Stream = Annotated[
    str | None,
    option(
        "--stream",
        panel=SAMPLING,
        help="Video streams to scan: all, main, or a stream number as shown by ffprobe. Default: all.",
        metavar="STREAM",
    ),
]

DetectionThreshold = Annotated[
    float | None,
    option("--detection-threshold", panel=FACES, help="Minimum probability of a face detection. Default: 0.95."),
]
MinFacePx = Annotated[
    int | None,
    option(
        "--min-face-px",
        panel=FACES,
        help="Minimum face size (shorter side of the box) in pixels, at least 20. Default: 48.",
    ),
]
MaxFaces = Annotated[
    int | None,
    option("--max-faces", panel=FACES, help="Maximum number of faces scored per frame. Default: the checkpoint's."),
]

CheckpointFile = Annotated[
    Path | None,
    option(
        "--checkpoint", panel=DETECTOR, help="Checkpoint of the detector. Default: the built-in one.", metavar="FILE"
    ),
]
Device = Annotated[
    str | None,
    option("--device", panel=DETECTOR, help="Device: auto, cpu, cuda or cuda:N. Default: auto.", metavar="DEVICE"),
]
BatchSize = Annotated[
    int | None,
    option(
        "--batch-size",
        panel=DETECTOR,
        help="Faces scored at once on a GPU; a CPU scores one at a time. Default: 32.",
    ),
]

Threshold = Annotated[
    float | None,
    option("--threshold", panel=VERDICT, help="Minimum score for the verdict fake. Default: the checkpoint's."),
]
MinFaces = Annotated[
    int | None,
    option("--min-faces", panel=VERDICT, help="Minimum number of faces of one person for a verdict. Default: 3."),
]

Provenance = Annotated[
    bool | None,
    option(
        "--provenance/--no-provenance",
        panel=PROVENANCE,
        help="Read and validate C2PA manifests, offline. Default: yes if the extra provenance is installed.",
    ),
]
TrustList = Annotated[
    Path | None,
    option(
        "--trust-list",
        panel=PROVENANCE,
        help="Certificates, in PEM, of the authorities whose signers of C2PA manifests are trusted. Default: nobody is "
        "trusted.",
        metavar="FILE",
    ),
]
On = Annotated[
    str | None,
    option(
        "--on",
        panel=CLUSTER,
        help="Where to judge the videos: local, or ray for the cluster in RAY_ADDRESS (without it, a temporary one on "
        "this machine). Default: local.",
        metavar="PLACE",
    ),
]
MaxWorkers = Annotated[
    int | None,
    option(
        "--max-workers",
        panel=CLUSTER,
        help="With --on ray: maximum number of workers, each with --threads cores. Default: as many as the cluster "
        "has room for.",
    ),
]
GpusPerWorker = Annotated[
    float | None,
    option(
        "--gpus-per-worker",
        panel=CLUSTER,
        help="With --on ray: GPUs of each worker; 0.5 lets two workers share one. Default: 0, which scans on CPUs.",
        metavar="GPUS",
    ),
]

Workers = Annotated[
    int | None,
    option(
        "--workers",
        panel=BEHAVIOUR,
        help="Videos to decode in parallel. Default: half the threads (with a GPU, one per thread), at least 2.",
    ),
]
Threads = Annotated[
    int | None,
    option(
        "--threads", panel=BEHAVIOUR, help="Threads for face detection and scoring. Default: one per core, at most 8."
    ),
]
Timeout = Annotated[
    float | None,
    option(
        "--timeout",
        panel=BEHAVIOUR,
        help="Maximum decoding time per video, in seconds. Default: 300.",
        metavar="SECONDS",
    ),
]
MaxMemory = Annotated[
    int | None,
    option(
        "--max-memory",
        panel=BEHAVIOUR,
        help="Maximum memory per decoder process, in MiB. Default: 2048.",
        metavar="MIB",
    ),
]
Sandbox = Annotated[
    bool | None,
    option(
        "--sandbox/--no-sandbox",
        panel=BEHAVIOUR,
        help="Deny decoders access to files, network and other programs, as far as the system allows. Default: yes.",
    ),
]
Quiet = Annotated[
    bool | None,
    option(
        "--quiet/--no-quiet",
        "-q",
        panel=BEHAVIOUR,
        help="Print nothing to stderr unless there are findings, failures or no videos to scan.",
    ),
]
LogFile = Annotated[
    Path | None,
    option(
        "--log-file",
        panel=BEHAVIOUR,
        help="Append all messages, with UTC times, to this file.",
        metavar="FILE",
    ),
]


def chosen(context: typer.Context) -> dict[str, Any]:
    """Return the scan settings that were given by flag, environment variable or configuration file."""
    from dfscan.config import ScanSettings

    given = {name: value for name, value in context.params.items() if name in ScanSettings.model_fields}
    values = {name: value for name, value in given.items() if value is not None and value != [] and value != ()}
    if {"every", "num_frames"} <= set(values):  # mutually exclusive; the source with precedence wins
        every, num_frames = (_rank(context, name) for name in ("every", "num_frames"))
        if every != num_frames:
            del values["every" if every > num_frames else "num_frames"]
    return values


def _rank(context: typer.Context, name: str) -> int:
    """Return the position in `_SOURCES` of the source of a parameter's value."""
    source = context.get_parameter_source(name)
    assert source is not None
    return _SOURCES.index(source.name)
