"""Simulate how cameras, video codecs, messaging apps and platforms degrade images.

Training degrades its pairs with these functions, and the robustness curves are measured with them. All functions are
deterministic and return a new uint8 (H, W, 3) RGB image of the same size.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal, get_args

import cv2
import numpy as np
from av.codec import Codec as AvCodec
from av.codec.codec import UnknownCodecError
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame

from dfscan.arrays import UInt8Image
from dfscan.images import encode

Codec = Literal["h264", "h265", "vp9"]
SIMULATED_CODECS: tuple[Codec, ...] = get_args(Codec)

MIN_CODED_PX = 16
"""Minimum side of an image; codecs reject smaller ones."""
CODEC_PROBS: dict[Codec, float] = {"h264": 0.8, "h265": 0.1, "vp9": 0.1}
"""Probability of drawing each codec. H.264 leads because it is the most common in clips, and the fastest."""
MIN_H265_PX = 64
"""libx265 writes out of bounds for frames smaller than its largest block; those are coded as H.264 instead."""
INTRA_PROB = 0.15
"""Probability of coding an image on its own, like a key frame."""
NUM_FRAMES = (3, 5)
"""Minimum and maximum number of frames in a clip, for images that are not coded on their own."""
RECOMPRESSION_SCALES, RECOMPRESSION_CRFS = (0.5, 1.0), (24, 36)
"""Ranges of the scale and the rate factor with which a messaging app re-encodes a clip."""
_SPEEDS = (0.0005, 0.02)
"""Minimum and maximum motion per frame, relative to the longer side of the image."""
_ACCELERATION = 0.2
"""Maximum change of the motion per frame, relative to the motion."""

# Fast presets with the same artefacts as slower ones: partitions, sub-pixel motion, B frames and the deblocking filter
# are all enabled. Without lookahead, the type of each frame depends only on its position.
_X264 = "log-level=none:bframes=2:b-adapt=0:rc-lookahead=0:sync-lookahead=0:mbtree=0:scenecut=0"
_X265 = "log-level=none:info=0:pools=none:frame-threads=1:wpp=0:bframes=2:b-adapt=0:rc-lookahead=3:scenecut=0"
_ENCODERS: dict[Codec, tuple[str, str, dict[str, str]]] = {
    "h264": ("libx264", "h264", {"preset": "superfast", "threads": "1", "x264-params": _X264}),
    "h265": ("libx265", "hevc", {"preset": "ultrafast", "x265-params": _X265}),
    "vp9": (
        "libvpx-vp9",
        "vp9",
        {"deadline": "realtime", "cpu-used": "8", "threads": "1", "b": "0", "lag-in-frames": "0"},
    ),
}
"""FFmpeg encoder, decoder and encoder options of each codec."""
_TO_LUMA = np.array([[65.481, 128.553, 24.966, 16 * 255]]) / 255
_TO_CHROMA = np.array([[-37.797, -74.203, 112, 128 * 255], [112, -93.786, -18.214, 128 * 255]]) / 255
"""ITU-R BT.601, limited range, applied to (R, G, B, 1)."""


@dataclass(frozen=True, slots=True)
class Generation:
    """One encoding of a clip."""

    codec: Codec
    crf: int
    """Rate factor on H.264's scale, 0 (best) to 51; mapped to about the same quality for the other codecs."""
    scale: float = 1.0
    """Size of the clip in this generation relative to its size before, in (0, 1]."""


@dataclass(frozen=True, slots=True)
class VideoChain:
    """Motion and encodings that turn an image into a frame of a clip."""

    generations: tuple[Generation, ...]
    num_frames: int = 1
    """Length of the clip; 1 gives a key frame."""
    position: int = 0
    """Index of the frame that is kept, in [0, num_frames)."""
    shift: tuple[float, float] = (0.0, 0.0)
    """Motion right and down per frame, relative to the longer side of the image."""
    turn_deg: float = 0.0
    """Rotation per frame."""
    zoom: float = 0.0
    """Relative growth per frame."""
    acceleration: float = 0.0
    """Relative growth of the motion per frame."""


@functools.cache
def available_codecs() -> tuple[Codec, ...]:
    """Return the codecs that this build of PyAV can encode and decode."""
    return tuple(
        codec for codec, (encoder, decoder, _) in _ENCODERS.items() if _exists(encoder, "w") and _exists(decoder, "r")
    )


def _exists(name: str, mode: Literal["r", "w"]) -> bool:
    try:
        AvCodec(name, mode)
    except UnknownCodecError:
        return False
    return True


def draw_video_chain(
    rng: np.random.Generator, crf_ranges: Sequence[tuple[int, int]], *, recompressed: bool
) -> VideoChain:
    """Draw a clip's motion and its encodings, using only the available codecs.

    Args:
        rng: random generator.
        crf_ranges: lowest and highest rate factor of each generation.
        recompressed: whether the last generation comes from a messaging app, which also shrinks the clip.
    """
    codecs = available_codecs()
    probs = np.array([CODEC_PROBS[codec] for codec in codecs])
    generations = []
    for number, (low, high) in enumerate(crf_ranges, start=1):
        codec = codecs[rng.choice(len(codecs), p=probs / probs.sum())]
        scale = rng.uniform(*RECOMPRESSION_SCALES) if recompressed and number == len(crf_ranges) else 1.0
        generations.append(Generation(codec, int(rng.integers(low, high + 1)), scale))
    if rng.random() < INTRA_PROB:
        return VideoChain(tuple(generations))
    num_frames = int(rng.integers(NUM_FRAMES[0], NUM_FRAMES[1] + 1))
    speed = float(np.exp(rng.uniform(*np.log(_SPEEDS))))
    direction = rng.uniform(0, 2 * np.pi)
    return VideoChain(
        tuple(generations),
        num_frames=num_frames,
        position=int(rng.integers(1, num_frames)),
        shift=(speed * math.cos(direction), speed * math.sin(direction)),
        turn_deg=speed * rng.uniform(-30, 30),
        zoom=speed * rng.uniform(-0.5, 0.5),
        acceleration=rng.uniform(-_ACCELERATION, _ACCELERATION),
    )


def through_video(pixels: UInt8Image, chain: VideoChain) -> UInt8Image:
    """Encode and decode a short clip in which the image moves, and return the image's own frame.

    The image itself is one of the frames, without motion, so its geometry is preserved; the other frames show it moved.
    Each frame is predicted from frames coded before it, as in a real video: B and P frames look different from key
    frames, on which encoders spend more bits.

    Args:
        pixels: (H, W, 3) RGB, at least 16 px a side. An odd side is padded by repeating its last line, then cropped
            back.
        chain: motion and encodings.

    Raises:
        ValueError: a rate factor, a scale or the position is out of range, or the image is too small.
    """
    height, width = pixels.shape[:2]
    if min(height, width) < MIN_CODED_PX:
        raise ValueError(f"a codec needs an image of at least {MIN_CODED_PX} px a side, got {width} x {height}")
    if not 0 <= chain.position < chain.num_frames:
        raise ValueError(f"position must be between 0 and {chain.num_frames - 1}, got {chain.position}")
    image = _to_yuv420(pixels)
    even_width, even_height = image.shape[1], image.shape[0] * 2 // 3
    strip = [_moved(image, chain, number - chain.position) for number in range(chain.num_frames)]
    for generation in chain.generations:
        strip = _coded([_scaled(frame, generation.scale) for frame in strip], generation)
    kept = cv2.cvtColor(strip[chain.position], cv2.COLOR_YUV2RGB_I420)
    if kept.shape[:2] != (even_height, even_width):
        kept = cv2.resize(kept, (even_width, even_height), interpolation=cv2.INTER_CUBIC)
    return np.ascontiguousarray(kept[:height, :width], np.uint8)


def _planes(yuv420: UInt8Image) -> tuple[UInt8Image, UInt8Image, UInt8Image]:
    """Return views of an image's luma plane (H, W) and its two chroma planes (H / 2, W / 2)."""
    height, width = yuv420.shape[0] * 2 // 3, yuv420.shape[1]
    chroma = yuv420[height:].reshape(2, height // 2, width // 2)
    return yuv420[:height], chroma[0], chroma[1]


def _moved(yuv420: UInt8Image, chain: VideoChain, time: int) -> UInt8Image:
    """Return the image moved by `time` frames, which may be negative."""
    steps = time * (1 + chain.acceleration * time / 2)
    if steps == 0:
        return yuv420
    luma, *chromas = _planes(yuv420)
    height, width = luma.shape
    move = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), steps * chain.turn_deg, 1 + steps * chain.zoom)
    move[:, 2] += steps * max(height, width) * np.array(chain.shift)
    half = move.copy()  # each chroma sample is centred between four luma samples
    half[:, 2] = (move[:, 2] + move[:, :2].sum(axis=1) / 2 - 0.5) / 2
    moved = np.empty_like(yuv420)
    to_luma, *to_chromas = _planes(moved)
    border = cv2.BORDER_REFLECT_101
    cv2.warpAffine(luma, move, (width, height), dst=to_luma, flags=cv2.INTER_CUBIC, borderMode=border)
    for chroma, to_chroma in zip(chromas, to_chromas, strict=True):
        cv2.warpAffine(chroma, half, (width // 2, height // 2), dst=to_chroma, borderMode=border)
    return moved


def _scaled(yuv420: UInt8Image, scale: float) -> UInt8Image:
    """Shrink the image and keep its sides even."""
    if not 0 < scale <= 1:
        raise ValueError(f"scale must be in (0, 1], got {scale}")
    if scale == 1:
        return yuv420
    planes = _planes(yuv420)
    height, width = (2 * max(MIN_CODED_PX // 2, round(side * scale)) for side in planes[1].shape)
    small = np.empty((height * 3 // 2, width), np.uint8)
    for plane, to_plane in zip(planes, _planes(small), strict=True):
        cv2.resize(plane, to_plane.shape[::-1], dst=to_plane, interpolation=cv2.INTER_AREA)
    return small


def _coded(strip: Sequence[UInt8Image], generation: Generation) -> list[UInt8Image]:
    """Encode and decode yuv420p frames of one size."""
    if not 0 <= generation.crf <= 51:
        raise ValueError(f"crf must be between 0 and 51, got {generation.crf}")
    width_px, height_px = strip[0].shape[1], strip[0].shape[0] * 2 // 3
    if generation.codec == "h265" and min(width_px, height_px) < MIN_H265_PX:
        generation = replace(generation, codec="h264")
    encoder_name, decoder_name, options = _ENCODERS[generation.codec]
    encoder, decoder = VideoCodecContext.create(encoder_name, "w"), VideoCodecContext.create(decoder_name, "r")
    assert isinstance(encoder, VideoCodecContext)
    assert isinstance(decoder, VideoCodecContext)
    encoder.width, encoder.height = width_px, height_px
    encoder.pix_fmt, encoder.time_base, encoder.framerate = "yuv420p", Fraction(1, 25), Fraction(25)
    crf = generation.crf  # mapped to the codec's own scale, at about H.264's PSNR on a face of 240 px
    if generation.codec == "h265":
        crf = min(51, crf + 1)
    elif generation.codec == "vp9":
        crf = min(63, max(0, round(2.5 * crf - 15)))
    encoder.options = {**options, "crf": str(crf)}
    packets = []
    for number, yuv420 in enumerate(strip):
        frame = VideoFrame.from_ndarray(yuv420, format="yuv420p")
        frame.pts = number
        packets += encoder.encode(frame)
    packets += encoder.encode(None)
    decoder.thread_count = 1
    decoded = [frame for packet in [*packets, None] for frame in decoder.decode(packet)]
    return [np.asarray(frame.to_ndarray(format="yuv420p"), np.uint8) for frame in decoded]


def _to_yuv420(pixels: UInt8Image) -> UInt8Image:
    """Convert RGB to the three planes of yuv420p, stacked vertically as (H * 3 / 2, W), with sides padded to even.

    This is eight times as fast as FFmpeg's converter, which sets itself up for every image. OpenCV's own conversion
    uses the chroma of one pixel for all four.
    """
    height, width = pixels.shape[:2]
    if height % 2 or width % 2:
        pixels = np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        height, width = pixels.shape[:2]
    halves = cv2.resize(pixels, (width // 2, height // 2), interpolation=cv2.INTER_AREA)
    chroma = np.asarray(cv2.transform(halves, _TO_CHROMA), np.uint8)
    planes = [cv2.transform(pixels, _TO_LUMA).ravel(), chroma[..., 0].ravel(), chroma[..., 1].ravel()]
    return np.concatenate(planes).astype(np.uint8, copy=False).reshape(height * 3 // 2, width)


def compress_jpeg(pixels: UInt8Image, *, quality: int) -> UInt8Image:
    """Encode as JPEG and decode again.

    Args:
        pixels: (H, W, 3) RGB.
        quality: libjpeg quality, 1 to 100.

    Raises:
        ValueError: `quality` is out of range.
    """
    if not 1 <= quality <= 100:
        raise ValueError(f"quality must be between 1 and 100, got {quality}")
    data = np.frombuffer(encode(pixels, ".jpg", quality=quality), np.uint8)
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR_RGB), np.uint8)


def blur(pixels: UInt8Image, *, sigma_px: float) -> UInt8Image:
    """Apply a Gaussian blur.

    Args:
        pixels: (H, W, 3) RGB.
        sigma_px: standard deviation; 0 changes nothing.

    Raises:
        ValueError: `sigma_px` is negative.
    """
    if sigma_px < 0:
        raise ValueError(f"sigma_px must be at least 0, got {sigma_px}")
    if sigma_px == 0:
        return pixels.copy()
    return np.asarray(cv2.GaussianBlur(pixels, (0, 0), sigma_px), np.uint8)


def rescale(pixels: UInt8Image, *, factor: float) -> UInt8Image:
    """Shrink with area averaging and enlarge again with bicubic interpolation.

    Args:
        pixels: (H, W, 3) RGB.
        factor: intermediate size relative to the original size, in (0, 1]; 1 changes nothing.

    Raises:
        ValueError: `factor` is out of range.
    """
    if not 0 < factor <= 1:
        raise ValueError(f"factor must be in (0, 1], got {factor}")
    height, width = pixels.shape[:2]
    size_px = (max(1, round(width * factor)), max(1, round(height * factor)))
    small = cv2.resize(pixels, size_px, interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)


def smooth_skin(pixels: UInt8Image, *, strength: float) -> UInt8Image:
    """Smooth areas of similar colour and preserve edges, like the beauty filters of cameras and video calls.

    This is a bilateral filter (Tomasi and Manduchi 1998).

    Args:
        pixels: (H, W, 3) RGB.
        strength: weight of the smoothed image in the result, in [0, 1]; 0 changes nothing.

    Raises:
        ValueError: `strength` is out of range.
    """
    if not 0 <= strength <= 1:
        raise ValueError(f"strength must be in [0, 1], got {strength}")
    reach_px = max(pixels.shape[:2]) / 60
    smooth = cv2.bilateralFilter(pixels, 2 * math.ceil(reach_px) + 1, 25.0, reach_px)
    return np.asarray(cv2.addWeighted(smooth, strength, pixels, 1 - strength, 0), np.uint8)
