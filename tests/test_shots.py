"""Shots: cuts, dissolves and blank frames are detected in decoded video, and movements are not."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from dfscan.media.shots import ShotCounter
from tests.pictures import astronaut, moved, other_person
from tests.videos import write_video

Picture = np.ndarray
FPS = 25
SAMPLE_EVERY = 7


def shots_of(path: Path, *, sample_every: int = SAMPLE_EVERY) -> list[int]:
    """Return the shot of each sampled frame."""
    counter, shots = ShotCounter(), []
    with av.open(str(path)) as container:
        for i, frame in enumerate(container.decode(video=0)):
            counter.add(frame)
            if i % sample_every == sample_every - 1:
                shots.append(counter.sample())
    return shots


def shaken(picture: Picture, i: int) -> Picture:
    return moved(picture, 30 * np.sin(i * 0.6), 25 * np.cos(i * 0.5), 1.3)


def mixed(share: float) -> Picture:
    return np.rint((1 - share) * astronaut() + share * other_person()).astype(np.uint8)


SCENES = {
    "still": ([astronaut()] * 70, 1),
    "shaking": ([shaken(astronaut(), i) for i in range(70)], 1),
    "panning": ([moved(astronaut(), 4 * i - 140, 0, 1.8) for i in range(70)], 1),
    "cut": ([astronaut()] * 30 + [other_person()] * 40, 2),
    "cut while shaking": ([shaken(astronaut() if i < 33 else other_person(), i) for i in range(70)], 2),
    "three cuts": ([astronaut() if i // 20 % 2 else other_person() for i in range(80)], 4),
}


@pytest.mark.parametrize(("frames", "num_shots"), SCENES.values(), ids=SCENES)
def test_cuts_are_detected_and_movements_are_not_cuts(frames: list[Picture], num_shots: int, tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", frames, fps=FPS)
    shots = shots_of(tmp_path / "a.mp4")
    assert len(set(shots)) == num_shots
    assert shots == sorted(shots)


@pytest.mark.parametrize("length", [8, 14, 25])
def test_a_dissolve_separates_shots(length: int, tmp_path: Path) -> None:
    frames = [mixed(float(np.clip((i - 30) / length, 0, 1))) for i in range(90)]
    write_video(tmp_path / "a.mp4", frames, fps=FPS)
    shots = shots_of(tmp_path / "a.mp4")
    assert shots[0] < shots[-1]


def test_a_fade_through_black_separates_shots(tmp_path: Path) -> None:
    levels = [min(1.0, abs(i - 40) / 12) for i in range(80)]
    people = [astronaut() if i < 40 else other_person() for i in range(80)]
    frames = [np.rint(person * level).astype(np.uint8) for person, level in zip(people, levels, strict=True)]
    write_video(tmp_path / "a.mp4", frames, fps=FPS)
    shots = shots_of(tmp_path / "a.mp4")
    assert shots[0] < shots[-1]


def test_skipped_frames_separate_shots(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", [astronaut()] * 4, fps=FPS)
    counter = ShotCounter()
    with av.open(str(tmp_path / "a.mp4")) as container:
        first, second, *_ = container.decode(video=0)
    counter.add(first)
    before = counter.sample()
    counter.skip()
    counter.add(second)
    assert counter.sample() == before + 1


@pytest.mark.parametrize(
    "pixel_format",
    ["yuv420p", "yuv444p", "yuv420p10le", "yuv422p16be", "gray", "gray10le", "rgb24", "bgra", "yuyv422", "nv12"],
)
@pytest.mark.parametrize("size_px", [(2, 2), (62, 34), (320, 240)])
def test_every_pixel_format_and_size_is_supported(pixel_format: str, size_px: tuple[int, int]) -> None:
    width, height = size_px
    counter = ShotCounter()
    for level in (20, 20, 220):
        picture = np.full((height, width, 3), level, np.uint8)
        picture[: height // 2] //= 2
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        counter.add(frame.reformat(format=pixel_format))
        counter.sample()
    assert counter.sample() == 1
