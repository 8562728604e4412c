"""Files in the ledger are not scanned again, and reports do not depend on it."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import time
from pathlib import Path

import pytest
from typer.testing import Result

from dfscan.scan.ledger import Ledger
from dfscan.scan.outputs import MAY_PASS
from tests.test_cli import children_of, program, run
from tests.test_cli import surroundings as surroundings
from tests.videos import write_video


@pytest.fixture
def videos(clips: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(clips, tmp_path / "videos"))


def scan(checkpoint: Path, *arguments: object) -> Result:
    return run("scan", "--checkpoint", checkpoint, "--device", "cpu", "--num-frames", 4, "--exit-zero", *arguments)


@pytest.fixture
def scanned(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that pass through the pipeline."""
    from dfscan.scan import run as module

    names: list[str] = []
    original = module.scan_videos

    def noted(paths: list[str], *args: object, **kwargs: object) -> object:
        names.extend(os.path.basename(path) for path in paths)
        return original(paths, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "scan_videos", noted)
    return names


def rows(path: Path) -> list[str]:
    return path.read_text().splitlines()


def test_resume_scans_only_missing_files_and_gives_the_same_bytes(
    videos: Path, untrained: Path, tmp_path: Path, scanned: list[str]
) -> None:
    whole, out = tmp_path / "whole.csv", tmp_path / "r.csv"
    outputs = ("--frames-out", tmp_path / "f.csv", "--explain", tmp_path / "d")
    assert scan(untrained, videos, "-o", whole, *outputs).exit_code == 0
    expected = [path.read_bytes() for path in (whole, tmp_path / "f.csv", tmp_path / "d" / "index.csv")]
    shutil.copy(tmp_path / "whole.csv.ledger", tmp_path / "r.csv.ledger")
    database = sqlite3.connect(tmp_path / "r.csv.ledger")
    database.execute("DELETE FROM videos WHERE CAST(path AS TEXT) LIKE '%one.mp4'")
    database.commit()
    database.close()
    scanned.clear()
    result = scan(untrained, videos, "-o", out, *outputs, "--resume")
    assert scanned == ["one.mp4"]
    assert [path.read_bytes() for path in (out, tmp_path / "f.csv", tmp_path / "d" / "index.csv")] == expected
    assert "3 known from the ledger" in result.stderr


def test_without_resume_everything_is_scanned_again(
    videos: Path, untrained: Path, tmp_path: Path, scanned: list[str]
) -> None:
    for flags in ((), (), ("--ledger", tmp_path / "r.csv.ledger", "--no-resume")):
        scanned.clear()
        scan(untrained, videos, "-o", tmp_path / "r.csv", *flags)
        assert len(scanned) == 4


def test_changed_files_and_other_recipes_are_rescanned(
    videos: Path, untrained: Path, trained: Path, tmp_path: Path, scanned: list[str]
) -> None:
    ledger = ("--ledger", tmp_path / "all.ledger", "-o", tmp_path / "r.csv")
    scan(untrained, videos, *ledger)
    scanned.clear()
    scan(untrained, videos, *ledger)
    assert scanned == [], "a shared ledger is read without being asked"
    shutil.copy(videos / "one.mp4", videos / "new.mp4")
    shutil.copy(videos / "one.mp4", videos / "nobody.mp4")
    scan(untrained, videos, *ledger)
    assert scanned == ["new.mp4", "nobody.mp4"]
    assert [row.split(",")[0].rpartition("/")[2] for row in rows(tmp_path / "r.csv")[1:]] == [
        f'{name}"' for name in ("new.mp4", "nobody.mp4", "one.mp4", "text.mp4", "two.mkv")
    ]
    for changed in (("--num-frames", 3), ("--checkpoint", trained), ("--max-faces", 1)):
        scanned.clear()
        scan(untrained, videos, *ledger, *changed)
        assert len(scanned) == 5, changed
    (videos / "two.mkv").unlink()
    scan(untrained, videos, *ledger)
    assert len(rows(tmp_path / "r.csv")) == 1 + 4, "what is gone has no row"


def replace_keeping_size_and_time(path: Path, data: bytes, *, in_place: bool = False) -> None:
    """Replace the content of a file, keeping size and modification time, as a restore or an attacker may."""
    before = path.stat()
    free = before.st_size - len(data)
    data += free.to_bytes(4, "big") + b"free" + bytes(free - 8) if free else b""  # a box that readers skip
    if in_place:
        path.write_bytes(data)
    else:
        path.with_name("restored").write_bytes(data)
        path.with_name("restored").replace(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert (after.st_ino == before.st_ino) == in_place


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are hashed before their result is reused."""
    from dfscan.scan import outputs as module

    names: list[str] = []
    original = module.hash_file

    def noted(path: str) -> str:
        names.append(os.path.basename(path))
        return original(path)

    monkeypatch.setattr(module, "hash_file", noted)
    return names


@pytest.mark.parametrize("in_place", [False, True], ids=["renamed", "overwritten"])
def test_a_file_replaced_by_one_of_equal_size_and_time_is_rescanned(
    videos: Path, untrained: Path, tmp_path: Path, scanned: list[str], in_place: bool
) -> None:
    person, nobody = (videos / "one.mp4").read_bytes(), (videos / "nobody.mp4").read_bytes()
    assert len(person) > len(nobody) + 8
    arguments = (videos / "one.mp4", "--ledger", tmp_path / "all.ledger", "-o", tmp_path / "r.csv")
    scan(untrained, *arguments)
    replace_keeping_size_and_time(videos / "one.mp4", nobody, in_place=in_place)
    data = (videos / "one.mp4").read_bytes()
    scanned.clear()
    done = scan(untrained, *arguments)
    assert scanned == ["one.mp4"]
    assert "one.mp4: the content has changed, although size and modification time have not" in done.stderr
    assert '"no_face"' in rows(tmp_path / "r.csv")[1]
    assert hashlib.sha256(data).hexdigest() in rows(tmp_path / "r.csv")[1]
    replace_keeping_size_and_time(videos / "one.mp4", person, in_place=in_place)
    scan(untrained, *arguments)
    assert '"inconclusive"' in rows(tmp_path / "r.csv")[1], "of two states the one that is there counts"


def test_a_file_with_the_same_content_is_hashed_once_and_not_rescanned(
    videos: Path, untrained: Path, tmp_path: Path, scanned: list[str], hashed: list[str]
) -> None:
    arguments = (videos, "--ledger", tmp_path / "all.ledger", "-o", tmp_path / "r.csv")
    scan(untrained, *arguments)
    report = (tmp_path / "r.csv").read_bytes()
    scanned.clear()
    (videos / "one.mp4").chmod(0o600)
    os.link(videos / "two.mkv", tmp_path / "link")
    replace_keeping_size_and_time(videos / "nobody.mp4", (videos / "nobody.mp4").read_bytes())
    for expected in (["nobody.mp4", "one.mp4", "two.mkv"], []):
        hashed.clear()
        assert scan(untrained, *arguments).stderr.count("changed") == 0
        assert (scanned, hashed) == ([], expected)
        assert (tmp_path / "r.csv").read_bytes() == report


def test_a_ledger_without_inodes_is_verified_once(
    videos: Path, untrained: Path, tmp_path: Path, scanned: list[str], hashed: list[str]
) -> None:
    arguments = (videos, "--ledger", tmp_path / "all.ledger", "-o", tmp_path / "r.csv")
    scan(untrained, *arguments)
    with sqlite3.connect(tmp_path / "all.ledger") as database:
        database.execute("DROP TABLE stamps")
    database.close()
    scanned.clear()
    for expected in (4, 0):
        hashed.clear()
        scan(untrained, *arguments)
        assert (scanned, len(hashed)) == ([], expected)


def test_verify_detects_changes_that_inode_and_times_hide(
    videos: Path, untrained: Path, tmp_path: Path, scanned: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = (videos, "--ledger", tmp_path / "all.ledger", "-o", tmp_path / "r.csv")
    scan(untrained, *arguments)
    scanned.clear()
    scan(untrained, *arguments, "--verify")
    assert scanned == []
    replace_keeping_size_and_time(videos / "one.mp4", (videos / "nobody.mp4").read_bytes())
    monkeypatch.setattr(Ledger, "has_stamp", lambda *_: True)  # a file system that stores neither
    scan(untrained, *arguments)
    assert scanned == []
    scan(untrained, *arguments, "--verify")
    assert scanned == ["one.mp4"]


def test_another_file_with_the_same_verdict_is_new(videos: Path, trained: Path, tmp_path: Path) -> None:
    base = ("scan", videos / "one.mp4", "--checkpoint", trained, "--device", "cpu", "--num-frames", 4)
    nightly = (*base, "--threshold", "0", "--ledger", tmp_path / "all.ledger", "-o", tmp_path / "r.csv", "--new-only")
    assert [run(*nightly).exit_code for _ in range(2)] == [1, 0]
    data = bytearray((videos / "one.mp4").read_bytes())
    data[-1] ^= 1  # changes only metadata at the end; the frames stay equal
    replace_keeping_size_and_time(videos / "one.mp4", bytes(data))
    assert [run(*nightly).exit_code for _ in range(2)] == [1, 0]


def test_missing_dumps_are_recreated(videos: Path, untrained: Path, tmp_path: Path, scanned: list[str]) -> None:
    outputs = ("-o", tmp_path / "r.csv", "--explain", tmp_path / "d", "--resume")
    scan(untrained, videos, *outputs)
    scanned.clear()
    gone = next((tmp_path / "d").glob("two*/*_face.png"))
    gone.unlink()
    scan(untrained, videos, *outputs)
    assert scanned == ["two.mkv"]
    assert gone.exists()


def test_temporary_errors_are_retried(videos: Path, untrained: Path, tmp_path: Path, scanned: list[str]) -> None:
    arguments = (videos, "-o", tmp_path / "r.csv", "--resume")
    decoded = [videos / name for name in ("nobody.mp4", "one.mp4", "two.mkv")]
    scan(untrained, *decoded, *arguments[1:], "--timeout", "0.000001")
    assert sum("timeout" in row for row in rows(tmp_path / "r.csv")) == 3
    scanned.clear()
    scan(untrained, *arguments)
    assert scanned == ["nobody.mp4", "one.mp4", "text.mp4", "two.mkv"]
    scanned.clear()
    scan(untrained, *arguments)
    assert scanned == [], "text.mp4 is no video today, and will not be one tomorrow"
    assert {"sandbox", "timeout", "unreadable"} <= MAY_PASS


def test_new_only_counts_findings_that_the_ledger_did_not_have(videos: Path, trained: Path, tmp_path: Path) -> None:
    base = ("scan", videos, "--checkpoint", trained, "--device", "cpu", "--num-frames", 4, "--threshold", "0")
    nightly = (*base, "--ledger", tmp_path / "all.ledger", "-o", tmp_path / "r.csv", "--new-only")
    assert [run(*nightly).exit_code for _ in range(3)] == [1, 0, 0]
    shutil.copy(videos / "text.mp4", videos / "more.mp4")
    assert [run(*nightly).exit_code for _ in range(2)] == [2, 0]
    shutil.copy(videos / "one.mp4", videos / "another.mp4")
    assert run(*nightly[:-1]).exit_code == 1
    assert run(*nightly).exit_code == 0
    # An unreachable file is retried in every run, and is not new in the second.
    listing = tmp_path / "list"
    listing.write_text("gone.mp4\n")
    lost = (*nightly, "--files-from", listing)
    assert [run(*lost).exit_code for _ in range(2)] == [2, 0]
    assert "gone.mp4" in (tmp_path / "r.csv").read_text()


def test_resume_without_a_ledger_is_refused(videos: Path, untrained: Path) -> None:
    result = scan(untrained, videos, "--resume")
    assert result.exit_code == 2
    assert "--ledger" in result.stderr


def test_only_leftovers_of_a_killed_run_are_removed(videos: Path, untrained: Path, tmp_path: Path) -> None:
    from dfscan.files import AtomicFile

    for name in ("r.csv", "r.csv.meta.json", "other.csv"):
        file = AtomicFile(tmp_path / name)
        file.write(b"half")
        file._file.close()  # as the kernel does
    assert len(list(tmp_path.glob(".*.partial"))) == 3
    scan(untrained, videos / "nobody.mp4", "-o", tmp_path / "r.csv")
    (left,) = tmp_path.glob(".*.partial")
    assert left.name.startswith(".other.csv.")
    assert not list(tmp_path.glob(".*.lock"))


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads Linux's /proc")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["SIGKILL", "SIGTERM"])
@pytest.mark.parametrize("num_ends", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_a_scan_killed_at_any_moment_and_resumed_gives_the_same_bytes(
    untrained: Path, tmp_path: Path, number: int, num_ends: int
) -> None:
    from tests.pictures import astronaut, moved

    folder = tmp_path / "videos"
    folder.mkdir()
    write_video(folder / "00.mp4", [moved(astronaut(), 6 * i, 2 * i) for i in range(10)], fps=10)
    for i in range(1, 2 + num_ends):
        shutil.copy(folder / "00.mp4", folder / f"{i:02}.mp4")
    arguments = ("scan", folder, "--checkpoint", untrained, "--num-frames", 4, "--quiet", "-o")
    run(*arguments, tmp_path / "whole.csv")
    command = program(*arguments, tmp_path / "r.csv", "--resume")
    chance, done, seen = random.Random(5), 0, []
    for _ in range(num_ends):
        with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
            while process.poll() is None and known(tmp_path / "r.csv.ledger") <= done:
                time.sleep(0.005)
            time.sleep(chance.random() * 0.3)
            children = children_of(process.pid)
            process.send_signal(number)
            said = process.communicate(timeout=300)[1]
        assert process.returncode in (0, -number, 143), said  # 0 if the scan had already ended
        wait_for_end(children)
        done = known(tmp_path / "r.csv.ledger")
        seen.append(done)
    assert seen == sorted(seen)
    resumed = subprocess.run(command, capture_output=True, check=False)
    assert resumed.returncode == 0, resumed.stderr
    assert (tmp_path / "r.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert not list(tmp_path.glob(".*partial"))


def known(ledger: Path) -> int:
    """Return the number of results in a ledger that another process may be writing."""
    try:
        database = sqlite3.connect(f"file:{ledger}?mode=ro", uri=True)
        try:
            return int(database.execute("SELECT count(*) FROM videos").fetchone()[0])
        finally:
            database.close()
    except sqlite3.Error:
        return 0


def wait_for_end(pids: list[int]) -> None:
    end_s = time.monotonic() + 60
    while (left := [pid for pid in pids if Path(f"/proc/{pid}").exists()]) and time.monotonic() < end_s:
        time.sleep(0.05)
    assert not left


def test_only_one_of_five_simultaneous_runs_scans(untrained: Path, videos: Path, tmp_path: Path) -> None:
    arguments = ("scan", videos, "--checkpoint", untrained, "--num-frames", 4, "--exit-zero", "-o")
    run(*arguments, tmp_path / "single.csv")
    command = program(*arguments, tmp_path / "r.csv")
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(5)]
    said = [process.communicate(timeout=600)[1] for process in processes]
    codes = [process.returncode for process in processes]
    assert sorted(codes) == [0, 75, 75, 75, 75]
    refused = [text.splitlines() for text, code in zip(said, codes, strict=True) if code == 75]
    assert all(len(lines) == 1 and "another run" in lines[0] for lines in refused)
    assert (tmp_path / "r.csv").read_bytes() == (tmp_path / "single.csv").read_bytes()
