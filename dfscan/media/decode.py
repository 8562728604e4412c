"""Decode the frames that a plan requests. Used in the decoding child only; the entry point is `media.isolate`."""

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
from dfscan.media.facts import read_facts, with_stream_facts
from dfscan.media.picture import Deinterlacer, is_hdr, rotation_deg, to_rgb
from dfscan.media.plan import BURST_GAP_S, Plan, Sampling, Timeline, plan_samples, seek_target
from dfscan.media.shots import ShotCounter
from dfscan.media.webp import WebpAnimation, animation_pictures, read_animation
from dfscan.types import Dissolve, FileFacts, Frame, VideoInfo

MAX_ERRORS_IN_A_ROW = 250
"""Decoding stops after this many consecutive undecodable packets."""
MAX_EARLY_END_S = 0.5
"""A stream whose frames end this much before its packets is damaged, even if the decoder reported no error."""

SEEK_MARGINS_S = (0.0, 1.0, 10.0, float(1 << 31))
"""Seek this far before a key frame, trying the values in this order; the last one is the start of the file."""

Packet: TypeAlias = "av.Packet[VideoStream]"


@dataclass
class Decoding:
    """Decodes one video: iterate over `samples`, then read `info`, `damage` and the other results."""

    file: FileIO
    """Open for reading; decoding changes its position."""
    sampling: Sampling
    check_time: Callable[[], None] = field(default=lambda: None)
    """Called for every packet; raises an exception to stop decoding."""

    def __post_init__(self) -> None:
        self.info = VideoInfo(size_bytes=os.fstat(self.file.fileno()).st_size)
        self.facts: FileFacts | None = None
        """None until the container is open."""
        self.num_errors = 0
        self.num_corrupt = 0
        self.num_missing = 0
        """Number of requested samples for which the streams have no frame."""
        self.is_cut_short = False
        self.start_s = 0.0
        """Start of the file on the clock of the samples' times; a player shows this moment as 0:00."""
        self.skipped: list[str] = []
        """The video streams that were not scanned, each with the reason."""
        self.dissolves: list[Dissolve] = []
        self.surveyed_cpu_s = 0.0
        """CPU seconds of this process at the end of the survey; 0 before."""
        self._survey_damage: str | None = None
        self._end_missing_s = 0.0
        self._num_samples = 0
        self._burst = -1

    @property
    def damage(self) -> str | None:
        """One sentence on the parts that could not be read; None if there are none."""
        if self._survey_damage:
            return self._survey_damage
        if self.num_errors or self.num_corrupt:
            return f"{self.num_errors} packets could not be decoded, {self.num_corrupt} frames are corrupt"
        if self._end_missing_s > MAX_EARLY_END_S:
            return f"the last {self._end_missing_s:.1f} s could not be decoded"
        return None

    def samples(self) -> Iterator[Frame]:
        """Yield the planned frames, stream by stream, the main one first, and in order of time within each stream.

        Times are on the clock of the stream. Subtract `start_s` to get the time since the start of the file.

        Raises:
            VideoError: no frame could be decoded, or the video is encrypted or too large; see also `open_video`.
        """
        if animation := read_animation(self.file):
            yield from self._animation_samples(animation)
            return
        surveys = survey(self.file, self.sampling.streams, self.check_time, self._note_container)
        if self.facts:
            main = surveys.streams[0]
            self.facts = with_stream_facts(self.facts, main.timeline, num_bytes=main.num_bytes, encoder=main.encoder)
        self.surveyed_cpu_s = time.process_time()
        self._survey_damage = next((each.damage for each in surveys.streams if each.damage), None)
        problems = []
        for surveyed in surveys.streams:
            try:
                yield from self._stream_samples(surveyed)
            except VideoError as error:
                problems.append(f"stream {surveyed.stream}: {error}")
                if error.code == "timeout" or len(problems) == len(surveys.streams):
                    raise
        self.skipped = surveys.skipped + problems
        self.info = replace(self.info, num_skipped_streams=len(self.skipped))

    def _stream_samples(self, surveyed: Survey) -> Iterator[Frame]:
        plan = plan_samples(surveyed.timeline, self.sampling)
        self.is_cut_short |= plan.is_cut_short
        num_before = self._num_samples
        if not num_before:
            self._note_timeline(surveyed)
        with open_video(self.file, surveyed.stream) as (container, stream):
            if not num_before:
                self.info = replace(self.info, codec=stream.codec_context.codec.canonical_name)
            self.start_s = 0.0
            if surveyed.has_clock:
                self.start_s = float(surveyed.timeline.pts[0]) * surveyed.timeline.time_base_s
                if container.start_time is not None:
                    self.start_s = min(self.start_s, container.start_time / av.time_base)
            reader = _Reader(self, container, stream, surveyed)
            last_s = None
            for picture, time_s, number in reader.pictures(plan):
                self._burst += last_s is None or time_s - last_s > BURST_GAP_S
                pixels = to_rgb(picture, stream.sample_aspect_ratio)
                if last_s is None:  # HDR counts in any stream, the rest of `info` only in the first one
                    self.info = replace(self.info, is_hdr=self.info.is_hdr or is_hdr(picture))
                if not self._num_samples:
                    height_px, width_px, _ = pixels.shape
                    angle = rotation_deg(picture)
                    self.info = replace(self.info, width_px=width_px, height_px=height_px, rotation_deg=angle)
                index, shot = self._num_samples, reader.shots.sample()
                yield Frame(pixels, index, time_s, self._burst, number=number, stream=stream.index, shot=shot)
                self._num_samples += 1
                last_s = time_s
            self.dissolves += reader.shots.dissolves(num_before)
            self._end_missing_s = max(self._end_missing_s, reader.missing_s())
        if not reader.num_frames:
            raise VideoError("no_frames", f"no frame could be decoded ({self.damage or 'the stream gives none'})")
        self._note_missing(plan, self._num_samples - num_before)

    def _note_missing(self, plan: Plan, num_given: int) -> None:
        """Count the requested samples for which the stream had no frame."""
        asked = len(plan.wanted) if self.sampling.every_s is not None else self.sampling.num_frames
        self.num_missing += asked - num_given

    def _animation_samples(self, animation: WebpAnimation) -> Iterator[Frame]:
        wanted_stream = self.sampling.streams
        if wanted_stream not in ("all", "main", 0):
            raise VideoError("no_stream", f"has no video stream {wanted_stream}; its video streams: 0. Change --stream")
        self.facts = FileFacts(container="webp", num_audio_streams=0)
        if not animation.frames:
            raise VideoError("no_frames", "its animation holds no frames; save it again, or look for a whole copy")
        if animation.width_px * animation.height_px > MAX_FRAME_PX:
            size = f"{animation.width_px} x {animation.height_px}"
            raise VideoError("too_large", f"a frame of {size} is beyond what is decoded")
        *starts, end = animation.start_ms
        timeline = Timeline(np.array(starts), np.ones(len(starts), np.bool_), 1e-3)
        plan = plan_samples(timeline, self.sampling)
        self.is_cut_short = plan.is_cut_short
        self._survey_damage = "cut off: the file ends early" if animation.is_cut_off else None
        self._note_timeline(Survey(0, timeline, True, None))
        self.info = replace(self.info, codec="webp", width_px=animation.width_px, height_px=animation.height_px)
        self.info = replace(self.info, duration_s=end / 1e3)
        self.surveyed_cpu_s = time.process_time()
        index, burst, last_s, wanted = 0, 0, None, set(plan.wanted.tolist())
        shots = ShotCounter()
        for i, canvas in enumerate(animation_pictures(self.file, animation)):
            self.check_time()
            self.num_errors += canvas is None
            if canvas is None:
                continue
            shots.add(VideoFrame.from_ndarray(canvas, format="rgb24"))
            if i not in wanted:
                continue
            time_s = starts[i] / 1e3
            burst += last_s is not None and time_s - last_s > BURST_GAP_S
            yield Frame(canvas.copy(), index, time_s, burst, number=i, shot=shots.sample())
            index, last_s = index + 1, time_s
        self.dissolves = shots.dissolves()
        if not index:
            raise VideoError("no_frames", f"no frame could be decoded ({self.damage})")
        self._note_missing(plan, index)

    def _note_container(self, container: InputContainer) -> None:
        self.facts = read_facts(self.file, container)

    def _note_timeline(self, surveyed: Survey) -> None:
        timeline = surveyed.timeline
        num_frames, duration_s = len(timeline.pts), timeline.duration_s
        fps = (num_frames - 1) / (duration_s - timeline.frame_s) if num_frames > 1 and timeline.frame_s else None
        self.info = replace(self.info, num_frames=num_frames, duration_s=duration_s or None, fps=fps)


class _Reader:
    """Reads one open stream and decodes as little as the plan allows."""

    def __init__(self, job: Decoding, container: InputContainer, stream: VideoStream, surveyed: Survey) -> None:
        self._job = job
        self._container = container
        self._stream = stream
        self._survey = surveyed
        self._timeline = surveyed.timeline
        self._can_seek = surveyed.has_clock
        self._seek_margins_s = list(SEEK_MARGINS_S)
        self._last_tick: int | None = None
        self._ran_out = False
        self.num_frames = 0
        self.shots = ShotCounter()

    def pictures(self, plan: Plan) -> Iterator[tuple[VideoFrame, float, int | None]]:
        """Yield each wanted frame with its time in seconds and its position in presentation order, None if unknown.

        Drain the stream if all is to be decoded.
        """
        decoded = self._decode(self._container.demux(self._stream))
        pts, time_base_s = self._timeline.pts, self._timeline.time_base_s
        for wanted in plan.wanted.tolist():
            # There is no seek within a burst, because it could miss cuts.
            is_near = self._last_tick is not None and (int(pts[wanted]) - self._last_tick) * time_base_s <= BURST_GAP_S
            may_seek = self._can_seek and not plan.decode_all and not is_near
            key = seek_target(self._timeline, wanted=wanted, position=self._next_position()) if may_seek else None
            packets = None if key is None else self._packets_from(key)
            if key is not None and packets is not None:
                self.shots.skip()
                decoded = self._decode(packets, int(pts[key]))
            found = next(((frame, tick) for frame, tick in decoded if tick >= pts[wanted]), None)
            if found is None:
                self._ran_out = True
                break
            frame, tick = found
            number: int | None = None
            if self._survey.has_clock:
                at = int(np.searchsorted(pts, tick))
                number = at if at < len(pts) and pts[at] == tick else None
            elif not self._job.num_errors:
                number = self.num_frames - 1
            yield frame, tick * time_base_s, number
        if plan.decode_all:
            for _ in decoded:
                pass
            self._ran_out = True

    def missing_s(self) -> float:
        """Return the seconds from the last decoded to the last announced frame; 0 unless the stream ran to its end."""
        if self._last_tick is None or not self._ran_out:
            return 0.0
        return max(0.0, float(self._timeline.pts[-1] - self._last_tick) * self._timeline.time_base_s)

    def _next_position(self) -> int:
        """Return the position in the timeline after the last decoded frame."""
        if self._last_tick is None:
            return 0
        return int(np.searchsorted(self._timeline.pts, self._last_tick, side="right"))

    def _packets_from(self, position: int) -> Iterator[Packet] | None:
        """Return packets from the key frame at `position` or from an earlier one; None if seeking fails.

        Some containers are searched by decoding time. In these, seeking to the presentation time of a key frame lands
        behind it, so earlier targets are tried until one does not.
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
        """Yield (frame, tick) from here to the end; after a seek, drop frames before `from_tick`.

        Those frames refer to frames before the key frame, so they come out damaged or not at all.
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
        if self._survey.has_clock and picture.pts is not None and picture.time_base is not None:
            # The deinterlacer's time base is half a tick.
            tick = round(picture.pts * float(picture.time_base) / self._timeline.time_base_s)
        else:
            position = self._next_position() if self._survey.has_clock else self.num_frames
            tick = int(self._timeline.pts[min(position, len(self._timeline.pts) - 1)])
        self.shots.add(picture)
        self.num_frames += 1
        self._last_tick = tick
        return picture, tick

    def _tolerant(self, packets: Iterator[Packet]) -> Iterator[VideoFrame]:
        """Continue decoding after errors and count them."""
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
            except av.error.MemoryError:  # --max-memory was reached, which is a limit, not damage
                raise
            except (av.error.FFmpegError, ValueError):
                self._job.num_errors += 1
                errors_in_a_row += 1
                continue
            if pictures:
                errors_in_a_row = 0
            yield from pictures
