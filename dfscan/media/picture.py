"""Convert FFmpeg's decoded frames to upright RGB arrays with square pixels."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import cast

import av
import numpy as np
from av.filter import Graph
from av.sidedata.sidedata import SideDataContainer
from av.sidedata.sidedata import Type as SideDataType
from av.video.frame import VideoFrame

from dfscan.arrays import UInt8Image

HDR_TRANSFERS = (16, 18)
"""ITU-T H.273 transfer characteristics of SMPTE ST 2084 (PQ) and ARIB STD-B67 (HLG)."""
MAX_PIXEL_ASPECT = Fraction(4)
"""A larger pixel aspect ratio is taken for a damaged header and ignored."""


def is_hdr(frame: VideoFrame) -> bool:
    """Return whether the frame is HDR. It would need tone mapping, which dfscan does not do."""
    return int(frame.color_trc) in HDR_TRANSFERS


def to_rgb(frame: VideoFrame, pixel_aspect: Fraction | None) -> UInt8Image:
    """Convert to (H, W, 3) uint8 RGB, upright, with square pixels (the shorter side is stretched)."""
    width, height = frame.width, frame.height
    if pixel_aspect and 1 <= pixel_aspect <= MAX_PIXEL_ASPECT:
        width = round(width * pixel_aspect)
    elif pixel_aspect and 1 / MAX_PIXEL_ASPECT <= pixel_aspect < 1:
        height = round(height / pixel_aspect)
    pixels = np.asarray(
        frame.reformat(width=width, height=height, format="rgb24", threads=1).to_ndarray(), dtype=np.uint8
    )
    a, b, c, d = _matrix(frame)
    if b:
        pixels = pixels.transpose(1, 0, 2)
    return np.ascontiguousarray(pixels[:: b or d, :: c or a])


def rotation_deg(frame: VideoFrame) -> int:
    """Return the clockwise rotation that `to_rgb` applies: 0, 90, 180 or 270."""
    a, b, _, _ = _matrix(frame)
    return {(1, 0): 0, (0, 1): 90, (-1, 0): 180, (0, -1): 270}[(a, b)]


def _matrix(frame: VideoFrame) -> tuple[int, int, int, int]:
    """Return (a, b, c, d) of the display matrix, each -1, 0 or 1: a pixel at (x, y) is shown at (ax + cy, bx + dy).

    A missing, slanted or invalid matrix (all zeros occurs in real files) is replaced by the identity.
    """
    upright = (1, 0, 0, 1)
    try:
        side_data = cast(SideDataContainer, frame.side_data).get(SideDataType.DISPLAYMATRIX)
    except ValueError:  # PyAV 18.1 does not know all of FFmpeg's side data types and fails on an unknown one
        turns = {-90: (0, 1, -1, 0), 90: (0, -1, 1, 0), 180: (-1, 0, 0, -1), -180: (-1, 0, 0, -1)}
        return turns.get(frame.rotation, upright)  # in degrees, counterclockwise
    if side_data is None:
        return upright
    matrix = np.frombuffer(bytes(side_data), dtype=np.int32)[[0, 1, 3, 4]].astype(np.float64)
    largest = np.abs(matrix).max()
    if not largest:
        return upright
    a, b, c, d = (round(value) for value in matrix / largest)
    is_right_angled = (a and d and not b and not c) or (b and c and not a and not d)
    return (a, b, c, d) if is_right_angled else upright


class Deinterlacer:
    """Deinterlaces frames with FFmpeg's bwdif; progressive frames pass unchanged.

    The filter uses the neighbours of a frame, so it returns a frame only after it has received the next one.
    """

    def __init__(self) -> None:
        self._graph: Graph | None = None
        self._shape: tuple[object, ...] = ()

    def push(self, frame: VideoFrame) -> Iterator[VideoFrame]:
        """Add one decoded frame and yield the frames that are ready."""
        if self._graph is None and not frame.interlaced_frame:
            yield frame
            return
        shape = (frame.width, frame.height, frame.format.name)
        if self._graph is None or shape != self._shape:
            yield from self.flush()
            graph = Graph()
            source = graph.add_buffer(
                width=frame.width,
                height=frame.height,
                format=frame.format,
                time_base=frame.time_base or Fraction(1, 25),
            )
            bwdif = graph.add("bwdif", "mode=send_frame:deint=interlaced")
            graph.link_nodes(source, bwdif, graph.add("buffersink"))
            graph.configure()
            self._graph, self._shape = graph, shape
        self._graph.vpush(frame)
        yield from _pull(self._graph)

    def flush(self) -> Iterator[VideoFrame]:
        """Yield the remaining frames at the end of the stream."""
        if self._graph is not None:
            self._graph.vpush(None)
            yield from _pull(self._graph)
            self._graph = None


def _pull(graph: Graph) -> Iterator[VideoFrame]:
    while True:
        try:
            yield graph.vpull()
        except (av.error.BlockingIOError, av.error.EOFError):
            return
