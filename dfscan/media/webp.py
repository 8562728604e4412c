"""Decode animated WebP, which FFmpeg's reader takes for one broken image. Used in the decoding child only.

Each frame is stored in its own chunk as a WebP image without a header. FFmpeg decodes it once a header is added; this
module then composes it with the previous frame. https://developers.google.com/speed/webp/docs/riff_container
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from io import FileIO

import av
import numpy as np
from av.video.codeccontext import VideoCodecContext

from dfscan.arrays import UInt8Image
from dfscan.media.container import MAX_FRAME_PX

ANIMATION_FLAG, ALPHA_FLAG = 2, 16
CLEAR_AFTERWARDS, REPLACE = 1, 2
FRAME_HEADER_BYTES = 16
MAX_CHUNKS = 100_000
DEFAULT_MS = 100
"""Duration of frames that announce none, as in browsers."""


@dataclass(frozen=True, slots=True)
class WebpFrame:
    """One frame of an animation: its position in the file and on the canvas."""

    position: int
    size_bytes: int
    x_px: int
    y_px: int
    width_px: int
    height_px: int
    duration_ms: int
    flags: int


@dataclass(frozen=True, slots=True)
class WebpAnimation:
    """Size and frames of an animated WebP."""

    width_px: int
    height_px: int
    frames: tuple[WebpFrame, ...]
    is_cut_off: bool

    @property
    def start_ms(self) -> list[int]:
        """Start time of each frame, followed by the end of the last one."""
        return [0, *np.cumsum([frame.duration_ms for frame in self.frames]).tolist()]


def read_animation(file: FileIO) -> WebpAnimation | None:
    """Read the chunks of an animated WebP; return None for any other file."""
    file.seek(0)
    head = file.read(30)
    if len(head) < 30 or head[:4] != b"RIFF" or head[8:16] != b"WEBPVP8X" or not head[20] & ANIMATION_FLAG:
        return None
    size_bytes = os.fstat(file.fileno()).st_size
    position, frames, is_cut_off = 12, [], 8 + _number(head[4:8]) > size_bytes
    for _ in range(MAX_CHUNKS):
        file.seek(position)
        chunk = file.read(8 + FRAME_HEADER_BYTES)
        if len(chunk) < 8:
            break
        length = _number(chunk[4:8])
        if chunk[:4] == b"ANMF" and len(chunk) == 8 + FRAME_HEADER_BYTES and position + 8 + length <= size_bytes:
            x, y, width, height, duration = (_number(chunk[i : i + 3]) for i in range(8, 23, 3))
            place = 2 * x, 2 * y, width + 1, height + 1
            data = position + len(chunk), length - FRAME_HEADER_BYTES
            frames.append(WebpFrame(*data, *place, duration or DEFAULT_MS, flags=chunk[23]))
        position += 8 + length + length % 2
    return WebpAnimation(_number(head[24:27]) + 1, _number(head[27:30]) + 1, tuple(frames), is_cut_off)


def _number(data: bytes) -> int:
    return int.from_bytes(data, "little")


def animation_pictures(file: FileIO, animation: WebpAnimation) -> Iterator[UInt8Image | None]:
    """Yield the canvas, (H, W, 3) RGB, after each frame; yield None for a frame that cannot be decoded.

    All frames share one array, which the next frame overwrites. Transparent parts are black.
    """
    canvas = np.zeros((animation.height_px, animation.width_px, 3), np.uint8)
    for frame in animation.frames:
        file.seek(frame.position)
        pixels = _decoded(file.read(frame.size_bytes), frame)
        place = canvas[frame.y_px : frame.y_px + frame.height_px, frame.x_px : frame.x_px + frame.width_px]
        if pixels is None or place.shape[:2] != pixels.shape[:2]:
            yield None
            continue
        alpha = pixels[..., 3:].astype(np.uint16)
        under = 0 if frame.flags & REPLACE else place * (255 - alpha)
        place[:] = (pixels[..., :3] * alpha + under + 127) // 255
        yield canvas
        if frame.flags & CLEAR_AFTERWARDS:
            place[:] = 0


def _decoded(data: bytes, frame: WebpFrame) -> UInt8Image | None:
    """Return the pixels of one frame, (H, W, 4) RGBA, or None if it cannot be decoded."""
    sides = b"".join((side - 1).to_bytes(3, "little") for side in (frame.width_px, frame.height_px))
    flags = ALPHA_FLAG if data.startswith((b"ALPH", b"VP8L")) else 0
    body = b"WEBPVP8X" + (10).to_bytes(4, "little") + bytes([flags, 0, 0, 0]) + sides + data
    context = av.CodecContext.create("webp", "r")
    assert isinstance(context, VideoCodecContext)
    context.thread_count = 1
    context.options = {"max_pixels": str(MAX_FRAME_PX)}
    try:
        pictures = context.decode(av.Packet(b"RIFF" + len(body).to_bytes(4, "little") + body))
        pictures += context.decode(None)
    except av.error.MemoryError:
        raise
    except (av.error.FFmpegError, ValueError):
        return None
    return np.asarray(pictures[0].to_ndarray(format="rgba"), np.uint8) if pictures else None
