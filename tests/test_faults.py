"""Fault injection: when any one system call of the output code fails, no scan succeeds with a missing row.

The scan is replaced by fixed results. The code that writes them and turns failures into exit codes is real.
"""

from __future__ import annotations

import errno
import io
import os
import sqlite3
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from typer.testing import Result

from dfscan import images
from dfscan.media.source import FileIdentity
from dfscan.report import dumps as dumping
from dfscan.report.dumps import DumpFolder, FaceExplanation
from dfscan.scan import ledger as keeping
from dfscan.scan import run as scanning
from dfscan.types import Picture, Verdict, VideoInfo, VideoResult
from tests.test_cli import run
from tests.test_cli import surroundings as surroundings

MAX_CALLS = 300
KINDS = ("open", "write", "fsync", "rename", "imwrite", "sqlite")
OLD_REPORT = b"the old report\n"
ROWS = ("r.csv", "r.jsonl", "r.parquet")
"""Reports that are equal in every folder; the others contain the folder of the dumps."""
REPORTS = (*ROWS, "r.xlsx")
SHOWN = Picture("face", 0, 0, 1.0, 0.5, b"\xff\xd8picture")


class Faults:
    """Counts calls of each kind and makes the N-th call of one kind fail."""

    def __init__(self) -> None:
        self.arm("", 0)

    def arm(self, kind: str, failing: int) -> None:
        self.kind, self.failing, self.counts = kind, failing, Counter[str]()

    def pass_through(self, kind: str) -> None:
        self.counts[kind] += 1
        if kind == self.kind and self.counts[kind] == self.failing:
            number = (errno.ENOSPC, errno.EIO, errno.EMFILE)[self.failing % 3]
            raise OSError(number, os.strerror(number))

    @property
    def has_struck(self) -> bool:
        return self.counts[self.kind] >= self.failing

    def around(self, kind: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            self.pass_through(kind)
            return function(*arguments, **options)

        return call


class Raw(io.FileIO):
    faults: Faults

    def write(self, data: Any) -> int:
        self.faults.pass_through("write")
        return super().write(data)


class Database:
    """A SQLite connection whose statements can fail."""

    def __init__(self, connection: sqlite3.Connection, faults: Faults) -> None:
        self._connection = connection
        self._faults = faults

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def __enter__(self) -> Any:
        return self._connection.__enter__()

    def __exit__(self, *error: Any) -> Any:
        return self._connection.__exit__(*error)

    def execute(self, *arguments: Any) -> Any:
        self._pass_through()
        return self._connection.execute(*arguments)

    def executemany(self, *arguments: Any) -> Any:
        self._pass_through()
        return self._connection.executemany(*arguments)

    def _pass_through(self) -> None:
        try:
            self._faults.pass_through("sqlite")
        except OSError as error:
            raise sqlite3.OperationalError("disk I/O error") from error


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Faults:
    hook = Faults()
    connect = sqlite3.connect

    def fdopen(descriptor: int, mode: str) -> io.BufferedWriter:
        raw = Raw(descriptor, mode)
        raw.faults = hook
        return io.BufferedWriter(raw, buffer_size=256)  # smaller than a row: no row waits

    def write_bytes(path: Path, data: bytes) -> None:
        with fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), "wb") as file:
            file.write(data)

    def encode(*arguments: Any, **options: Any) -> bytes:
        try:
            hook.pass_through("imwrite")
        except OSError as error:
            raise ValueError("cannot be encoded") from error
        return images.encode(*arguments, **options)

    monkeypatch.setattr(os, "open", hook.around("open", os.open))
    monkeypatch.setattr(os, "fsync", hook.around("fsync", os.fsync))
    monkeypatch.setattr(os, "replace", hook.around("rename", os.replace))
    monkeypatch.setattr(os, "fdopen", fdopen)
    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    monkeypatch.setattr(dumping, "encode", encode)
    monkeypatch.setattr(keeping.sqlite3, "connect", lambda *a, **k: Database(connect(*a, **k), hook))
    return hook


@pytest.fixture
def videos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three files with fixed results."""
    folder = tmp_path / "videos"
    folder.mkdir()
    for i in range(3):
        (folder / f"{i}.mp4").write_bytes(b"1")

    def judged(
        paths: list[str], engine: object, *, dumps: DumpFolder, **_: object
    ) -> Iterator[tuple[VideoResult, FileIdentity | None]]:
        picture = np.zeros((8, 8, 3), np.uint8)
        row = {"score": 0.5, "time_s": 1.0, "frame": 0, "x1": 0.0, "y1": 0.0, "x2": 1.0, "y2": 1.0}
        for path in paths:
            index = dumps.write(path, [FaceExplanation(picture, picture, picture, row)])
            verdict = Verdict("no_face", threshold=0.5)
            yield (
                VideoResult(path, "ok", verdict, VideoInfo(size_bytes=1), 4, dumps=tuple(index), pictures=(SHOWN,)),
                FileIdentity.of(path),
            )

    def engine(*_: object) -> object:
        return SimpleNamespace(runtime=SimpleNamespace(device="cpu", mixed_precision=False))

    monkeypatch.setattr(scanning, "load_engine", engine)
    monkeypatch.setattr(scanning, "scan_videos", judged)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_a_failing_call_never_gives_success_with_missing_rows(
    kind: str, faults: Faults, videos: Path, trained: Path, tmp_path: Path
) -> None:
    def scan(folder: Path) -> Result:
        folder.mkdir()
        with open(folder / "r.csv", "wb") as file:
            file.write(OLD_REPORT)
        outputs = [argument for name in REPORTS for argument in ("-o", folder / name)]
        outputs += ["--frames-out", folder / "f.csv", "--html", folder / "r.html", "--explain", folder / "d"]
        return run("scan", videos, "--checkpoint", trained, "--device", "cpu", *outputs)

    assert scan(tmp_path / "whole").exit_code == 0
    assert set(faults.counts) == set(KINDS)
    expected = {name: (tmp_path / "whole" / name).read_bytes() for name in (*ROWS, "f.csv", "d/index.csv")}
    assert expected["r.csv"].count(b"\n") == 4

    num_struck = 0
    for failing in range(1, MAX_CALLS + 1):
        folder = tmp_path / f"{failing}"
        faults.arm(kind, failing)
        done = scan(folder)
        if not faults.has_struck:
            assert done.exit_code == 0
            break
        num_struck += 1
        if done.exit_code == 0:  # no row depends on the failed call, such as syncing a directory
            assert {name: (folder / name).read_bytes() for name in expected} == expected
            assert (folder / "r.html").read_text().rstrip().endswith("</html>")
            assert zipfile.is_zipfile(folder / "r.xlsx")
        else:
            assert done.exit_code == 2, done.stderr
            assert "Traceback" not in done.stderr
            assert "bug in dfscan" not in done.stderr
            assert (folder / "r.csv").read_bytes() in (OLD_REPORT, expected["r.csv"])
        assert not list(folder.glob("**/.*"))
    assert num_struck >= 3
    assert failing < MAX_CALLS
