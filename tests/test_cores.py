"""Runs that are confined to some cores, with real processes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from dfscan.scan.cores import can_confine, measured

pytestmark = pytest.mark.skipif(not can_confine(), reason="this system cannot confine processes")

PARENT = """
import subprocess, sys, threading
threading.Thread(target=threading.Event().wait, daemon=True).start()
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
print(child.pid, child.stdout.readline().decode(), flush=True)
sys.stdin.read()
child.communicate()
"""
CHILD = """
import sys, time
print("ready", flush=True)
sys.stdin.read()
while time.process_time() < 0.3: pass
"""
"""Uses CPU time when it is told to end."""


@pytest.fixture
def family() -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A child process of two threads, and the number of its own child."""
    command = [sys.executable, "-c", PARENT, CHILD]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        yield parent, int(parent.stdout.readline().split()[0])


def affinities(pid: int) -> list[set[int]]:
    return [os.sched_getaffinity(int(thread)) for thread in os.listdir(f"/proc/{pid}/task")]


def test_all_threads_of_all_descendants_are_confined_and_released(family: tuple[subprocess.Popen[str], int]) -> None:
    parent, grandchild = family
    started = threading.Event()
    own_thread = threading.Thread(target=started.wait)
    own_thread.start()
    everything = os.sched_getaffinity(0)
    first = {min(everything)}
    pids = (os.getpid(), parent.pid, grandchild)
    with measured(1) as run:
        inside = [affinities(pid) for pid in pids]
        new = subprocess.run(
            [sys.executable, "-c", "import os; print(len(os.sched_getaffinity(0)))"], capture_output=True, check=True
        )
    started.set()
    own_thread.join()
    assert len(inside[0]) >= 2
    assert len(inside[1]) == 2
    assert all(each == first for cores in inside for each in cores)
    assert int(new.stdout) == run.cores == 1
    assert all(each == everything for pid in pids[1:] for each in affinities(pid))
    assert os.sched_getaffinity(0) == everything


def test_the_cpu_seconds_of_ended_descendants_count(family: tuple[subprocess.Popen[str], int]) -> None:
    with measured(1) as run:
        family[0].communicate()
    assert run.cpu_s is not None
    assert 0.2 < run.cpu_s < run.wall_s + 0.1


def test_a_run_that_is_not_confined_counts_wall_seconds_only() -> None:
    with measured(None) as run:
        pass
    assert (run.cpu_s, run.cores) == (None, None)
    assert run.wall_s > 0


def test_more_cores_than_there_are_change_nothing() -> None:
    everything = os.sched_getaffinity(0)
    with measured(len(everything) + 1) as run:
        assert os.sched_getaffinity(0) == everything
    assert run.cores == len(everything)
