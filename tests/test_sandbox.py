"""The sandbox from inside: a real decoding child runs the attempts of a compromised decoder."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dfscan.media import isolate, sandbox
from dfscan.media.isolate import Ended, Limits, decode_videos
from dfscan.media.plan import Sampling

pytestmark = pytest.mark.skipif(bool(sandbox.missing()), reason="; ".join(sandbox.missing()) or "never")

PTRACE_SEIZE = 0x4206  # unlike PTRACE_ATTACH, it does not stop the traced process

HIJACKED = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from dfscan.media import worker; "
    "import tests.test_sandbox; "
    "worker.Decoding.samples = tests.test_sandbox.take_over; worker._rehearse = lambda: None; worker.main()"
)
"""The real child, but its decoder runs the code below instead of FFmpeg."""


def attempts(target: Path) -> dict[str, Callable[[], object]]:
    """Return the attempts by name; each is harmless if it succeeds."""
    libc = ctypes.CDLL(None, use_errno=True)
    is_x86 = platform.machine() == "x86_64"

    def call(number: int, *arguments: object) -> None:
        if libc.syscall(number, *arguments) < 0:
            raise OSError(ctypes.get_errno(), "refused")

    return {
        "run a program": lambda: os.execv(sys.executable, [sys.executable, "-c", "pass"]),
        "connect": lambda: socket.create_connection(("127.0.0.1", 9), timeout=5),
        "tcp socket": lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM).close(),
        "udp socket": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).close(),
        "unix socket": lambda: socket.socket(socket.AF_UNIX).close(),
        "io_uring": lambda: call(425, 1, ctypes.create_string_buffer(120)),
        "open a file outside": lambda: os.close(os.open("/etc/passwd", os.O_RDONLY)),
        "open the input by its name": lambda: os.close(os.open(target, os.O_RDONLY)),
        "write the input": lambda: os.close(os.open(target, os.O_WRONLY)),
        "make a file": lambda: os.close(os.open(target.parent / "new", os.O_WRONLY | os.O_CREAT)),
        "truncate": lambda: os.truncate(target, 0),
        "remove": lambda: os.unlink(target),
        "rename": lambda: os.rename(target.parent, target.parent.with_name("renamed")),
        "list a folder": lambda: os.listdir("/"),
        "new process": lambda: os._exit(0) if os.fork() == 0 else None,
        "signal the parent": lambda: os.kill(os.getppid(), signal.SIGURG),
        "signal its thread": lambda: call(234 if is_x86 else 131, os.getppid(), os.getppid(), signal.SIGURG),
        "trace the parent": lambda: call(101 if is_x86 else 117, PTRACE_SEIZE, os.getppid(), 0, 0),
        "look into the parent": lambda: os.close(os.open(f"/proc/{os.getppid()}/mem", os.O_RDONLY)),
        "another name space": lambda: call(272 if is_x86 else 97, 0x10000000),
        "memory": lambda: bytearray(1200 << 20),
        "many descriptors": lambda: [os.dup(0) for _ in range(99)],
    }


def take_over(decoding: Any) -> Any:
    """Run all attempts in the child and report the outcomes as the reason of a failure."""
    target = Path(os.environ["DFSCAN_TEST_TARGET"])
    outcomes = {}
    for name, attempt in attempts(target).items():
        if name == os.environ["DFSCAN_TEST_LEAVE_OUT"]:
            continue
        try:
            attempt()
            outcomes[name] = "worked"
        except (OSError, MemoryError) as error:
            outcomes[name] = type(error).__name__
    outcomes["read what was handed over"] = decoding.file.read().decode()
    raise ValueError(json.dumps(outcomes))
    yield


@pytest.fixture
def target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "folder" / "x.mp4"
    path.parent.mkdir()
    path.write_text("precious")
    monkeypatch.setenv("DFSCAN_TEST_TARGET", str(path))
    return path


def end_of(target: Path, limits: Limits) -> Ended:
    *_, last = decode_videos([str(target)], sampling=Sampling(4), num_workers=1, limits=limits)
    assert isinstance(last, Ended)
    assert last.failure is not None
    return last


def outcomes_of(
    target: Path, monkeypatch: pytest.MonkeyPatch, limits: Limits, *, leaving_out: str = ""
) -> dict[str, str]:
    monkeypatch.setattr(isolate, "_CHILD", HIJACKED)
    monkeypatch.setenv("DFSCAN_TEST_LEAVE_OUT", leaving_out)
    failure = end_of(target, limits).failure
    assert failure is not None
    assert failure.code == "internal", failure
    told: dict[str, str] = json.loads(failure.text.removeprefix("unexpected ValueError: "))
    return told


def test_a_compromised_decoder_can_do_nothing(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = outcomes_of(target, monkeypatch, Limits(60, max_memory_mb=1024))
    assert told.pop("read what was handed over") == "precious"
    assert set(told) == set(attempts(target))
    assert [name for name, outcome in told.items() if outcome == "worked"] == []
    assert target.read_text() == "precious"
    assert os.listdir(target.parent) == ["x.mp4"]


def test_the_attempts_succeed_without_the_sandbox(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the test above would prove nothing."""
    told = outcomes_of(target, monkeypatch, Limits(60, sandbox=False), leaving_out="run a program")
    free = {"tcp socket", "udp socket", "unix socket", "open a file outside", "write the input", "make a file"}
    free |= {"truncate", "remove", "rename", "list a folder", "new process", "signal the parent", "memory"}
    assert {name for name in free if told.get(name) != "worked"} == set()


def test_a_program_runs_without_the_sandbox(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolate, "_CHILD", HIJACKED)
    monkeypatch.setenv("DFSCAN_TEST_LEAVE_OUT", "")
    failure = end_of(target, Limits(60, sandbox=False)).failure
    assert failure is not None
    assert failure.text == "the decoder died of exit status 0", "exit status of the program"


def test_nothing_is_decoded_if_the_sandbox_cannot_be_entered(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = "import dfscan.media.sandbox as c; c.landlock_abi = lambda: 1; c._FS_RIGHTS[1] = 1 << 63; main()"
    monkeypatch.setattr(isolate, "_CHILD", isolate._CHILD.replace("main()", broken))
    failure = end_of(target, Limits(60)).failure
    assert failure is not None
    assert failure.code == "sandbox"
    assert "--no-sandbox" in failure.text


def test_missing_sandbox_layers_are_logged_unless_the_sandbox_is_off(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sandbox, "landlock_abi", lambda: 0)
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    assert len(sandbox.missing()) == 2
    list(decode_videos([], sampling=Sampling(4), num_workers=1, limits=Limits(60)))
    assert caplog.text.count("use --no-sandbox") == 2
    list(decode_videos([], sampling=Sampling(4), num_workers=1, limits=Limits(60, sandbox=False)))
    assert caplog.text.count("use --no-sandbox") == 2
