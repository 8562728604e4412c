"""Open a video file safely, choose its video streams, and survey their packets. Used in the decoding child only.

Counts, durations and rotations in headers are only hints; the survey reads the packets themselves. A file is read
through its open descriptor, the only protocol that is allowed. Therefore a name cannot act as a URL, a playlist cannot
open a second file, and the name of a file does not influence how it is read.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from io import FileIO
from itertools import islice
from typing import Any, TypeAlias

import av
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream
from numpy.typing import NDArray

from dfscan.arrays import BoolArray
from dfscan.errors import VideoError
from dfscan.media import matroska, mp4
from dfscan.media.content import picture_kind
from dfscan.media.facts import ENCODER_TEXT_BYTES, encoder_text
from dfscan.media.plan import DECODE_ALL_FRAMES, Streams, Timeline

MAX_FRAME_PX = 8192 * 4352
"""Largest frame that is decoded: 8K plus its coded margin."""
MAX_STREAMS = 64
MAX_PACKETS = 10_000_000
"""Maximum number of packets that are surveyed, which is 46 hours at 60 frames per second."""
SIGNATURE_BYTES = 16
MAX_SEARCH_S = 5.0
"""Maximum time for FFmpeg to find a header or the next packet: some readers skip any number of zeros to find one."""

# FFmpeg's names. Playlists (hls, dash, concat, sdp, ...) are omitted on purpose. Audio formats are included to tell a
# file with sound only from a file that is no media at all.
FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2 matroska,webm avi mpegts mpeg mpegvideo flv live_flv asf ogg rm mxf nut dv wtv ivf obu "
    "h261 h263 h264 hevc vvc evc av1 m4v mjpeg mjpeg_2000 vc1 vc1test dirac yuv4mpegpipe gif apng webp webp_pipe "
    "flic png_pipe jpeg_pipe jpegxl_pipe j2k_pipe bmp_pipe tiff_pipe ppm_pipe ico bink roq smk ea swf "
    "mp3 wav flac aac ac3 eac3 aiff au caf amr ape w64 webvtt srt ass"
).replace(" ", ",")

DECODED_CODECS = (
    "h264 hevc vvc libdav1d vp8 vp9 vp7 mpeg4 mpeg2video mpeg1video mpegvideo h261 h263 h263i h263p flv vp6 vp6a vp6f "
    "msmpeg4 msmpeg4v1 msmpeg4v2 wmv1 wmv2 wmv3 wmv3image vc1 vc1image theora vp3 dirac cavs rv10 rv20 rv30 rv40 "
    "svq1 svq3 cinepak indeo3 indeo5 msvideo1 mjpeg mjpegb amv dvvideo prores prores_raw dnxhd cfhd apv hap ffv1 "
    "ffvhuff huffyuv utvideo qtrle rpza rawvideo v210 v410 r210 yuv4 gif apng png webp bmp tiff jpeg2000 jpegls ppm "
    "pgm pbm pam flic"
).split()
"""FFmpeg's decoders for video from cameras, phones, broadcasters, editors and the web. No other decoder runs on an
untrusted file, because each one adds attack surface. This excludes sound, subtitles, and codecs of games and screen
recorders."""

PLAYLIST_HEADS = (b"ffconcat", b"v=0", b"#EXTM3U", b"<?xml")

STILL_FORMATS = {b"\xff\xd8\xff": "jpeg_pipe", b"\x89PNG\r\n\x1a\n": "png_pipe"}
"""First bytes of still images. FFmpeg recognises damaged ones only by their file name."""

MAX_GAP_BACK_S = 1.0
"""A decoding time that jumps back by more than this starts a new clock (joined or wrapped recordings)."""

DEFAULT_FPS = 25
INDEX_PROBE_PACKETS = 8
CLOCKLESS_FORMATS = ("avi",)
"""Containers without presentation times. FFmpeg guesses them, and its guess is wrong if there are B-frames."""

TS_SYNC = 0x47
SCRAMBLING_PROBE_BYTES = 1 << 20

AnyPacket: TypeAlias = "av.Packet[Any]"

MP4_FORMAT = "mov,mp4,m4a,3gp,3g2,mj2"
MATROSKA_FORMAT = "matroska,webm"

ENCRYPTED = "its frames are encrypted; scan the decrypted file"
NO_INDEX = (
    "the recording broke off before its index (moov) was written; a tool such as untrunc can repair it, with an intact "
    "file from the same camera"
)
CUT_INDEX = (
    "its index (moov) is cut off; copy the file again, or repair it with a tool such as untrunc and an intact file "
    "from the same camera"
)
LONE_SEGMENT = (
    "a segment of a stream without its index (moov); put the stream's initialisation segment in front of it and scan "
    "the whole"
)
UNSUPPORTED = (
    "its container format is not supported; supported are MP4, MOV, 3GP, Matroska, WebM, AVI, MPEG-TS, MPEG-PS, FLV, "
    "ASF, WMV, Ogg, RealMedia, MXF, NUT, DV, WTV, GIF, APNG and raw video streams. Convert it, for example with ffmpeg"
)


@dataclass(frozen=True, slots=True, eq=False)
class Survey:
    """Properties of a stream that its packets reveal before any of them is decoded."""

    stream: int
    """Number of the stream in the file, from 0."""
    timeline: Timeline
    has_clock: bool
    """False if presentation times are missing or jump back; then frames are identified by their number only."""
    damage: str | None
    num_bytes: int = 0
    """Size of all its packets."""
    encoder: str | None = None
    """Name of its encoder, if that is written into the stream."""


@dataclass(frozen=True, slots=True, eq=False)
class Surveys:
    """Properties of a file that are known before any of its frames is decoded."""

    streams: list[Survey]
    """The streams to scan, the main one first; never empty."""
    skipped: list[str]
    """The video streams that are not scanned, each with the reason."""


@contextmanager
def open_container(file: FileIO) -> Iterator[InputContainer]:
    """Open the container in a file.

    Raises:
        VideoError: the file is not a container, lacks its index, or has an unsupported format.
    """
    head = os.pread(file.fileno(), SIGNATURE_BYTES, 0)
    try:
        container = _open(file)
    except av.error.MemoryError:
        raise
    except (av.error.FFmpegError, ValueError) as error:
        still = next((name for magic, name in STILL_FORMATS.items() if head.startswith(magic)), None)
        if still is None:
            raise _refusal(file, error) from error
        container = _open(file, still)
    with container:
        yield container


@contextmanager
def open_video(file: FileIO, stream: int | None = None) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open the container in a file and one of its video streams, by default the main one.

    Raises:
        VideoError: there is no video stream or no decoder for it; see also `open_container`.
    """
    with open_container(file) as container:
        chosen = _choose(container, "main" if stream is None else stream)[0][0]
        chosen.thread_type = "SLICE"  # with frame threads, a damaged frame also loses the frames in progress
        chosen.codec_context.thread_count = 1
        chosen.codec_context.options = {"max_pixels": str(MAX_FRAME_PX), "codec_whitelist": ",".join(DECODED_CODECS)}
        yield container, chosen


def _open(file: FileIO, container_format: str | None = None) -> InputContainer:
    file.seek(0)  # FFmpeg works on a duplicate of the descriptor, which shares its position
    return av.open(
        "fd:",
        format=container_format,
        metadata_errors="replace",
        timeout=MAX_SEARCH_S,
        options={
            "fd": str(file.fileno()),
            "protocol_whitelist": "fd",
            "format_whitelist": FORMATS,
            "codec_whitelist": ",".join(DECODED_CODECS),
            "max_streams": str(MAX_STREAMS),
        },
    )


def _refusal(file: FileIO, error: Exception) -> VideoError:
    if os.pread(file.fileno(), SIGNATURE_BYTES, 0).startswith(PLAYLIST_HEADS):
        return VideoError("not_video", "a playlist, which holds no video itself; scan the files that it names")
    if isinstance(error, av.error.ArgumentError):  # FFmpeg's error for a format that is not in FORMATS
        return VideoError("unsupported_format", UNSUPPORTED)
    boxes = {box.kind: box for box in mp4.outer_boxes(file)} if mp4.is_mp4(file) else {}
    if b"moov" in boxes and boxes[b"moov"].end > os.fstat(file.fileno()).st_size:
        return VideoError("no_index", CUT_INDEX)
    if b"moov" not in boxes and b"moof" in boxes:
        return VideoError("no_index", LONE_SEGMENT)
    if b"mdat" in boxes and not boxes.keys() & {b"moov", b"meta"}:  # still images have a "meta" box instead
        return VideoError("no_index", NO_INDEX)
    return VideoError("not_video", f"no readable video container ({_cause(error)})")


def _cause(error: Exception) -> str:
    if isinstance(error, av.error.ExitError):
        return f"nothing was found in {MAX_SEARCH_S:g} s of reading"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _choose(container: InputContainer, wanted: Streams) -> tuple[list[VideoStream], list[str]]:
    """Choose the streams to scan, the main one first, and give a reason for each other stream.

    Cover art and chapter thumbnails do not count, unless one is requested by its number.
    """
    cover = av.stream.Disposition.attached_pic | av.stream.Disposition.timed_thumbnails
    moving = [stream for stream in container.streams.video if not stream.disposition & cover]
    if isinstance(wanted, int):
        named = [stream for stream in container.streams.video if stream.index == wanted]
        if not named:
            numbers = ", ".join(str(stream.index) for stream in container.streams.video) or "none"
            raise VideoError(
                "no_stream", f"has no video stream {wanted}; its video streams: {numbers}. Change --stream"
            )
        unwanted = [stream for stream in moving if stream.index != wanted]
        if problem := _problem(named[0]):
            raise VideoError("no_decoder", problem)
        return named, [f"{_described(stream)}: not chosen" for stream in unwanted]
    if not moving and container.streams.video:
        raise VideoError("no_video", "holds cover art but no video stream")
    if not moving:
        raise VideoError("no_video", "holds no video stream")
    if len(moving) < len(container.streams.video) and all(stream.frames == 1 for stream in moving):
        raise VideoError("no_video", "holds cover art and a one-frame bitmap track, but no video")
    problems = {stream.index: _problem(stream) for stream in moving}
    usable = sorted(
        (stream for stream in moving if not problems[stream.index]),
        key=lambda stream: (  # first the main stream: more than one frame, then the largest, then the default
            stream.frames == 1,
            -stream.width * stream.height,
            not stream.disposition & av.stream.Disposition.default,
            stream.index,
        ),
    )
    if not usable:
        raise VideoError("no_decoder", problems[moving[0].index] or "")
    skipped = [f"{_described(stream)}: {problem}" for stream in moving if (problem := problems[stream.index])]
    if wanted == "main":
        skipped += [f"{_described(stream)}: not chosen" for stream in usable[1:]]
        del usable[1:]
    return usable, skipped


def _problem(stream: VideoStream) -> str | None:
    if stream.codec_context is None:
        return "nothing here decodes its video codec"
    codec = stream.codec_context.codec.name
    return (
        None
        if codec in DECODED_CODECS
        else f"its codec, {codec}, is not among those that dfscan runs on untrusted files"
    )


def _described(stream: VideoStream) -> str:
    if stream.codec_context is None:
        return f"stream {stream.index}"
    return f"stream {stream.index} ({stream.codec_context.name}, {stream.width} x {stream.height})"


def survey(
    file: FileIO,
    wanted: Streams = "all",
    check_time: Callable[[], None] = lambda: None,
    on_open: Callable[[InputContainer], None] = lambda _: None,
) -> Surveys:
    """Read the packets of the wanted streams without decoding them; for a long stream, read its complete index instead.

    Args:
        file: open for reading.
        wanted: the streams to survey.
        check_time: called for every packet; raises an exception to stop.
        on_open: called with the open container, before a stream is chosen.

    Raises:
        VideoError: no stream can be scanned: encrypted, or without packets; see also `open_video`.
    """
    with open_container(file) as container:
        on_open(container)
        videos = container.streams.video
        tiles = [stream for stream in videos if stream.disposition & av.stream.Disposition.dependent]
        if tiles and picture_kind(os.pread(file.fileno(), SIGNATURE_BYTES, 0)):
            # FFmpeg gives one stream per tile, and a face across tiles would not be found.
            text = f"its picture is stored in {len(tiles)} tiles; convert it to JPEG and scan that"
            raise VideoError("no_decoder", text)
        streams, skipped = _choose(container, wanted)
        descriptions = {stream.index: _described(stream) for stream in streams}
        index = mp4.read_index(file) if container.format.name == MP4_FORMAT else None
        # Streams that the container declares encrypted, whatever their codec.
        if index:
            tracks = {stream.index: index.tracks.get(stream.id) for stream in videos}
            encrypted = {number for number, track in tracks.items() if track and track.is_encrypted}
        elif container.format.name == MATROSKA_FORMAT:
            flags = matroska.encrypted_video_tracks(file)
            encrypted = {stream.index for stream, flag in zip(videos, flags, strict=False) if flag}
        else:
            encrypted = set()
        delays = _indexed_delays(container, streams, index)
        if delays:
            outcome_of = _survey_indexes(file, container, delays, encrypted)
        else:
            outcome_of = _survey_packets(container, streams, encrypted, check_time)
    if len(outcome_of) < len(descriptions):  # open again: packets were consumed to compare them with an index
        with open_container(file) as container:
            rest = [
                stream for stream in container.streams.video if stream.index in descriptions.keys() - outcome_of.keys()
            ]
            outcome_of |= _survey_packets(container, rest, encrypted, check_time)
    outcomes = [outcome_of[index] for index in descriptions]
    surveys = [outcome for outcome in outcomes if isinstance(outcome, Survey)]
    problems = {index: outcome for index, outcome in outcome_of.items() if isinstance(outcome, VideoError)}
    if not surveys:
        head = os.pread(file.fileno(), SCRAMBLING_PROBE_BYTES, 0)
        layouts = (range(first, len(head) - 4, step) for first, step in ((0, 188), (4, 192)))
        packets = next((starts for starts in layouts if all(head[at] == TS_SYNC for at in starts)), range(0))
        # Most packets of a scrambled transport stream have a scrambling bit set.
        if 2 * sum(bool(head[at + 3] & 0x80) for at in packets) > len(packets):
            raise VideoError("encrypted", ENCRYPTED)
        raise problems[next(iter(descriptions))]
    skipped += [f"{descriptions[index]}: {problem}" for index, problem in problems.items()]
    cut_off = _cut_off(file)
    return Surveys([replace(surveyed, damage=surveyed.damage or cut_off) for surveyed in surveys], skipped)


def _cut_off(file: FileIO) -> str | None:
    """Describe how many bytes are missing that the outermost boxes of a Matroska, AVI or MP4 file announce, or None.

    FFmpeg takes a cut-off file for a complete one.
    """
    head = os.pread(file.fileno(), 12, 0)
    announced_end = 0
    if head.startswith(matroska.MAGIC):
        announced_end = matroska.announced_end(file)
    elif head.startswith(b"RIFF") and head[8:] == b"AVI ":
        announced_end = 8 + int.from_bytes(head[4:8], "little")
    elif mp4.is_mp4(file):
        announced_end = max((box.end for box in mp4.outer_boxes(file)), default=0)
    missing = announced_end - os.fstat(file.fileno()).st_size
    return f"cut off: the file ends {missing} bytes early" if missing > 0 else None


def _indexed_delays(
    container: InputContainer, streams: list[VideoStream], index: mp4.Index | None
) -> dict[int, NDArray[np.int64]]:
    """Return each frame's delay from decoding to presentation, in ticks, for long streams with a complete index."""
    long = [stream for stream in streams if stream.frames == len(stream.index_entries) > DECODE_ALL_FRAMES]
    if container.format.name in CLOCKLESS_FORMATS:
        return {stream.index: np.zeros(stream.frames, np.int64) for stream in long}
    if index is None or index.is_fragmented:
        return {}
    delays = {}
    for stream in long:
        track = index.tracks.get(stream.id)
        if track and not len(track.delays):
            delays[stream.index] = np.zeros(stream.frames, np.int64)
        elif track and len(track.delays) == stream.frames:
            delays[stream.index] = track.delays
    return delays


def _survey_indexes(
    file: FileIO, container: InputContainer, delays: dict[int, NDArray[np.int64]], encrypted: set[int]
) -> dict[int, Survey | VideoError]:
    """Survey streams by their index; omit streams whose first packets contradict it."""
    size_bytes = os.fstat(file.fileno()).st_size
    outcome_of: dict[int, Survey | VideoError] = {}
    for number, index in enumerate(delays):
        # Packets were consumed for the first stream, so the file is opened again for each further one.
        with open_container(file) if number else nullcontext(container) as opened:
            stream = next(candidate for candidate in opened.streams.video if candidate.index == index)
            try:
                if surveyed := _survey_index(opened, stream, delays[index], encrypted, size_bytes):
                    outcome_of[index] = surveyed
            except VideoError as error:
                outcome_of[index] = error
    return outcome_of


def _survey_index(
    container: InputContainer,
    stream: VideoStream,
    delays: NDArray[np.int64],
    encrypted: set[int],
    size_bytes: int,
) -> Survey | None:
    """Survey one stream by its index, or return None if its first packets contradict the index.

    FFmpeg's index has decoding times, after edits. Adding `delays` gives the presentation times up to a constant, which
    is taken from the first packets. ::

        index  -1024  -512     0   512      delays  0  1536   512   -512      packets' pts  0  2048  1024  512
                                            constant 1024
    """
    entries = list(stream.index_entries)
    times = np.array([entry.timestamp for entry in entries], np.int64)
    shown = np.array([not entry.is_discard for entry in entries], np.bool_)
    keys = np.array([entry.is_keyframe for entry in entries], np.bool_)
    inside = np.array([entry.pos + entry.size <= size_bytes for entry in entries], np.bool_) & shown
    if not inside.any():
        raise VideoError("no_frames", "cut off: the index is there but the frames are not")
    has_clock = _has_clock(container)
    probe = list(islice(container.demux(stream), INDEX_PROBE_PACKETS))
    num_encrypted = sum(is_encrypted(packet) for packet in probe)
    if num_encrypted == len(probe) or (stream.index in encrypted and not num_encrypted):
        raise VideoError("encrypted", ENCRYPTED)
    if has_clock:
        first = [(packet.pts, packet.dts, int(delay)) for packet, delay in zip(probe, delays, strict=False)]
        constants = {pts - dts - delay if pts is not None and dts is not None else None for pts, dts, delay in first}
        constant = constants.pop()
        if constants or constant is None or [dts for _, dts, _ in first] != times[: len(first)].tolist():
            return None
        times += delays + constant
    num_lost, num_shown = int(shown.sum() - inside.sum()), int(shown.sum())
    damage = f"cut off: {num_lost} of {num_shown} frames lie beyond the file's end" if num_lost else None
    num_bytes = sum(entry.size for entry, is_inside in zip(entries, inside, strict=True) if is_inside)
    encoder = encoder_text(_start_of(stream, probe[0]))
    return Survey(stream.index, _timeline(times[inside], keys[inside], stream), has_clock, damage, num_bytes, encoder)


def is_encrypted(packet: AnyPacket) -> bool:
    """Return whether the payload is encrypted. Decoders turn it into noise, with or without an error."""
    return packet.has_sidedata("encryption_info")


def _start_of(stream: VideoStream, packet: AnyPacket) -> bytes:
    """Return the stream's header and the first bytes of its first packet."""
    header = stream.codec_context.extradata if stream.codec_context else None
    return (header or b"")[:ENCODER_TEXT_BYTES] + bytes(memoryview(packet)[:ENCODER_TEXT_BYTES])


class _Int64List:
    """A growing array of timestamps at 8 bytes each, so that a day of video needs little memory."""

    def __init__(self) -> None:
        self._chunks = bytearray()
        self.is_complete = True

    def append(self, value: int | None) -> None:
        self.is_complete &= value is not None
        self._chunks += (value or 0).to_bytes(8, "little", signed=True)

    def __len__(self) -> int:
        return len(self._chunks) // 8

    def array(self) -> NDArray[np.int64]:
        return np.frombuffer(self._chunks, dtype="<i8").astype(np.int64)


@dataclass(slots=True, eq=False)
class _PacketLog:
    """Timestamps, key frame flags and counts from the packets of one stream."""

    pts: _Int64List = field(default_factory=_Int64List)
    dts: _Int64List = field(default_factory=_Int64List)
    keys: bytearray = field(default_factory=bytearray)
    num_corrupt: int = 0
    num_encrypted: int = 0
    num_bytes: int = 0

    def add(self, packet: AnyPacket) -> None:
        self.num_bytes += packet.size
        self.num_encrypted += is_encrypted(packet)
        self.num_corrupt += packet.is_corrupt
        self.pts.append(packet.pts)
        self.dts.append(packet.dts)
        self.keys.append(packet.is_keyframe)


def _survey_packets(
    container: InputContainer, streams: list[VideoStream], encrypted: set[int], check_time: Callable[[], None]
) -> dict[int, Survey | VideoError]:
    logs = {stream.index: _PacketLog() for stream in streams}
    by_index = {stream.index: stream for stream in streams}
    encoders: dict[int, str | None] = {}
    num_packets = 0
    broken_off = None
    try:
        for packet in container.demux(*streams):
            check_time()
            if num_packets >= MAX_PACKETS:
                broken_off = f"only its first {MAX_PACKETS} frames are looked at"
                break
            if packet.size and not packet.is_discard:
                if not logs[packet.stream_index].num_bytes:
                    encoders[packet.stream_index] = encoder_text(_start_of(by_index[packet.stream_index], packet))
                logs[packet.stream_index].add(packet)
                num_packets += 1
    except av.error.MemoryError:
        raise
    except (av.error.FFmpegError, ValueError) as error:
        broken_off = f"reading broke off after {num_packets} frames ({_cause(error)})"
    outcome_of: dict[int, Survey | VideoError] = {}
    for stream in streams:
        try:
            surveyed = _survey(container, stream, logs[stream.index], stream.index in encrypted, broken_off)
            outcome_of[stream.index] = replace(
                surveyed, num_bytes=logs[stream.index].num_bytes, encoder=encoders.get(stream.index)
            )
        except VideoError as error:
            outcome_of[stream.index] = error
    return outcome_of


def _survey(
    container: InputContainer, stream: VideoStream, log: _PacketLog, is_declared_encrypted: bool, broken_off: str | None
) -> Survey:
    total = len(log.pts)
    if not total:
        raise VideoError("no_frames", broken_off or "its video stream holds no frames")
    # If FFmpeg marks no packet at all, rely on the declaration: FFmpeg does not know every scheme and codec.
    if log.num_encrypted == total or (is_declared_encrypted and not log.num_encrypted):
        raise VideoError("encrypted", ENCRYPTED)
    damage = broken_off
    if log.num_encrypted and not damage:
        damage = f"{log.num_encrypted} of {total} frames are encrypted and were skipped"
    elif log.num_corrupt and not damage:
        damage = f"{log.num_corrupt} of {total} packets are marked corrupt"
    is_key = np.frombuffer(log.keys, dtype=np.bool_)
    has_clock = _has_clock(container) and log.pts.is_complete
    times = log.pts if has_clock else log.dts
    ticks = times.array()
    decoding = log.dts.array() if log.dts.is_complete else ticks
    # Use the timestamps only if they form one clock: complete, moving, never restarting.
    if (
        not times.is_complete
        or not stream.time_base
        or len(np.unique(ticks)) * 2 <= len(ticks) > 1
        or (np.diff(decoding) * float(stream.time_base) < -MAX_GAP_BACK_S).any()
    ):
        rate = float(stream.average_rate or stream.guessed_rate or DEFAULT_FPS)
        return Survey(stream.index, Timeline(np.arange(total), is_key, 1 / rate), False, damage)
    return Survey(stream.index, _timeline(ticks, is_key, stream), has_clock, damage)


def _has_clock(container: InputContainer) -> bool:
    return container.format.name not in CLOCKLESS_FORMATS


def _timeline(ticks: NDArray[np.int64], keys: BoolArray, stream: VideoStream) -> Timeline:
    order = np.argsort(ticks, kind="stable")
    return Timeline(ticks[order], keys[order], float(stream.time_base or 1))
