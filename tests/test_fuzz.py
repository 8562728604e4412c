"""Decode thousands of broken files in the sandbox: each gets one result, nothing leaks and nothing hangs.

``pytest --slow tests/test_fuzz.py`` decodes 10,000 mutants of the odd files of ../shared, and scans 300.
The short version uses generated videos.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from dfscan.media.isolate import Ended, Limits, Opened, decode_videos
from dfscan.media.plan import Sampling
from tests.mutants import mutants
from tests.test_cli import run
from tests.test_cli import surroundings as surroundings
from tests.test_isolate import children
from tests.videos import numbered, write_video

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads Linux's /proc")

SEED = 2026
MAX_GROWTH_BYTES = 32 << 20


@pytest.fixture
def sources(tmp_path: Path) -> list[Path]:
    folder = tmp_path / "good"
    folder.mkdir()
    codecs = {"a.mp4": "libx264", "b.mkv": "libx265", "c.avi": "mpeg4", "d.ts": "mpeg2video", "e.webm": "libvpx-vp9"}
    for name, codec in codecs.items():
        write_video(folder / name, numbered(12), codec=codec)
    return sorted(folder.iterdir())


def odd_files(shared_data: Path) -> list[Path]:
    return sorted(path for path in (shared_data / "odd").rglob("*") if path.is_file() and path.name != "manifest.csv")


def written(sources: Sequence[Path], folder: Path, count: int) -> Iterator[str]:
    """Yield paths of mutants and delete each file afterwards, so that the folder stays small."""
    folder.mkdir()
    for i, (name, data) in enumerate(mutants(sources, count=count, seed=SEED)):
        path = folder / name
        path.write_bytes(data)
        yield str(path)
        for old in folder.glob(f"{i - 50:05}*") if i >= 50 else ():
            old.unlink()


def rss_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def decode_in_the_sandbox(sources: Sequence[Path], folder: Path, count: int) -> Counter[str]:
    """Decode `count` mutants and count their failure codes, ``ok`` for decoded ones."""
    before, num_descriptors = children(), len(os.listdir("/proc/self/fd"))
    codes: Counter[str] = Counter()
    opened: set[str] = set()
    warm_bytes = 0
    paths = written(sources, folder, count)
    limits = Limits(timeout_s=20)
    for event in decode_videos(paths, sampling=Sampling(2), num_workers=2, limits=limits, trust_list=""):
        if isinstance(event, Opened):
            opened.add(event.path)
        elif isinstance(event, Ended):
            opened.remove(event.path)
            codes[event.failure.code if event.failure else "ok"] += 1
            assert not (event.failure and "hung" in event.failure.text), event
            warm_bytes = warm_bytes or (rss_bytes() if codes.total() == count // 5 else 0)
    assert not opened
    assert codes.total() == count
    assert rss_bytes() - warm_bytes < MAX_GROWTH_BYTES
    assert children() == before
    assert len(os.listdir("/proc/self/fd")) == num_descriptors
    return codes


def test_mutants_are_the_same_every_time(sources: list[Path]) -> None:
    first, again, other = (list(mutants(sources, count=20, seed=seed)) for seed in (1, 1, 2))
    assert first == again != other
    assert len({data for _, data in first}) == 20


def test_each_of_some_mutants_gets_one_result(sources: list[Path], tmp_path: Path) -> None:
    codes = decode_in_the_sandbox(sources, tmp_path / "mutants", 150)
    assert codes["internal"] == 0, codes
    assert 15 < codes["ok"] < 150, codes


def test_each_of_some_mutants_of_signed_files_gets_one_result(sources: list[Path], tmp_path: Path) -> None:
    from tests.signing import sign

    signed = [sign(path, tmp_path / f"signed{path.suffix}") for path in sources if path.suffix in (".mp4", ".avi")]
    codes = decode_in_the_sandbox(signed, tmp_path / "mutants", 100)
    assert codes["internal"] == codes["crashed"] == 0, codes


@pytest.mark.slow
@pytest.mark.shared
def test_each_of_ten_thousand_mutants_gets_one_result(shared_data: Path, tmp_path: Path) -> None:
    codes = decode_in_the_sandbox(odd_files(shared_data), tmp_path / "mutants", 10_000)
    print(dict(codes))
    assert codes["internal"] == 0, codes


@pytest.mark.slow
@pytest.mark.shared
def test_three_hundred_mutants_in_a_whole_scan(shared_data: Path, untrained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mutants"
    folder.mkdir()
    for name, data in mutants(odd_files(shared_data), count=300, seed=SEED + 1):
        (folder / name).write_bytes(data)
    before, out = children(), tmp_path / "r.jsonl"
    done = run("scan", folder, "--include", "*", "--checkpoint", untrained, "--num-frames", 2, "-o", out)
    assert done.exit_code in (0, 2), done.stderr
    assert "Traceback" not in done.stderr
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    print(Counter(row["verdict"] for row in rows))
    assert len(rows) == 300
    assert all(row["verdict"] != "error" or row["reason"] for row in rows)
    assert [row for row in rows if (row["reason"] or "").startswith("internal")] == []
    assert children() == before
