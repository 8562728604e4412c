"""Everything that a scan writes, and what it takes from the ledger instead of judging it again."""

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
from dfscan.media.source import hash_file
from dfscan.report.dumps import DumpFolder
from dfscan.report.meta import meta_path, versions, write_meta
from dfscan.report.page import Method, PageSummary
from dfscan.report.reports import Reports
from dfscan.report.text import display_path
from dfscan.report.writers import remove_leftovers
from dfscan.scan.ledger import FileIdentity, Ledger, Recipe
from dfscan.types import Picture, VideoResult

MAY_PASS = frozenset("changed crashed internal no_decoder not_found sandbox timeout too_large unreadable".split())
"""Reasons of an error that another machine, limit or moment may not give: such files are tried again every time."""

log = logging.getLogger("dfscan")


class Outputs:
    """A context manager. Reports are opened before models are loaded, so that a typo costs no night."""

    def __init__(
        self, settings: ScanSettings, made_by: Recipe, paths: list[str], *, card: Mapping[str, Any] | None = None
    ) -> None:
        """Open them all.

        Args:
            settings: name them.
            made_by: the recipe of the results.
            paths: of all inputs, in the order of the report.
            card: of the checkpoint.

        Raises:
            OutputError: one cannot be written.
        """
        self._settings = settings
        self._recipe = made_by
        self._card = card
        self._waiting = deque(paths)
        self._identities: dict[str, FileIdentity | None] = {}
        self._recorded: dict[str, FileIdentity | None] = {}
        self._index: list[dict[str, Any]] = []
        for path in (*written_files(settings), *map(meta_path, settings.out_files)):
            remove_leftovers(path)
        with ExitStack() as opened:
            self._reports = opened.enter_context(Reports(settings, about=about([made_by])))
            self.dumps = DumpFolder(settings.explain, suffix=settings.explain_format) if settings.explain else None
            self._ledger = opened.enter_context(Ledger(ledger_path(settings), recipe=made_by, card=card))
            self._stack = opened.pop_all()

    def recall(self, path: str) -> VideoResult | None:
        """What the ledger knows of the file as it is now, unless that is worth another try; its row is written."""
        identity = FileIdentity.of(path)
        known = self._ledger.get(path, identity) if identity else None
        if identity is None or known is None or not self._is_final(known, identity):
            return None
        if not self._is_same_file(known, identity):
            return None
        self._ledger.renew(path, identity)
        self._take(path, identity)
        return known

    def _is_final(self, known: VideoResult, identity: FileIdentity | None) -> bool:
        reason = known.verdict.reason
        if known.verdict.label == "error" and reason and reason.code in MAY_PASS:
            return False
        has_pictures = known.tracks or known.verdict.label == "no_face"
        if self._settings.keeps_pictures and has_pictures and not self._ledger.pictures(known.path, identity):
            return False
        return self.dumps is None or self.dumps.holds(known.dumps)

    def _is_same_file(self, known: VideoResult, identity: FileIdentity) -> bool:
        """Whether the file still has the content that was judged; it is hashed if in doubt, and with `verify` always.

        Restoring, copying back, changing permissions or mounting anew changes inode or change time, but not the
        content; replacing a file by another one of equal size and modification time changes all three.
        """
        if not self._settings.verify and self._ledger.has_stamp(known.path, identity):
            return True
        try:
            is_same = hash_file(known.path) == known.info.sha256
        except VideoError:
            return False  # scanning it again says why
        if not is_same and known.info.sha256:
            log.warning(
                "%s: its content has changed, although its size and modification time have not; scanned again",
                display_path(known.path),
            )
        return is_same

    def record(self, result: VideoResult, identity: FileIdentity | None) -> bool:
        """Put a result into the ledger; tells whether the ledger did not say the same of the file before."""
        before = self._ledger.get(result.path, identity)
        self._ledger.put(result, identity)
        self._take(result.path, identity)
        if before is None or findings(before) != findings(result):
            return True
        hashes = {before.info.sha256, result.info.sha256} - {None}
        return len(hashes) > 1  # another file in its place

    def _take(self, path: str, identity: FileIdentity | None) -> None:
        """Reports get from the ledger all rows whose turn has come."""
        self._recorded[path] = identity
        while self._waiting and self._waiting[0] in self._recorded:
            path = self._waiting.popleft()
            self._write_rows(path, self._recorded.pop(path))

    def _write_rows(self, path: str, identity: FileIdentity | None) -> None:
        kept = self._ledger.get(path, identity)
        assert kept is not None
        if self._settings.html:
            self._identities[path] = identity
        dumps_dir = str(self._settings.explain) if self._settings.explain else None
        recipe = self._recipe
        self._reports.append(kept, checkpoint=recipe.checkpoint, version=recipe.version, dumps_dir=dumps_dir)
        self._index.extend(kept.dumps)

    def finish(self, skipped: Mapping[str, int]) -> None:
        """Write what is made of all results: the index of the dumps, and the page.

        Args:
            skipped: how many files and folders got no row, by reason.

        Raises:
            OutputError: one cannot be written.
        """
        if self.dumps:
            self.dumps.write_index(self._index)

        def pictures(result: VideoResult) -> list[Picture]:
            return self._ledger.pictures(result.path, self._identities[result.path])

        def method() -> Method:
            cards = {self._recipe.checkpoint: self._card} if self._card else {}
            return Method(cards, self._recipe.settings, versions(), skipped)

        warn_of_missing(self._reports.write_page(pictures, method))

    def write_meta(self, document: dict[str, Any]) -> None:
        """Write the side file of each report that is a file."""
        for report in self._settings.out_files:
            write_meta(report, document)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)


def findings(result: VideoResult) -> set[str]:
    """What `fail_on` can name of one result."""
    return {result.verdict.label} | ({"partial"} if result.status == "partial" else set())


def warn_of_missing(page: PageSummary | None) -> None:
    """Say how many videos of a page have no pictures because of its size."""
    if page and page.num_left_out:
        log.warning(
            "the page shows no pictures of %d videos, the less suspicious ones: raise --html-max-mb for more",
            page.num_left_out,
        )


def about(recipes: Iterable[Recipe]) -> dict[str, str]:
    """What workbooks say of the scan."""
    told: dict[str, str] = {}
    for i, recipe in enumerate(recipes, start=1):
        of = "" if i == 1 else f" ({i})"
        told[f"checkpoint{of}"] = recipe.checkpoint
        told[f"checkpoint sha256{of}"] = recipe.checkpoint_sha256
        told[f"dfscan version{of}"] = recipe.version
        told[f"device{of}"] = recipe.device_kind
        told[f"settings{of}"] = json.dumps(recipe.settings, sort_keys=True)
    return told


def refuse_overwriting(settings: ScanSettings, videos: Sequence[str]) -> None:
    """Refuse an output that would replace an input or another output: a slip such as ``-o *.mp4``.

    Raises:
        ConfigError: naming both.
    """
    if settings.out.count("-") > 1:
        raise ConfigError("--out names standard output twice; name a file for the second report")
    by_place: dict[str, str] = {}
    named = named_files(settings)
    for option, path in named:
        place = os.path.realpath(path)
        if place in by_place:
            raise ConfigError(f"{option} and {by_place[place]} are the same file, {path}; name different ones")
        by_place[place] = option
    spare_inputs(named, videos)


def spare_inputs(named: Iterable[tuple[str, Path]], inputs: Iterable[str | Path]) -> None:
    """Refuse to overwrite what is read, under whatever name.

    Args:
        named: options and the files that they write, as from `named_files`.
        inputs: videos, a checkpoint, a list of videos, ...

    Raises:
        ConfigError: naming both.
    """
    there = {found: option for option, path in named if (found := _place(path))}
    for path in inputs if there else ():
        if (found := _place(path)) in there:
            raise ConfigError(f"{there[found]} would overwrite the input {path}; name another file")


def named_files(settings: ScanSettings) -> list[tuple[str, Path]]:
    """Options and the files that they write."""
    named = [("--out", Path(report)) for report in settings.out_files]
    named += [("the metadata of --out", meta_path(report)) for report in settings.out_files]
    others = {"--frames-out": settings.frames_out, "--html": settings.html, "--ledger": ledger_path(settings)}
    return named + [(option, path) for option, path in {**others, "--log-file": settings.log_file}.items() if path]


def _place(path: str | Path) -> tuple[int, int] | None:
    """Device and number of a file that is there."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino


def written_files(settings: ScanSettings) -> list[Path]:
    """What no two runs may write at once."""
    named: tuple[Path | None, ...] = (settings.frames_out, settings.html, ledger_path(settings))
    return [*(Path(report) for report in settings.out_files), *(path for path in named if path)]


def ledger_path(settings: ScanSettings) -> Path | None:
    """The ledger that was named, else the one beside the first report that is a file, else none."""
    if settings.ledger:
        return settings.ledger
    return Path(f"{settings.out_files[0]}.ledger") if settings.out_files else None
