"""Copies of a video are found, and other videos are not taken for copies."""

from __future__ import annotations

import csv
from dataclasses import replace
from io import FileIO
from pathlib import Path

import cv2
import numpy as np
import pytest
from skimage import data

from dfscan import to_frame
from dfscan.errors import DataError
from dfscan.fingerprint import MAX_HELD_SKETCHES, Fingerprinter, sketch
from dfscan.media.decode import Decoding
from dfscan.media.plan import Sampling
from dfscan.report.copies import CopyFinder
from dfscan.types import Fingerprint, Verdict, VideoInfo, VideoResult
from tests.test_cli import run
from tests.videos import write_video

Pictures = list[np.ndarray]


def take(
    seed: int, *, num_frames: int = 24, height: int = 180, width: int = 240, head: np.ndarray | None = None
) -> Pictures:
    """Frames of one background with a head that moves at random: another seed is another take."""
    rng = np.random.default_rng(seed)
    scene = cv2.resize(data.coffee(), (width, height), interpolation=cv2.INTER_AREA)
    head = data.astronaut()[20:220, 130:310] if head is None else head
    head = cv2.resize(np.ascontiguousarray(head), (54, 60), interpolation=cv2.INTER_AREA)
    way = np.cumsum(rng.normal(0, 7, (num_frames, 2)), axis=0)
    pictures = []
    for x, y in (way - way.mean(axis=0) + (90, 60)).round().astype(int).clip(0, (width - 54, height - 60)):
        picture = scene.copy()
        picture[y : y + 60, x : x + 54] = head
        pictures.append(picture)
    return pictures


def cropped(pictures: Pictures) -> Pictures:
    """The inner 95 % of width and height."""
    height, width = pictures[0].shape[:2]
    top, left = round(height * 0.025), round(width * 0.025)
    return [np.ascontiguousarray(picture[top:-top, left:-left]) for picture in pictures]


def letter_boxed(pictures: Pictures) -> Pictures:
    return [cv2.copyMakeBorder(picture, 30, 30, 0, 0, cv2.BORDER_CONSTANT) for picture in pictures]


def halved(pictures: Pictures) -> Pictures:
    return [cv2.resize(picture, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA) for picture in pictures]


def brightened(pictures: Pictures) -> Pictures:
    return [cv2.convertScaleAbs(picture, alpha=0.9, beta=12) for picture in pictures]


def fingerprint_of(pictures: Pictures) -> Fingerprint | None:
    maker = Fingerprinter()
    for picture in pictures:
        maker.add(sketch(picture, None), 0)
    return maker.fingerprint()


def result_of(path: str, pictures: Pictures, *, sha256: str | None = None, duration_s: float = 2.0) -> VideoResult:
    info = VideoInfo(1000, sha256 or path, duration_s=duration_s)
    return VideoResult(path, "ok", Verdict("real"), info, fingerprint=fingerprint_of(pictures))


def first(copies: CopyFinder, result: VideoResult) -> str | None:
    """The path of the first row with the same video."""
    found = copies.find(result)
    return found.path if found else None


@pytest.mark.parametrize("changed", [cropped, letter_boxed, halved, brightened])
def test_a_copy_is_found(changed, tmp_path: Path) -> None:
    original = take(1)
    path = tmp_path / "copy.mp4"
    write_video(path, changed(original))
    with FileIO(path) as file:
        decoded = [frame.pixels for frame in Decoding(file, Sampling(32)).samples()]
    copies = CopyFinder()
    assert first(copies, result_of("a.mp4", original)) is None
    assert first(copies, result_of("b.mp4", take(2))) is None
    assert first(copies, result_of("c.mp4", decoded)) == "a.mp4"
    assert first(copies, result_of("d.mp4", original)) == "a.mp4"


def test_another_take_or_face_or_duration_is_no_copy() -> None:
    original = take(1)
    copies = CopyFinder()
    assert first(copies, result_of("a.mp4", original)) is None
    for seed in range(2, 6):
        assert first(copies, result_of(f"take {seed}.mp4", take(seed))) is None
    swapped = take(1, head=data.astronaut()[20:220, 130:310, ::-1])  # another face makes the same movements
    assert first(copies, result_of("swapped.mp4", swapped)) is None
    assert first(copies, result_of("longer.mp4", original, duration_s=2.5)) is None


def test_another_mean_face_is_no_copy() -> None:
    """The pictures may be equal: a small face hardly shows in the mean picture."""
    rows = slice(80, 180), slice(90, 190)
    one, two = (cv2.resize(data.astronaut()[each, 170:270], (32, 32)).mean(axis=2) for each in rows)
    copies = CopyFinder()
    original = result_of("a.mp4", take(1))
    for path, face, expected in [("a", one, None), ("b", one * 0.9 + 10, "a"), ("c", two, None), ("d", two, "c")]:
        _, png = cv2.imencode(".png", face.astype(np.uint8))
        assert original.fingerprint
        fingerprint = replace(original.fingerprint, face_png=png.tobytes())
        info = replace(original.info, sha256=path)
        assert first(copies, replace(original, path=path, info=info, fingerprint=fingerprint)) == expected


def test_bars_of_any_shape_are_left_out() -> None:
    original = take(3)
    for sides in ((40, 10, 0, 0), (0, 0, 55, 55), (20, 20, 20, 20)):
        boxed = [cv2.copyMakeBorder(picture, *sides, cv2.BORDER_CONSTANT) for picture in original]
        copies = CopyFinder()
        assert first(copies, result_of("a.mp4", boxed)) is None
        assert first(copies, result_of("b.mp4", original)) == "a.mp4"


def test_pictures_that_say_little_have_no_fingerprint() -> None:
    noise = np.random.default_rng(0).integers(0, 20, (24, 90, 120, 3), np.uint8)
    assert fingerprint_of(list(noise)) is None  # black
    assert fingerprint_of([take(1)[0]] * 24) is None  # nothing moves
    assert fingerprint_of([np.full((90, 120, 3), 60 + i, np.uint8) for i in range(24)]) is None  # a fade
    assert fingerprint_of(take(1)[:3]) is None
    assert fingerprint_of([]) is None


def test_exact_copies_are_found_without_a_fingerprint() -> None:
    still = [take(1)[0]] * 24
    copies = CopyFinder()
    assert [
        first(copies, result_of(path, still, sha256=sha256))
        for path, sha256 in [("a.mp4", "1"), ("b.mp4", "2"), ("c.mp4", "1"), ("d.mp4", "2"), ("e.mp4", "1")]
    ] == [None, None, "a.mp4", "b.mp4", "a.mp4"]
    empty = replace(result_of("x.mp4", [], sha256="0"), info=VideoInfo(0, "0"))
    assert [first(copies, replace(empty, path=path)) for path in ("x.mp4", "y.mp4")] == [None, None]


def test_an_exact_copy_of_a_copy_belongs_to_its_group() -> None:
    original, copy = take(1), halved(take(1))
    copies = CopyFinder()
    found = [first(copies, result_of(*each)) for each in [("a", original), ("b", copy)]]
    assert [*found, first(copies, result_of("c", copy, sha256="b"))] == [None, "a", "a"]


def test_a_long_video_is_held_in_bounded_memory() -> None:
    maker = Fingerprinter()
    drawn = [sketch(picture, None) for picture in take(1, num_frames=40)]
    for i in range(400):
        maker.add(drawn[i % 40], 0)
        assert len(maker._held) <= MAX_HELD_SKETCHES
    assert maker.fingerprint() is not None


def test_frames_of_other_streams_and_sizes_do_not_count() -> None:
    maker = Fingerprinter()
    for picture, other in zip(take(1), take(2, height=90, width=120), strict=True):
        maker.add(sketch(picture, None), 1)
        maker.add(sketch(other, None), 1)
        maker.add(sketch(picture, None), 0)
    assert maker.fingerprint() == fingerprint_of(take(1))


def test_a_damaged_fingerprint_is_named() -> None:
    whole = result_of("a.mp4", take(1))
    assert whole.fingerprint
    small = cv2.imencode(".png", np.zeros((8, 8), np.uint8))[1].tobytes()
    for parts in [
        {"mean_jpeg": b"?"},
        {"mean_jpeg": b""},
        {"mean_jpeg": small},
        {"changes": b"?"},
        {"face_png": b""},
        {"face_png": small},
    ]:
        damaged = replace(whole, fingerprint=replace(whole.fingerprint, **parts))
        with pytest.raises(
            DataError, match=r"^\./a\.mp4: its fingerprint in the ledger is damaged; scan .* new ledger$"
        ):
            first(CopyFinder(), damaged)


def test_the_tables_grow() -> None:
    copies = CopyFinder()
    template = result_of("a", take(1))
    for i in range(10, 80):
        other = replace(template, path=f"{i}", info=VideoInfo(1, f"{i}", duration_s=1.1**i))
        assert first(copies, other) is None
    assert first(copies, replace(template, path="z", info=VideoInfo(1, "z", duration_s=1.1**60))) == "60"


def test_every_report_has_the_same_groups(tmp_path: Path, untrained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scanned, resumed and rebuilt reports have the same bytes, whatever finished first."""
    monkeypatch.chdir(tmp_path)
    videos = tmp_path / "videos"
    videos.mkdir()
    write_video(videos / "b.mp4", take(1))
    write_video(videos / "c.mp4", take(2))
    write_video(videos / "d.mp4", cropped(take(1)))
    (videos / "a.mp4").write_bytes((videos / "c.mp4").read_bytes())
    common = ["--checkpoint", str(untrained), "--num-frames", "8"]
    assert run("scan", "videos", "--out", "r.csv", "--html", "r.html", *common).exit_code == 0
    scanned = Path("r.csv").read_bytes()
    same_as = {row["path"]: row["same_as"] for row in csv.DictReader(scanned.decode().splitlines())}
    assert same_as == {
        "./videos/a.mp4": "",
        "./videos/b.mp4": "",
        "./videos/c.mp4": "./videos/a.mp4",
        "./videos/d.mp4": "./videos/b.mp4",
    }
    assert run("scan", "videos", "--out", "r.csv", "--resume", *common).exit_code == 0
    assert Path("r.csv").read_bytes() == scanned
    assert run("report", "r.csv.ledger", "--out", "again.csv").exit_code == 0
    assert Path("again.csv").read_bytes() == scanned
    assert '"copies":["./videos/d.mp4"],"num_copies":1' in Path("r.html").read_text()


def test_to_frame_has_the_groups_of_a_report() -> None:
    results = [result_of("b.mp4", take(1)), result_of("a.mp4", halved(take(1)))]
    frame = to_frame(results)
    assert frame["path"].tolist() == ["./a.mp4", "./b.mp4"]
    assert frame["same_as"].fillna("").tolist() == ["", "./a.mp4"]
