"""Scans under cron: no network, home or terminal, huge and deep folders, and files larger than the disk."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from dfscan.media.isolate import Ended, Limits, decode_videos
from dfscan.media.plan import Sampling
from tests.test_cli import program, run
from tests.test_cli import surroundings as surroundings

MAX_GROWTH_KB = 100 << 10


@pytest.fixture
def command(clips: Path, untrained: Path) -> list[str]:
    """Command that scans the clips, one of which is not a video, to standard output."""
    folder = os.fspath(clips)
    return program("scan", folder, "--checkpoint", untrained, "--num-frames", 2, "--device", "cpu", "--quiet")


def report(command: Sequence[str], **more: object) -> bytes:
    done = subprocess.run(command, capture_output=True, check=False, **more)  # type: ignore[call-overload]
    assert done.returncode == 2, done.stderr  # text.mp4 is an error row
    assert b"Traceback" not in done.stderr
    rows: bytes = done.stdout
    assert rows.count(b"\n") == 5
    return rows


def can(*command: str) -> bool:
    return bool(shutil.which(command[0])) and not subprocess.run(command, capture_output=True, check=False).returncode


@pytest.mark.skipif(not can("strace", "true"), reason="needs strace, and to be allowed to trace")
def test_no_network_connections_are_opened(command: list[str], tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    report(["strace", "-f", "-qq", "-e", "trace=%network", "-o", os.fspath(trace), *command])
    lines = trace.read_text().splitlines()
    assert any("socketpair(AF_UNIX" in line for line in lines), "the trace sees something"
    outside = re.compile(r"\b(connect|sendto|sendmsg)\(.*sa_family=(?!AF_UNIX)")
    assert [line for line in lines if outside.search(line)] == []


def test_under_cron_and_without_a_network_the_report_is_the_same(command: list[str], session_cache: Path) -> None:
    bare = {"LC_ALL": "C", "PATH": "/usr/bin:/bin", "TMPDIR": "/nowhere"}
    terminal = {**os.environ, "LC_ALL": "C.UTF-8", "XDG_CACHE_HOME": os.fspath(session_cache)}
    offline = ["unshare", "-rn"] if can("unshare", "-rn", "true") else []
    assert report([*offline, *command], env=bare, stdin=subprocess.DEVNULL) == report(command, env=terminal)


def test_a_closed_stdout_and_a_short_reader_end_quietly(command: list[str], tmp_path: Path) -> None:
    for i in range(1000):  # more rows than a pipe buffers, so that the reader has ended before the last row
        (tmp_path / f"{i:03}.mp4").touch()
    command.append(os.fspath(tmp_path))
    closed = subprocess.run(["sh", "-c", 'exec "$@" >&-', "sh", *command], capture_output=True, check=False)
    assert closed.returncode == 2
    (line,) = closed.stderr.splitlines()
    assert b"standard output" in line
    short = subprocess.run(["sh", "-c", '"$@" | head -1', "sh", *command], capture_output=True, check=False)
    assert (short.returncode, short.stderr) == (0, b"")
    assert short.stdout.startswith(b'"path"')
    assert short.stdout.count(b"\n") == 1


@pytest.mark.parametrize("num_files", [1000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_thousands_of_empty_files_take_little_memory_and_their_rows_stream(
    num_files: int, untrained: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "empty"
    for i in range(100):
        (folder / f"{i:02}").mkdir(parents=True)
    for i in range(num_files):
        (folder / f"{i % 100:02}" / f"{i:06}.mp4").touch()
    deep = folder / "deep"
    for _ in range(200):
        deep = deep / "d"
    deep.mkdir(parents=True)
    (deep / "x.mp4").touch()
    code = (
        "import re, sys; from dfscan.cli import app\n"
        "try: app()\n"
        "finally: print(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1], file=sys.stderr)"
    )

    def scan(inputs: Path) -> tuple[int, int, bool]:
        """Return peak memory in KiB, the rows, and whether the first row came before the last video was judged."""
        out = (tmp_path / "out").open("wb")
        arguments = ["scan", str(inputs), "--checkpoint", str(untrained), "--device", "cpu", "--quiet", "--exit-zero"]
        with (
            out,
            subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=out, stderr=subprocess.PIPE) as process,
        ):
            streams = False
            while process.poll() is None:
                streams |= (tmp_path / "out").stat().st_size > 0
                time.sleep(0.01)
            assert process.stderr is not None
            said = process.stderr.read().decode()
        return int(said.splitlines()[-1]), (tmp_path / "out").read_bytes().count(b"\n") - 1, streams

    few_kb, _, _ = scan(folder / "deep")
    many_kb, rows, streams = scan(folder)
    print(f"{few_kb} KiB with one file, {many_kb} KiB with {num_files}")
    assert rows == num_files + 1
    assert streams
    assert many_kb - few_kb < MAX_GROWTH_KB


SPARSE_HEADS = {
    "zeros.mp4": b"",
    "head.mp4": b"\0\0\0\x18ftypisom\0\0\2\0isomiso2\0\0\0\0mdat",
    "head.mkv": b"\x1a\x45\xdf\xa3\x93\x42\x82\x88matroska",
    "head.avi": b"RIFF\xff\xff\xff\x7fAVI LIST",
    "head.ts": (b"\x47\x40\0\x10" + b"\xff" * 184) * 4,
    "head.mpg": b"\0\0\1\xba",
}


@pytest.mark.parametrize("name", SPARSE_HEADS)
def test_a_file_larger_than_the_disk_fails_within_seconds(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(SPARSE_HEADS[name])
    try:
        os.truncate(path, 200 << 30)
    except OSError as error:
        pytest.skip(f"no sparse files here: {error}")
    *_, last = decode_videos([str(path)], sampling=Sampling(4), num_workers=1, limits=Limits(300))
    assert isinstance(last, Ended)
    assert last.failure is not None
    assert 0 < last.cpu_s < 15, last.failure


def test_memory_limit_holds_and_the_reason_names_the_option(untrained: Path, tmp_path: Path) -> None:
    from tests.videos import numbered, write_video

    write_video(tmp_path / "large.mp4", numbered(6, width_px=7680, height_px=4320), interlaced=True)
    arguments = ("scan", tmp_path / "large.mp4", "--checkpoint", untrained, "--num-frames", 2, "--format", "jsonl")
    row = json.loads(run(*arguments, "--max-memory", 512).stdout)
    assert row["verdict"] == "error"
    assert row["reason"].startswith("too_large: ")
    assert "--max-memory 512" in row["reason"]
    assert json.loads(run(*arguments).stdout)["status"] == "ok"
