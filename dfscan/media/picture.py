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
    width, height = _square_size(frame.width, frame.height, pixel_aspect)
    pixels = frame.reformat(width=width, height=height, format="rgb24", threads=1).to_ndarray()
    return np.ascontiguousarray(_turn(np.asarray(pixels, dtype=np.uint8), _matrix(frame)))


def rotation_deg(frame: VideoFrame) -> int:
    """Return the clockwise rotation that `to_rgb` applies: 0, 90, 180 or 270."""
    a, b, _, _ = _matrix(frame)
    return {(1, 0): 0, (0, 1): 90, (-1, 0): 180, (0, -1): 270}[(a, b)]


def _square_size(width: int, height: int, pixel_aspect: Fraction | None) -> tuple[int, int]:
    if not pixel_aspect or not 1 / MAX_PIXEL_ASPECT <= pixel_aspect <= MAX_PIXEL_ASPECT:
        return width, height
    if pixel_aspect >= 1:
        return round(width * pixel_aspect), height
    return width, round(height / pixel_aspect)


def _matrix(frame: VideoFrame) -> tuple[int, int, int, int]:
    """Return (a, b, c, d) of the display matrix, each -1, 0 or 1: a pixel at (x, y) is shown at (ax + cy, bx + dy).

    A missing, slanted or invalid matrix (all zeros occurs in real files) is replaced by the identity.
    """
    upright = (1, 0, 0, 1)
    try:
        side_data = cast(SideDataContainer, frame.side_data).get(SideDataType.DISPLAYMATRIX)
    except ValueError:  # PyAV 18.1 does not know all of FFmpeg's side data types and fails on an unknown one
        return _from_angle(frame.rotation)
    if side_data is None:
        return upright
    matrix = np.frombuffer(bytes(side_data), dtype=np.int32)[[0, 1, 3, 4]].astype(np.float64)
    largest = np.abs(matrix).max()
    if not largest:
        return upright
    a, b, c, d = (round(value) for value in matrix / largest)
    is_right_angled = (a and d and not b and not c) or (b and c and not a and not d)
    return (a, b, c, d) if is_right_angled else upright


def _from_angle(counterclockwise_deg: int) -> tuple[int, int, int, int]:
    turns = {-90: (0, 1, -1, 0), 90: (0, -1, 1, 0), 180: (-1, 0, 0, -1), -180: (-1, 0, 0, -1)}
    return turns.get(counterclockwise_deg, (1, 0, 0, 1))


def _turn(pixels: UInt8Image, matrix: tuple[int, int, int, int]) -> UInt8Image:
    a, b, c, d = matrix
    if b:
        pixels = pixels.transpose(1, 0, 2)
    return pixels[:: b or d, :: c or a]


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
            self._graph, self._shape = _bwdif(frame), shape
        self._graph.vpush(frame)
        yield from _pull(self._graph)

    def flush(self) -> Iterator[VideoFrame]:
        """Yield the remaining frames at the end of the stream."""
        if self._graph is not None:
            self._graph.vpush(None)
            yield from _pull(self._graph)
            self._graph = None


def _bwdif(frame: VideoFrame) -> Graph:
    graph = Graph()
    source = graph.add_buffer(
        width=frame.width,
        height=frame.height,
        format=frame.format,
        time_base=frame.time_base or Fraction(1, 25),
    )
    graph.link_nodes(source, graph.add("bwdif", "mode=send_frame:deint=interlaced"), graph.add("buffersink"))
    graph.configure()
    return graph


def _pull(graph: Graph) -> Iterator[VideoFrame]:
    while True:
        try:
            yield graph.vpull()
        except (av.error.BlockingIOError, av.error.EOFError):
            return
