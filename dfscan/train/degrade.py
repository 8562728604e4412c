"""What happens to pictures on their way through cameras, messengers and platforms, each as one plain function.

Training makes its pairs worse with these, and the robustness curves measure by them. All are deterministic and
give back a new uint8 (H, W, 3) RGB picture of the same size.
"""

from __future__ import annotations

import math
from fractions import Fraction

import cv2
import numpy as np
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]

_X264 = {"preset": "superfast", "tune": "zerolatency", "threads": "1", "x264-params": "log-level=none"}
_TO_LUMA = np.array([[65.481, 128.553, 24.966, 16 * 255]]) / 255
_TO_CHROMA = np.array([[-37.797, -74.203, 112, 128 * 255], [112, -93.786, -18.214, 128 * 255]]) / 255
"""ITU-R BT.601 in studio range, from R, G, B and 1."""


def compress_h264(pixels: Pixels, *, crf: int) -> Pixels:
    """Encode one picture with libx264 and decode it again, in memory.

    One intra picture, yuv420p: what a key frame of a video at this rate factor looks like. x264 spends more on key
    frames than on the frames between them, which look worse.

    Args:
        pixels: (H, W, 3) RGB, 16 px a side or more; an odd side is padded by its last line, and cut back.
        crf: constant rate factor, 0 (best) to 51; FaceForensics++'s c23 and c40 are 23 and 40.

    Raises:
        ValueError: if `crf` is out of range.
    """
    if not 0 <= crf <= 51:
        raise ValueError(f"crf is 0 to 51, got {crf}")
    height, width = pixels.shape[:2]
    even = np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    encoder = VideoCodecContext.create("libx264", "w")
    encoder.width, encoder.height = even.shape[1], even.shape[0]
    encoder.pix_fmt, encoder.time_base = "yuv420p", Fraction(1, 25)
    encoder.options = {**_X264, "crf": str(crf)}
    packets = [*encoder.encode(VideoFrame.from_ndarray(_to_yuv420(even), format="yuv420p")), *encoder.encode(None)]
    decoder = VideoCodecContext.create("h264", "r")
    decoder.thread_count = 1
    decoded = [picture for packet in [*packets, None] for picture in decoder.decode(packet)]
    rgb = cv2.cvtColor(decoded[0].to_ndarray(format="yuv420p"), cv2.COLOR_YUV2RGB_I420)
    return np.asarray(rgb[:height, :width], np.uint8).copy()


def _to_yuv420(pixels: Pixels) -> Pixels:
    """The three planes of an evenly sized picture below one another, (H * 3 / 2, W).

    Eight times as fast as FFmpeg's converter, which sets itself up anew for each picture; OpenCV's takes one pixel's
    chroma for four.
    """
    height, width = pixels.shape[:2]
    halves = cv2.resize(pixels, (width // 2, height // 2), interpolation=cv2.INTER_AREA)
    chroma = np.asarray(cv2.transform(halves, _TO_CHROMA), np.uint8)
    planes = [cv2.transform(pixels, _TO_LUMA).ravel(), chroma[..., 0].ravel(), chroma[..., 1].ravel()]
    return np.concatenate(planes).astype(np.uint8, copy=False).reshape(height * 3 // 2, width)


def compress_jpeg(pixels: Pixels, *, quality: int) -> Pixels:
    """Encode as JPEG and decode again.

    Args:
        pixels: (H, W, 3) RGB.
        quality: 1 to 100, as libjpeg counts.

    Raises:
        ValueError: if `quality` is out of range.
    """
    if not 1 <= quality <= 100:
        raise ValueError(f"quality is 1 to 100, got {quality}")
    bgr = np.ascontiguousarray(pixels[..., ::-1])
    _, encoded = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
    decoded = np.asarray(cv2.imdecode(encoded, cv2.IMREAD_COLOR), np.uint8)
    return np.ascontiguousarray(decoded[..., ::-1])


def blur(pixels: Pixels, *, sigma_px: float) -> Pixels:
    """Blur by a Gaussian.

    Args:
        pixels: (H, W, 3) RGB.
        sigma_px: its standard deviation; 0 changes nothing.

    Raises:
        ValueError: if `sigma_px` is negative.
    """
    if sigma_px < 0:
        raise ValueError(f"sigma_px is 0 or more, got {sigma_px}")
    if sigma_px == 0:
        return pixels.copy()
    return np.asarray(cv2.GaussianBlur(pixels, (0, 0), sigma_px), np.uint8)


def rescale(pixels: Pixels, *, factor: float) -> Pixels:
    """Shrink by area averaging and enlarge again by bicubic interpolation.

    Args:
        pixels: (H, W, 3) RGB.
        factor: size in between over size, in (0, 1]; 1 changes nothing.

    Raises:
        ValueError: if `factor` is out of range.
    """
    if not 0 < factor <= 1:
        raise ValueError(f"factor is over 0 and at most 1, got {factor}")
    height, width = pixels.shape[:2]
    size_px = (max(1, round(width * factor)), max(1, round(height * factor)))
    small = cv2.resize(pixels, size_px, interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)


def smooth_skin(pixels: Pixels, *, strength: float) -> Pixels:
    """Smooth what is nearly of one colour and keep edges, as beauty filters of cameras and calls do.

    A bilateral filter (Tomasi and Manduchi 1998).

    Args:
        pixels: (H, W, 3) RGB.
        strength: share of the smoothed picture in the result, in [0, 1]; 0 changes nothing.

    Raises:
        ValueError: if `strength` is out of range.
    """
    if not 0 <= strength <= 1:
        raise ValueError(f"strength is 0 to 1, got {strength}")
    reach_px = max(pixels.shape[:2]) / 60
    smooth = cv2.bilateralFilter(pixels, 2 * math.ceil(reach_px) + 1, 25.0, reach_px)
    return np.asarray(cv2.addWeighted(smooth, strength, pixels, 1 - strength, 0), np.uint8)
