"""The frames chosen from synthetic timelines."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from dfscan.media.plan import (
    BURST_GAP_S,
    DECODE_ALL_FRAMES,
    MIN_SEEK_GAIN_FRAMES,
    Sampling,
    Timeline,
    plan_samples,
    seek_target,
)

TICKS_A_SECOND = 90_000


def steady(num_frames: int, *, fps: float = 25, gop: int = 12, first_s: float = 0.0) -> Timeline:
    return at_times(first_s + np.arange(num_frames) / fps, gop=gop)


def at_times(times_s: Sequence[float] | NDArray[np.float64], *, gop: int = 12) -> Timeline:
    ticks = np.rint(np.asarray(times_s, dtype=np.float64) * TICKS_A_SECOND).astype(np.int64)
    return Timeline(ticks, np.arange(len(ticks)) % gop == 0, 1 / TICKS_A_SECOND)


def chosen_s(timeline: Timeline, sampling: Sampling) -> list[float]:
    wanted = plan_samples(timeline, sampling).wanted
    return [round(float(time), 3) for time in timeline.pts[wanted] * timeline.time_base_s]


def bursts(times_s: list[float]) -> list[list[float]]:
    cuts = np.flatnonzero(np.diff(times_s) > BURST_GAP_S) + 1
    return [list(part) for part in np.split(times_s, cuts)]


@pytest.mark.parametrize(
    ("timeline", "num_frames", "expected_s"),
    [
        (steady(10), 5, [0.04, 0.12, 0.2, 0.28, 0.36]),
        (steady(10, first_s=7.0), 5, [7.04, 7.12, 7.2, 7.28, 7.36]),
        (steady(10), 10, [i / 25 for i in range(10)]),
        (steady(10), 32, [i / 25 for i in range(10)]),
        (steady(25), 1, [0.48]),
        (steady(1), 32, [0.0]),
        (steady(1), 1, [0.0]),
        (steady(2), 1, [0.04]),
    ],
)
def test_a_short_video_is_sampled_evenly(timeline: Timeline, num_frames: int, expected_s: list[float]) -> None:
    assert chosen_s(timeline, Sampling(num_frames)) == pytest.approx(expected_s)


def test_even_samples_cover_the_first_and_the_last_part() -> None:
    times_s = chosen_s(steady(250), Sampling(32))
    assert len(times_s) == 32
    assert times_s[0] < 10 / 32
    assert times_s[-1] >= 10 - 10 / 32
    assert np.ptp(np.diff(times_s)) <= 1 / 25 + 1e-9


@pytest.mark.parametrize("gop", [12, 50, 125, 250])
def test_a_long_video_is_sampled_in_bursts_from_key_frames(gop: int) -> None:
    timeline = steady(25 * 600, gop=gop)
    plan = plan_samples(timeline, Sampling(32))
    found = bursts(chosen_s(timeline, Sampling(32)))
    assert [len(burst) for burst in found] == [4] * 8
    assert not plan.decode_all
    assert timeline.is_key[plan.wanted[::4]].all()
    for i, burst in enumerate(found):
        assert i * 75 <= burst[0] < burst[-1] < (i + 1) * 75
        assert np.diff(burst) == pytest.approx([0.25] * 3, abs=0.04)


def test_a_burst_starts_in_the_middle_of_a_segment_without_key_frame() -> None:
    timeline = steady(25 * 600, gop=10**6)
    found = bursts(chosen_s(timeline, Sampling(32)))
    assert found[0][0] == 0.0, "the only key frame"
    assert [burst[0] for burst in found[1:]] == pytest.approx([75 * i + 37.5 for i in range(1, 8)], abs=0.1)


@pytest.mark.parametrize(
    ("num_frames", "sizes"),
    [
        (1, [1]),
        (2, [2]),
        (4, [4]),
        (5, [3, 2]),
        (6, [3, 3]),
        (10, [4, 3, 3]),
        (31, [4] * 7 + [3]),
        (33, [4] * 6 + [3] * 3),
    ],
)
def test_any_number_of_frames_is_divided_among_bursts(num_frames: int, sizes: list[int]) -> None:
    found = bursts(chosen_s(steady(25 * 600), Sampling(num_frames)))
    assert [len(burst) for burst in found] == sizes


@pytest.mark.parametrize("fps", [1, 2, 5, 10, 12.5, 23.976, 60])
@pytest.mark.parametrize("duration_s", [17, 40, 600])
def test_every_frame_rate_gives_the_requested_number_of_samples(fps: float, duration_s: float) -> None:
    timeline = steady(int(fps * duration_s), fps=fps, gop=int(fps * 3))
    plan = plan_samples(timeline, Sampling(32))
    assert len(plan.wanted) == min(32, len(timeline.pts))
    assert (np.diff(plan.wanted) > 0).all()


@pytest.mark.parametrize(
    ("timeline", "sampling", "expected_s", "is_cut_short"),
    [
        (steady(50), Sampling(every_s=0.5), [0.0, 0.48, 1.0, 1.48], False),
        (steady(50), Sampling(every_s=0.5, max_frames=4), [0.0, 0.48, 1.0, 1.48], False),
        (steady(50), Sampling(every_s=0.5, max_frames=3), [0.0, 0.48, 1.0], True),
        (steady(50), Sampling(num_frames=1, every_s=1.0), [0.0, 1.0], False),
        (steady(50, first_s=3.0), Sampling(every_s=1.0), [3.0, 4.0], False),
        (steady(3), Sampling(every_s=0.001), [0.0, 0.04, 0.08], False),
        (steady(3), Sampling(every_s=1e-12), [0.0, 0.04, 0.08], False),
        (steady(3), Sampling(every_s=1e12), [0.0], False),
        (steady(1), Sampling(every_s=1.0), [0.0], False),
        (steady(31, fps=30), Sampling(every_s=0.1), [round(i / 10, 3) for i in range(11)], False),
    ],
)
def test_every_s_samples_at_regular_intervals(
    timeline: Timeline, sampling: Sampling, expected_s: list[float], is_cut_short: bool
) -> None:
    plan = plan_samples(timeline, sampling)
    assert chosen_s(timeline, sampling) == pytest.approx(expected_s)
    assert plan.is_cut_short is is_cut_short


def test_every_s_picks_the_frames_on_screen_with_a_variable_rate() -> None:
    # On screen at 0, 1, ..., 9 s: the frame of 0 s, then that of 0.1 s until 5 s, then 5 s, 5.1 s (at 6, 7, 8), 9 s.
    timeline = at_times([0, 0.1, 5, 5.1, 9])
    assert chosen_s(timeline, Sampling(every_s=1.0)) == [0.0, 0.1, 5.0, 5.1, 9.0]
    assert chosen_s(at_times([0, 0.9, 1.1, 1.2]), Sampling(every_s=1.0)) == [0.0, 0.9]


def test_a_huge_timestamp_needs_no_extra_memory() -> None:
    timeline = Timeline(np.array([0, 1, 2, 2**50]), np.ones(4, np.bool_), 1.0)
    assert plan_samples(timeline, Sampling(every_s=1.0)).wanted.tolist() == [0, 1, 2, 3]


def test_max_frames_applies_to_every_s_only() -> None:
    plan = plan_samples(steady(50), Sampling(num_frames=8, max_frames=3))
    assert (len(plan.wanted), plan.is_cut_short) == (8, False)


def test_variable_frame_rates_are_sampled_by_time_not_by_number() -> None:
    quick, slow = np.arange(300) / 100, 3 + np.arange(30) / 10  # 3 s at 100 fps, 3 s at 10 fps
    times_s = chosen_s(at_times(np.concatenate([quick, slow])), Sampling(24))
    assert len(times_s) == 24
    assert sum(time < 3 for time in times_s) == 12


def test_stills_and_gaps_take_no_samples_from_other_parts() -> None:
    # 20 s of motion, a still of 560 s, 20 s of motion
    times_s = np.concatenate([np.arange(500) / 25, 580 + np.arange(500) / 25])
    found = bursts(chosen_s(at_times(times_s), Sampling(32)))
    assert [len(burst) for burst in found] == [4] * 8
    assert found[3][-1] < 20
    assert found[4][0] >= 580


@pytest.mark.parametrize("num_frames", [1, 5, 32])
@pytest.mark.parametrize(
    "times_s",
    [
        np.append(np.arange(200) / 25, 86400.0),  # one stray timestamp
        np.concatenate([np.arange(20) / 30, 60 + np.arange(127) / 30]),  # a still screen
        np.concatenate([np.arange(100) / 25 + 3600 * hour for hour in range(24)]),  # a camera triggered by motion
        np.concatenate([np.arange(39) / 1000, [0.5]]),
        np.concatenate([np.arange(1000) / 1000, 1 + np.arange(20) * 30.0]),
        np.arange(33) * 60.0,
        np.zeros(40),
    ],
    ids=["stray", "still", "motion", "late", "slides", "slow", "no times"],
)
def test_no_sample_is_missing_if_there_are_enough_frames(times_s: NDArray[np.float64], num_frames: int) -> None:
    wanted = plan_samples(at_times(times_s), Sampling(num_frames)).wanted
    assert len(wanted) == num_frames
    assert (np.diff(wanted) > 0).all()
    assert 0 <= wanted[0] <= wanted[-1] < len(times_s)


def test_samples_stay_even_despite_a_stray_timestamp() -> None:
    times_s = chosen_s(at_times(np.append(np.arange(250) / 25, 3600.0)), Sampling(32))
    assert np.diff(times_s[:-1]).max() <= 10 / 32 + 2 / 25
    assert times_s[-2] > 9


def test_repeated_timestamps_do_not_repeat_frames() -> None:
    timeline = at_times(np.repeat(np.arange(20) / 25, 2))
    plan = plan_samples(timeline, Sampling(32))
    assert len(np.unique(plan.wanted)) == len(plan.wanted)


@pytest.mark.parametrize(("num_frames", "decode_all"), [(DECODE_ALL_FRAMES, True), (DECODE_ALL_FRAMES + 1, False)])
def test_short_videos_are_decoded_completely(num_frames: int, decode_all: bool) -> None:
    assert plan_samples(steady(num_frames), Sampling()).decode_all is decode_all


@pytest.mark.parametrize(
    ("wanted", "position", "target"),
    [
        (0, 0, None),
        (49, 0, None),  # the only key frame before it is the current position
        (50, 0, 50),
        (99, 0, 50),
        (260, 0, 250),
        (50, 50 - MIN_SEEK_GAIN_FRAMES, 50),
        (50, 51 - MIN_SEEK_GAIN_FRAMES, None),  # decoding is cheaper than seeking
        (60, 55, None),
        (60, 80, None),  # already behind it
        (100, 1, 100),
    ],
)
def test_seek_target(wanted: int, position: int, target: int | None) -> None:
    assert seek_target(steady(300, gop=50), wanted=wanted, position=position) == target


def test_there_is_no_seek_target_without_key_frames() -> None:
    timeline = Timeline(np.arange(300), np.zeros(300, np.bool_), 1 / 25)
    assert seek_target(timeline, wanted=299, position=0) is None


@pytest.mark.parametrize(
    ("timeline", "duration_s", "frame_s"),
    [
        (steady(25), 1.0, 0.04),
        (steady(25, first_s=5), 1.0, 0.04),
        (steady(1), 0.0, 0.0),
        (at_times([0, 1, 1, 1, 2, 10]), 11.0, 1.0),
    ],
)
def test_durations_are_derived_from_timestamps(timeline: Timeline, duration_s: float, frame_s: float) -> None:
    assert timeline.duration_s == pytest.approx(duration_s)
    assert timeline.frame_s == pytest.approx(frame_s)
