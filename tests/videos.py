"""Videos generated at run time, in which every frame shows its own number.

``write_video(path, numbered(50))`` writes a clip; `number_of` reads the number of a decoded frame. The
number is a code of black and white blocks, so that it survives compression.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from itertools import chain
from pathlib import Path

import av
import numpy as np
from av.codec.context import Flags
from av.video.frame import VideoFrame
from numpy.typing import NDArray

Picture = NDArray[np.uint8]

CODE_BITS = 16
BLOCKS_A_ROW = 4
TICK_S = Fraction(1, 1000)
"""Unit of `pts` in `write_video`."""


def numbered_picture(number: int, *, width_px: int = 64, height_px: int = 64) -> Picture:
    """Return a frame, (height_px, width_px, 3), of 4 x 4 blocks, which are white if a bit of the number is set."""
    bits = [(number >> bit) & 1 for bit in range(CODE_BITS)]
    blocks = np.array(bits, np.uint8).reshape(-1, BLOCKS_A_ROW) * 180 + 40
    rows = np.arange(height_px) * BLOCKS_A_ROW // height_px
    columns = np.arange(width_px) * BLOCKS_A_ROW // width_px
    return np.repeat(blocks[rows][:, columns, None], 3, axis=2)


def numbered(count: int, *, first: int = 0, width_px: int = 64, height_px: int = 64) -> Iterable[Picture]:
    """Yield frames that show first, first + 1, ..."""
    return (numbered_picture(first + i, width_px=width_px, height_px=height_px) for i in range(count))


def number_of(picture: Picture) -> int:
    """Return the number shown by a frame from `numbered_picture`, after any resizing."""
    height, width = np.array(picture.shape[:2]) // BLOCKS_A_ROW
    blocks = picture[: height * BLOCKS_A_ROW, : width * BLOCKS_A_ROW].reshape(4, height, 4, width, 3)
    bits = blocks.mean(axis=(1, 3, 4)).ravel() > 128
    return int(sum(1 << bit for bit in np.flatnonzero(bits)))


def write_video(
    path: Path | str,
    frames: Iterable[Picture],
    *,
    fps: int | Fraction = 25,
    codec: str = "libx264",
    gop: int = 12,
    pts: Sequence[int] | None = None,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    container_format: str | None = None,
    pixel_aspect: Fraction | None = None,
    rotation: int | None = None,
    interlaced: bool = False,
    color_trc: int | None = None,
) -> None:
    """Write uint8 (H, W, 3) RGB frames of one size to a video file.

    Args:
        path: the file; its suffix selects the container.
        frames: the frames.
        fps: frames per second.
        codec: name of the encoder in FFmpeg.
        gop: number of frames from one key frame to the next; there are no other key frames.
        pts: time of each frame in milliseconds, instead of `fps`.
        options: options of the encoder; default: the fastest H.264 without B-frames.
        container_options: options of the container.
        container_format: name of the container in FFmpeg, instead of the suffix.
        pixel_aspect: ratio of width to height of a pixel.
        rotation: counterclockwise rotation in degrees, as in FFmpeg, that makes the frame upright.
        interlaced: encode the frames as pairs of fields, upper field first.
        color_trc: ITU-T H.273 number of the transfer characteristics.
    """
    pictures = iter(frames)
    first = next(pictures)
    tick = 1 / Fraction(fps) if pts is None else TICK_S
    with av.open(str(path), "w", format=container_format, options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=fps)
        assert isinstance(stream, av.VideoStream)
        context = stream.codec_context
        stream.height, stream.width = first.shape[:2]
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        context.gop_size, context.thread_count, context.time_base = gop, 1, tick
        context.options = _options(codec, options, gop=gop, interlaced=interlaced)
        if interlaced:
            context.flags |= Flags.interlaced_dct | Flags.interlaced_me
        if pixel_aspect:
            context.sample_aspect_ratio = pixel_aspect
        if color_trc:
            context.color_trc = color_trc
        if rotation is not None:
            stream.set_display_rotation(rotation)
        for i, picture in enumerate(chain([first], pictures)):
            frame = VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = (i if pts is None else pts[i]), tick
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def write_streams(
    path: Path | str, streams: Sequence[Iterable[Picture]], *, options: dict[str, str] | None = None
) -> None:
    """Write several H.264 streams at 25 fps to one file; all have the same number of frames, each one frame size."""
    with av.open(str(path), "w") as container:
        outputs: list[av.VideoStream] = []
        for pictures in zip(*streams, strict=True):
            if not outputs:
                outputs = [container.add_stream("libx264", rate=25, options=options or {}) for _ in pictures]
                for stream, picture in zip(outputs, pictures, strict=True):
                    stream.height, stream.width = picture.shape[:2]
                    stream.pix_fmt = "yuv420p"
            for stream, picture in zip(outputs, pictures, strict=True):
                container.mux(stream.encode(VideoFrame.from_ndarray(picture, format="rgb24")))
        for stream in outputs:
            container.mux(stream.encode(None))


def _options(codec: str, options: dict[str, str] | None, *, gop: int, interlaced: bool) -> dict[str, str]:
    if codec != "libx264":
        return options or {}
    parameters = f"keyint={gop}:min-keyint={gop}:scenecut=0" + (":tff=1" if interlaced else "")
    defaults = {"preset": "ultrafast", "bf": "0", "crf": "20", "x264-params": parameters}
    return defaults | (options or {})
