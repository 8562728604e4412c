"""One whole scan: inputs found, models loaded, every video judged and recorded, reports written, an exit code."""

from __future__ import annotations

import os
import platform
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dfscan.config import ScanSettings
from dfscan.detector.checkpoint import Checkpoint
from dfscan.detector.runtime import choose_device
from dfscan.errors import ConfigError, OutputError
from dfscan.media.discover import Discovery, discover
from dfscan.report.dumps import DumpFolder
from dfscan.report.meta import versions, write_meta
from dfscan.report.schema import FRAME_COLUMNS, REPORT_COLUMNS, frame_rows, report_row
from dfscan.report.text import report_order
from dfscan.report.writers import ReportWriter, format_for, open_writer, remove_leftovers
from dfscan.scan.ledger import FileIdentity, Ledger, Recipe
from dfscan.scan.lock import only_run
from dfscan.scan.pipeline import Engine, Listener, failed, scan_videos
from dfscan.scan.setup import find_checkpoint, load_engine, recipe, with_checkpoint
from dfscan.scan.timing import Timings
from dfscan.types import LABELS, Reason, VideoResult

MAY_PASS = frozenset("changed crashed internal no_decoder not_found sandbox timeout too_large unreadable".split())
"""Reasons of an error that another machine, limit or moment may not give: such files are tried again every time."""


@dataclass
class Tally:
    """What a scan has come to."""

    labels: Counter[str] = field(default_factory=Counter)
    num_partial: int = 0
    num_known: int = 0
    """Results that were taken from the ledger."""
    news: set[str] = field(default_factory=set)
    """Labels, and ``partial``, of results that the ledger did not hold before."""
    passed_over: Counter[str] = field(default_factory=Counter)

    def count(self, result: VideoResult, *, is_new: bool) -> None:
        """Add one result."""
        self.labels[result.verdict.label] += 1
        self.num_partial += result.status == "partial"
        if is_new:
            self.news |= _findings(result)

    @property
    def num_videos(self) -> int:
        """Rows of the report."""
        return self.labels.total()

    def exit_code(self, settings: ScanSettings) -> int:
        """0 nothing to report, 1 something that `fail_on` names was found, 2 some video could not be judged."""
        if settings.exit_zero:
            return 0
        found = {label for label, count in self.labels.items() if count} | ({"partial"} if self.num_partial else set())
        failing = (self.news if settings.new_only else found) & set(settings.fail_on)
        return 1 if failing - {"error"} else 2 if failing else 0

    def summary(self) -> str:
        """One line for people and for cron mail."""
        counts = ", ".join(f"{self.labels[label]} {label}" for label in LABELS)
        plural = "video" if self.num_videos == 1 else "videos"
        extra = f" ({self.num_partial} partial)" if self.num_partial else ""
        skipped = ", ".join(f"{count} {why}" for why, count in sorted(self.passed_over.items()))
        known = f"; {self.num_known} known from the ledger" if self.num_known else ""
        return f"{self.num_videos} {plural}: {counts}{extra}{known}" + (f"; passed over: {skipped}" if skipped else "")


def _findings(result: VideoResult) -> set[str]:
    """What `fail_on` can name of one result."""
    return {result.verdict.label} | ({"partial"} if result.status == "partial" else set())


def run_scan(
    inputs: Sequence[str],
    settings: ScanSettings,
    *,
    listed: Sequence[str] = (),
    listener: Listener | None = None,
    on_discovered: Callable[[int], None] | None = None,
    timings: Timings | None = None,
) -> Tally:
    """Scan and write every output that the settings name.

    Args:
        inputs: files and directories from the command line.
        settings: as given by the user.
        listed: entries of ``--files-from``.
        listener: told how it goes on.
        on_discovered: called with the number of videos once it is known.
        timings: adds up the cost of the stages.

    Raises:
        ConfigError: an input or option is unusable; nothing has been done.
        CheckpointError: there is no usable checkpoint; nothing has been done.
        LockedError: another run writes the same report or ledger; nothing has been done.
        OutputError: a report, ledger or dump cannot be written; an old report is still there.
    """
    started = datetime.now(UTC)
    timings = timings or Timings()
    found = discover(
        inputs,
        listed=listed,
        include=settings.include,
        exclude=settings.exclude,
        follow_symlinks=settings.follow_symlinks,
    )
    _refuse_overwriting(settings, found)
    if settings.takes_known and _ledger_path(settings) is None:
        raise ConfigError("--resume goes on from a ledger: name the report with --out, or the ledger with --ledger")
    checkpoint = find_checkpoint(settings)
    settings = with_checkpoint(settings, checkpoint)
    made_by = recipe(settings, checkpoint, device=choose_device(settings.device))
    tally = Tally(passed_over=Counter(found.passed_over))
    if on_discovered:
        on_discovered(len(found.paths) + len(found.problems))
    with only_run(_written_files(settings)):
        with ExitStack() as stack:
            outputs = _Outputs(settings, made_by, sorted([*found.paths, *found.problems], key=report_order), stack)
            known = _recalled(found.paths, outputs, tally, listener) if settings.takes_known else set()
            paths = [path for path in found.paths if path not in known]
            with timings.stage("start"):
                engine = load_engine(settings, checkpoint) if paths else None
            judged = _results(found.problems, paths, engine, outputs.dumps, settings, listener, timings)
            for result, identity in judged:
                with timings.stage("write"):
                    tally.count(result, is_new=outputs.record(result, identity))
                if listener:
                    listener.video_done(result)
            outputs.write_index()
        outputs.write_meta(_metadata(started, settings, checkpoint, engine, tally))
    return tally


def _recalled(paths: Sequence[str], outputs: _Outputs, tally: Tally, listener: Listener | None) -> set[str]:
    """Those of the paths whose results are taken from the ledger."""
    known = set()
    for path in paths:
        if result := outputs.recall(path):
            known.add(path)
            tally.num_known += 1
            tally.count(result, is_new=False)
            if listener:
                listener.video_done(result)
    return known


def _refuse_overwriting(settings: ScanSettings, found: Discovery) -> None:
    """Refuse an output that would replace an input or another output: a slip such as ``-o *.mp4``.

    Raises:
        ConfigError: naming both.
    """
    named = {"--out": None if settings.out == "-" else Path(settings.out), "--frames-out": settings.frames_out}
    named |= {"--ledger": _ledger_path(settings), "--log-file": settings.log_file}
    if named["--out"]:
        named["the metadata of --out"] = Path(f"{settings.out}.meta.json")
    outputs = {option: path for option, path in named.items() if path is not None}
    by_place: dict[str, str] = {}
    for option, path in outputs.items():
        other = by_place.setdefault(os.path.realpath(path), option)
        if other != option:
            raise ConfigError(f"{option} and {other} are the same file, {path}; name different ones")
    there = {place: option for option, path in outputs.items() if (place := _place(path))}
    for video in found.paths if there else ():
        if (place := _place(video)) in there:
            raise ConfigError(f"{there[place]} would overwrite the input {video}; name another file")


def _place(path: str | Path) -> tuple[int, int] | None:
    """Device and number of a file that is there."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino


def _results(
    problems: Mapping[str, Reason],
    paths: Sequence[str],
    engine: Engine | None,
    dumps: DumpFolder | None,
    settings: ScanSettings,
    listener: Listener | None,
    timings: Timings,
) -> Iterator[tuple[VideoResult, FileIdentity | None]]:
    """First the inputs that are never opened, then the judged ones as they are complete."""
    for path, reason in problems.items():
        yield failed(path, reason), None
    if engine is None:
        return
    judged = scan_videos(
        paths, engine, dumps=dumps, num_dumped=settings.explain_top, listener=listener, timings=timings
    )
    with closing(judged):
        yield from judged


class _Outputs:
    """Everything that a scan writes. Reports are opened before models are loaded, so that a typo costs no night."""

    def __init__(self, settings: ScanSettings, made_by: Recipe, paths: list[str], stack: ExitStack) -> None:
        self._settings = settings
        self._recipe = made_by
        self._waiting = deque(paths)
        self._recorded: dict[str, FileIdentity | None] = {}
        self._index: list[dict[str, Any]] = []
        for path in _written_files(settings):
            remove_leftovers(path)
        self._report = stack.enter_context(self._open_report())
        self._frames = stack.enter_context(self._open_frames()) if settings.frames_out else None
        self.dumps = DumpFolder(settings.explain, suffix=settings.explain_format) if settings.explain else None
        self._ledger = stack.enter_context(Ledger(_ledger_path(settings), recipe=made_by))

    def _open_report(self) -> ReportWriter:
        settings = self._settings
        kind = settings.format or format_for(settings.out)
        if settings.out == "-" and sys.stdout is None:
            raise OutputError("standard output is closed: name a file for the report with --out")
        target = sys.stdout.buffer if settings.out == "-" else settings.out
        return open_writer(target, REPORT_COLUMNS, format=kind, excel=settings.excel)

    def _open_frames(self) -> ReportWriter:
        assert self._settings.frames_out
        path = self._settings.frames_out
        return open_writer(path, FRAME_COLUMNS, format=format_for(path), excel=self._settings.excel)

    def recall(self, path: str) -> VideoResult | None:
        """What the ledger knows of the file as it is now, unless that is worth another try; its row is written."""
        identity = FileIdentity.of(path)
        known = self._ledger.get(path, identity) if identity else None
        if known is None or not self._is_final(known):
            return None
        self._take(path, identity)
        return known

    def _is_final(self, known: VideoResult) -> bool:
        reason = known.verdict.reason
        if known.verdict.label == "error" and reason and reason.code in MAY_PASS:
            return False
        return self.dumps is None or self.dumps.holds(known.dumps)

    def record(self, result: VideoResult, identity: FileIdentity | None) -> bool:
        """Put a result into the ledger; tells whether the ledger did not say the same of the file before."""
        before = self._ledger.get(result.path, identity)
        self._ledger.put(result, identity)
        self._take(result.path, identity)
        return before is None or _findings(before) != _findings(result)

    def _take(self, path: str, identity: FileIdentity | None) -> None:
        """Reports get from the ledger all rows whose turn has come."""
        self._recorded[path] = identity
        while self._waiting and self._waiting[0] in self._recorded:
            path = self._waiting.popleft()
            self._write_rows(path, self._recorded.pop(path))

    def _write_rows(self, path: str, identity: FileIdentity | None) -> None:
        kept = self._ledger.get(path, identity)
        assert kept is not None
        self._report.append(report_row(kept, checkpoint=self._recipe.checkpoint, version=self._recipe.version))
        self._index.extend(kept.dumps)
        if self._frames:
            for row in frame_rows(kept):
                self._frames.append(row)

    def write_index(self) -> None:
        """Write the index of the dumps, if there are any to be."""
        if self.dumps:
            self.dumps.write_index(self._index)

    def write_meta(self, document: dict[str, Any]) -> None:
        """Write the side file of a report that is a file."""
        if self._settings.out != "-":
            write_meta(self._settings.out, document)


def _written_files(settings: ScanSettings) -> list[Path]:
    """What no two runs may write at once."""
    named = (None if settings.out == "-" else Path(settings.out), settings.frames_out, _ledger_path(settings))
    return [path for path in named if path]


def _ledger_path(settings: ScanSettings) -> Path | None:
    if settings.ledger:
        return settings.ledger
    return Path(f"{settings.out}.ledger") if settings.out != "-" else None


def _metadata(
    started: datetime, settings: ScanSettings, checkpoint: Checkpoint, engine: Engine | None, tally: Tally
) -> dict[str, Any]:
    import av  # noqa: F401  its presence makes versions() name FFmpeg's

    return {
        "started_utc": started.isoformat(timespec="seconds"),
        "ended_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": platform.node(),
        "command_line": sys.argv,
        "settings": settings.model_dump(mode="json"),
        "device": engine.runtime.device if engine else None,
        "checkpoint": {
            "path": str(checkpoint.path),
            "sha256": checkpoint.sha256,
            **checkpoint.card.model_dump(mode="json"),
        },
        "counts": {label: tally.labels[label] for label in LABELS} | {"partial": tally.num_partial},
        "known_from_ledger": tally.num_known,
        "passed_over": dict(tally.passed_over),
        "versions": versions(),
    }


def explain_file(path: str, folder: Path, settings: ScanSettings) -> VideoResult:
    """Judge one video or picture and write its dumps into a folder.

    Raises:
        ConfigError, CheckpointError, OutputError: as `run_scan`.
    """
    found = discover([path])
    checkpoint = find_checkpoint(settings)
    settings = with_checkpoint(settings, checkpoint)
    for unopened, reason in found.problems.items():
        return failed(unopened, reason)
    if os.path.isdir(path):
        raise ConfigError(f"{path} is a folder; for whole folders use `dfscan scan {path} --explain DIR`")
    dumps = DumpFolder(folder, suffix=settings.explain_format)
    engine = load_engine(settings, checkpoint)
    ((result, _),) = scan_videos(found.paths, engine, dumps=dumps, num_dumped=settings.explain_top)
    dumps.write_index(result.dumps)
    return result
