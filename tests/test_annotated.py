"""Annotated copies: what is drawn, when, and what is left after a failure."""

from __future__ import annotations

import resource
from io import FileIO
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from skimage import data

import dfscan.report.annotated as annotated
from dfscan import __version__
from dfscan.errors import OutputError
from dfscan.media.decode import Decoding
from dfscan.media.plan import Sampling
from dfscan.report.annotated import AnnotatedVideo, faces_at
from dfscan.types import Face, FaceScore, Frame, Track, Verdict, VideoInfo, VideoResult
from tests.test_cli import run
from tests.videos import write_video

FAKE_PX, OTHER_PX = np.array(annotated.FAKE), np.array(annotated.OTHER)


def scored(time_s: float, left: float, *, logit: float = 3.0, stream: int = 0) -> FaceScore:
    box = np.array([left, 20, left + 40, 70], np.float32)
    face = Face(0, time_s, 0, box, np.zeros((5, 2), np.float32), 0.99, np.zeros(1, np.float32), stream=stream)
    return FaceScore(face, logit)


def result_of(*tracks: Track, threshold: float | None = 0.5) -> VideoResult:
    info = VideoInfo(1, "ab", 160, 120, 10.0, 30, 3.0)
    return VideoResult("./a.mp4", "ok", Verdict("fake", 0.9, threshold, 0), info, tracks=tracks)


def write(path: Path, result: VideoResult, times_s: list[float], *, size: tuple[int, int] = (120, 160)) -> None:
    with AnnotatedVideo(path, result, checkpoint="best@01", version="1.2", stream=0) as video:
        for time_s in times_s:
            video.add(Frame(np.full((*size, 3), 90, np.uint8), 0, time_s, 0))
        video.commit()


def read(path: Path) -> list[tuple[float, np.ndarray]]:
    with FileIO(path) as file:
        return [(frame.time_s, frame.pixels) for frame in Decoding(file, Sampling(999)).samples()]


def edge_colour(pixels: np.ndarray, x: float) -> np.ndarray:
    """The colour at the left edge of a box, halfway down."""
    return pixels[40:60, round(x)].mean(axis=0)


def test_boxes_are_interpolated_within_a_track_only() -> None:
    track = Track(4, (scored(1.0, 10), scored(1.5, 30), scored(3.0, 90)))
    seen = {time_s: [*faces_at([track], time_s)] for time_s in (0.9, 1.0, 1.25, 1.5, 1.7, 2.0, 3.0, 3.2, 3.3)}
    assert {time_s for time_s, faces in seen.items() if faces} == {1.0, 1.25, 1.5, 1.7, 3.0, 3.2}
    assert {time_s for time_s, faces in seen.items() if faces and faces[0].is_examined} == {1.0, 1.5, 3.0}
    assert [float(seen[time_s][0].box_xyxy[0]) for time_s in (1.0, 1.25, 1.5, 1.7)] == [10, 20, 30, 30]
    assert [face.track_id for face in seen[1.25]] == [4]


def test_times_pictures_and_marks(tmp_path: Path) -> None:
    """Frames of a variable rate keep their times; a face at or above the threshold is red, another blue."""
    times_s = [0.5, 0.7, 1.2, 1.234, 2.9]
    loud, quiet = Track(0, (scored(0.5, 20), scored(1.2, 20))), Track(1, (scored(0.5, 100, logit=-3.0),))
    write(tmp_path / "a.mp4", result_of(loud, quiet), times_s)
    frames = read(tmp_path / "a.mp4")
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert container.streams[0].codec_context.name == "h264"
        assert [round(float(frame.pts * frame.time_base), 4) for frame in container.decode(video=0)] == times_s
        assert container.metadata["title"] == f"annotated by dfscan {__version__} - not the original"
        assert container.metadata["comment"].startswith(
            "fake, score 0.900, threshold 0.500; judged by dfscan 1.2; checkpoint best@01; source sha256 ab"
        )
        assert len(container.streams) == 1
    first, last = frames[0][1], frames[-1][1]
    assert np.abs(edge_colour(first, 20) - FAKE_PX).max() < 60
    assert np.abs(edge_colour(first, 100) - OTHER_PX).max() < 60
    assert np.abs(edge_colour(last, 20) - 90).max() < 8  # 1.7 s after the last face
    assert first.shape[0] == 120 + annotated.MIN_BAND_PX
    assert first[124:].std() > 10  # the text of the band


def test_odd_and_changing_sizes_become_even(tmp_path: Path) -> None:
    track = Track(0, (scored(0.0, 20),))
    write(tmp_path / "a.mp4", result_of(track), [0.0, 0.1], size=(99, 131))
    assert {pixels.shape for _, pixels in read(tmp_path / "a.mp4")} == {(184, 132, 3)}
    with AnnotatedVideo(tmp_path / "b.mp4", result_of(track), checkpoint="c", version="1", stream=0) as video:
        for i, size in enumerate([(100, 200), (50, 70), (100, 200)]):
            video.add(Frame(np.full((*size, 3), 90, np.uint8), i, i / 10, 0))
        video.commit()
    assert [pixels.shape for _, pixels in read(tmp_path / "b.mp4")] == [(184, 200, 3)] * 3


def test_equal_times_are_kept_apart(tmp_path: Path) -> None:
    write(tmp_path / "a.mp4", result_of(Track(0, (scored(0.0, 20),))), [0.0, 0.0, 0.1])
    assert len(read(tmp_path / "a.mp4")) == 3


def test_without_x264_mpeg4_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoders = {"no_such_encoder": {}, "mpeg4": annotated.ENCODERS["mpeg4"]}
    monkeypatch.setattr(annotated, "ENCODERS", encoders)
    write(tmp_path / "a.mp4", result_of(Track(0, (scored(0.0, 20),))), [0.0, 0.1, 0.5])
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert container.streams[0].codec_context.name == "mpeg4"


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_nothing_is_left_of_an_unfinished_file(tmp_path: Path, error: type[BaseException]) -> None:
    (tmp_path / "a.mp4").write_bytes(b"old")
    result = result_of(Track(0, (scored(0.0, 20),)))

    def interrupted() -> None:
        with AnnotatedVideo(tmp_path / "a.mp4", result, checkpoint="c", version="1", stream=0) as video:
            video.add(Frame(np.zeros((120, 160, 3), np.uint8), 0, 0.0, 0))
            raise error

    with pytest.raises(error):
        interrupted()
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]
    assert (tmp_path / "a.mp4").read_bytes() == b"old"


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    result = result_of(Track(0, (scored(0.0, 20),)))

    def write_noise() -> None:
        with AnnotatedVideo(tmp_path / "a.mp4", result, checkpoint="c", version="1", stream=0) as video:
            for i in range(60):
                video.add(Frame(rng.integers(0, 255, (240, 320, 3), np.uint8), i, i / 10, 0))
            video.commit()

    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
        with pytest.raises(OutputError, match=r"cannot write .*a\.mp4"):
            write_noise()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())


# Whole scans


def clip(*, num_frames: int = 20) -> list[np.ndarray]:
    picture = cv2.resize(data.astronaut()[:300, 60:420], (300, 250), interpolation=cv2.INTER_AREA)
    return [np.roll(picture, i, axis=1) for i in range(num_frames)]


def test_scan_and_report_annotate(tmp_path: Path, untrained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both commands write the same frames; files that have changed or are broken are named and skipped."""
    monkeypatch.chdir(tmp_path)
    videos = tmp_path / "videos"
    videos.mkdir()
    write_video(videos / "a.mp4", [np.rot90(picture) for picture in clip()], rotation=-90)
    write_video(videos / "b.mp4", clip(), pts=[40 * i**2 for i in range(20)])
    (videos / "broken.mp4").write_bytes((videos / "a.mp4").read_bytes()[:3000])
    before = {path: path.read_bytes() for path in videos.iterdir()}
    options = ["--checkpoint", untrained, "--num-frames", 4]
    scanned = run("scan", "videos", "--out", "r.csv", "--annotate", "shown", *options)
    assert scanned.exit_code == 2  # the broken file
    assert "2 annotated in shown" in scanned.stderr
    assert {path: path.read_bytes() for path in videos.iterdir()} == before
    files = sorted(Path("shown").iterdir())
    assert [path.name[:2] for path in files] == ["a.", "b."]
    upright = read(files[0])
    assert [pixels.shape[1] for _, pixels in upright] == [300] * 20
    difference = np.abs(upright[4][1][:250].astype(int) - clip()[4])
    assert np.median(difference) < 6  # upright, and nothing covers the picture but boxes
    assert [round(time_s, 3) for time_s, _ in read(files[1])] == [0.04 * i**2 for i in range(20)]

    write_video(videos / "a.mp4", clip(num_frames=5))
    rebuilt = run("report", "r.csv.ledger", "--out", "again.csv", "--annotate", "later", "--annotate-top", 2)
    assert rebuilt.exit_code == 0
    assert "a.mp4: not annotated: changed" in rebuilt.stderr
    (again,) = Path("later").iterdir()
    assert again.name == files[1].name
    for (time_s, pixels), (before_s, before_pixels) in zip(read(again), read(files[1]), strict=True):
        assert time_s == before_s
        assert np.abs(pixels.astype(int) - before_pixels).mean() < 2  # x264 varies in the last bits


def test_equal_relative_paths_in_two_ledgers_are_two_videos(
    tmp_path: Path, untrained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        write_video(Path("a.mp4"), clip(num_frames=3))
        assert run("scan", "a.mp4", "--out", "r.csv", "--checkpoint", untrained, "--exit-zero").exit_code == 0
    monkeypatch.chdir(tmp_path)
    done = run("report", "one/r.csv.ledger", "two/r.csv.ledger", "--out", "both.csv", "--annotate", "shown")
    assert done.exit_code == 0, done.stderr
    assert len(list(Path("shown").glob("*.mp4"))) == 2


def test_a_damaged_video_is_annotated_in_part(tmp_path: Path, untrained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_video(Path("whole.mkv"), clip())
    data = Path("whole.mkv").read_bytes()
    Path("cut.mkv").write_bytes(data[: len(data) * 2 // 3])
    options = ["--checkpoint", untrained, "--num-frames", 4, "--exit-zero"]
    done = run("scan", "cut.mkv", "--out", "r.csv", "--annotate", "shown", *options)
    assert "cut.mkv: annotated only in part: " in done.stderr
    (shown,) = Path("shown").glob("*.mp4")
    assert 0 < len(read(shown)) < 20


def test_annotate_needs_a_ledger(tmp_path: Path, untrained: Path) -> None:
    write_video(tmp_path / "a.mp4", clip(num_frames=3))
    refused = run("scan", tmp_path / "a.mp4", "--checkpoint", untrained, "--annotate", tmp_path / "shown")
    assert refused.exit_code == 2
    assert "--annotate needs a ledger" in refused.stderr
