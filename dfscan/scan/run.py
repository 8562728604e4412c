"""Run a whole scan: find inputs, load models, judge and record every video, write reports, choose an exit code."""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import platform
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from dfscan.config import ScanSettings
from dfscan.detector.card import SeenFiles
from dfscan.detector.checkpoint import Checkpoint
from dfscan.detector.runtime import choose_device
from dfscan.errors import ConfigError
from dfscan.media.discover import Discovery, discover
from dfscan.media.names import PICTURE_SUFFIXES, suffix_of
from dfscan.media.source import FileIdentity, identities
from dfscan.report.dumps import DumpFolder
from dfscan.report.meta import versions
from dfscan.scan.cluster import Cluster, for_workers
from dfscan.scan.cluster_worker import Job
from dfscan.scan.ledger import LedgerEntry, LedgerReader, file_key
from dfscan.scan.lock import only_run
from dfscan.scan.outputs import Outputs, findings, ledger_path, refuse_overwriting, written_files
from dfscan.scan.pipeline import Engine, ScanListener, failed, scan_videos
from dfscan.scan.setup import ResolvedSettings, detector_names, load_engine, resolve, scan_recipe
from dfscan.scan.timing import Timings
from dfscan.scan.verdict import AGREEMENT
from dfscan.text import display_path, report_order
from dfscan.types import VERDICT_LABELS, Reason, VideoResult

log = logging.getLogger("dfscan")


@dataclass
class ScanSummary:
    """Counts and findings of a scan."""

    seen: SeenFiles | None = None
    """Files that the checkpoints were trained and calibrated on, if one records them."""
    labels: Counter[str] = field(default_factory=Counter)
    num_partial: int = 0
    num_known: int = 0
    """Number of results taken from the ledger."""
    num_seen: int = 0
    """Number of judged videos that are among the files of `seen`."""
    news: set[str] = field(default_factory=set)
    """Findings (verdicts and ``partial``) that the ledger did not have before."""
    skipped: list[tuple[str, str]] = field(default_factory=list)
    """Path and reason of every file that was found but gets no row."""
    num_annotated: int = 0
    """Number of annotated videos that were written."""
    empty: list[str] = field(default_factory=list)
    """Display names of folders and file lists that contained nothing to scan."""

    def count(self, result: VideoResult, *, is_new: bool) -> None:
        """Count one result."""
        self.labels[result.verdict.label] += 1
        self.num_partial += result.status == "partial"
        if self.seen and result.verdict.score is not None and result.info.sha256:
            self.num_seen += self.seen.use_of(result.info.sha256) is not None
        if is_new:
            self.news |= findings(result)

    @property
    def num_videos(self) -> int:
        """Number of rows in the report."""
        return self.labels.total()

    @property
    def num_skipped(self) -> Counter[str]:
        """Number of files and folders without a row, by reason."""
        return Counter(reason for _, reason in self.skipped)

    def exit_code(self, settings: ScanSettings) -> int:
        """Return 1 if `fail_on` matches a verdict or ``partial``, 2 if only errors or empty inputs, else 0."""
        if settings.exit_zero:
            return 0
        findings_of_all = {label for label, count in self.labels.items() if count} | (
            {"partial"} if self.num_partial else set()
        )
        counted = (self.news if settings.new_only else findings_of_all) | ({"empty"} if self.empty else set())
        failing = counted & set(settings.fail_on)
        return 1 if failing - {"error", "empty"} else 2 if failing else 0

    def summary(self) -> str:
        """Return a one-line summary, fit for a terminal and for cron mail."""
        counts = ", ".join(f"{self.labels[label]} {label}" for label in VERDICT_LABELS)
        plural = "video" if self.num_videos == 1 else "videos"
        extra = f" ({self.num_partial} partial)" if self.num_partial else ""
        skipped = ", ".join(f"{count} {why}" for why, count in sorted(self.num_skipped.items()))
        known = f"; {self.num_known} known from the ledger" if self.num_known else ""
        return f"{self.num_videos} {plural}: {counts}{extra}{known}" + (f"; skipped: {skipped}" if skipped else "")

    def nothing_to_scan(self) -> str | None:
        """Return a one-line message on inputs without a video, such as an unmounted disk, or None if there are none."""
        if not self.empty:
            return None
        places = ", ".join(self.empty)
        num_pictures = sum(suffix_of(path) in PICTURE_SUFFIXES for path, _ in self.skipped)
        if num_pictures:
            plural = "picture was" if num_pictures == 1 else "pictures were"
            return f"nothing to scan in {places}: {num_pictures} {plural} skipped; to scan pictures, add --images"
        return f"nothing to scan in {places}: no videos found; check the path, and that its disk is mounted"


def run_scan(
    inputs: Sequence[str],
    settings: ScanSettings,
    *,
    listed: Sequence[str] = (),
    listener: ScanListener | None = None,
    on_discovered: Callable[[int], None] | None = None,
    timings: Timings | None = None,
) -> ScanSummary:
    """Scan, and write every output that the settings name.

    Args:
        inputs: files and directories from the command line.
        settings: settings as given by the user.
        listed: entries of ``--files-from``.
        listener: receives the progress.
        on_discovered: called with the number of videos once it is known.
        timings: accumulates the cost of the stages.

    Raises:
        ConfigError: an input or option is unusable; nothing has been written.
        CheckpointError: there is no usable checkpoint; nothing has been written.
        LockedError: another run is writing the same report or ledger; nothing has been written.
        OutputError: a report, ledger or dump cannot be written; an old report is kept.
    """
    started = datetime.now(UTC)
    timings = timings or Timings()
    if settings.on == "ray":
        settings = for_workers(settings)
    elif settings.max_workers or settings.gpus_per_worker:
        log.warning("--max-workers and --gpus-per-worker have no effect without --on ray")
    discovery = discover(
        inputs,
        listed=listed,
        include=settings.include,
        exclude=settings.exclude,
        follow_symlinks=settings.follow_symlinks,
        images=settings.images,
    )
    empty = [display_path(path) for path in discovery.empty]
    if not (empty or discovery.paths or discovery.problems):
        empty = ["the list of --files-from"]
    discovery = select_shard(discovery, settings.shard)
    refuse_overwriting(settings, discovery.paths)
    if settings.takes_known and ledger_path(settings) is None:
        raise ConfigError("--resume needs a ledger: name the report with --out, or the ledger with --ledger")
    if settings.annotate and ledger_path(settings) is None:
        raise ConfigError("--annotate needs a ledger: name the report with --out, or the ledger with --ledger")
    resolved, checkpoints = resolve(settings)
    device = settings.device if settings.on == "ray" else choose_device(settings.device)
    recipe = scan_recipe(resolved, checkpoints, device=device)
    seen = [checkpoint.card.seen for checkpoint in checkpoints if checkpoint.card.seen]
    seen_by_any = functools.reduce(SeenFiles.union, seen) if seen else None
    summary = ScanSummary(seen_by_any, skipped=discovery.skipped, empty=empty)
    for path, reason in discovery.skipped:
        log.info("%s: skipped, %s", display_path(path), reason)
    if on_discovered:
        on_discovered(len(discovery.paths) + len(discovery.problems))
    cards = {checkpoint.sha256: checkpoint.document() for checkpoint in checkpoints}
    order = sorted([*discovery.paths, *discovery.problems], key=report_order)
    with only_run(written_files(settings)):
        with Outputs(settings, recipe, order, cards=cards) as outputs:
            known = _recalled(discovery.paths, outputs, summary, listener) if settings.takes_known else set()
            paths = [path for path in discovery.paths if path not in known]
            engine: Engine | Cluster | None = None
            with timings.stage("start"):
                if paths and resolved.on == "ray":
                    engine = Cluster(Job.of(resolved, checkpoints, paths))
                elif paths:
                    engine = load_engine(resolved, checkpoints)
            results = _results(discovery.problems, paths, engine, outputs.dumps, settings, listener, timings)
            for result, identity in results:
                with timings.stage("write"):
                    summary.count(result, is_new=outputs.record(result, identity))
                if listener:
                    listener.video_done(result)
            outputs.finish(summary.num_skipped)
        outputs.write_meta(_metadata(started, resolved, checkpoints, engine, summary))
        if settings.annotate:
            summary.num_annotated = _annotate(settings, order)
    if summary.num_seen:
        log.warning(
            "%s was trained or calibrated on %d of these %d videos; their scores prove nothing",
            "the checkpoint" if len(checkpoints) == 1 else "one of the checkpoints",
            summary.num_seen,
            summary.num_videos,
        )
    return summary


def _annotate(settings: ScanSettings, paths: Sequence[str]) -> int:
    """Annotate these videos from the ledger, when all reports are complete; return how many were written."""
    from dfscan.scan.annotate import Candidate, annotate_videos

    ledger_file = ledger_path(settings)
    assert ledger_file is not None
    with LedgerReader(ledger_file) as ledger:

        def load(path: str, entry: LedgerEntry) -> VideoResult:
            return replace(ledger.result(entry), path=path)

        entries = {entry.key[0]: entry for entry in ledger.entries()}
        known = [(path, entry) for path in paths if (entry := entries.get(file_key(path)))]
        candidates = [
            Candidate(
                path,
                ledger.verdict(entry).score,
                partial(load, path, entry),
                entry.recipe,
            )
            for path, entry in known
        ]
        return annotate_videos(candidates, settings)


def select_shard(discovery: Discovery, shard: str | None) -> Discovery:
    """Return part I of N of the inputs, for ``shard`` ``I/N``; a file's part depends only on its path."""
    if shard is None:
        return discovery
    part, num_parts = map(int, shard.split("/"))

    def is_ours(path: str) -> bool:
        return int.from_bytes(hashlib.sha256(os.fsencode(path)).digest()[:8]) % num_parts == part - 1

    paths = [path for path in discovery.paths if is_ours(path)]
    problems = {path: reason for path, reason in discovery.problems.items() if is_ours(path)}
    return replace(discovery, paths=paths, problems=problems)


def _recalled(paths: Sequence[str], outputs: Outputs, summary: ScanSummary, listener: ScanListener | None) -> set[str]:
    """Take results from the ledger; return the paths for which there is one."""
    known = set()
    for path, identity in zip(paths, identities(paths), strict=True):
        if result := outputs.recall(path, identity):
            known.add(path)
            summary.num_known += 1
            summary.count(result, is_new=False)
            if listener:
                listener.video_done(result)
    return known


def _results(
    problems: Mapping[str, Reason],
    paths: Sequence[str],
    engine: Engine | Cluster | None,
    dumps: DumpFolder | None,
    settings: ScanSettings,
    listener: ScanListener | None,
    timings: Timings,
) -> Iterator[tuple[VideoResult, FileIdentity | None]]:
    """Yield the results of inputs that cannot be opened, then those of judged videos in order of completion."""
    with ExitStack() as stack:
        if isinstance(engine, Cluster):
            stack.enter_context(closing(engine))
        for path, reason in problems.items():
            yield failed(path, reason), None
        if isinstance(engine, Cluster):
            yield from engine.results(paths, dumps=dumps, listener=listener)
        elif engine:
            results = scan_videos(
                paths,
                engine,
                dumps=dumps,
                num_explained=settings.explain_top,
                keeps_pictures=settings.keeps_pictures,
                listener=listener,
                timings=timings,
            )
            yield from stack.enter_context(closing(results))


def _metadata(
    started: datetime,
    settings: ResolvedSettings,
    checkpoints: Sequence[Checkpoint],
    engine: Engine | Cluster | None,
    summary: ScanSummary,
) -> dict[str, Any]:
    import av  # noqa: F401  versions() includes FFmpeg only if PyAV is imported

    machines: dict[str, Any] = {"device": None, "mixed_precision": None}
    if isinstance(engine, Cluster):
        machines = {"cluster": engine.facts()}
    elif engine:
        machines = {"device": engine.runtime.device, "mixed_precision": engine.runtime.mixed_precision}
    facts = [{"path": str(each.path), "sha256": each.sha256, **each.document()} for each in checkpoints]
    of_checkpoints: dict[str, Any] = {"checkpoint": facts[0]}
    if len(facts) > 1:
        named = zip(detector_names(checkpoints), facts, strict=True)
        of_checkpoints = {
            "checkpoints": [{"detector": name, **fact} for name, fact in named],
            "verdict_rule": AGREEMENT,
        }
    return {
        "started_utc": started.isoformat(timespec="seconds"),
        "ended_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": platform.node(),
        "command_line": sys.argv,
        "settings": settings.document(),
        **machines,
        **of_checkpoints,
        "counts": {label: summary.labels[label] for label in VERDICT_LABELS} | {"partial": summary.num_partial},
        "known_from_ledger": summary.num_known,
        "seen_by_checkpoint": summary.num_seen if summary.seen else None,
        "num_skipped": dict(summary.num_skipped),
        "skipped": [{"path": display_path(path), "reason": reason} for path, reason in summary.skipped],
        "versions": versions(),
    }


def explain_file(path: str, folder: Path, settings: ScanSettings) -> VideoResult:
    """Judge one video or picture and write its Grad-CAM dumps into a folder.

    Raises:
        ConfigError, CheckpointError, OutputError: see `run_scan`.
    """
    discovery = discover([path])
    resolved, checkpoints = resolve(settings)
    for unopened, reason in discovery.problems.items():
        return failed(unopened, reason)
    if os.path.isdir(path):
        raise ConfigError(f"{path} is a folder; for whole folders use `dfscan scan {path} --explain DIR`")
    dumps = DumpFolder(folder, suffix=settings.explain_format)
    engine = load_engine(resolved, checkpoints)
    ((result, _),) = scan_videos(discovery.paths, engine, dumps=dumps, num_explained=settings.explain_top)
    dumps.write_index(result.dumps)
    return result
