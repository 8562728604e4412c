"""Shots: cuts, dissolves and blank frames are detected in decoded video, and movements are not."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from dfscan.media.shots import MAX_KEPT, ShotCounter
from dfscan.types import Dissolve
from tests.pictures import astronaut, moved, other_person
from tests.videos import write_video

Picture = np.ndarray
FPS = 25
SAMPLE_EVERY = 7


def counted(path: Path, *, sample_every: int = SAMPLE_EVERY) -> tuple[list[int], list[Dissolve]]:
    """Return the shot of each sampled frame, without dissolves, and the dissolves between them."""
    counter, shots = ShotCounter(), []
    with av.open(str(path)) as container:
        for i, frame in enumerate(container.decode(video=0)):
            counter.add(frame)
            if i % sample_every == sample_every - 1:
                shots.append(counter.sample())
    return shots, counter.dissolves()


def shots_of(path: Path) -> list[int]:
    """Return the shot of each sampled frame."""
    shots, dissolves = counted(path)
    return [shot + sum(each.middle <= i for each in dissolves) for i, shot in enumerate(shots)]


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


def frame_of(levels: np.ndarray) -> av.VideoFrame:
    """Return a frame of 64 x 64 pixels that shows the levels, (16, 16), in squares."""
    return av.VideoFrame.from_ndarray(np.rint(np.kron(levels, np.ones((4, 4)))).astype(np.uint8), format="gray")


def dissolves_of(shares: np.ndarray, *, change: float, noise: float = 0.0) -> list[Dissolve]:
    """Return the dissolves of frames with the given shares of a second picture; every frame is a sample.

    Args:
        shares: share of the second picture in each frame.
        change: mean difference of the pictures, in levels.
        noise: amplitude of a movement that has nothing to do with the dissolve, in levels.
    """
    rng = np.random.default_rng(3)
    first, way = rng.uniform(60, 180, (16, 16)), rng.choice([-change, change], (16, 16))
    sway = rng.normal(0, noise, (2, 16, 16))
    counter = ShotCounter()
    for i, share in enumerate(shares.tolist()):
        counter.add(frame_of(first + share * way + np.sin(0.3 * i) * sway[0] + np.cos(0.2 * i) * sway[1]))
        counter.sample()
    return counter.dissolves()


def ramp(num_before: int, length: int, num_after: int) -> np.ndarray:
    return np.clip((np.arange(num_before + length + num_after) - num_before + 1) / (length + 1), 0, 1)


@pytest.mark.parametrize("num_before", [25, 60, MAX_KEPT - 80, MAX_KEPT - 60, MAX_KEPT - 20, MAX_KEPT, MAX_KEPT + 40])
@pytest.mark.parametrize("length", [12, 18, 25, 50])
def test_a_dissolve_is_found_where_it_is(num_before: int, length: int) -> None:
    (dissolve,) = dissolves_of(ramp(num_before, length, 70), change=7, noise=0.4)
    tolerance = 1 + round(0.15 * length)
    assert abs(dissolve.first - num_before) <= tolerance
    assert abs(dissolve.middle - (num_before + length / 2)) <= tolerance
    assert abs(dissolve.end - (num_before + length)) <= tolerance


def test_two_dissolves_in_a_row_are_two() -> None:
    there, back = ramp(40, 12, 20), 1 - ramp(20, 12, 40)
    found = dissolves_of(np.concatenate([there, back]), change=10, noise=0.2)
    assert [abs(each.middle - middle) <= 2 for each, middle in zip(found, (46, 98), strict=True)] == [True, True]


def test_a_dissolve_within_a_burst_is_found() -> None:
    assert len(dissolves_of(ramp(4, 10, 5), change=12)) == 1


@pytest.mark.parametrize("noise", [2.0, 8.0])
def test_a_movement_is_no_dissolve(noise: float) -> None:
    assert dissolves_of(np.zeros(300), change=0, noise=noise) == []
