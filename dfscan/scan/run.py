"""One whole scan: inputs found, models loaded, every video judged and recorded, reports written, an exit code."""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dfscan.config import ScanSettings
from dfscan.detector.card import SeenFiles
from dfscan.detector.checkpoint import Checkpoint
from dfscan.detector.runtime import choose_device
from dfscan.errors import ConfigError
from dfscan.media.discover import Discovery, discover
from dfscan.media.names import PICTURE_SUFFIXES, suffix_of
from dfscan.report.dumps import DumpFolder
from dfscan.report.meta import versions
from dfscan.report.text import display_path, report_order
from dfscan.scan.ledger import FileIdentity
from dfscan.scan.lock import only_run
from dfscan.scan.outputs import Outputs, findings, ledger_path, refuse_overwriting, written_files
from dfscan.scan.pipeline import Engine, Listener, failed, scan_videos
from dfscan.scan.setup import load_engine, recipe, resolve
from dfscan.scan.timing import Timings
from dfscan.types import LABELS, Reason, VideoResult

log = logging.getLogger("dfscan")


@dataclass
class Tally:
    """What a scan has come to."""

    seen: SeenFiles | None = None
    """Files that the checkpoint was trained and calibrated on, where it records them."""
    labels: Counter[str] = field(default_factory=Counter)
    num_partial: int = 0
    num_known: int = 0
    """Results that were taken from the ledger."""
    num_seen: int = 0
    """Judged videos that are among the files of `seen`."""
    news: set[str] = field(default_factory=set)
    """Labels, and ``partial``, of results that the ledger did not hold before."""
    skipped: list[tuple[str, str]] = field(default_factory=list)
    """Path and reason of what was found but gets no row."""
    empty: list[str] = field(default_factory=list)
    """Folders and lists of files that gave nothing to scan, as they are shown to people."""

    def count(self, result: VideoResult, *, is_new: bool) -> None:
        """Add one result."""
        self.labels[result.verdict.label] += 1
        self.num_partial += result.status == "partial"
        if self.seen and result.verdict.score is not None and result.info.sha256:
            self.num_seen += self.seen.use_of(result.info.sha256) is not None
        if is_new:
            self.news |= findings(result)

    @property
    def num_videos(self) -> int:
        """Rows of the report."""
        return self.labels.total()

    @property
    def num_skipped(self) -> Counter[str]:
        """How many files and folders got no row, by reason."""
        return Counter(reason for _, reason in self.skipped)

    def exit_code(self, settings: ScanSettings) -> int:
        """0 nothing to report, 1 `fail_on` names something that was found, 2 a video or folder gave no verdict."""
        if settings.exit_zero:
            return 0
        found = {label for label, count in self.labels.items() if count} | ({"partial"} if self.num_partial else set())
        counted = (self.news if settings.new_only else found) | ({"empty"} if self.empty else set())
        failing = counted & set(settings.fail_on)
        return 1 if failing - {"error", "empty"} else 2 if failing else 0

    def summary(self) -> str:
        """One line for people and for cron mail."""
        counts = ", ".join(f"{self.labels[label]} {label}" for label in LABELS)
        plural = "video" if self.num_videos == 1 else "videos"
        extra = f" ({self.num_partial} partial)" if self.num_partial else ""
        skipped = ", ".join(f"{count} {why}" for why, count in sorted(self.num_skipped.items()))
        known = f"; {self.num_known} known from the ledger" if self.num_known else ""
        return f"{self.num_videos} {plural}: {counts}{extra}{known}" + (f"; skipped: {skipped}" if skipped else "")

    def nothing_to_scan(self) -> str | None:
        """One line on inputs without a video, such as a disk that is not mounted; None if all gave some."""
        if not self.empty:
            return None
        places = ", ".join(self.empty)
        num_pictures = sum(suffix_of(path) in PICTURE_SUFFIXES for path, _ in self.skipped)
        if num_pictures:
            plural = "picture was" if num_pictures == 1 else "pictures were"
            return f"nothing to scan in {places}: {num_pictures} {plural} skipped; to judge one, use `dfscan explain`"
        return f"nothing to scan in {places}: no videos found; check the path, and that its disk is mounted"


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
    empty = _empty(found)
    found = share(found, settings.shard)
    refuse_overwriting(settings, found.paths)
    if settings.takes_known and ledger_path(settings) is None:
        raise ConfigError("--resume goes on from a ledger: name the report with --out, or the ledger with --ledger")
    settings, checkpoint = resolve(settings)
    made_by = recipe(settings, checkpoint, device=choose_device(settings.device))
    tally = Tally(checkpoint.card.seen, skipped=found.skipped, empty=empty)
    for path, reason in found.skipped:
        log.info("%s: skipped, %s", display_path(path), reason)
    if on_discovered:
        on_discovered(len(found.paths) + len(found.problems))
    card = checkpoint.card.model_dump(mode="json", exclude={"seen"})
    order = sorted([*found.paths, *found.problems], key=report_order)
    with only_run(written_files(settings)):
        with Outputs(settings, made_by, order, card=card) as outputs:
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
            outputs.finish(tally.num_skipped)
        outputs.write_meta(_metadata(started, settings, checkpoint, engine, tally))
    if tally.num_seen:
        log.warning(
            "the checkpoint was trained or calibrated on %d of these %d videos; their scores prove nothing",
            tally.num_seen,
            tally.num_videos,
        )
    return tally


def _empty(found: Discovery) -> list[str]:
    """Inputs that gave nothing to scan, as they are shown to people."""
    if found.empty or found.paths or found.problems:
        return [display_path(path) for path in found.empty]
    return ["the list of --files-from"]


def share(found: Discovery, shard: str | None) -> Discovery:
    """The I-th of N parts of the inputs; which part a file is in depends on its path alone."""
    if shard is None:
        return found
    part, num_parts = map(int, shard.split("/"))

    def is_ours(path: str) -> bool:
        return int.from_bytes(hashlib.sha256(os.fsencode(path)).digest()[:8]) % num_parts == part - 1

    paths = [path for path in found.paths if is_ours(path)]
    problems = {path: reason for path, reason in found.problems.items() if is_ours(path)}
    return replace(found, paths=paths, problems=problems)


def _recalled(paths: Sequence[str], outputs: Outputs, tally: Tally, listener: Listener | None) -> set[str]:
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
        paths,
        engine,
        dumps=dumps,
        num_explained=settings.explain_top,
        keeps_pictures=settings.keeps_pictures,
        listener=listener,
        timings=timings,
    )
    with closing(judged):
        yield from judged


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
        "mixed_precision": engine.runtime.mixed_precision if engine else None,
        "checkpoint": {
            "path": str(checkpoint.path),
            "sha256": checkpoint.sha256,
            **checkpoint.card.model_dump(mode="json", exclude={"seen"}),
        },
        "counts": {label: tally.labels[label] for label in LABELS} | {"partial": tally.num_partial},
        "known_from_ledger": tally.num_known,
        "seen_by_checkpoint": tally.num_seen if tally.seen else None,
        "num_skipped": dict(tally.num_skipped),
        "skipped": [{"path": display_path(path), "reason": reason} for path, reason in tally.skipped],
        "versions": versions(),
    }


def explain_file(path: str, folder: Path, settings: ScanSettings) -> VideoResult:
    """Judge one video or picture and write its dumps into a folder.

    Raises:
        ConfigError, CheckpointError, OutputError: as `run_scan`.
    """
    found = discover([path])
    settings, checkpoint = resolve(settings)
    for unopened, reason in found.problems.items():
        return failed(unopened, reason)
    if os.path.isdir(path):
        raise ConfigError(f"{path} is a folder; for whole folders use `dfscan scan {path} --explain DIR`")
    dumps = DumpFolder(folder, suffix=settings.explain_format)
    engine = load_engine(settings, checkpoint)
    ((result, _),) = scan_videos(found.paths, engine, dumps=dumps, num_explained=settings.explain_top)
    dumps.write_index(result.dumps)
    return result
