"""Decoding returns the right frames and times from intact files, and all readable frames from damaged ones."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterator
from fractions import Fraction
from io import FileIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest

from dfscan.errors import VideoError
from dfscan.media import container
from dfscan.media import decode as decode_module
from dfscan.media.decode import Decoding
from dfscan.media.plan import Sampling
from dfscan.media.source import open_source
from dfscan.types import Frame
from tests.videos import Picture, number_of, numbered, numbered_picture, write_streams, write_video

LONG = 1500
CENC_KEY = "00112233445566778899aabbccddeeff"
CENC = {"encryption_scheme": "cenc-aes-ctr", "encryption_key": CENC_KEY, "encryption_kid": CENC_KEY}
B_FRAMES = {"bf": "3", "preset": "veryfast", "x264-params": "keyint=50:scenecut=0:b-adapt=0"}


def decode(path: Path | str, **sampling: float | str | None) -> tuple[Decoding, list[Frame]]:
    with FileIO(open_source(str(path))) as file:
        job = Decoding(file, Sampling(**sampling))  # type: ignore[arg-type]
        return job, list(job.samples())


def numbers(frames: list[Frame]) -> list[int]:
    return [number_of(frame.pixels) for frame in frames]


def refusal(path: Path | str) -> str:
    with pytest.raises(VideoError) as caught:
        decode(path)
    assert str(caught.value)
    return caught.value.code


@pytest.fixture(scope="module")
def long_video(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that creates a video of one minute, once for each suffix."""
    folder = tmp_path_factory.mktemp("long")

    def made(name: str) -> Path:
        path = folder / name
        if not path.exists():
            write_video(path, numbered(LONG), gop=50, options=B_FRAMES if "b-frames" in name else None)
        return path

    return made


# Good files


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "mov", "avi", "ts", "flv"])
@pytest.mark.parametrize("options", [None, B_FRAMES], ids=["plain", "b-frames"])
def test_each_sample_is_the_frame_at_its_time(tmp_path: Path, suffix: str, options: dict[str, str] | None) -> None:
    path = tmp_path / f"x.{suffix}"
    write_video(path, numbered(50), options=options)
    job, frames = decode(path, num_frames=8)
    late = int(suffix == "avi")  # AVI counts in whole frames, so frame 15.6 is rounded to the nearest one, not down
    assert numbers(frames) == [3, 9, 15 + late, 21 + late, 28, 34, 40 + late, 46 + late]
    assert [frame.time_s - frames[0].time_s for frame in frames] == pytest.approx(
        [(number - 3) / 25 for number in numbers(frames)], abs=0.002
    )
    assert [frame.index for frame in frames] == list(range(8))
    assert [frame.number for frame in frames] == numbers(frames)
    assert {frame.burst for frame in frames} == {0}
    assert job.damage is None
    assert (job.info.num_frames, job.info.width_px, job.info.height_px) == (50, 64, 64)
    assert (job.info.codec, job.info.rotation_deg, job.info.is_hdr) == ("h264", 0, False)
    assert job.info.duration_s == pytest.approx(2.0, abs=0.01)
    assert job.info.fps == pytest.approx(25, rel=0.01)


def test_times_are_exact_for_variable_frame_rates(tmp_path: Path) -> None:
    path = tmp_path / "x.mkv"
    pts = [0, 40, 80, 500, 1000, 1010, 1020, 2000, 2007, 4000]
    write_video(path, numbered(10), pts=pts)
    job, frames = decode(path, num_frames=32)
    assert numbers(frames) == list(range(10))
    assert [frame.time_s for frame in frames] == pytest.approx([ms / 1000 for ms in pts])
    assert [frame.burst for frame in frames] == [0] * 7 + [1, 1, 2]
    assert job.damage is None


def test_every_s_with_a_variable_frame_rate(tmp_path: Path) -> None:
    path = tmp_path / "x.mkv"
    write_video(path, numbered(6), pts=[0, 900, 1100, 1900, 2000, 5000])
    job, frames = decode(path, every_s=1.0, max_frames=3)
    assert numbers(frames) == [0, 1, 4]
    assert [frame.time_s for frame in frames] == pytest.approx([0, 0.9, 2.0])
    assert job.is_cut_short


@pytest.mark.parametrize("name", ["x.mp4", "x.mkv", "x.ts", "x.avi", "b-frames.mp4", "b-frames.mkv", "b-frames.ts"])
@pytest.mark.parametrize("sampling", [{"num_frames": 32}, {"num_frames": 5}, {"every_s": 2.35}], ids=str)
def test_seeking_gives_the_same_frames_as_decoding_everything(
    long_video: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, name: str, sampling: dict[str, float]
) -> None:
    path = long_video(name)
    job, sought = decode(path, **sampling)
    monkeypatch.setattr("dfscan.media.plan.DECODE_ALL_FRAMES", 10**6)
    _, through = decode(path, **sampling)
    assert numbers(sought) == numbers(through)
    assert [f.time_s for f in sought] == [f.time_s for f in through]
    assert [f.number for f in sought] == numbers(sought)
    assert all(np.array_equal(a.pixels, b.pixels) for a, b in zip(sought, through, strict=True))
    assert [f.time_s - sought[0].time_s for f in sought] == pytest.approx(
        [(number - numbers(sought)[0]) / 25 for number in numbers(sought)], abs=0.002
    )
    assert job.damage is None
    assert job.info.num_frames == LONG


def remux(source: Path, target: Path, *, shift_s: float = 0.0, **container_options: str) -> None:
    """Copy the packets of a video into another container, `shift_s` later; an edit list cuts packets before 0."""
    with av.open(str(source)) as read, av.open(str(target), "w", options=container_options) as written:
        stream = written.add_stream_from_template(read.streams.video[0])
        for packet in read.demux(video=0):
            if packet.dts is not None and packet.pts is not None and packet.time_base is not None:
                packet.pts += round(shift_s / packet.time_base)
                packet.dts += round(shift_s / packet.time_base)
                packet.stream = stream
                written.mux(packet)


@pytest.mark.parametrize(
    ("suffix", "shift_s", "container_options"),
    [
        *[(suffix, 0.0, {}) for suffix in ("mp4", "mov", "mkv", "ts", "flv")],
        ("mp4", 0.0, {"use_editlist": "0"}),
        ("mp4", 0.0, {"movflags": "negative_cts_offsets"}),
        ("mp4", 0.0, {"movflags": "frag_keyframe+empty_moov"}),
        *[(suffix, shift_s, {}) for suffix in ("mp4", "mov") for shift_s in (-3.48, 1.48)],  # by edit lists
    ],
)
def test_times_and_numbers_follow_presentation_order(
    long_video: Callable[[str], Path],
    tmp_path: Path,
    suffix: str,
    shift_s: float,
    container_options: dict[str, str],
) -> None:
    path = tmp_path / f"x.{suffix}"
    remux(long_video("b-frames.mp4"), path, shift_s=shift_s, **container_options)
    job, frames = decode(path, num_frames=32)
    num_cut = round(max(0.0, -shift_s) * 25)
    shown = [number - num_cut for number in numbers(frames)]
    assert [frame.time_s - job.start_s for frame in frames] == pytest.approx([n / 25 for n in shown], abs=0.002)
    assert [frame.number for frame in frames] == shown
    assert job.info.num_frames == LONG - num_cut
    assert job.damage is None
    with av.open(str(path)) as reference:
        times_s = {round(frame.time or 0.0, 3) for frame in reference.decode(video=0)}
    assert {round(frame.time_s, 3) for frame in frames} <= times_s


def test_an_inconsistent_delay_table_is_ignored(
    long_video: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = long_video("b-frames.mp4")
    _, right = decode(path, num_frames=8)
    with FileIO(path) as file:
        index = container.mp4.read_index(file)
    assert index is not None
    assert [len(track.delays) for track in index.tracks.values()] == [LONG]
    for track in index.tracks.values():
        track.delays[1::2] += 512
    monkeypatch.setattr(container.mp4, "read_index", lambda _: index)
    _, found = decode(path, num_frames=8)
    assert [frame.time_s for frame in found] == [frame.time_s for frame in right]


@pytest.mark.parametrize("name", ["x.mp4", "b-frames.mp4", "b-frames.mov"])
def test_seeking_avoids_most_of_the_decoding(long_video: Callable[[str], Path], name: str) -> None:
    packets = 0

    def count() -> None:
        nonlocal packets
        packets += 1

    with FileIO(long_video(name)) as file:
        frames = list(Decoding(file, Sampling(32), count).samples())
    assert len(frames) == 32
    assert max(frame.burst for frame in frames) == 7
    assert packets < LONG / 3


@pytest.mark.parametrize("codec", ["libx264", "mpeg4", "mjpeg", "mpeg2video", "libvpx", "libx265"])
def test_codecs(tmp_path: Path, codec: str) -> None:
    path = tmp_path / "x.mkv"
    quiet = {"x265-params": "log-level=none"} if codec == "libx265" else None
    write_video(path, numbered(10, width_px=128, height_px=128), codec=codec, options=quiet)
    job, frames = decode(path, num_frames=10)
    assert numbers(frames) == list(range(10))
    assert job.damage is None


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_frames_are_upright(tmp_path: Path, degrees: int) -> None:
    path = tmp_path / "x.mp4"
    stored = numbered_picture(0b0110_0000_0101_0011, width_px=96)
    write_video(path, [stored] * 4, rotation=degrees)
    job, frames = decode(path, num_frames=1)
    upright = np.rot90(stored, degrees // 90)  # counterclockwise, as in FFmpeg
    assert frames[0].pixels.shape == upright.shape
    assert np.abs(frames[0].pixels.astype(int) - upright).mean() < 8
    assert job.info.rotation_deg == (360 - degrees) % 360
    assert (job.info.height_px, job.info.width_px) == upright.shape[:2]


@pytest.mark.parametrize(
    ("aspect", "width_px", "height_px"),
    [
        (Fraction(1), 96, 64),
        (Fraction(2), 192, 64),
        (Fraction(1, 2), 96, 128),
        (Fraction(16, 15), 102, 64),
        (Fraction(200), 96, 64),  # invalid values in the header
    ],
)
def test_pixels_are_square(tmp_path: Path, aspect: Fraction, width_px: int, height_px: int) -> None:
    path = tmp_path / "x.mp4"
    write_video(path, numbered(4, first=7, width_px=96), pixel_aspect=aspect)
    job, frames = decode(path, num_frames=4)
    assert frames[0].pixels.shape == (height_px, width_px, 3)
    assert numbers(frames) == [7, 8, 9, 10]
    assert (job.info.width_px, job.info.height_px) == (width_px, height_px)


def combed_edge(count: int) -> Iterator[Picture]:
    """Yield frames of a white area that grows to the right; the second field is half a frame later than the first."""
    for i in range(count):
        picture = np.full((128, 128, 3), 40, np.uint8)
        picture[0::2, : 8 * i + 4] = 220
        picture[1::2, : 8 * i + 8] = 220
        yield picture


def test_interlaced_frames_are_deinterlaced(tmp_path: Path) -> None:
    path = tmp_path / "x.mp4"
    write_video(path, combed_edge(12), interlaced=True, options={"crf": "1"})
    job, frames = decode(path, num_frames=12)
    assert len(frames) == 12
    assert [frame.time_s for frame in frames] == pytest.approx([i / 25 for i in range(12)])
    for i, frame in enumerate(frames):
        white = (frame.pixels[:, :, 0] > 130).sum(axis=1)
        assert np.ptp(white[8:-8]) <= 1, "combing"
        assert abs(int(np.median(white)) - (8 * i + 6)) <= 3
    assert job.damage is None


@pytest.mark.parametrize(("transfer", "expected"), [(None, False), (1, False), (16, True), (18, True)])
def test_high_dynamic_range_is_reported(tmp_path: Path, transfer: int | None, expected: bool) -> None:
    path = tmp_path / "x.mp4"
    write_video(path, numbered(4), color_trc=transfer)
    assert decode(path, num_frames=1)[0].info.is_hdr is expected


@pytest.mark.parametrize("suffix", ["h264", "ts"])
def test_a_change_of_frame_size_is_handled(tmp_path: Path, suffix: str) -> None:
    whole = b""
    for i, (width_px, height_px) in enumerate([(64, 64), (128, 96), (64, 128)]):
        part = tmp_path / f"{i}.{suffix}"
        write_video(part, numbered(20, first=20 * i, width_px=width_px, height_px=height_px))
        whole += part.read_bytes()
    path = tmp_path / f"whole.{suffix}"
    path.write_bytes(whole)
    job, frames = decode(path, num_frames=60)
    assert numbers(frames) == list(range(60))
    assert {frame.pixels.shape for frame in frames} == {(64, 64, 3), (96, 128, 3), (128, 64, 3)}
    assert [frame.time_s for frame in frames] == sorted(frame.time_s for frame in frames)
    assert job.damage is None or suffix == "ts", "the counters of two transport streams are not continuous"


def test_a_change_of_size_in_interlaced_video_loses_no_frame(tmp_path: Path) -> None:
    whole = b""
    for i, width_px in enumerate([64, 128]):
        part = tmp_path / f"{i}.h264"
        write_video(part, numbered(10, first=10 * i, width_px=width_px), interlaced=True)
        whole += part.read_bytes()
    path = tmp_path / "whole.h264"
    path.write_bytes(whole)
    assert numbers(decode(path, num_frames=20)[1]) == list(range(20))


def test_restarting_timestamps_are_not_used_as_a_clock(tmp_path: Path) -> None:
    write_video(tmp_path / "a.ts", numbered(50))
    write_video(tmp_path / "b.ts", numbered(50, first=50))
    path = tmp_path / "x.ts"
    path.write_bytes((tmp_path / "a.ts").read_bytes() + (tmp_path / "b.ts").read_bytes())
    _, frames = decode(path, num_frames=10)
    assert numbers(frames) == [5, 15, 25, 35, 45, 55, 65, 75, 85, 95]
    assert [frame.time_s for frame in frames] == pytest.approx([number / 25 for number in numbers(frames)])


@pytest.mark.parametrize(
    "name",
    [b"bad\xff.mp4", b"line\nbreak.mp4", b"http:x.mp4", b"-x.mp4", b"file:x.mp4", b"x%03d.mp4", "😀.mp4".encode()],
)
def test_file_names_are_not_interpreted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: bytes) -> None:
    write_video(tmp_path / "plain.mp4", numbered(5))
    os.rename(tmp_path / "plain.mp4", os.fsencode(tmp_path) + b"/" + name)
    monkeypatch.chdir(tmp_path)
    assert numbers(decode(os.fsdecode(name), num_frames=5)[1]) == [0, 1, 2, 3, 4]


def test_wrong_header_durations_are_ignored(tmp_path: Path) -> None:
    path = tmp_path / "x.mp4"
    write_video(path, numbered(50))
    data = bytearray(path.read_bytes())
    for box, offset in [(b"mvhd", 20), (b"tkhd", 24), (b"mdhd", 20)]:
        at = data.index(box) + offset
        data[at : at + 4] = (10**9).to_bytes(4, "big")
    path.write_bytes(data)
    job, frames = decode(path, num_frames=8)
    assert job.info.duration_s == pytest.approx(2.0)
    assert numbers(frames) == [3, 9, 15, 21, 28, 34, 40, 46]


# Damaged files


def fragmented(path: Path, count: int = 100) -> None:
    write_video(path, numbered(count), container_options={"movflags": "frag_keyframe+empty_moov"})


def index_first(path: Path, count: int = 100) -> None:
    write_video(path, numbered(count), container_options={"movflags": "faststart"})


def plain(path: Path, count: int = 100) -> None:
    write_video(path, numbered(count))


@pytest.mark.parametrize(
    ("write", "suffix", "count"),
    [
        (index_first, "mp4", 100),
        (index_first, "mp4", LONG),
        (plain, "mkv", 100),
        (plain, "mkv", LONG),
        (plain, "avi", 100),
        (fragmented, "mp4", 100),
    ],
)
def test_frames_before_the_truncation_are_decoded(
    tmp_path: Path, write: Callable[[Path, int], None], suffix: str, count: int
) -> None:
    path = tmp_path / f"x.{suffix}"
    write(path, count)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 75 // 100])
    job, frames = decode(path, num_frames=count)
    assert job.damage
    found = numbers(frames)
    assert found[:-2] == list(range(len(found) - 2)), "the last frame may be incomplete"
    assert count * 0.3 < len(found) < count * 0.9


def test_an_index_without_frames_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.mp4"
    index_first(path, LONG)
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"mdat") + 8])
    assert refusal(path) == "no_frames"


@pytest.mark.parametrize("has_type_box", [True, False])
@pytest.mark.parametrize("mdat_size", [None, 0, 8])
def test_an_unfinished_recording_is_refused(tmp_path: Path, has_type_box: bool, mdat_size: int | None) -> None:
    """A recorder writes the size of the data at the end, together with the index."""
    path = tmp_path / "x.mp4"
    plain(path)
    data = path.read_bytes()
    if not has_type_box:
        data = data[data.index(b"mdat") - 4 :]
    if mdat_size is not None:
        at = data.index(b"mdat")
        data = data[: at - 4] + mdat_size.to_bytes(4, "big") + data[at:]
    path.write_bytes(data[: data.rindex(b"moov") - 4] + b"\0\0")
    with pytest.raises(VideoError, match=r"broke off before its index .*untrunc") as e:
        decode(path)
    assert e.value.code == "no_index"


def test_a_truncated_index_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.mp4"
    plain(path)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(VideoError, match="is cut off; copy the file again") as caught:
        decode(path)
    assert caught.value.code == "no_index"


def test_a_segment_without_initialisation_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.mp4"
    fragmented(path)
    data = path.read_bytes()
    path.write_bytes(data[data.index(b"moof") - 4 :])
    (tmp_path / "styp.m4s").write_bytes(b"\0\0\0\x10stypmsdh\0\0\0\0" + path.read_bytes())
    for each in (path, tmp_path / "styp.m4s"):
        with pytest.raises(VideoError, match="put the stream's initialisation segment in front") as caught:
            decode(each)
        assert caught.value.code == "no_index"


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_corrupt_bytes_in_the_middle_lose_only_some_frames(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x.{suffix}"
    noise = np.random.default_rng(5).integers(0, 40, (128, 128, 3), np.uint8)
    pictures = (np.roll(noise, i, 1) + numbered_picture(i, width_px=128, height_px=128) // 2 + 40 for i in range(60))
    write_video(path, pictures, codec="libx264")
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 4000] = np.random.default_rng(1).bytes(4000)
    path.write_bytes(data)
    job, frames = decode(path, num_frames=60)
    assert job.damage
    times_s = [frame.time_s for frame in frames]
    assert times_s == sorted(times_s)
    assert times_s[0] < 0.1
    assert times_s[-1] > 2.2
    assert len(frames) > 40


# Files without a video


def test_encrypted_frames_are_refused(tmp_path: Path) -> None:
    for count in (10, LONG):
        write_video(tmp_path / "x.mp4", numbered(count), container_options=CENC)
        assert refusal(tmp_path / "x.mp4") == "encrypted"


@pytest.mark.parametrize("codec", ["libx264", "libx265", "libsvtav1", "libvpx-vp9", "mpeg4"])
@pytest.mark.parametrize("movflags", ["", "frag_keyframe+empty_moov"], ids=["whole", "fragments"])
def test_encryption_is_detected_for_every_codec_and_scheme(tmp_path: Path, codec: str, movflags: str) -> None:
    """FFmpeg marks packets only if it understands the encryption tables; the declaration in the container is enough."""
    path = tmp_path / "x.mp4"
    quiet = {"libx265": {"x265-params": "log-level=none"}, "libsvtav1": {"preset": "12"}}.get(codec)
    movie_options = {**CENC, "movflags": movflags} if movflags else CENC
    write_video(
        path, numbered(10, width_px=128, height_px=128), codec=codec, options=quiet, container_options=movie_options
    )
    assert refusal(path) == "encrypted"
    data = path.read_bytes()
    assert data.count(b"encv") == 1
    for table in (b"senc", b"saiz", b"saio"):
        data = data.replace(table, b"free")
    path.write_bytes(data.replace(b"cenc", b"cbcs"))
    assert refusal(path) == "encrypted"


def test_encrypted_matroska_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.webm"
    write_video(path, numbered(10), codec="libvpx")
    data = bytearray(path.read_bytes())
    at = data.index(b"\x73\xc5\x88")  # the track UID, 11 bytes that FFmpeg does not need
    encodings = b"\x6d\x80\x40\x07\x62\x40\x84\x50\x33\x81\x01"
    data[at : at + 11] = encodings
    path.write_bytes(data)
    assert refusal(path) == "encrypted"


def test_a_scrambled_transport_stream_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.ts"
    write_video(path, numbered(10))
    data = bytearray(path.read_bytes())
    for at in range(0, len(data), 188):
        if int.from_bytes(data[at + 1 : at + 3], "big") & 0x1FFF == 0x100:  # FFmpeg's first video stream
            payload = at + 4 + (1 + data[at + 4] if data[at + 3] & 0x20 else 0)
            data[at + 3] |= 0x80
            data[payload : at + 188] = np.random.default_rng(at).bytes(max(0, at + 188 - payload))
    path.write_bytes(data)
    assert refusal(path) == "encrypted"


@pytest.mark.parametrize(("container_format", "codec"), [("smjpeg", "mjpeg"), ("gxf", "mpeg2video")])
def test_unsupported_formats_are_reported(tmp_path: Path, container_format: str, codec: str) -> None:
    path = tmp_path / "x.mp4"
    write_video(path, numbered(10, width_px=720, height_px=576), codec=codec, container_format=container_format)
    with pytest.raises(
        VideoError, match=r"is not supported; supported are MP4, .* Convert it, for example with ffmpeg"
    ) as e:
        decode(path)
    assert e.value.code == "unsupported_format"


# Several video streams


def numbered_streams(path: Path, *sizes_px: tuple[int, int], count: int = 40, **more: Any) -> None:
    """Write a stream of numbered frames for each size (width, height); the n-th stream starts at number 100 n."""
    streams = [
        numbered(count, first=100 * n, width_px=width_px, height_px=height_px)
        for n, (width_px, height_px) in enumerate(sizes_px)
    ]
    write_streams(path, streams, **more)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts", "avi"])
def test_all_video_streams_are_decoded_largest_first(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x.{suffix}"
    numbered_streams(path, (64, 64), (128, 96), (96, 64))
    job, frames = decode(path, num_frames=4)
    assert [frame.stream for frame in frames] == [1] * 4 + [2] * 4 + [0] * 4
    assert [number_of(frame.pixels) // 100 for frame in frames] == [frame.stream for frame in frames]
    assert [frame.number for frame in frames] == [number_of(frame.pixels) % 100 for frame in frames]
    assert [frame.index for frame in frames] == list(range(12))
    assert [frame.burst for frame in frames] == [0] * 4 + [1] * 4 + [2] * 4
    assert (job.info.width_px, job.info.height_px) == (128, 96)
    assert (job.skipped, job.damage, job.num_missing) == ([], None, 0)
    assert job.info.num_skipped_streams == 0


def test_each_long_stream_is_surveyed_by_its_index(tmp_path: Path) -> None:
    path = tmp_path / "x.mp4"
    numbered_streams(path, (64, 64), (128, 96), count=1000, options=B_FRAMES)
    packets = 0

    def count() -> None:
        nonlocal packets
        packets += 1

    with FileIO(path) as file:
        surveys = container.survey(file, "all", count)
    assert packets == 0
    for each in surveys.streams:
        assert (each.timeline.pts * each.timeline.time_base_s).tolist() == pytest.approx([i / 25 for i in range(1000)])


def test_streams_are_chosen_by_option(tmp_path: Path) -> None:
    path = tmp_path / "x.mp4"
    numbered_streams(path, (64, 64), (128, 96))
    job, frames = decode(path, num_frames=4, streams=0)
    assert {frame.stream for frame in frames} == {0}
    assert (job.info.width_px, job.info.num_skipped_streams) == (64, 1)
    assert job.skipped == ["stream 1 (h264, 128 x 96): not chosen"]
    job, frames = decode(path, num_frames=4, streams="main")
    assert {frame.stream for frame in frames} == {1}
    assert job.skipped == ["stream 0 (h264, 64 x 64): not chosen"]
    with pytest.raises(VideoError, match="no video stream 2; its video streams: 0, 1") as caught:
        decode(path, streams=2)
    assert caught.value.code == "no_stream"


def test_an_undecodable_stream_does_not_affect_the_others(tmp_path: Path) -> None:
    numbered_streams(tmp_path / "a.mkv", (64, 64), (128, 96))
    data = (tmp_path / "a.mkv").read_bytes()
    path = tmp_path / "b.mkv"
    path.write_bytes(data[::-1].replace(b"V_MPEG4/ISO/AVC"[::-1], b"V_UNKNOWN/CODEC"[::-1], 1)[::-1])
    job, frames = decode(path, num_frames=4)
    assert {frame.stream for frame in frames} == {0}
    assert job.skipped == ["stream 1: nothing here decodes its video codec"]
    assert job.info.num_skipped_streams == 1


def test_a_stream_with_too_large_frames_does_not_affect_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.mkv"
    numbered_streams(path, (64, 64), (128, 96))
    monkeypatch.setattr("dfscan.media.decode.MAX_FRAME_PX", 64 * 64)
    job, frames = decode(path, num_frames=4)
    assert {frame.stream for frame in frames} == {0}
    assert job.skipped == ["stream 1: a picture of 128 x 96 is beyond what is decoded"]
    assert (job.info.width_px, job.info.height_px) == (64, 64)


def test_samples_without_a_frame_are_counted(tmp_path: Path) -> None:
    write_video(tmp_path / "x.mp4", numbered(10))
    assert decode(tmp_path / "x.mp4", num_frames=32)[0].num_missing == 22
    assert decode(tmp_path / "x.mp4", num_frames=10)[0].num_missing == 0
    assert decode(tmp_path / "x.mp4", every_s=0.1)[0].num_missing == 0


def test_cover_art_is_not_decoded(tmp_path: Path) -> None:
    path = tmp_path / "x.mp4"
    with av.open(str(path), "w") as written:
        film, cover = written.add_stream("libx264", rate=25), written.add_stream("mjpeg", rate=1)
        film.width = film.height = 64
        cover.width = cover.height = 128
        film.pix_fmt, cover.pix_fmt = "yuv420p", "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        picture = av.VideoFrame.from_ndarray(numbered_picture(1, width_px=128, height_px=128), format="rgb24")
        packets = [*cover.encode(picture.reformat(format="yuvj420p")), *cover.encode(None)]
        written.start_encoding()
        written.mux(packets)
        for each in numbered(10):
            written.mux(film.encode(av.VideoFrame.from_ndarray(each, format="rgb24")))
        written.mux(film.encode(None))
    job, frames = decode(path, num_frames=10)
    assert numbers(frames) == list(range(10))
    assert job.skipped == []


def write_sound(path: Path, *, cover: bool = False, codec: str = "aac") -> None:
    with av.open(str(path), "w") as output:
        sound = output.add_stream(codec, rate=44100)
        picture = None
        if cover:
            picture = output.add_stream("mjpeg", rate=1)
            picture.width = picture.height = 64
            picture.pix_fmt = "yuvj420p"
            picture.disposition = av.stream.Disposition.attached_pic
            frame = av.VideoFrame.from_ndarray(numbered_picture(1), format="rgb24").reformat(format="yuvj420p")
            packets = [*picture.encode(frame), *picture.encode(None)]
            output.start_encoding()
            output.mux(packets)
        silence = np.zeros((1, 1024), np.float32)
        for i in range(20):
            part = av.AudioFrame.from_ndarray(silence, format="fltp", layout="mono")
            part.sample_rate, part.pts = 44100, i * 1024
            output.mux(sound.encode(part))
        output.mux(sound.encode(None))


@pytest.mark.parametrize(
    ("name", "codec", "cover"),
    [
        ("x.m4a", "aac", False),
        ("x.mp4", "aac", False),
        ("x.mp3", "libmp3lame", False),
        ("x.mkv", "aac", False),
        ("x.mp3", "libmp3lame", True),
        ("x.mp4", "aac", True),
    ],
)
def test_sound_is_not_video(tmp_path: Path, name: str, codec: str, cover: bool) -> None:
    write_sound(tmp_path / name, cover=cover, codec=codec)
    with av.open(str(tmp_path / name)) as made:
        assert len(made.streams.video) == cover
    assert refusal(tmp_path / name) == "no_video"


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "empty"),
        (b"0", "not_video"),
        (b"A letter, and not a video.\n" * 50, "not_video"),
        (b"%PDF-1.7\n" + bytes(5000), "not_video"),
        (b"\x7fELF" + bytes(range(256)) * 20, "not_video"),
        (bytes(10000), "not_video"),
        (b"#EXTM3U\n#EXTINF:1,\nother.ts\n#EXT-X-ENDLIST\n", "not_video"),
        (b"\xff\xd8\xff" + b"not a picture at all" * 20, "no_frames"),
        (b"\x89PNG\r\n\x1a\n" + b"not a picture at all" * 20, "no_frames"),
        (b"\x00\x00\x00\x18ftypmp42\x00\x00\x00\x00mp42isom", "not_video"),
    ],
)
def test_files_that_are_not_video_are_reported(tmp_path: Path, content: bytes, code: str) -> None:
    (tmp_path / "x.mp4").write_bytes(content)
    assert refusal(tmp_path / "x.mp4") == code


def test_playlists_do_not_open_other_files(tmp_path: Path) -> None:
    write_video(tmp_path / "other.mp4", numbered(5))
    other = tmp_path / "other.mp4"
    os.utime(other, (0, os.stat(other).st_mtime))  # an access time so old that reading would update it
    (tmp_path / "x.mp4").write_text(f"ffconcat version 1.0\nfile other.mp4\nfile {other}\n")
    assert refusal(tmp_path / "x.mp4") == "not_video"
    assert os.stat(other).st_atime == 0


def test_pipes_are_never_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.mp4")
    assert refusal(tmp_path / "x.mp4") == "not_regular"


def test_folders_are_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path) == "not_regular"


def test_too_large_frames_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_video(tmp_path / "x.mp4", numbered(5))
    monkeypatch.setattr("dfscan.media.decode.MAX_FRAME_PX", 64 * 63)
    assert refusal(tmp_path / "x.mp4") == "too_large"


def test_ffmpeg_has_the_latest_security_fixes() -> None:
    """FFmpeg 8.1.2 fixes CVE-2026-8461, a heap overflow in a decoder; it contains libavcodec 62.28.102."""
    assert av.library_versions["libavcodec"] >= (62, 28, 102)


def test_unlisted_decoders_are_never_run(tmp_path: Path) -> None:
    write_video(tmp_path / "x.avi", numbered(5), codec="magicyuv")
    with pytest.raises(VideoError, match="magicyuv") as caught:
        decode(tmp_path / "x.avi")
    assert caught.value.code == "no_decoder"


def test_endless_streams_are_surveyed_up_to_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_video(tmp_path / "x.mkv", numbered(9))
    monkeypatch.setattr(container, "MAX_PACKETS", 5)
    job, frames = decode(tmp_path / "x.mkv", num_frames=9)
    assert numbers(frames) == [0, 1, 2, 3, 4]
    assert job.damage == "only its first 5 frames are looked at"


def test_running_out_of_memory_does_not_count_as_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(error: Exception) -> Callable[..., Any]:
        def fail(*_: object, **__: object) -> None:
            raise error

        return fail

    def decoded(error: Exception) -> int:
        """Return the number of counted errors if decoding a packet raises `error`."""
        job = SimpleNamespace(check_time=lambda: None, num_errors=0)
        packet = SimpleNamespace(has_sidedata=lambda _: False, decode=failing(error))
        reader: Any = SimpleNamespace(_job=job)
        assert list(decode_module._Reader._tolerant(reader, iter([packet]))) == []  # type: ignore[list-item]
        return job.num_errors

    def surveyed(error: Exception) -> None:
        broken: Any = SimpleNamespace(demux=failing(error))
        stream = SimpleNamespace(index=0)
        outcome = container._survey_packets(broken, [stream], set(), lambda: None)[0]  # type: ignore[list-item]
        assert isinstance(outcome, VideoError)
        raise outcome

    damage, out_of_memory = av.error.InvalidDataError(1, "damaged"), av.error.MemoryError(12, "out of memory")
    assert decoded(damage) == 1
    with pytest.raises(VideoError, match="reading broke off"):
        surveyed(damage)
    for read in (decoded, surveyed):
        with pytest.raises(MemoryError):
            read(out_of_memory)
    monkeypatch.setattr(av, "open", failing(out_of_memory))
    with FileIO(__file__) as file, pytest.raises(MemoryError), container.open_video(file):
        pass


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path / "x.mp4") == "not_found"
    assert refusal("a\0b.mp4") == "not_found"


# A collection of odd files


def outcome(path: Path) -> str:
    try:
        job, frames = decode(path, num_frames=4)
    except VideoError as error:
        return f"error: {error.code}"
    assert frames
    return "partial" if job.damage else "ok"


def may_be(row: dict[str, str]) -> tuple[str, ...]:
    """Return the allowed prefixes of an outcome."""
    if row["expected_note"].startswith("encrypted"):
        return ("error: encrypted",)
    if row["expected"] == "error":
        return ("error: ",)
    if row["expected"] == "either":
        return ("ok", "partial", "error: ")
    return {"": ("ok",), "damaged: must be partial": ("partial",)}.get(row["expected_note"], ("ok", "partial"))


@pytest.mark.shared
def test_odd_files_end_as_expected(shared_data: Path) -> None:
    folder = shared_data / "odd"
    with (folder / "manifest.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    got = {row["file"]: outcome(folder / row["file"]) for row in rows}
    wrong = [
        f"{row['file']}: {row['expected']} ({row['expected_note']}), got {got[row['file']]}"
        for row in rows
        if not got[row["file"]].startswith(may_be(row))
    ]
    assert rows
    assert not wrong, "\n".join(wrong)
