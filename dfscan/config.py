"""Settings: one table for each family of commands. Precedence: flag > environment variable > file > default.

A table is a frozen dataclass. Each field, made by `setting`, holds everything about one setting: default, bounds, help
and section. From the table come the flags and ``DFSCAN_*`` variables (`dfscan.cli.options`), the validation
(`build_settings`), the files in ``configs`` and the option reference (``docs/make_reference.py``).

Settings that are still unset come from the checkpoint, because its thresholds are only valid with its own settings.
This module imports pydantic only on use, because ``--help`` reads the tables.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args, get_origin, get_type_hints

from dfscan.errors import ConfigError

INPUT, OUTPUT, EXPLAIN, VERDICT = "Input", "Output", "Explanation", "Verdict"
SAMPLING, FACES, DETECTOR, PROVENANCE = "Sampling", "Faces", "Detector", "Provenance"
CLUSTER, CASE = "Cluster", "Case"
BEHAVIOUR = "Behaviour"

FailOn = Literal["fake", "inconclusive", "no_face", "partial", "error", "empty"]
BOUNDS = ("ge", "gt", "le", "lt", "min_length")
"""Bounds of a setting, as pydantic names them."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One row of a table."""

    name: str = ""
    kind: Any = None
    """Type of the value, as annotated."""
    default: Any = None
    panel: str
    """Section of the help, the example file and the reference."""
    help: str
    """Description, without the default."""
    default_text: str | None = None
    """Describes the default where the value does not."""
    of_checkpoints: float | None = None
    """Value in the checkpoints of this version, from which an unset setting is taken."""
    example: Any = None
    """Value in the example file if there is no default."""
    metavar: str | None = None
    short: str | None = None
    flag_type: Any = None
    """Type that the command line parses, where it is not `kind`."""
    parse: Callable[[Any], Any] | None = None
    """Converts a raw value before validation, or raises ValueError."""
    separator: str | None = None
    """Pattern between several values in the environment. By default, a colon separates paths and a blank other text."""
    former: str | None = None
    """Former name, which files may still contain."""
    has_variable: bool = False
    """True if it is also read from a ``DFSCAN_*`` variable."""
    bounds: Mapping[str, Any]
    """Bounds of the value, by their names in `BOUNDS`."""

    @property
    def flag(self) -> str:
        """The flag, such as ``--num-frames``."""
        return f"--{self.name.replace('_', '-')}"

    @property
    def variable(self) -> str | None:
        """The environment variable, such as ``DFSCAN_NUM_FRAMES``, or None."""
        return f"DFSCAN_{self.name.upper()}" if self.has_variable else None

    @property
    def given_kind(self) -> Any:
        """`kind` without None, which stands for a setting that is not given."""
        kinds = [kind for kind in get_args(self.kind) if kind is not NoneType]
        return kinds[0] if NoneType in get_args(self.kind) and len(kinds) == 1 else self.kind

    @property
    def choices(self) -> tuple[str, ...]:
        """The allowed values, if there are only a few."""
        return get_args(self.given_kind) if get_origin(self.given_kind) is Literal else ()

    def shown_default(self) -> str:
        """Return the default in words, empty if there is none."""
        if self.default_text is not None:
            return self.default_text
        if self.of_checkpoints is not None:
            return f"the checkpoint's, usually {self.of_checkpoints:g}"
        if isinstance(self.default, bool):
            return "yes" if self.default else "no"
        if isinstance(self.default, tuple):
            return ",".join(self.default)
        if isinstance(self.default, float):
            return f"{self.default:g}"
        return "" if self.default in (None, dataclasses.MISSING) else str(self.default)


def setting(default: Any, panel: str, help: str, **about: Any) -> Any:
    """Define a field of a table; a required one has the default `dataclasses.MISSING`.

    Args:
        default: value if none is given.
        panel: see `Setting`.
        help: see `Setting`.
        **about: other attributes of `Setting`, and bounds by their names.
    """
    bounds = {name: about.pop(name) for name in BOUNDS if name in about}
    row = Setting(panel=panel, help=help, bounds=bounds, **about)
    return dataclasses.field(default=default, metadata={"setting": row})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Base of the tables."""

    HAS_VARIABLES: ClassVar[bool] = False
    """True if every setting is also read from a ``DFSCAN_*`` variable."""
    EXCLUSIVE: ClassVar[tuple[tuple[str, str], ...]] = ()
    """Pairs of settings of which only one may be set. A flag takes precedence over the other one in a file."""

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with the combination of values."""
        yield from _exclusions(type(self), vars(self))

    def document(self) -> dict[str, Any]:
        """Return all values as JSON types."""
        values = ((field.name, getattr(self, field.name)) for field in dataclasses.fields(self))
        return {
            name: str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
            for name, value in values
        }


Table = TypeVar("Table", bound=Settings)


def _exclusions(table: type[Settings], values: Mapping[str, Any]) -> Iterator[str]:
    for pair in table.EXCLUSIVE:
        given = {name: values[name] for name in pair if values.get(name) is not None}
        if len(given) == 2:
            shown = " and ".join(f"{name} = {value:g}" for name, value in given.items())
            flags = " and ".join(rows(table)[name].flag for name in given)
            yield f"{shown} exclude each other: give only one of {flags}"


def _split(value: object) -> object:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _several(value: object) -> object:
    if isinstance(value, (str, Path)):
        return [str(value)]
    return [str(each) for each in value] if isinstance(value, (list, tuple)) else value


def _stream(value: object) -> object:
    if value in ("all", "main"):
        return value
    if not str(value).isdecimal():
        raise ValueError("must be all, main or a stream number")
    return int(str(value))


def _part(value: object) -> object:
    if value == "auto":
        return _part_of_array(os.environ)
    found = re.fullmatch(r"([1-9]\d*)/([1-9]\d*)", str(value))
    if not found or int(found[1]) > int(found[2]):
        raise ValueError("must be auto or I/N with I from 1 to N, such as 1/4 for the first of four parts")
    return value


def _part_of_array(environment: Mapping[str, str]) -> str:
    """Return the part of this task of a SLURM job array, such as ``2/4`` for the task 6 of ``--array=5-8``."""
    names = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_COUNT")
    try:
        task, first, count = (int(environment[name]) for name in names)
    except (KeyError, ValueError):
        raise ValueError(f"auto needs {', '.join(names)}: submit a job array with `sbatch --array`") from None
    step = int(environment.get("SLURM_ARRAY_TASK_STEP", "1") or "1")
    part, rest = divmod(task - first, step)
    if rest or not 0 <= part < count:
        raise ValueError(
            f"auto needs a job array without gaps, but task {task} of {count} starts from {first}: submit "
            "`--array=0-N`, or give the part as I/N"
        )
    return f"{part + 1}/{count}"


@dataclass(frozen=True, kw_only=True)
class ScanSettings(Settings):
    """All settings of `dfscan scan` except its inputs, as the user gave them.

    None means that the user gave none; `dfscan.scan.setup.resolve` takes the checkpoint's value, where it has one.
    """

    HAS_VARIABLES = True
    EXCLUSIVE = (("every", "num_frames"),)

    include: tuple[str, ...] = setting(
        (), INPUT, "In folders, scan only files that match this glob, whatever their type. Repeatable.", metavar="GLOB"
    )
    exclude: tuple[str, ...] = setting(
        (), INPUT, "In folders, skip files and folders that match this glob. Repeatable.", metavar="GLOB"
    )
    follow_symlinks: bool = setting(False, INPUT, "Follow symbolic links found in folders.")
    images: bool = setting(
        False,
        INPUT,
        "Also scan pictures: JPEG, PNG, WebP, HEIC and AVIF. Their verdict is inconclusive, because the thresholds are "
        "those for videos.",
    )
    shard: str | None = setting(
        None,
        INPUT,
        "Scan only the I-th of N parts of the inputs, to share the work among machines; auto takes the part from a "
        "SLURM job array. The path as given determines a file's part. `dfscan report` merges the ledgers.",
        example="1/1",
        metavar="I/N",
        parse=_part,
    )

    out: tuple[str, ...] | None = setting(
        None,
        OUTPUT,
        "Report file; its extension selects the format: .csv, .jsonl, .xlsx, .parquet, or .jsonld for CASE. Use - for "
        "stdout. Repeatable.",
        default_text="stdout",
        example=["-"],
        metavar="FILE",
        short="-o",
        flag_type=list[Path],
        parse=_several,
        min_length=1,
    )
    format: Literal["csv", "jsonl", "xlsx", "parquet", "case"] | None = setting(
        None, OUTPUT, "Report format.", default_text="the extension of --out, else csv", example="csv"
    )
    frames_out: Path | None = setting(
        None,
        OUTPUT,
        "Also write a report with one row per face; its extension selects the format.",
        example="faces.csv",
    )
    html: Path | None = setting(
        None, OUTPUT, "Also write an HTML page with scores over time, faces and heat maps.", example="report.html"
    )
    html_max_mb: float = setting(
        50.0, OUTPUT, "Maximum total size of the images in the page, in MB.", metavar="MB", ge=0
    )
    webvtt: Path | None = setting(
        None,
        OUTPUT,
        "Also write a WebVTT file per video to this folder, with the times of faces at or above the threshold.",
        example="spans",
        metavar="DIR",
    )
    keep_pictures: bool | None = setting(
        None,
        OUTPUT,
        "Store small face images in the ledger, for an HTML page made later.",
        default_text="only with --html",
        example=False,
    )
    excel: bool = setting(False, OUTPUT, "Start CSV files with a byte order mark so that Excel reads them as UTF-8.")
    delimiter: Literal[",", ";"] = setting(
        ",",
        OUTPUT,
        "CSV delimiter: , or ; (with decimal commas, as Excel expects in Germany or France).",
        default_text="a comma",
        metavar="CHARACTER",
    )
    ledger: Path | None = setting(
        None,
        OUTPUT,
        "SQLite file for all results. Scans that share this file scan only new and changed videos.",
        default_text="REPORT.ledger",
        example="audit.ledger",
    )
    resume: bool | None = setting(
        None,
        OUTPUT,
        "Reuse the ledger's results for unchanged files, for example after an interrupt.",
        default_text="only with --ledger",
        example=False,
    )
    verify: bool = setting(
        False,
        OUTPUT,
        "Hash every file before reusing its result from the ledger.",
        default_text="only if its inode or change time differs",
    )

    case: str | None = setting(
        None, CASE, "Number or name of the case, copied into every report.", example="2026-0142", metavar="TEXT"
    )
    exhibit: str | None = setting(
        None, CASE, "Number or name of the exhibit, copied into every report.", example="A-3", metavar="TEXT"
    )
    examiner: str | None = setting(
        None, CASE, "Name of the examiner, copied into every report.", example="A. Miller", metavar="TEXT"
    )

    explain: Path | None = setting(
        None, EXPLAIN, "Write faces and heat maps to this folder.", example="dumps", metavar="DIR"
    )
    explain_top: int = setting(3, EXPLAIN, "Number of highest-scoring faces per video.", ge=1)
    explain_format: Literal["png", "jpg"] = setting("png", EXPLAIN, "Image format.")
    annotate: Path | None = setting(
        None,
        EXPLAIN,
        "Write annotated copies of the videos to this folder, as H.264 without sound: boxes, tracks, scores and the "
        "verdict on every frame.",
        example="annotated",
        metavar="DIR",
    )
    annotate_top: int | None = setting(
        None,
        EXPLAIN,
        "Annotate only this number of highest-scoring videos.",
        default_text="all with faces",
        example=20,
        ge=1,
    )

    threshold: float | None = setting(
        None, VERDICT, "Minimum score for the verdict fake.", default_text="the checkpoint's", example=0.9, ge=0, le=1
    )
    min_faces: int | None = setting(
        None, VERDICT, "Minimum number of faces of one person for a verdict.", of_checkpoints=3, ge=1
    )
    fail_on: tuple[FailOn, ...] = setting(
        ("fake", "error"),
        VERDICT,
        "Comma-separated conditions that fail the scan: fake, inconclusive, no_face and partial exit with 1; error "
        "and empty (a folder without videos) exit with 2.",
        metavar="LIST",
        flag_type=str,
        parse=_split,
    )
    new_only: bool = setting(False, VERDICT, "For the exit code, ignore findings that were already in the ledger.")
    exit_zero: bool = setting(False, VERDICT, "Exit with 0 regardless of the findings.")

    num_frames: int | None = setting(
        None,
        SAMPLING,
        "Frames to sample per video: evenly spaced in short videos, in bursts of four in long ones.",
        of_checkpoints=32,
        ge=1,
    )
    every: float | None = setting(
        None,
        SAMPLING,
        "Sample one frame every SECONDS seconds, instead of --num-frames.",
        example=1.0,
        metavar="SECONDS",
        gt=0,
    )
    max_frames: int | None = setting(
        None,
        SAMPLING,
        "With --every: stop after this many frames and mark the row partial.",
        default_text="no limit",
        example=1000,
        ge=1,
    )
    stream: Literal["all", "main"] | int = setting(
        "all",
        SAMPLING,
        "Video streams to scan: all, main, or a stream number as shown by ffprobe.",
        metavar="STREAM",
        flag_type=str,
        parse=_stream,
    )

    detection_threshold: float | None = setting(
        None, FACES, "Minimum probability of a face detection.", of_checkpoints=0.95, ge=0, le=1
    )
    min_face_px: int | None = setting(
        None, FACES, "Minimum face size (shorter side of the box) in pixels, at least 20.", of_checkpoints=48, ge=20
    )
    max_faces: int | None = setting(None, FACES, "Maximum number of faces scored per frame.", of_checkpoints=20, ge=1)

    checkpoint: tuple[str, ...] | None = setting(
        None,
        DETECTOR,
        "Checkpoint of the detector: a file, or hf://owner/name[@REVISION] on the Hugging Face Hub. Repeat it in scan, "
        "explain and bench to ask several detectors.",
        default_text="the built-in one",
        example="lab.safetensors",
        metavar="FILE",
        flag_type=list[str],
        parse=_several,
        separator=r":(?!//)",
        min_length=1,
    )
    device: str = setting("auto", DETECTOR, "Device: auto, cpu, cuda or cuda:N.", metavar="DEVICE")
    batch_size: int = setting(32, DETECTOR, "Faces scored at once on a GPU; a CPU scores one at a time.", ge=1)

    provenance: bool | None = setting(
        None,
        PROVENANCE,
        "Read and validate C2PA manifests, offline.",
        default_text="yes if the extra provenance is installed",
        example=True,
    )
    trust_list: Path | None = setting(
        None,
        PROVENANCE,
        "Certificates, in PEM, of the authorities whose signers of C2PA manifests are trusted.",
        default_text="nobody is trusted",
        example="trusted.pem",
    )

    on: Literal["local", "ray"] = setting(
        "local",
        CLUSTER,
        "Where to judge the videos: local, or ray for the cluster in RAY_ADDRESS (without it, a temporary one on this "
        "machine).",
        metavar="PLACE",
    )
    max_workers: int | None = setting(
        None,
        CLUSTER,
        "With --on ray: maximum number of workers, each with --threads cores.",
        default_text="as many as the cluster has room for",
        example=16,
        ge=1,
    )
    gpus_per_worker: float = setting(
        0.0,
        CLUSTER,
        "With --on ray: GPUs of each worker; 0.5 lets two workers share one.",
        default_text="0, which scans on CPUs",
        metavar="GPUS",
        ge=0,
    )

    workers: int | None = setting(
        None,
        BEHAVIOUR,
        "Videos to decode in parallel.",
        default_text="half the threads (with a GPU, one per thread), at least 2",
        example=2,
        ge=1,
    )
    threads: int | None = setting(
        None,
        BEHAVIOUR,
        "Threads for face detection and scoring.",
        default_text="one per core, at most 8",
        example=8,
        ge=1,
    )
    timeout: float = setting(
        300.0, BEHAVIOUR, "Maximum decoding time per video, in seconds.", metavar="SECONDS", gt=0, le=7 * 86400
    )
    max_memory: int = setting(  # Python and FFmpeg alone take 210 MiB
        2048, BEHAVIOUR, "Maximum memory per decoder process, in MiB.", metavar="MIB", ge=512, le=1 << 24
    )
    sandbox: bool = setting(
        True, BEHAVIOUR, "Deny decoders access to files, network and other programs, as far as the system allows."
    )
    quiet: bool = setting(
        False,
        BEHAVIOUR,
        "Print nothing to stderr unless there are findings, failures or no videos to scan.",
        short="-q",
    )
    log_file: Path | None = setting(
        None, BEHAVIOUR, "Append all messages, with UTC times, to this file.", example="dfscan.log"
    )

    def problems(self) -> Iterator[str]:
        """See `Settings.problems`."""
        yield from super().problems()
        if self.gpus_per_worker > 1 and self.gpus_per_worker % 1:
            yield f"--gpus-per-worker must be a fraction or a whole number, got {self.gpus_per_worker:g}"
        if self.on == "ray" and self.device.startswith("cuda") and not self.gpus_per_worker:
            yield f"--device {self.device} on Ray needs a share of a GPU: add --gpus-per-worker 1"
        if self.device == "cpu" and self.gpus_per_worker:
            yield "--device cpu and --gpus-per-worker exclude each other: give only one of them"

    def document(self) -> dict[str, Any]:
        """See `Settings.document`; a single checkpoint is not in a list."""
        document = super().document()
        if self.checkpoint and len(self.checkpoint) == 1:
            document["checkpoint"] = self.checkpoint[0]
        return document

    @property
    def reports(self) -> tuple[str, ...]:
        """Names of the reports; ``-`` is standard output."""
        return ("-",) if self.out is None else self.out

    @property
    def out_files(self) -> tuple[str, ...]:
        """Names of the reports that are files, not standard output."""
        return tuple(name for name in self.reports if name != "-")

    @property
    def case_facts(self) -> dict[str, str | None]:
        """The case, the exhibit and the examiner, which every report has."""
        return {"case": self.case, "exhibit": self.exhibit, "examiner": self.examiner}

    @property
    def keeps_pictures(self) -> bool:
        """True if face images are stored in the ledger."""
        return self.html is not None if self.keep_pictures is None else self.keep_pictures

    @property
    def takes_known(self) -> bool:
        """True if results of unchanged files are reused from the ledger."""
        return self.ledger is not None if self.resume is None else self.resume


def rows(table: type[Settings]) -> dict[str, Setting]:
    """Return the rows of a table by name."""
    if table not in _rows:  # functools.cache makes mypy take the class for unhashable
        kinds = get_type_hints(table)
        _rows[table] = {}
        for field in dataclasses.fields(table):
            row: Setting = field.metadata["setting"]
            about = {"name": field.name, "kind": kinds[field.name], "default": field.default}
            has_variable = row.has_variable or table.HAS_VARIABLES
            _rows[table][field.name] = dataclasses.replace(row, **about, has_variable=has_variable)
    return _rows[table]


_rows: dict[type[Settings], dict[str, Setting]] = {}


def of_checkpoints(name: str) -> Any:
    """Return the value of a scan setting in the checkpoints of this version."""
    return rows(ScanSettings)[name].of_checkpoints


def like_scan(name: str, **changes: Any) -> Any:
    """Define a field of another table like the scan setting of this name, with its default for new checkpoints."""
    row = rows(ScanSettings)[name]
    default = row.default if row.of_checkpoints is None else row.of_checkpoints
    row = dataclasses.replace(row, of_checkpoints=None, **changes)
    return dataclasses.field(default=default, metadata={"setting": row})


# Validation


def build_settings(table: type[Table], values: Mapping[str, Any]) -> Table:
    """Validate raw values and return frozen settings; None values count as not given.

    Raises:
        ConfigError: listing every invalid value, not only the first.
    """
    settings = table(**_validated(table, values))
    if problems := list(settings.problems()):
        raise ConfigError("; ".join(problems))
    return settings


def read_file(path: Path, table: type[Settings]) -> dict[str, Any]:
    """Read a TOML file with settings; its keys are flag names, with ``-`` or ``_``, or former names.

    Returns:
        The raw values, each of them valid.

    Raises:
        ConfigError: the file cannot be read, is not TOML, or contains unknown keys or invalid values.
    """
    import tomllib

    try:
        document = tomllib.loads(path.read_text(encoding="utf-8-sig"))  # Windows editors may write a byte order mark
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); check --config") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML ({error})") from error
    named = {key.replace("-", "_"): value for key, value in document.items()}
    former = former_names(table)
    if twice := [old for old, new in former.items() if old in named and new in named]:
        raise ConfigError(f"{path}: {twice[0]} is the former name of {former[twice[0]]}; remove one of the two")
    values = {former.get(name, name): value for name, value in named.items()}
    try:
        problems = list(_exclusions(table, _validated(table, values)))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    if problems:
        raise ConfigError(f"{path}: {'; '.join(problems)}")
    return values


def former_names(table: type[Settings]) -> dict[str, str]:
    """Return the current name of each renamed setting."""
    return {row.former: row.name for row in rows(table).values() if row.former}


def check_environment(environment: Mapping[str, str], tables: Iterable[type[Settings]]) -> None:
    """Refuse ``DFSCAN_*`` variables that no command reads, because a typo would silently change an audit.

    Raises:
        ConfigError: listing all unknown variables.
    """
    known = {row.variable for table in tables for row in rows(table).values() if row.variable} | {"DFSCAN_CONFIG"}
    unknown = [name for name in environment if name.startswith("DFSCAN_") and name not in known]
    if unknown:
        raise ConfigError(f"unknown environment variable {_with_hints(sorted(unknown), known)}")


def _validated(table: type[Settings], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of all fields, converted to their types."""
    from pydantic import ValidationError

    try:
        checked = _model(table)(**{name: value for name, value in values.items() if value is not None})
    except ValidationError as error:
        complaints, unknown = list[str](), list[str]()
        for problem in error.errors():
            name = ".".join(map(str, problem["loc"][:1]))
            if problem["type"] == "extra_forbidden":
                unknown.append(name)
            elif problem["type"] == "value_error":
                complaints.append(f"{name}: {problem['ctx']['error']}, got {problem['input']!r}")
            else:
                complaints.append(f"{name}: {problem['msg'].lower()}, got {problem['input']!r}")
        if unknown:
            complaints.append(f"unknown setting {_with_hints(unknown, rows(table))}")
        raise ConfigError("; ".join(complaints)) from error
    return {name: getattr(checked, name) for name in rows(table)}


def _model(table: type[Settings]) -> Any:
    from pydantic import BeforeValidator, ConfigDict, Field, create_model

    if table not in _models:
        fields: dict[str, Any] = {}
        for row in rows(table).values():
            kind = Annotated[row.kind, BeforeValidator(row.parse)] if row.parse else row.kind
            default = {} if row.default is dataclasses.MISSING else {"default": row.default}
            fields[row.name] = (kind, Field(**default, **row.bounds))
        config = ConfigDict(extra="forbid", allow_inf_nan=False)
        _models[table] = create_model(table.__name__, __config__=config, **fields)
    return _models[table]


_models: dict[type[Settings], Any] = {}


def _with_hints(unknown: Sequence[str], known: Iterable[str]) -> str:
    """List unknown names, each with the closest known name; if a name has no close match, append all known names."""
    import difflib

    names = sorted(known)
    near = {name: difflib.get_close_matches(name, names, n=1) for name in unknown}
    named = ", ".join(f"'{name}'" + (f" (did you mean '{like[0]}'?)" if like else "") for name, like in near.items())
    return named if all(near.values()) else f"{named}; known names are {', '.join(names)}"
