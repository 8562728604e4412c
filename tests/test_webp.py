"""Animated WebP compared with Pillow, which uses the reference library."""

from __future__ import annotations

import io
from io import FileIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dfscan.errors import VideoError
from dfscan.media.decode import Decoding
from dfscan.media.isolate import Decoded, Ended, Limits, decode_videos
from dfscan.media.plan import Sampling
from dfscan.media.webp import read_animation
from dfscan.types import Frame, VideoInfo

DURATIONS_MS = [100, 40, 500, 60, 100]


def animation(path: Path, *, lossless: bool, transparent: bool = False) -> None:
    """Write five frames with a small moving square, so that most frames are stored as a part of the canvas."""
    rng = np.random.default_rng(0)
    ground = np.kron(rng.integers(0, 255, (6, 8, 4), np.uint8), np.ones((16, 16, 1), np.uint8))
    ground[..., 3] = np.where(ground[..., 3] < 99, 90, 255) if transparent else 255
    frames = []
    for i in range(len(DURATIONS_MS)):
        pixels = ground.copy()
        pixels[10:30, 20 * i : 20 * i + 20] = (250, 20 * i, 10, 255)
        frames.append(Image.fromarray(pixels))
    frames[0].save(
        path, save_all=True, append_images=frames[1:], duration=DURATIONS_MS, lossless=lossless, quality=95, kmax=4
    )


def expected(path: Path) -> list[np.ndarray]:
    pictures = []
    with Image.open(path) as image:
        for i in range(image.n_frames):
            image.seek(i)
            pixels = np.asarray(image.convert("RGBA"), np.uint16)
            pictures.append((pixels[..., :3] * pixels[..., 3:] + 127) // 255)
    return pictures


def decoded(path: Path, num_frames: int = 32) -> tuple[list[Frame], VideoInfo, str | None]:
    with FileIO(path) as file:
        decoding = Decoding(file, Sampling(num_frames))
        return list(decoding.samples()), decoding.info, decoding.damage


@pytest.mark.parametrize("lossless", [True, False])
@pytest.mark.parametrize("transparent", [True, False])
def test_frames_equal_those_of_the_reference_library(tmp_path: Path, lossless: bool, transparent: bool) -> None:
    animation(tmp_path / "a.webp", lossless=lossless, transparent=transparent)
    frames, info, damage = decoded(tmp_path / "a.webp")
    assert [round(frame.time_s * 1000) for frame in frames] == [0, 100, 140, 640, 700]
    assert (info.codec, info.num_frames, info.duration_s, damage) == ("webp", 5, 0.8, None)
    assert (info.width_px, info.height_px) == (128, 96)
    for frame, want in zip(frames, expected(tmp_path / "a.webp"), strict=True):
        difference = np.abs(frame.pixels.astype(int) - want)
        assert difference.max() <= 1 if lossless else np.median(difference) <= 1  # chroma upsampling differs at edges


def test_shots_are_counted(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    blocks, change = rng.integers(40, 200, (6, 8, 3)), rng.choice([-25, 25], (6, 8, 1))
    here, there = (np.kron(each, np.ones((16, 16, 1))) for each in (blocks, blocks + change))
    shares = [0] * 6 + [1] * 6 + [1 - i / 12 for i in range(13)] + [0] * 6
    pictures = [np.rint((1 - share) * here + share * there).astype(np.uint8) for share in shares]
    for i, picture in enumerate(pictures):
        picture[0, i] = 255 - picture[0, i]  # the encoder would merge equal frames
    frames = [Image.fromarray(picture) for picture in pictures]
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:], duration=40, lossless=True)
    with FileIO(tmp_path / "a.webp") as file:
        decoding = Decoding(file, Sampling(len(frames)))
        shots = [frame.shot for frame in decoding.samples()]
    assert shots == [0] * 6 + [1] * 25
    (dissolve,) = decoding.dissolves
    assert 17 <= dissolve.middle <= 19


def test_samples_are_composed_from_all_frames_before_them(tmp_path: Path) -> None:
    animation(tmp_path / "a.webp", lossless=True)
    (frame,), _, _ = decoded(tmp_path / "a.webp", 1)
    at = [0, 100, 140, 640, 700].index(round(frame.time_s * 1000))
    assert at > 0
    assert np.abs(frame.pixels.astype(int) - expected(tmp_path / "a.webp")[at]).max() <= 1


def test_a_truncated_animation_is_reported_as_damaged(tmp_path: Path) -> None:
    animation(tmp_path / "a.webp", lossless=True)
    data = (tmp_path / "a.webp").read_bytes()
    with FileIO(tmp_path / "a.webp") as file:
        whole = read_animation(file)
    assert whole is not None
    first_end = whole.frames[0].position + whole.frames[0].size_bytes
    counts = []
    for length in range(30, len(data), 97):
        (tmp_path / "torn.webp").write_bytes(data[:length])
        if length < first_end:
            with pytest.raises(VideoError, match="its animation holds no frames"):
                decoded(tmp_path / "torn.webp")
            continue
        frames, _, damage = decoded(tmp_path / "torn.webp")
        assert damage == "cut off: the file ends early"
        counts.append(len(frames))
    assert counts == sorted(counts)
    assert (counts[0], counts[-1]) == (1, 4)


def test_damaged_frames_are_counted_and_the_others_are_decoded(tmp_path: Path) -> None:
    animation(tmp_path / "a.webp", lossless=True)
    with FileIO(tmp_path / "a.webp") as file:
        found = read_animation(file)
    assert found is not None
    data = bytearray((tmp_path / "a.webp").read_bytes())
    data[found.frames[2].position : found.frames[2].position + 4] = b"JUNK"
    (tmp_path / "a.webp").write_bytes(data)
    frames, _, damage = decoded(tmp_path / "a.webp")
    assert len(frames) == 4
    assert damage == "1 packets could not be decoded, 0 frames are corrupt"


def test_a_still_image_is_not_an_animation(tmp_path: Path) -> None:
    Image.new("RGBA", (8, 8), (1, 2, 3, 99)).save(tmp_path / "a.webp")
    with FileIO(tmp_path / "a.webp") as file:
        assert read_animation(file) is None
    data = io.BytesIO()
    Image.new("RGB", (8, 8)).save(data, "png")
    (tmp_path / "b.webp").write_bytes(data.getvalue())
    with FileIO(tmp_path / "b.webp") as file:
        assert read_animation(file) is None


def test_the_sandboxed_decoder_reads_webp(tmp_path: Path) -> None:
    animation(tmp_path / "a.webp", lossless=False, transparent=True)
    *events, last = decode_videos([str(tmp_path / "a.webp")], sampling=Sampling(32), num_workers=1, limits=Limits(60))
    assert isinstance(last, Ended)
    assert last.failure is None
    assert sum(isinstance(event, Decoded) for event in events) == 5
