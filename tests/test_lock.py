"""Two runs never write the same file; a lock is released however its holder ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dfscan.errors import LockedError, OutputError
from dfscan.scan.lock import only_run

HOLD = (
    "import sys, time; from pathlib import Path; from dfscan.scan.lock import only_run\n"
    "with only_run([Path(sys.argv[1])]): print('held', flush=True); time.sleep(60)"
)


def held_elsewhere(path: Path) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    return process


def test_a_second_run_is_refused_until_the_first_is_killed(tmp_path: Path) -> None:
    report = tmp_path / "r.csv"
    with held_elsewhere(report) as process:
        with pytest.raises(LockedError, match=r"r\.csv"), only_run([tmp_path / "other.csv", report]):
            pass
        assert not (tmp_path / ".other.csv.lock").exists(), "what was taken before is given back"
        process.send_signal(signal.SIGKILL)
    with only_run([report]):
        assert (tmp_path / ".r.csv.lock").exists()
    assert list(tmp_path.iterdir()) == []


def test_one_file_under_two_names_is_one_lock(tmp_path: Path) -> None:
    (tmp_path / "link.csv").symlink_to(tmp_path / "r.csv")
    with held_elsewhere(tmp_path / "link.csv") as process:
        with pytest.raises(LockedError), only_run([tmp_path / "r.csv"]):
            pass
        process.kill()
    with only_run([tmp_path / "r.csv", tmp_path / "link.csv"]):
        pass


def test_a_removed_lock_file_does_not_let_two_runs_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    lock_path, flock, opened = tmp_path / ".r.csv.lock", fcntl.flock, []

    def removed_at_first(descriptor: int, how: int) -> None:
        if not opened:
            lock_path.unlink()
        opened.append(descriptor)
        flock(descriptor, how)

    monkeypatch.setattr("fcntl.flock", removed_at_first)
    with only_run([tmp_path / "r.csv"]):
        assert len(opened) == 2
        assert os.path.samestat(os.fstat(opened[-1]), lock_path.stat())


def test_a_missing_folder_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="directory"), only_run([tmp_path / "absent" / "r.csv"]):
        pass
