"""All the reports of one run: the same videos in the same order, in every format that was asked for."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

from dfscan.errors import OutputError
from dfscan.report.page import Method, PageSummary, PageVideo, write_page
from dfscan.report.schema import FRAME_COLUMNS, REPORT_COLUMNS, frame_rows, report_row
from dfscan.report.tables import LINK, XlsxWriter
from dfscan.report.writers import AtomicFile, Format, ReportWriter, format_for, open_writer
from dfscan.types import Picture, VideoResult

STDOUT = "-"


class Reports:
    """A context manager: reports are opened at once, so that a typo costs no night, and take their names at its end."""

    def __init__(
        self,
        outs: Sequence[str],
        *,
        format: Format | None = None,
        frames_out: Path | None = None,
        html: Path | None = None,
        html_max_mb: float = 50.0,
        excel: bool = False,
        about: Mapping[str, str],
    ) -> None:
        """Open them.

        Args:
            outs: files, each in the format of its suffix; ``-`` is standard output.
            format: of all `outs` instead.
            frames_out: gets a row for every face.
            html: gets the page, by `write_page`.
            html_max_mb: of pictures in the page.
            excel: start CSV with a byte order mark.
            about: what workbooks say of the scan.

        Raises:
            OutputError: one cannot be written there.
        """
        self._html = html
        self._html_max_mb = html_max_mb
        self._videos: list[PageVideo] = []
        with ExitStack() as opened:
            self._reports = [
                (name, opened.enter_context(_open(name, format, excel=excel, about=about))) for name in outs
            ]
            self._frames = opened.enter_context(_open_frames(frames_out, excel=excel)) if frames_out else None
            if html:
                opened.callback(AtomicFile(html).discard)  # only to see that the page can be written there
            self._stack = opened.pop_all()

    def append(self, result: VideoResult, *, checkpoint: str, version: str, dumps_dir: str | None = None) -> None:
        """Write the rows of one video.

        Args:
            result: the video.
            checkpoint: short text that names the checkpoint.
            version: the version of dfscan that judged the video.
            dumps_dir: the folder of all dumps.

        Raises:
            OutputError: a report cannot be written.
        """
        row = report_row(result, checkpoint=checkpoint, version=version)
        for name, report in self._reports:
            report.append({**row, LINK: _link(result, dumps_dir, name)} if isinstance(report, XlsxWriter) else row)
        if self._frames:
            for face_row in frame_rows(result):
                self._frames.append(face_row)
        if self._html:
            self._videos.append(PageVideo(result, checkpoint, version))

    def write_page(
        self, pictures: Callable[[VideoResult], Sequence[Picture]], method: Callable[[], Method]
    ) -> PageSummary | None:
        """Write the page, if one was asked for, over all videos so far.

        Raises:
            OutputError: it cannot be written.
        """
        if self._html is None:
            return None
        return write_page(self._html, self._videos, pictures=pictures, method=method(), max_mb=self._html_max_mb)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)


def _open(name: str, format: Format | None, *, excel: bool, about: Mapping[str, str]) -> ReportWriter:
    if name == STDOUT and sys.stdout is None:
        raise OutputError("standard output is closed: name a file for the report with --out")
    target = sys.stdout.buffer if name == STDOUT else name
    return open_writer(target, REPORT_COLUMNS, format=format or format_for(name), excel=excel, about=about)


def _open_frames(path: Path, *, excel: bool) -> ReportWriter:
    return open_writer(path, FRAME_COLUMNS, format=format_for(path), excel=excel)


def _link(result: VideoResult, dumps_dir: str | None, report: str) -> str | None:
    """From where the report is to the video's folder of dumps."""
    if not result.dumps or dumps_dir is None or report == STDOUT:
        return None
    folder = os.path.dirname(os.path.join(dumps_dir, result.dumps[0]["face_file"]))
    if not os.path.isdir(folder):  # a ledger that was brought from elsewhere
        return None
    return quote(os.fsencode(os.path.relpath(folder, os.path.dirname(report) or ".")))
