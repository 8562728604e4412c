"""Decode the pictures that a plan asks for. Used in the decoding child only; see `media.isolate` for the door."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from io import FileIO
from itertools import chain
from typing import TypeAlias

import av
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from dfscan.errors import VideoError
from dfscan.media.container import MAX_FRAME_PX, Survey, is_encrypted, open_video, survey
from dfscan.media.picture import Deinterlacer, is_hdr, rotation_deg, to_rgb
from dfscan.media.plan import BURST_GAP_S, Plan, Sampling, plan_samples, seek_target
from dfscan.media.shots import ShotCounter
from dfscan.types import Frame, VideoInfo

MAX_ERRORS_IN_A_ROW = 250
"""After so many undecodable packets without one picture the rest is given up."""
MAX_EARLY_END_S = 0.5
"""Pictures that end this much before their packets do are damage, even where no decoder complained."""

SEEK_MARGINS_S = (0.0, 1.0, 10.0, float(1 << 31))
"""How far before a key frame to aim, tried in this order; the last is the start of the file."""

Packet: TypeAlias = "av.Packet[VideoStream]"


@dataclass
class Decoding:
    """One video being decoded: iterate `samples`, then read `info`, `damage` and `is_cut_short`."""

    file: FileIO
    """Open for reading; its position is moved."""
    sampling: Sampling
    check_time: Callable[[], None] = field(default=lambda: None)
    """Called for every packet; raises to stop."""

    def __post_init__(self) -> None:
        self.info = VideoInfo(size_bytes=os.fstat(self.file.fileno()).st_size)
        self.num_errors = 0
        self.num_corrupt = 0
        self.is_cut_short = False
        self.surveyed_cpu_s = 0.0
        """CPU seconds of this process when the survey was done; 0 before."""
        self._survey_damage: str | None = None
        self._end_missing_s = 0.0

    @property
    def damage(self) -> str | None:
        """One sentence on what could not be read, or None."""
        if self._survey_damage:
            return self._survey_damage
        if self.num_errors or self.num_corrupt:
            return f"{self.num_errors} packets could not be decoded, {self.num_corrupt} pictures are corrupt"
        if self._end_missing_s > MAX_EARLY_END_S:
            return f"the last {self._end_missing_s:.1f} s could not be decoded"
        return None

    def samples(self) -> Iterator[Frame]:
        """Yield the planned pictures in order of time.

        Raises:
            VideoError: nothing could be decoded, encrypted, too large, or as `open_video`.
        """
        surveyed = survey(self.file, self.check_time)
        self.surveyed_cpu_s = time.process_time()
        plan = plan_samples(surveyed.timeline, self.sampling)
        self.is_cut_short = plan.is_cut_short
        self._survey_damage = surveyed.damage
        self._note_timeline(surveyed)
        with open_video(self.file) as (container, stream):
            self.info = replace(self.info, codec=stream.codec_context.codec.canonical_name)
            reader = _Reader(self, container, stream, surveyed)
            yield from self._emit(reader, plan, stream)
            self._end_missing_s = reader.missing_s()
        if not reader.num_frames:
            raise VideoError("no_frames", f"no picture could be decoded ({self.damage or 'the stream gives none'})")

    def _note_timeline(self, surveyed: Survey) -> None:
        timeline = surveyed.timeline
        num_frames, duration_s = len(timeline.pts), timeline.duration_s
        fps = (num_frames - 1) / (duration_s - timeline.frame_s) if num_frames > 1 and timeline.frame_s else None
        self.info = replace(self.info, num_frames=num_frames, duration_s=duration_s or None, fps=fps)

    def _emit(self, reader: _Reader, plan: Plan, stream: VideoStream) -> Iterator[Frame]:
        index, burst, last_s = 0, 0, None
        for picture, time_s in reader.pictures(plan):
            burst += last_s is not None and time_s - last_s > BURST_GAP_S
            if not index:
                self._note_picture(picture)
            pixels = to_rgb(picture, stream.sample_aspect_ratio)
            if not index:
                self.info = replace(self.info, width_px=pixels.shape[1], height_px=pixels.shape[0])
            yield Frame(pixels, index, time_s, burst, reader.shots.sample())
            index, last_s = index + 1, time_s

    def _note_picture(self, picture: VideoFrame) -> None:
        self.info = replace(self.info, rotation_deg=rotation_deg(picture), is_hdr=is_hdr(picture))


class _Reader:
    """Moves through one open stream, decoding as little as the plan allows."""

    def __init__(self, job: Decoding, container: InputContainer, stream: VideoStream, surveyed: Survey) -> None:
        self._job = job
        self._container = container
        self._stream = stream
        self._survey = surveyed
        self._timeline = surveyed.timeline
        self._can_seek = surveyed.has_clock
        self._seek_margins_s = list(SEEK_MARGINS_S)
        self._start_s = _start_s(container, surveyed)
        self._last_tick: int | None = None
        self._ran_out = False
        self.num_frames = 0
        self.shots = ShotCounter()

    def pictures(self, plan: Plan) -> Iterator[tuple[VideoFrame, float]]:
        """Yield each wanted picture with its time in seconds; afterwards drain the stream if all is decoded."""
        decoded = self._decode(self._container.demux(self._stream))
        ticks = self._timeline.pts[plan.wanted]
        at = 0
        while at < len(ticks):
            key = None if plan.decode_all or self._is_near(ticks[at]) else self._seek_target(int(plan.wanted[at]))
            packets = None if key is None else self._packets_from(key)
            if key is not None and packets is not None:
                self.shots.skip()
                decoded = self._decode(packets, int(self._timeline.pts[key]))
            found = next(((picture, tick) for picture, tick in decoded if tick >= ticks[at]), None)
            if found is None:
                self._ran_out = True
                break
            picture, tick = found
            yield picture, max(0.0, tick * self._timeline.time_base_s - self._start_s)
            at = max(at + 1, int(np.searchsorted(ticks, tick, side="right")))
        if plan.decode_all:
            for _ in decoded:
                pass
            self._ran_out = True

    def missing_s(self) -> float:
        """Seconds from the last picture that the stream gave to the last that it announced; 0 unless run to its end."""
        if self._last_tick is None or not self._ran_out:
            return 0.0
        return max(0.0, float(self._timeline.pts[-1] - self._last_tick) * self._timeline.time_base_s)

    def _is_near(self, tick: int) -> bool:
        """Whether a picture belongs to the burst of the last one: all between are decoded, or cuts would be missed."""
        if self._last_tick is None:
            return False
        return (tick - self._last_tick) * self._timeline.time_base_s <= BURST_GAP_S

    def _seek_target(self, wanted: int) -> int | None:
        if not self._can_seek:
            return None
        at = 0 if self._last_tick is None else int(np.searchsorted(self._timeline.pts, self._last_tick, side="right"))
        return seek_target(self._timeline, wanted=wanted, position=at)

    def _packets_from(self, position: int) -> Iterator[Packet] | None:
        """Packets from the key frame at `position`, or from one before it; None where that cannot be reached.

        Some containers are searched by decoding time: seeking to the time at which a key frame is shown lands
        behind it then, so the aim is moved back until it is not.
        """
        target = int(self._timeline.pts[position])
        while self._seek_margins_s:
            margin = round(self._seek_margins_s[0] / self._timeline.time_base_s)
            with suppress(av.error.FFmpegError, ValueError):
                self._container.seek(max(target - margin, int(self._timeline.pts[0])), stream=self._stream)
                packets = self._container.demux(self._stream)
                key = next((packet for packet in packets if packet.is_keyframe and packet.pts is not None), None)
                if key is not None and key.pts is not None and key.pts <= target:
                    return chain([key], packets)
            del self._seek_margins_s[0]
        self._can_seek = False
        return None

    def _decode(self, packets: Iterator[Packet], from_tick: int | None = None) -> Iterator[tuple[VideoFrame, int]]:
        """Yield (picture, tick) from here to the end; after a seek, pictures before `from_tick` are dropped.

        Those lean on pictures before the key frame, so a decoder gives them damaged or not at all.
        """
        weave = Deinterlacer()
        for picture in self._tolerant(packets):
            if from_tick is not None and picture.pts is not None and picture.pts < from_tick:
                continue
            self._job.num_corrupt += picture.is_corrupt
            for whole in weave.push(picture):
                yield self._counted(whole)
        for whole in weave.flush():
            yield self._counted(whole)

    def _counted(self, picture: VideoFrame) -> tuple[VideoFrame, int]:
        if picture.width * picture.height > MAX_FRAME_PX:
            raise VideoError("too_large", f"a picture of {picture.width} x {picture.height} is beyond what is decoded")
        tick = self._tick(picture)
        self.shots.add(picture)
        self.num_frames += 1
        self._last_tick = tick
        return picture, tick

    def _tick(self, picture: VideoFrame) -> int:
        if not self._survey.has_clock:
            return int(self._timeline.pts[min(self.num_frames, len(self._timeline.pts) - 1)])
        if picture.pts is None or picture.time_base is None:
            return self._timeline_tick_after_last()
        # The deinterlacer counts in half ticks.
        return round(picture.pts * float(picture.time_base) / self._timeline.time_base_s)

    def _timeline_tick_after_last(self) -> int:
        at = 0 if self._last_tick is None else np.searchsorted(self._timeline.pts, self._last_tick, side="right")
        return int(self._timeline.pts[min(at, len(self._timeline.pts) - 1)])

    def _tolerant(self, packets: Iterator[Packet]) -> Iterator[VideoFrame]:
        """Decode on past damage, counting it."""
        errors_in_a_row = 0
        while errors_in_a_row < MAX_ERRORS_IN_A_ROW:
            self._job.check_time()
            try:
                packet = next(packets)
            except StopIteration:
                return
            except av.error.MemoryError:
                raise
            except (av.error.FFmpegError, ValueError):
                self._job.num_errors += 1
                return
            if is_encrypted(packet):
                continue
            try:
                pictures = packet.decode()
            except av.error.EOFError:
                return
            except av.error.MemoryError:  # --max-memory is reached: a limit, no damage
                raise
            except (av.error.FFmpegError, ValueError):
                self._job.num_errors += 1
                errors_in_a_row += 1
                continue
            if pictures:
                errors_in_a_row = 0
            yield from pictures


def _start_s(container: InputContainer, surveyed: Survey) -> float:
    """Where the file's own timeline begins: a player shows this moment as 0:00."""
    if not surveyed.has_clock:
        return 0.0
    first_s = float(surveyed.timeline.pts[0]) * surveyed.timeline.time_base_s
    if container.start_time is None:
        return first_s
    return min(first_s, container.start_time / av.time_base)
