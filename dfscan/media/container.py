"""Open a video file safely, choose its picture stream, and survey its packets. Used in the decoding child only.

Header counts, durations and rotations are hints: the survey reads what the packets say. A file is read through its
open descriptor, which is the one protocol that is allowed: no name can act as a URL, no playlist can open a second
file, and what a file is called does not change what is found in it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import FileIO
from itertools import islice

import av
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream
from numpy.typing import NDArray

from dfscan.errors import VideoError
from dfscan.media.plan import DECODE_ALL_FRAMES, Timeline

MAX_FRAME_PX = 8192 * 4352
"""Largest picture that is decoded: 8K with room for its coded margin."""
MAX_STREAMS = 64
MAX_PACKETS = 10_000_000
"""A stream is surveyed up to here, which is 46 hours at 60 frames a second."""
HEAD_BYTES = 16
MAX_SEARCH_S = 5.0
"""FFmpeg may search so long for a header or for the next packet: some readers cross any number of zeros to find one."""

# FFmpeg's names. Playlists (hls, dash, concat, sdp, ...) are absent on purpose; audio is here so that a file
# with sound only is told apart from a file that is no media at all.
FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2 matroska,webm avi mpegts mpeg mpegvideo flv live_flv asf ogg rm mxf nut dv wtv ivf obu "
    "h261 h263 h264 hevc vvc evc av1 m4v mjpeg mjpeg_2000 vc1 vc1test dirac yuv4mpegpipe gif apng webp webp_pipe "
    "flic png_pipe jpeg_pipe jpegxl_pipe j2k_pipe bmp_pipe tiff_pipe ppm_pipe ico bink roq smk ea swf "
    "mp3 wav flac aac ac3 eac3 aiff au caf amr ape w64 webvtt srt ass"
).replace(" ", ",")

CODECS = (
    "h264 hevc vvc libdav1d vp8 vp9 vp7 mpeg4 mpeg2video mpeg1video mpegvideo h261 h263 h263i h263p flv vp6 vp6a vp6f "
    "msmpeg4 msmpeg4v1 msmpeg4v2 wmv1 wmv2 wmv3 wmv3image vc1 vc1image theora vp3 dirac cavs rv10 rv20 rv30 rv40 "
    "svq1 svq3 cinepak indeo3 indeo5 msvideo1 mjpeg mjpegb amv dvvideo prores prores_raw dnxhd cfhd apv hap ffv1 "
    "ffvhuff huffyuv utvideo qtrle rpza rawvideo v210 v410 r210 yuv4 gif apng png webp bmp tiff jpeg2000 jpegls ppm "
    "pgm pbm pam flic"
).split()
"""FFmpeg's decoders of what cameras, phones, broadcasters, editors and the web have made. Nothing else is run on an
untrusted file, no decoder of sound or subtitles either: each is a door. Games and screen recorders made the rest."""

STILL_FORMATS = {b"\xff\xd8\xff": "jpeg_pipe", b"\x89PNG\r\n\x1a\n": "png_pipe"}
"""Damaged pictures that FFmpeg would only take by their file name, by their first bytes."""

MAX_GAP_BACK_S = 1.0
"""A decoding time that falls back further than this starts a new clock (joined or wrapped recordings)."""

DEFAULT_FPS = 25
INDEX_PROBE_PACKETS = 8
CLOCKLESS_FORMATS = ("avi",)
"""Containers without presentation times: FFmpeg guesses them, and wrongly where there are B-frames."""

EBML_MAGIC = b"\x1a\x45\xdf\xa3"
MP4_FIRST_BOXES = (b"ftyp", b"styp", b"moov", b"mdat", b"wide", b"free", b"skip")
MAX_BOXES = 100_000
ENCRYPTED = "its pictures are encrypted; scan the decrypted file"


@dataclass(frozen=True, slots=True, eq=False)
class Survey:
    """What the packets of a stream say before any of them is decoded."""

    timeline: Timeline
    has_clock: bool
    """False where presentation times are absent or jump back: then pictures are known by their number only."""
    damage: str | None


@contextmanager
def open_video(file: FileIO) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open the container in a file and its picture stream.

    Raises:
        VideoError: not a container that is read, no picture stream, or no decoder for it.
    """
    head = os.pread(file.fileno(), HEAD_BYTES, 0)
    try:
        container = _open(file)
    except av.error.MemoryError:
        raise
    except (av.error.FFmpegError, ValueError) as error:
        still = next((name for magic, name in STILL_FORMATS.items() if head.startswith(magic)), None)
        if still is None:
            raise VideoError("not_video", f"no readable video container ({_cause(error)})") from error
        container = _open(file, still)
    with container:
        stream = _picture_stream(container)
        stream.thread_type = "SLICE"  # frame threads lose the pictures in flight when a damaged one fails
        stream.codec_context.thread_count = 1
        stream.codec_context.options = {"max_pixels": str(MAX_FRAME_PX), "codec_whitelist": ",".join(CODECS)}
        yield container, stream


def _open(file: FileIO, container_format: str | None = None) -> InputContainer:
    file.seek(0)  # FFmpeg works on a copy of the descriptor, which shares its position
    return av.open(
        "fd:",
        format=container_format,
        metadata_errors="replace",
        timeout=MAX_SEARCH_S,
        options={
            "fd": str(file.fileno()),
            "protocol_whitelist": "fd",
            "format_whitelist": FORMATS,
            "codec_whitelist": ",".join(CODECS),
            "max_streams": str(MAX_STREAMS),
        },
    )


def _cause(error: Exception) -> str:
    if isinstance(error, av.error.ExitError):
        return f"nothing was found in {MAX_SEARCH_S:g} s of reading"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _picture_stream(container: InputContainer) -> VideoStream:
    moving = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
    if not moving and container.streams.video:
        raise VideoError("no_video", "holds cover art but no video stream")
    if not moving:
        raise VideoError("no_video", "holds no video stream")
    if len(moving) < len(container.streams.video) and all(s.frames == 1 for s in moving):
        raise VideoError("no_video", "holds cover art and a one-picture bitmap track, but no video")
    decodable = [s for s in moving if s.codec_context is not None]
    if not decodable:
        raise VideoError("no_decoder", "nothing here decodes its video codec")
    codec = decodable[0].codec_context.codec.name
    if codec not in CODECS:
        raise VideoError("no_decoder", f"its codec, {codec}, is not among those that dfscan runs on untrusted files")
    return decodable[0]


def survey(file: FileIO, check_time: Callable[[], None] = lambda: None) -> Survey:
    """Read the packets, or a complete index of a long file in their stead, without decoding.

    Raises:
        VideoError: the stream is encrypted or holds no packet at all, or as `open_video`.
    """
    with open_video(file) as (container, stream):
        index = stream.index_entries
        if stream.frames == len(index) > DECODE_ALL_FRAMES:
            found = _survey_index(container, stream, os.fstat(file.fileno()).st_size)
        else:
            found = _survey_packets(container, stream, check_time)
    return replace(found, damage=found.damage or _cut_off(file))


def _cut_off(file: FileIO) -> str | None:
    """Whether the container announces more bytes than the file has, which FFmpeg takes for an ordinary end."""
    missing = _announced_end(file) - os.fstat(file.fileno()).st_size
    return f"cut off: the file ends {missing} bytes early" if missing > 0 else None


def _announced_end(file: FileIO) -> int:
    """Where the outermost boxes of a Matroska, AVI or MP4 file say that it ends; 0 if they do not."""
    file.seek(0)
    head = file.read(12)
    if head.startswith(EBML_MAGIC):
        header_end = _ebml_end(file, 4)
        return _ebml_end(file, header_end + 4) if header_end else 0
    if head.startswith(b"RIFF") and head[8:] == b"AVI ":
        return 8 + int.from_bytes(head[4:8], "little")
    return _last_box_end(file) if head[4:8] in MP4_FIRST_BOXES else 0


def _ebml_end(file: FileIO, at: int) -> int:
    """End of the element whose size field begins at `at`; 0 where the size is left open, as in live recordings.

    The position of the first set bit tells the field's length: 0x42 0x86 is two bytes, and means 0x0286.
    """
    file.seek(at)
    first = file.read(1)
    if not first or not first[0]:
        return 0
    length = 9 - first[0].bit_length()
    field = first + file.read(length - 1)
    size = int.from_bytes(field, "big") - (1 << 7 * length)
    return 0 if len(field) < length or size == (1 << 7 * length) - 1 else at + length + size


def _last_box_end(file: FileIO) -> int:
    end = 0
    for _ in range(MAX_BOXES):
        file.seek(end)
        head = file.read(16)
        size = int.from_bytes(head[:4], "big")
        if size == 1:
            size = int.from_bytes(head[8:], "big")
        if len(head) < 8 or size < 8 or not head[4:8].isalnum():
            return end
        end += size
    return end


def _survey_index(container: InputContainer, stream: VideoStream, size_bytes: int) -> Survey:
    entries = [entry for entry in stream.index_entries if not entry.is_discard]
    inside = [entry for entry in entries if entry.pos + entry.size <= size_bytes]
    damage = f"cut off: {len(entries) - len(inside)} of {len(entries)} pictures lie beyond the file's end"
    if not inside:
        raise VideoError("no_frames", "cut off: the index is there but the pictures are not")
    ticks = np.array([entry.timestamp for entry in inside], dtype=np.int64)
    keys = np.array([entry.is_keyframe for entry in inside], dtype=np.bool_)
    if all(is_encrypted(packet) for packet in islice(container.demux(stream), INDEX_PROBE_PACKETS)):
        raise VideoError("encrypted", ENCRYPTED)
    return Survey(_timeline(ticks, keys, stream), _has_clock(container), damage if len(inside) < len(entries) else None)


def is_encrypted(packet: av.Packet[VideoStream]) -> bool:
    """Whether its payload is ciphertext; decoders make noise of it, with or without an error."""
    return packet.has_sidedata("encryption_info")


def _survey_packets(container: InputContainer, stream: VideoStream, check_time: Callable[[], None]) -> Survey:
    pts, dts, keys = _Int64List(), _Int64List(), bytearray()
    corrupt = encrypted = 0
    broken_off = None
    try:
        for packet in container.demux(stream):
            check_time()
            if len(pts) >= MAX_PACKETS:
                broken_off = f"only its first {MAX_PACKETS} pictures are looked at"
                break
            if not packet.size or packet.is_discard:
                continue
            encrypted += is_encrypted(packet)
            corrupt += packet.is_corrupt
            pts.append(packet.pts)
            dts.append(packet.dts)
            keys.append(packet.is_keyframe)
    except av.error.MemoryError:
        raise
    except (av.error.FFmpegError, ValueError) as error:
        broken_off = f"reading broke off after {len(pts)} pictures ({_cause(error)})"
    if not len(pts):
        raise VideoError("no_frames", broken_off or "its video stream holds no pictures")
    if encrypted == len(pts):
        raise VideoError("encrypted", ENCRYPTED)
    damage = broken_off or _damage(corrupt, encrypted, len(pts))
    is_key = np.frombuffer(keys, dtype=np.bool_)
    ticks = _clock(pts if _has_clock(container) else dts, dts, stream)
    if ticks is None:
        rate = float(stream.average_rate or stream.guessed_rate or DEFAULT_FPS)
        return Survey(Timeline(np.arange(len(pts)), is_key, 1 / rate), False, damage)
    return Survey(_timeline(ticks, is_key, stream), _has_clock(container), damage)


def _has_clock(container: InputContainer) -> bool:
    return container.format.name not in CLOCKLESS_FORMATS


def _damage(corrupt: int, encrypted: int, total: int) -> str | None:
    if encrypted:
        return f"{encrypted} of {total} pictures are encrypted and were skipped"
    return f"{corrupt} of {total} packets are marked corrupt" if corrupt else None


def _clock(pts: _Int64List, dts: _Int64List, stream: VideoStream) -> NDArray[np.int64] | None:
    """The stream's timestamps if they can serve as one clock: complete, moving, never starting anew."""
    ticks = pts if pts.is_complete else dts
    values = ticks.array()
    if not ticks.is_complete or not stream.time_base or len(np.unique(values)) * 2 <= len(values) > 1:
        return None
    decoding = dts.array() if dts.is_complete else values
    if (np.diff(decoding) * float(stream.time_base) < -MAX_GAP_BACK_S).any():
        return None
    return values


class _Int64List:
    """A growing array of timestamps at 8 bytes each, so that a day of video stays small."""

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


def _timeline(ticks: NDArray[np.int64], keys: NDArray[np.bool_], stream: VideoStream) -> Timeline:
    order = np.argsort(ticks, kind="stable")
    return Timeline(ticks[order], keys[order], float(stream.time_base or 1))
