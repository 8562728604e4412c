"""All reports of one run: the same videos in the same order, in every requested format."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Self
from urllib.parse import quote

from dfscan.config import ScanSettings
from dfscan.errors import ConfigError, OutputError
from dfscan.files import AtomicFile
from dfscan.report.copies import First
from dfscan.report.formats import format_for, open_writer
from dfscan.report.page import MethodInfo, PageSummary, PageVideo, write_page
from dfscan.report.schema import (
    FRAME_COLUMNS,
    REPORT_COLUMNS,
    detector_columns,
    face_columns,
    frame_rows,
    report_row,
)
from dfscan.report.tables import LINK, XlsxWriter
from dfscan.report.webvtt import write_webvtt
from dfscan.report.writers import ReportWriter
from dfscan.types import Picture, Review, VideoResult, standing

STDOUT = "-"


class Reports:
    """All reports of one run; a context manager.

    Every report is opened at once, so a bad path fails immediately. Report files appear under their names at the end.
    """

    def __init__(self, settings: ScanSettings, *, about: Mapping[str, str], detectors: Sequence[str] = ()) -> None:
        """Open the reports.

        Args:
            settings: settings that name the reports: `out`, `format`, `excel`, `delimiter`, `frames_out`, `html`,
                `html_max_mb` and `webvtt`; and those of the case.
            about: facts about the scan for the second sheet of workbooks.
            detectors: names of the detectors, if there are several.

        Raises:
            OutputError: a report cannot be written.
            ConfigError: the name of a report has the suffix of an unknown format.
        """
        self._case_facts = settings.case_facts
        about = {**{name: text for name, text in self._case_facts.items() if text}, **about}
        self._html = settings.html
        self._html_max_mb = settings.html_max_mb
        self._webvtt = settings.webvtt
        self._detectors = tuple(detectors)
        self._videos: list[PageVideo] = []
        with ExitStack() as opened:
            self._reports = [
                (name, opened.enter_context(_open(name, settings, about, self._detectors))) for name in settings.reports
            ]
            self._frames = None
            if settings.frames_out:
                frames_format = format_for(settings.frames_out)
                if frames_format == "case":
                    raise ConfigError(
                        f"{settings.frames_out}: CASE has one entry per video, not per face; name a .csv or .jsonl file"
                    )
                frames = open_writer(
                    settings.frames_out,
                    (*FRAME_COLUMNS, *face_columns(self._detectors)),
                    format=frames_format,
                    excel=settings.excel,
                    delimiter=settings.delimiter,
                )
                self._frames = opened.enter_context(frames)
            if settings.html:
                opened.callback(AtomicFile(settings.html).discard)  # only to check that the page can be written
            self._stack = opened.pop_all()

    def append(
        self,
        result: VideoResult,
        *,
        checkpoints: Sequence[str],
        version: str,
        dumps_dir: str | None = None,
        reviews: Sequence[Review] = (),
        same_as: First | None = None,
    ) -> None:
        """Write the rows of one video.

        Args:
            result: result of the video.
            checkpoints: labels of the checkpoints.
            version: version of dfscan that judged the video.
            dumps_dir: folder of all dumps.
            reviews: all reviews of its content, in order of time.
            same_as: first row with the same video.

        Raises:
            OutputError: a report cannot be written.
        """
        row = report_row(
            result,
            checkpoint="; ".join(checkpoints),
            version=version,
            review=standing(reviews),
            case_facts=self._case_facts,
            same_as=same_as.path if same_as else None,
            detectors=self._detectors,
        )
        dumps = None
        if result.dumps and dumps_dir is not None:
            dumps = os.path.dirname(os.path.join(dumps_dir, result.dumps[0]["face_file"]))
        for name, report in self._reports:
            # The ledger may come from another machine, without the dumps.
            if isinstance(report, XlsxWriter) and name != STDOUT and dumps and os.path.isdir(dumps):
                relative = os.path.relpath(dumps, os.path.dirname(name) or ".")
                report.append({**row, LINK: quote(os.fsencode(relative))})
            else:
                report.append(row)
        if self._frames:
            for face_row in frame_rows(result, self._detectors):
                self._frames.append(face_row)
        if self._webvtt:
            write_webvtt(self._webvtt, result)
        if self._html:
            number = len(self._videos)
            self._videos.append(PageVideo(result, checkpoints[0], version, number, tuple(reviews), same_as))

    def write_page(
        self, pictures: Callable[[PageVideo], Sequence[Picture]], method: Callable[[], MethodInfo]
    ) -> PageSummary | None:
        """Write the page with all videos so far, if one was requested.

        Raises:
            OutputError: the page cannot be written.
        """
        if self._html is None:
            return None
        return write_page(
            self._html,
            self._videos,
            pictures=pictures,
            method=method(),
            max_mb=self._html_max_mb,
            case_facts=self._case_facts,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)


def _open(name: str, settings: ScanSettings, about: Mapping[str, str], detectors: Sequence[str]) -> ReportWriter:
    if name == STDOUT and sys.stdout is None:
        raise OutputError("standard output is closed: name a file for the report with --out")
    target = sys.stdout.buffer if name == STDOUT else name
    report_format = format_for(name, settings.format)
    more = () if report_format == "jsonl" else detector_columns(detectors)
    return open_writer(
        target,
        (*REPORT_COLUMNS, *more),
        format=report_format,
        excel=settings.excel,
        delimiter=settings.delimiter,
        about=about,
    )
