"""Rebuild reports from ledgers, without scanning anything."""

from __future__ import annotations

import logging
import math
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

from dfscan.config import ScanSettings
from dfscan.errors import ConfigError
from dfscan.files import remove_leftovers, spare_inputs
from dfscan.report.copies import CopyFinder, First
from dfscan.report.dumps import holds_dumps
from dfscan.report.meta import meta_path, versions
from dfscan.report.page import PageVideo
from dfscan.report.reports import Reports
from dfscan.scan.ledger import LedgerEntry, LedgerReader, Recipe
from dfscan.scan.lock import only_run
from dfscan.scan.outputs import MAY_PASS, about, method_of, warn_of_missing, write_metadata
from dfscan.scan.rejudge import Judge, rescored
from dfscan.scan.verdict import AGREEMENT
from dfscan.text import report_order
from dfscan.types import Picture, Review, Verdict, VideoResult, standing

RowOrder = Literal["path", "review"]
REVIEW_PLACES = ("fake", "inconclusive", "temporary error", "error", "no_face", "real")
Known = tuple[LedgerEntry, LedgerReader]

log = logging.getLogger("dfscan")


def rebuild_reports(
    ledgers: Sequence[Path],
    settings: ScanSettings,
    *,
    calibrations: Sequence[str] = (),
    threshold: float | None = None,
    order: RowOrder = "path",
) -> Counter[str]:
    """Write reports with the latest result of every file in the ledgers.

    Args:
        ledgers: ledgers of several runs or machines. If several contain a file, the last of them is used.
        settings: the reports to write; other settings are ignored.
        calibrations: checkpoints with whose calibrations the videos are judged again, see `scan.rejudge`.
        threshold: minimum score of a `fake` video with which the videos are judged again.
        order: order of the rows; see `_review_order` for ``review``.

    Returns:
        The number of videos with each verdict.

    Raises:
        DataError: a ledger cannot be read, or its videos cannot be judged again.
        ConfigError: a ledger or the checkpoint would be overwritten.
        CheckpointError: a checkpoint with a calibration cannot be read.
        LockedError: another run is writing the same report.
        OutputError: a report cannot be written; the old report is kept.
    """
    written = [Path(name) for name in settings.out_files]
    written += [path for path in (settings.frames_out, settings.html) if path]
    if settings.reports.count("-") > 1:
        raise ConfigError("--out names standard output twice; name a file for the second report")
    places = Counter(os.path.realpath(path) for path in [*ledgers, *map(Path, calibrations), *written])
    for path in written:
        if places[os.path.realpath(path)] > 1:
            raise ConfigError(f"{path} is named twice, or is a ledger; name different files")
    with only_run(written):
        for path in (*written, *map(meta_path, settings.out_files)):
            remove_leftovers(path)
        labels, heat_maps, facts = _write(ledgers, settings, written, calibrations, threshold, order)
        made_from: dict[str, Any] = {
            "made_utc": datetime.now(UTC).isoformat(timespec="seconds"),
            "ledgers": list(map(str, ledgers)),
        }
        if calibrations or threshold is not None:
            calibration = calibrations[0] if len(calibrations) == 1 else list(calibrations) or None
            made_from["judged_again"] = {"calibration": calibration, "threshold": threshold}
        document = {**made_from, **facts, "counts": dict(labels), "versions": versions()}
        write_metadata(settings, document, heat_maps=heat_maps, ledgers=ledgers)
    return labels


def _write(
    ledgers: Sequence[Path],
    settings: ScanSettings,
    written: Sequence[Path],
    calibrations: Sequence[str],
    threshold: float | None,
    order: RowOrder,
) -> tuple[Counter[str], list[str], dict[str, str]]:
    """Write the reports.

    Returns:
        The number of videos with each verdict, the folders of heat maps that are here, and facts for the metadata.
    """
    labels = Counter[str]()
    are_here: dict[str, bool] = {}
    with ExitStack() as stack:
        readers = [stack.enter_context(LedgerReader(path)) for path in ledgers]
        known = _known(readers)
        spare_inputs([("the report", path) for path in written], (os.fsdecode(entry.key[0]) for entry, _ in known))
        cards: dict[str, dict[str, Any]] = {}
        for reader in dict.fromkeys(reader for _, reader in known):
            cards |= reader.cards()
        judge = None
        if calibrations or threshold is not None:
            judge = Judge([entry for entry, _ in known], cards, calibrations=calibrations, threshold=threshold)
            cards |= {checkpoint.sha256: checkpoint.document() for checkpoint in judge.checkpoints}
        recipe_of = {entry.recipe.digest: judge.recipe(entry) if judge else entry.recipe for entry, _ in known}
        recipes = list({recipe.digest: recipe for recipe in recipe_of.values()}.values())
        names = list(dict.fromkeys(name for recipe in recipes for name in recipe.names))

        def verdict(entry: LedgerEntry, ledger: LedgerReader) -> Verdict:
            return judge.judged(entry, ledger.result(entry)).verdict if judge else ledger.verdict(entry)

        copies, same_as = CopyFinder(), dict[bytes, First | None]()
        if order == "review":  # the groups are those of the report in its usual order
            same_as = {entry.key[0]: copies.find(ledger.result(entry)) for entry, ledger in known}
            known.sort(key=lambda each: _review_order(verdict(*each), _reviews(readers, each[0].sha256)))
        with Reports(settings, about=about(recipes), detectors=names) as reports:
            for entry, ledger in known:
                result = ledger.result(entry)
                if judge:
                    result = judge.judged(entry, result)
                if order == "path":
                    same_as[entry.key[0]] = copies.find(result)
                labels[result.verdict.label] += 1
                recipe = recipe_of[entry.recipe.digest]
                dumps_dir = recipe.settings.get("explain")
                if dumps_dir and result.dumps:  # a relative name may be that of another scan's folder here
                    are_here[dumps_dir] = are_here.get(dumps_dir, True) and holds_dumps(Path(dumps_dir), result.dumps)
                reports.append(
                    result,
                    checkpoints=[*recipe.checkpoints],
                    version=recipe.version,
                    dumps_dir=dumps_dir,
                    reviews=_reviews(readers, result.info.sha256),
                    same_as=same_as[entry.key[0]],
                )

            def pictures(video: PageVideo) -> list[Picture]:
                # Not by path: ./a.mp4 on two machines is two different videos. Rows are in the order of `known`.
                entry, ledger = known[video.number]
                found = ledger.pictures(entry)
                return rescored(found, video.result) if judge else found

            warn_of_missing(reports.write_page(pictures, lambda: method_of(recipes, cards, {})))
        if settings.annotate:
            _annotate(known, settings, recipe_of, judge, verdict)
    heat_maps = sorted(folder for folder, is_here in are_here.items() if is_here)
    return labels, heat_maps, {"verdict_rule": AGREEMENT} if names else {}


def _annotate(
    known: Sequence[Known],
    settings: ScanSettings,
    recipe_of: Mapping[str, Recipe],
    judge: Judge | None,
    verdict: Callable[[LedgerEntry, LedgerReader], Verdict],
) -> None:
    """Annotate the videos from their files, when all reports are complete."""
    from dfscan.scan.annotate import Candidate, annotate_videos

    def load(entry: LedgerEntry, ledger: LedgerReader) -> VideoResult:
        result = ledger.result(entry)
        return judge.judged(entry, result) if judge else result

    candidates = [
        Candidate(
            os.fsdecode(entry.key[0]),
            verdict(entry, ledger).score,
            partial(load, entry, ledger),
            recipe_of[entry.recipe.digest],
        )
        for entry, ledger in known
    ]
    num_written = annotate_videos(candidates, settings)
    log.info("%d videos annotated in %s", num_written, settings.annotate)


def _known(ledgers: Sequence[LedgerReader]) -> list[Known]:
    """Return one entry per file, from the last ledger that has it, in report order."""
    latest: dict[bytes, Known] = {}
    num_changed = 0
    for ledger in ledgers:
        for entry in ledger.entries():
            before = latest.get(entry.key[0])
            num_changed += before is not None and _file(before[0]) != _file(entry)
            latest[entry.key[0]] = entry, ledger
    if num_changed:
        log.warning("%d files differ between ledgers; the result in the last ledger is used for each", num_changed)
    return sorted(latest.values(), key=lambda known: report_order(known[0].path))


def _reviews(ledgers: Sequence[LedgerReader], sha256: str | None) -> list[Review]:
    """Return the reviews of a content in all ledgers, in order of time; a copy of a ledger adds nothing."""
    found: list[Review] = []
    for ledger in ledgers:
        found += [review for review in ledger.reviews(sha256) if review not in found]
    return sorted(found, key=lambda review: review.time_utc) if len(ledgers) > 1 else found


def _review_order(verdict: Verdict, reviews: Sequence[Review]) -> tuple[bool, int, float]:
    """Return the sort key of a row for a person who looks at the most important videos first.

    Videos without a review come first. Then `fake`, `inconclusive`, errors that may not recur, other errors, `no_face`
    and `real`; of equal ones, the score that exceeds the threshold most, or is closest to it, and no score last.
    """
    may_pass = verdict.label == "error" and verdict.reason is not None and verdict.reason.code in MAY_PASS
    place = REVIEW_PLACES.index("temporary error" if may_pass else verdict.label)
    threshold = 1.0 if verdict.threshold is None else verdict.threshold
    return standing(reviews) is not None, place, math.inf if verdict.score is None else threshold - verdict.score


def _file(entry: LedgerEntry) -> tuple[int, int, str]:
    """Return size, modification time and sha256, which differ if the file has changed."""
    _, size_bytes, mtime_ns, _ = entry.key
    return size_bytes, mtime_ns, entry.sha256
