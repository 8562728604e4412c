"""Decoding in child processes: results equal decoding in process, and no child can block or harm the parent."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import random
import signal
import time
from collections.abc import Iterator
from io import FileIO
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest

from dfscan.media import isolate, worker
from dfscan.media.decode import Decoding
from dfscan.media.isolate import Decoded, Ended, Event, Limits, Opened, decode_videos
from dfscan.media.plan import Sampling
from tests.videos import number_of, numbered, write_video

EVERYTHING = Sampling(10_000)


@pytest.fixture
def clips(tmp_path: Path) -> list[str]:
    paths = [str(tmp_path / f"{i}.mp4") for i in range(5)]
    for i, path in enumerate(paths):
        write_video(path, numbered(20, first=100 * i))
    return paths


@pytest.fixture
def big(tmp_path: Path) -> str:
    """Write a video whose frames exceed any buffer between parent and child, so that the child waits within a frame."""
    path = str(tmp_path / "big.mp4")
    write_video(path, numbered(30, width_px=640, height_px=640))
    return path


def children() -> set[int]:
    return {int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()}


def run(paths: list[str], num_workers: int = 2, sampling: Sampling | None = None, timeout_s: float = 60) -> list[Event]:
    sampling = sampling or Sampling(4)
    return list(decode_videos(paths, sampling=sampling, num_workers=num_workers, limits=Limits(timeout_s)))


def ended(events: list[Event]) -> dict[str, Ended]:
    return {event.path: event for event in events if isinstance(event, Ended)}


def failure(end: Ended) -> str | None:
    return end.failure.code if end.failure else None


@pytest.mark.parametrize("num_workers", [1, 2, 9])
def test_children_give_the_same_frames_as_decoding_in_process(clips: list[str], num_workers: int) -> None:
    before = children()
    events = run(clips, num_workers)
    assert children() == before
    for path in clips:
        with FileIO(path) as file:
            expected = list(Decoding(file, Sampling(4)).samples())
        mine = [event for event in events if event.path == path]
        assert [type(event) for event in mine] == [Opened, *[Decoded] * 4, Ended]
        frames = [event.frame for event in mine if isinstance(event, Decoded)]
        for frame, other in zip(frames, expected, strict=True):
            assert (frame.index, frame.time_s, frame.burst) == (other.index, other.time_s, other.burst)
            assert np.array_equal(frame.pixels, other.pixels)
        end = ended(mine)[path]
        assert end.info is not None
        assert end.info.sha256 is not None
        assert len(end.info.sha256) == 64
        assert (end.failure, end.damage, end.is_cut_short) == (None, None, False)
        assert (end.info.num_frames, end.info.codec, end.info.size_bytes) == (20, "h264", os.path.getsize(path))
        assert end.cpu_s > 0
        assert end.peak_rss_bytes > 1 << 20


def test_times_start_at_the_start_of_the_file(tmp_path: Path) -> None:
    """The clock of a transport stream does not start at 0, but a player's clock does."""
    path = tmp_path / "x.ts"
    write_video(path, numbered(50), pts=[5000 + 40 * n for n in range(50)])
    with FileIO(path) as file:
        assert next(iter(Decoding(file, Sampling(50)).samples())).time_s == pytest.approx(5)
    frames = [event.frame for event in run([str(path)], sampling=Sampling(50)) if isinstance(event, Decoded)]
    assert [frame.time_s for frame in frames] == pytest.approx([n / 25 for n in range(50)], abs=1e-3)


def test_no_paths_give_no_events() -> None:
    assert run([]) == []


def test_max_frames_is_passed_to_the_child(clips: list[str]) -> None:
    end = ended(run(clips[:1], sampling=Sampling(every_s=0.2, max_frames=2)))[clips[0]]
    assert end.is_cut_short


def test_failures_have_a_code_and_do_not_affect_other_videos(clips: list[str], tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    os.mkfifo(tmp_path / "pipe.mp4")
    write_video(tmp_path / "name.mp4", numbered(5))
    odd_name = os.fsdecode(os.fsencode(tmp_path) + b"/bad\xff\n.mp4")
    os.rename(tmp_path / "name.mp4", odd_name)
    bad = {"text.mp4": "not_video", "pipe.mp4": "not_regular", "missing.mp4": "not_found"}
    paths = [str(tmp_path / name) for name in bad] + [odd_name, *clips]
    ends = ended(run(paths, num_workers=1, timeout_s=20))
    assert list(ends) == paths
    assert [failure(ends[path]) for path in paths] == [*bad.values(), *[None] * 6]


def test_a_killed_child_affects_one_video_only(big: str, clips: list[str]) -> None:
    before, codes = children(), {}
    events = decode_videos([big, *clips], sampling=EVERYTHING, num_workers=1, limits=Limits(60))
    for event in events:
        if isinstance(event, Decoded) and event.path == big and event.frame.index == 3:
            (child,) = children() - before
            os.kill(child, signal.SIGKILL)
        if isinstance(event, Ended):
            codes[event.path] = failure(event)
            assert event.failure is None or "SIGKILL" in event.failure.text
    assert codes == {big: "crashed"} | dict.fromkeys(clips)
    assert children() == before


def test_a_video_whose_child_was_killed_once_succeeds_on_retry(big: str, clips: list[str]) -> None:
    before, kept, num_opened = children(), [], 0
    for event in decode_videos([big, clips[0]], sampling=EVERYTHING, num_workers=1, limits=Limits(60)):
        if event.path != big:
            continue
        if isinstance(event, Opened):
            num_opened, kept = num_opened + 1, []
        elif isinstance(event, Decoded):
            kept.append(number_of(event.frame.pixels))
            if num_opened == 1 and len(kept) == 4:
                (child,) = children() - before
                os.kill(child, signal.SIGKILL)
        else:
            assert event.failure is None
    assert num_opened == 2
    assert kept == list(range(30))
    assert children() == before


def test_a_child_is_replaced_after_its_maximum_number_of_videos(
    clips: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isolate, "MAX_VIDEOS_PER_CHILD", 2)
    before, seen = children(), []
    for event in decode_videos([*clips, *clips], sampling=Sampling(4), num_workers=1, limits=Limits(60)):
        if isinstance(event, Ended):
            assert failure(event) is None
            seen += children() - before
    assert len(seen) == 10
    assert len(set(seen)) == 5


@pytest.mark.slow
def test_each_video_ends_once_when_children_are_killed_at_random(
    clips: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twenty children are stopped, killed or aborted at random times; the decoded frames are still correct."""
    monkeypatch.setattr(isolate, "GRACE_S", 0.5)
    chance, before, num_struck = random.Random(1), children(), 0
    paths = [f"{path}{copy}.mp4" for path in clips for copy in range(12)]
    for path in paths:
        os.link(path[: path.index(".mp4") + 4], path)
    ends, kept = [], dict[str, int]()
    for event in decode_videos(paths, sampling=EVERYTHING, num_workers=2, limits=Limits(10)):
        if isinstance(event, Opened):
            kept[event.path] = 0
        elif isinstance(event, Decoded):
            kept[event.path] += 1
            if num_struck < 20 and chance.random() < 0.05:
                signals = (signal.SIGSTOP, signal.SIGKILL, signal.SIGABRT, signal.SIGSEGV)
                os.kill(chance.choice(sorted(children() - before)), chance.choice(signals))
                num_struck += 1
        else:
            ends.append(event)
    assert num_struck == 20
    assert sorted(end.path for end in ends) == sorted(paths)
    assert {failure(end) for end in ends} <= {None, "crashed", "timeout"}
    whole = [end for end in ends if failure(end) is None]
    assert len(whole) >= len(paths) - 10, "one retry each"
    assert {kept[end.path] for end in whole} == {20}
    assert children() == before


STOPPING_CHILD = """
import os, signal, socket, sys
from multiprocessing.connection import Connection

parent = Connection(int(sys.argv[-1]))
stream = socket.socket(fileno=os.dup(parent.fileno()))
while True:
    parent.recv_bytes()
    _, (file, *_), _, _ = socket.recv_fds(stream, 1, 1)
    stops = os.read(file, 100)
    if stops == b"within a frame":
        parent.send_bytes(b'{"kind": "frame", "shape": [640, 640], "index": 0, "time_s": 0, "burst": 0}')
        stream.sendall(b"half of it")
    if stops != b"never":
        os.kill(os.getpid(), signal.SIGSTOP)
    parent.send_bytes(b'{"kind": "done", "info": null, "cpu_s": 0, "open_cpu_s": 0, "peak_rss_bytes": 0}')
"""
"""The child stops itself where the file tells it to. It starts so fast that only the stop can exceed the timeout."""


def test_a_stopped_child_is_killed_after_the_timeout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolate, "_CHILD", STOPPING_CHILD)
    monkeypatch.setattr(isolate, "GRACE_S", 1.0)
    paths = [str(tmp_path / f"{i}.mp4") for i in range(4)]
    for path, stops in zip(paths, ("before its first message", "within a frame", "never", "never"), strict=True):
        Path(path).write_text(stops)
    before, start_s, ended_s, codes = children(), time.monotonic(), {}, {}
    for event in decode_videos(paths, sampling=EVERYTHING, num_workers=2, limits=Limits(4.0)):
        if isinstance(event, Ended):
            codes[event.path], ended_s[event.path] = failure(event), time.monotonic() - start_s
    assert codes == dict.fromkeys(paths[:2], "timeout") | dict.fromkeys(paths[2:])
    for path in paths[:2]:
        assert ended_s[path] >= 2 * 4.0, "each of the two children gets the full timeout"
        assert ended_s[path] < 60
    assert children() == before


def test_a_child_reports_its_own_timeout(big: str, clips: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolate, "GRACE_S", 60.0)  # on a busy machine, starting the child alone takes seconds
    ends = ended(run([big, clips[0]], sampling=EVERYTHING, timeout_s=1e-6))
    assert [failure(end) for end in ends.values()] == ["timeout", "timeout"]
    assert all(end.info and end.info.sha256 for end in ends.values()), "reported by the child, not by killing it"


def test_waiting_for_the_caller_does_not_count_towards_the_timeout(big: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolate, "GRACE_S", 60.0)
    events = []
    for event in decode_videos([big], sampling=EVERYTHING, num_workers=1, limits=Limits(5.0)):
        events.append(event)
        if isinstance(event, Decoded) and event.frame.index == 2:
            time.sleep(5.5)
    assert failure(ended(events)[big]) is None
    assert [number_of(e.frame.pixels) for e in events if isinstance(e, Decoded)] == list(range(30))


def test_closing_the_generator_kills_all_children(clips: list[str]) -> None:
    before = children()
    events = decode_videos(clips, sampling=EVERYTHING, num_workers=2, limits=Limits(60))
    assert isinstance(next(events), Opened)
    next(event for event in events if isinstance(event, Decoded))
    assert len(children() - before) == 2
    events.close()
    assert children() == before


def test_paths_are_consumed_one_by_one(clips: list[str]) -> None:
    taken = []

    def offered() -> Iterator[str]:
        for path in clips:
            taken.append(path)
            yield path

    events = decode_videos(offered(), sampling=Sampling(4), num_workers=2, limits=Limits(60))
    for event in events:
        if isinstance(event, Ended):
            break
    assert len(taken) == 2
    with contextlib.closing(events):  # type: ignore[type-var]
        pass


class Trap:
    """Unpickling an instance creates a directory."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (os.environ["DFSCAN_TEST_TRAP"],)


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"not json",
        b"[]",
        b"\xff\xfe",
        b'{"kind": "frame", "shape": [1, 1], "index": 0, "time_s": 0}',
        b'{"kind": "frame", "shape": [1, 1, 3], "index": 0, "time_s": 0, "burst": 0}',
        b'{"kind": "frame", "shape": [-1, -1], "index": 0, "time_s": 0, "burst": 0}',
        b'{"kind": "frame", "shape": [1000000, 1000000], "index": 0, "time_s": 0, "burst": 0}',
        b'{"kind": "failed"}',
        b'{"kind": "done", "info": {"surprise": 1}, "cpu_s": 0, "open_cpu_s": 0, "peak_rss_bytes": 0}',
        "pickle",
    ],
)
def test_a_protocol_violation_is_reported_as_a_crash(
    message: bytes | str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DFSCAN_TEST_TRAP", str(tmp_path / "sprung"))
    data = pickle.dumps(Trap()) if isinstance(message, str) else message
    child = (
        "import sys, time; from multiprocessing.connection import Connection; c = Connection(int(sys.argv[-1])); "
        f"c.recv_bytes(); c.send_bytes({data!r}); c.send_bytes(b'123'); time.sleep(60)"
    )
    monkeypatch.setattr(isolate, "_CHILD", child)
    (tmp_path / "x.mp4").write_bytes(b"1")
    path = str(tmp_path / "x.mp4")
    assert failure(ended(run([path]))[path]) == "crashed"
    assert not (tmp_path / "sprung").exists()


def test_neither_side_uses_pickle(clips: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("pickle across the process border")

    monkeypatch.setattr(Connection, "send", refuse)
    monkeypatch.setattr(Connection, "recv", refuse)
    child = isolate._CHILD.replace("main()", "Connection.send = Connection.recv = None; main()")
    monkeypatch.setattr(isolate, "_CHILD", f"from multiprocessing.connection import Connection; {child}")
    assert failure(ended(run(clips[:1]))[clips[0]]) is None


def test_code_in_the_working_directory_is_not_run(
    clips: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("json", "av", "numpy", "dfscan"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'sprung')!r}, 'w')\n")
    monkeypatch.chdir(tmp_path)
    assert failure(ended(run(clips[:1]))[clips[0]]) is None
    assert not (tmp_path / "sprung").exists()


def test_hashing_a_large_file_sends_alive_messages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "large"
    path.write_bytes(b"x" * 3_000_000)
    monkeypatch.setattr(worker, "ALIVE_EVERY_S", 0.0)
    told: list[int] = []
    with FileIO(path) as file:
        digest = worker._sha256(file, lambda: told.append(1))
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert len(told) == 3
