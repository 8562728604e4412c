"""Settings of a scan: one frozen, validated object. Precedence: flag > environment variable > file > default.

Typer reads the flags and ``DFSCAN_*`` variables and takes the configuration file's values from `read_file` as its
defaults. Settings that are still unset come from the checkpoint, because its thresholds are only valid with its own
settings.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from dfscan.errors import ConfigError

FailOn = Literal["fake", "inconclusive", "no_face", "partial", "error", "empty"]
Settings = TypeVar("Settings", bound=BaseModel)
Probability = Annotated[float, Field(ge=0.0, le=1.0)]
Count = Annotated[int, Field(ge=1)]
TimeoutS = Annotated[float, Field(gt=0, le=7 * 86400)]
Memory = Annotated[int, Field(ge=512, le=1 << 24)]
"""Memory limit of a decoding child process in MiB. Python and FFmpeg alone take 210 MiB."""


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


def _part(value: str) -> str:
    if value == "auto":
        return _part_of_array(os.environ)
    found = re.fullmatch(r"([1-9]\d*)/([1-9]\d*)", value)
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


class ScanSettings(BaseModel):
    """All settings of `dfscan scan` except its inputs. None means the checkpoint's value, where it has one."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    # input
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    follow_symlinks: bool = False
    images: bool = False
    shard: Annotated[str, AfterValidator(_part)] | None = None
    # sampling
    num_frames: Count | None = None
    every: Annotated[float, Field(gt=0)] | None = None
    max_frames: Count | None = None
    stream: Annotated[Literal["all", "main"] | int, BeforeValidator(_stream)] = "all"
    # faces
    detection_threshold: Probability | None = None
    min_face_px: Annotated[int, Field(ge=20)] | None = None
    max_faces: Count | None = None
    # detector
    checkpoint: Path | None = None
    device: str = "auto"
    batch_size: Count | None = None
    # verdict
    threshold: Probability | None = None
    min_faces: Count | None = None
    # facts of the file
    provenance: bool | None = None
    trust_list: Path | None = None
    # output
    out: Annotated[tuple[str, ...], BeforeValidator(_several), Field(min_length=1)] = ("-",)
    format: Literal["csv", "jsonl", "xlsx", "parquet"] | None = None
    frames_out: Path | None = None
    html: Path | None = None
    html_max_mb: Annotated[float, Field(ge=0)] = 50.0
    keep_pictures: bool | None = None
    excel: bool = False
    delimiter: Literal[",", ";"] = ","
    ledger: Path | None = None
    resume: bool | None = None
    verify: bool = False
    explain: Path | None = None
    explain_top: Count = 3
    explain_format: Literal["png", "jpg"] = "png"
    # cluster
    on: Literal["local", "ray"] = "local"
    max_workers: Count | None = None
    gpus_per_worker: Annotated[float, Field(ge=0)] = 0.0
    # behaviour
    workers: Count | None = None
    threads: Count | None = None
    timeout: TimeoutS = 300.0
    max_memory: Memory = 2048
    sandbox: bool = True
    fail_on: Annotated[tuple[FailOn, ...], BeforeValidator(_split)] = ("fake", "error")
    new_only: bool = False
    exit_zero: bool = False
    quiet: bool = False
    log_file: Path | None = None

    @model_validator(mode="after")
    def _one_way_of_sampling(self) -> Self:
        if self.every is not None and self.num_frames is not None:
            raise ValueError(
                f"every = {self.every:g} and num_frames = {self.num_frames} exclude each other: give only one of "
                "--every and --num-frames"
            )
        return self

    @model_validator(mode="after")
    def _cluster(self) -> Self:
        if self.gpus_per_worker > 1 and self.gpus_per_worker % 1:
            raise ValueError(f"--gpus-per-worker must be a fraction or a whole number, got {self.gpus_per_worker:g}")
        if self.on == "ray" and self.device.startswith("cuda") and not self.gpus_per_worker:
            raise ValueError(f"--device {self.device} on Ray needs a share of a GPU: add --gpus-per-worker 1")
        if self.device == "cpu" and self.gpus_per_worker:
            raise ValueError("--device cpu and --gpus-per-worker exclude each other: give only one of them")
        return self

    @property
    def out_files(self) -> tuple[str, ...]:
        """Names of the reports that are files, not standard output."""
        return tuple(name for name in self.out if name != "-")

    @property
    def keeps_pictures(self) -> bool:
        """True if face images are stored in the ledger."""
        return self.html is not None if self.keep_pictures is None else self.keep_pictures

    @property
    def takes_known(self) -> bool:
        """True if results of unchanged files are reused from the ledger."""
        return self.ledger is not None if self.resume is None else self.resume


FAIL_ON: tuple[str, ...] = get_args(FailOn)


def build_settings(model: type[Settings], values: Mapping[str, Any]) -> Settings:
    """Validate raw values and return frozen settings; None values count as not given.

    Raises:
        ConfigError: listing every invalid value, not only the first.
    """
    try:
        return model(**{name: value for name, value in values.items() if value is not None})
    except ValidationError as error:
        raise ConfigError("; ".join(_complaints(error, model))) from error


def read_file(path: Path, model: type[BaseModel], former_names: Mapping[str, str] = {}) -> dict[str, Any]:
    """Read a TOML file with settings; its keys are flag names, with ``-`` or ``_``.

    Args:
        path: the file.
        model: settings that it may contain.
        former_names: current name of each renamed setting; the file may use either.

    Raises:
        ConfigError: the file cannot be read, is not TOML, or contains unknown keys or invalid values.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8-sig"))  # Windows editors may write a byte order mark
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); check --config") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML ({error})") from error
    named = {key.replace("-", "_"): value for key, value in table.items()}
    if twice := [old for old, new in former_names.items() if old in named and new in named]:
        raise ConfigError(f"{path}: {twice[0]} is the former name of {former_names[twice[0]]}; remove one of the two")
    values = {former_names.get(name, name): value for name, value in named.items()}
    try:
        build_settings(model, values)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return values


def _complaints(error: ValidationError, model: type[BaseModel]) -> Iterable[str]:
    unknown = []
    for problem in error.errors():
        name = ".".join(map(str, problem["loc"][:1]))
        if problem["type"] == "extra_forbidden":
            unknown.append(name)
        elif problem["type"] == "value_error":
            message = str(problem["ctx"]["error"])
            yield f"{name}: {message}, got {problem['input']!r}" if name else message
        else:
            yield f"{name}: {problem['msg'].lower()}, got {problem['input']!r}"
    if unknown:
        yield f"unknown setting {_with_hints(unknown, model.model_fields)}"


def _with_hints(unknown: Iterable[str], known: Iterable[str]) -> str:
    """List unknown names, each with the closest known name; if a name has no close match, append all known names."""
    near = {name: difflib.get_close_matches(name, known, n=1) for name in unknown}
    named = ", ".join(f"'{name}'" + (f" (did you mean '{like[0]}'?)" if like else "") for name, like in near.items())
    return named if all(near.values()) else f"{named}; known names are {', '.join(sorted(known))}"


def check_environment(environment: Mapping[str, str], models: Iterable[type[BaseModel]]) -> None:
    """Refuse ``DFSCAN_*`` variables that no command reads, because a typo would silently change an audit.

    Raises:
        ConfigError: listing all unknown variables.
    """
    known = {f"DFSCAN_{name.upper()}" for model in models for name in model.model_fields} | {"DFSCAN_CONFIG"}
    unknown = [name for name in environment if name.startswith("DFSCAN_") and name not in known]
    if unknown:
        raise ConfigError(f"unknown environment variable {_with_hints(sorted(unknown), known)}")
