"""All outputs of a scan, and the reuse of results that are already in the ledger."""

from __future__ import annotations

import json
import logging
import os
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from dfscan.config import ScanSettings
from dfscan.errors import ConfigError, VideoError
from dfscan.files import remove_leftovers, spare_inputs
from dfscan.media.source import FileIdentity, hash_file
from dfscan.report.copies import CopyFinder
from dfscan.report.dumps import DumpFolder, holds_dumps
from dfscan.report.meta import meta_path, related, versions, write_meta
from dfscan.report.page import MethodInfo, PageSummary, PageVideo
from dfscan.report.reports import Reports
from dfscan.scan.ledger import Ledger, Recipe
from dfscan.scan.verdict import AGREEMENT
from dfscan.text import display_path
from dfscan.types import Picture, VideoResult

MAY_PASS = frozenset(
    "changed crashed internal no_decoder no_space not_found sandbox timeout too_large unreadable worker_died".split()
)
"""Codes of errors that may be temporary or depend on the machine or its limits; such files are always retried."""

log = logging.getLogger("dfscan")


class Outputs:
    """All outputs of a scan; a context manager.

    Every report is opened before models are loaded, so a bad path fails immediately.
    """

    def __init__(
        self,
        settings: ScanSettings,
        recipe: Recipe,
        paths: list[str],
        *,
        cards: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        """Open all outputs.

        Args:
            settings: settings that name the outputs.
            recipe: recipe of the results.
            paths: paths of all inputs, in report order.
            cards: cards of the checkpoints by the sha256 of their files.

        Raises:
            OutputError: an output cannot be written.
        """
        self._settings = settings
        self._recipe = recipe
        self._cards = cards or {}
        self._waiting = deque(paths)
        self._identities: dict[str, FileIdentity | None] = {}
        self._recorded: dict[str, FileIdentity | None] = {}
        self._index: list[dict[str, Any]] = []
        self._copies = CopyFinder()
        for path in (*written_files(settings), *map(meta_path, settings.out_files)):
            remove_leftovers(path)
        with ExitStack() as opened:
            self._reports = opened.enter_context(Reports(settings, about=about([recipe]), detectors=recipe.names))
            self.dumps = DumpFolder(settings.explain, suffix=settings.explain_format) if settings.explain else None
            self._ledger = opened.enter_context(Ledger(ledger_path(settings), recipe=recipe, cards=cards))
            self._stack = opened.pop_all()

    def recall(self, path: str, identity: FileIdentity | None) -> VideoResult | None:
        """Return the result in the ledger, and write its row, if the file is unchanged and needs no retry."""
        known = self._ledger.get(path, identity) if identity else None
        if identity is None or known is None:
            return None
        reason = known.verdict.reason
        if known.verdict.label == "error" and reason and reason.code in MAY_PASS:
            return None
        has_pictures = known.tracks or known.verdict.label == "no_face"
        if self._settings.keeps_pictures and has_pictures and not self._ledger.pictures(path, identity):
            return None
        if self._settings.explain and not holds_dumps(self._settings.explain, known.dumps):
            return None
        if not self._is_same_file(known, identity):
            return None
        self._ledger.touch(path, identity)
        self._take(path, identity)
        return known

    def _is_same_file(self, known: VideoResult, identity: FileIdentity) -> bool:
        """Return True if the file still has the scanned content.

        The file is hashed if its inode or change time, or an object's version, differ, or if `verify` is set.
        Restoring, copying back, changing permissions or remounting changes inode or change time, but not the content.
        Replacing a file by another one of equal size and modification time changes all three.
        """
        if not self._settings.verify and self._ledger.has_stamp(known.path, identity):
            return True
        try:
            is_same = hash_file(known.path) == known.info.sha256
        except VideoError:
            return False  # scanning the file again reports the cause
        if not is_same and known.info.sha256:
            log.warning(
                "%s: the content has changed, although size and modification time have not; scanning it again",
                display_path(known.path),
            )
        return is_same

    def record(self, result: VideoResult, identity: FileIdentity | None) -> bool:
        """Store a result in the ledger; return True if the ledger did not have the same findings for this file."""
        before = self._ledger.get(result.path, identity)
        self._ledger.put(result, identity)
        self._take(result.path, identity)
        if before is None or findings(before) != findings(result):
            return True
        hashes = {before.info.sha256, result.info.sha256} - {None}
        return len(hashes) > 1  # replaced by another file

    def _take(self, path: str, identity: FileIdentity | None) -> None:
        """Write all rows that are next in report order, from the ledger to the reports."""
        self._recorded[path] = identity
        dumps_dir = str(self._settings.explain) if self._settings.explain else None
        while self._waiting and self._waiting[0] in self._recorded:
            first = self._waiting.popleft()
            first_identity = self._recorded.pop(first)
            kept = self._ledger.get(first, first_identity)
            assert kept is not None
            if self._settings.html:
                self._identities[first] = first_identity
            self._reports.append(
                kept,
                checkpoints=[*self._recipe.checkpoints],
                version=self._recipe.version,
                dumps_dir=dumps_dir,
                reviews=self._ledger.reviews(kept.info.sha256),
                same_as=self._copies.find(kept),
            )
            self._index.extend(kept.dumps)

    def finish(self, skipped: Mapping[str, int]) -> None:
        """Write the outputs that need all results: the index of the dumps, and the page.

        Args:
            skipped: number of files and folders without a row, by reason.

        Raises:
            OutputError: an output cannot be written.
        """
        if self.dumps:
            self.dumps.write_index(self._index)

        def pictures(video: PageVideo) -> list[Picture]:
            path = video.result.path
            return self._ledger.pictures(path, self._identities[path])

        def method() -> MethodInfo:
            return method_of([self._recipe], self._cards, skipped)

        warn_of_missing(self._reports.write_page(pictures, method))

    def write_meta(self, document: dict[str, Any]) -> None:
        """Write the metadata file beside each report that is a file."""
        write_metadata(
            self._settings, document, heat_maps=[self._settings.explain], ledgers=[ledger_path(self._settings)]
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)


def write_metadata(
    settings: ScanSettings,
    document: Mapping[str, Any],
    *,
    heat_maps: Iterable[Path | str | None],
    ledgers: Iterable[Path | None],
) -> None:
    """Write the metadata file beside each report that is a file, with the case and the paths of what belongs to it."""
    named = {
        "reports": settings.out_files,
        "faces": [settings.frames_out],
        "page": [settings.html],
        "spans": [settings.webvtt],
        "heat_maps": list(heat_maps),
        "ledgers": list(ledgers),
    }
    for report in settings.out_files:
        write_meta(report, {**document, "case": settings.case_facts, "outputs": related(report, named)})


def findings(result: VideoResult) -> set[str]:
    """Return the verdict, and ``partial`` if it applies: the values that `fail_on` can name."""
    return {result.verdict.label} | ({"partial"} if result.status == "partial" else set())


def warn_of_missing(page: PageSummary | None) -> None:
    """Log how many videos have no pictures on the page because of the size limit."""
    if page and page.num_left_out:
        log.warning(
            "the page omits the pictures of %d less suspicious videos; raise --html-max-mb to include more",
            page.num_left_out,
        )


def about(recipes: Iterable[Recipe]) -> dict[str, str]:
    """Return the facts about a scan that workbooks show on their second sheet."""
    facts: dict[str, str] = {}
    for i, recipe in enumerate(recipes, start=1):
        of = "" if i == 1 else f" ({i})"
        facts[f"checkpoint{of}"] = recipe.checkpoint
        facts[f"checkpoint sha256{of}"] = recipe.checkpoint_sha256
        facts[f"dfscan version{of}"] = recipe.version
        facts[f"device{of}"] = recipe.device_kind
        facts[f"settings{of}"] = json.dumps(recipe.settings, sort_keys=True)
        if recipe.detectors:
            facts[f"verdict rule{of}"] = AGREEMENT
    return facts


def method_of(
    recipes: Sequence[Recipe], cards: Mapping[str, Mapping[str, Any]], skipped: Mapping[str, int]
) -> MethodInfo:
    """Return what the page states about the method.

    Args:
        recipes: recipes of all results.
        cards: cards of checkpoints by the sha256 of their files.
        skipped: number of files and folders without a row, by reason.
    """
    labels = {label: sha256 for recipe in recipes for label, sha256 in recipe.checkpoints.items()}
    known = {label: cards[sha256] for label, sha256 in labels.items() if sha256 in cards}
    rule = AGREEMENT if any(recipe.detectors for recipe in recipes) else None
    return MethodInfo(known, recipes[0].settings if len(recipes) == 1 else {}, versions(), skipped, rule)


def refuse_overwriting(settings: ScanSettings, videos: Sequence[str]) -> None:
    """Refuse an output that would overwrite an input or another output, as after a typo such as ``-o *.mp4``.

    Raises:
        ConfigError: an output collides; the message names both files.
    """
    if settings.reports.count("-") > 1:
        raise ConfigError("--out names standard output twice; name a file for the second report")
    by_place: dict[str, str] = {}
    named = named_files(settings)
    for option, path in named:
        place = os.path.realpath(path)
        if place in by_place:
            raise ConfigError(f"{option} and {by_place[place]} are the same file, {path}; name different ones")
        by_place[place] = option
    spare_inputs(named, videos)


def named_files(settings: ScanSettings) -> list[tuple[str, Path]]:
    """Return options and the files that they write."""
    named = [("--out", Path(report)) for report in settings.out_files]
    named += [("the metadata of --out", meta_path(report)) for report in settings.out_files]
    others = {"--frames-out": settings.frames_out, "--html": settings.html, "--ledger": ledger_path(settings)}
    return named + [(option, path) for option, path in {**others, "--log-file": settings.log_file}.items() if path]


def written_files(settings: ScanSettings) -> list[Path]:
    """Return the files that two runs must not write at the same time."""
    named: tuple[Path | None, ...] = (settings.frames_out, settings.html, ledger_path(settings))
    return [*(Path(report) for report in settings.out_files), *(path for path in named if path)]


def ledger_path(settings: ScanSettings) -> Path | None:
    """Return the ledger in the settings, else the one beside the first report that is a file, else None."""
    if settings.ledger:
        return settings.ledger
    return Path(f"{settings.out_files[0]}.ledger") if settings.out_files else None
