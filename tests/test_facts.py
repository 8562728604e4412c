"""What a file states about itself: read in the sandboxed child, quoted, never part of a verdict."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import struct
from collections.abc import Callable, Mapping
from contextlib import closing
from io import FileIO
from pathlib import Path

import av
import numpy as np
import pandas as pd
import pytest

from dfscan.media import isolate
from dfscan.media.decode import Decoding
from dfscan.media.facts import encoder_text
from dfscan.media.isolate import Decoded, Ended, Limits, decode_videos
from dfscan.media.plan import Sampling
from dfscan.report.formats import open_writer
from dfscan.report.schema import REPORT_COLUMNS, report_row
from dfscan.scan.ledger import from_json, to_json
from dfscan.types import FileFacts, Verdict, VideoInfo, VideoResult
from tests.test_cli import run, scan
from tests.test_cli import surroundings as surroundings
from tests.videos import numbered, write_video


def tagged(path: Path, tags: Mapping[str, str], *, num_frames: int = 5) -> Path:
    """Write a short clip with tags, of which MP4 keeps any."""
    options = {"movflags": "use_metadata_tags"} if path.suffix in (".mp4", ".mov") else {}
    with av.open(str(path), "w", options=options) as container:
        container.metadata.update(tags)
        stream = container.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
        assert isinstance(stream, av.VideoStream)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for pixels in numbered(num_frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def with_sound(path: Path, *, pictures: bool = True) -> Path:
    """Write a second of silence, with or without pictures."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=25) if pictures else None
        sound = container.add_stream("aac", rate=8000)
        assert isinstance(sound, av.AudioStream)
        if isinstance(video, av.VideoStream):
            video.width = video.height = 64
            video.pix_fmt = "yuv420p"
            for pixels in numbered(5):
                container.mux(video.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            container.mux(video.encode(None))
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
        silence.sample_rate = 8000
        container.mux(sound.encode(silence))
        container.mux(sound.encode(None))
    return path


def ends(*paths: Path, limits: Limits | None = None, trust_list: str | None = None) -> dict[str, Ended]:
    """Return the end of each file by name, as sent by a sandboxed child."""
    limits = limits or Limits(60)
    events = decode_videos(map(str, paths), sampling=Sampling(2), num_workers=1, limits=limits, trust_list=trust_list)
    return {Path(event.path).name: event for event in events if isinstance(event, Ended)}


def facts_of(path: Path) -> FileFacts:
    facts = ends(path)[path.name].facts
    assert facts is not None
    return facts


# What is read


def test_programs_camera_and_time_are_quoted(tmp_path: Path) -> None:
    tags = {
        "com.apple.quicktime.make": "Apple",
        "com.apple.quicktime.model": "iPhone 13 Pro",
        "com.apple.quicktime.creationdate": "2024-07-24T15:15:55+0200",
        "com.apple.quicktime.author": "ReplayKitRecording",
        "creation_time": "2024-07-24T13:15:55.000000Z",
    }
    facts = facts_of(tagged(tmp_path / "a.mp4", tags))
    assert (facts.container, facts.brand) == ("mp4", "isom (isom iso2 avc1 mp41)")
    assert facts.muxer is not None
    assert facts.muxer.startswith("Lavf")
    assert facts.encoder is not None
    assert "x264 - core" in facts.encoder
    assert "crf=23.0" in facts.encoder
    assert facts.device == "Apple iPhone 13 Pro"
    assert facts.creation_time == "2024-07-24T15:15:55+0200"
    assert facts.origin_signs == ("screen recorder: com.apple.quicktime.author=ReplayKitRecording",)


def test_a_time_in_whole_seconds_is_given_in_whole_seconds(tmp_path: Path) -> None:
    tags = {"creation_time": "2024-07-24T13:15:55.000000Z"}
    assert facts_of(tagged(tmp_path / "a.mp4", tags)).creation_time == "2024-07-24T13:15:55Z"


@pytest.mark.parametrize(
    ("tag", "sign"),
    [
        ({"comment": "vid:v09044g40000abcd"}, "online service: comment=vid:v09044g40000abcd"),
        ({"comment": "Recorded by scrcpy 2.4"}, "screen recorder: comment=Recorded by scrcpy 2.4"),
        ({"AIGC": '{"Label": "1"}'}, 'generator: aigc={"Label": "1"}'),
        ({"comment": "made with ComfyUI"}, "generator: comment=made with ComfyUI"),
        ({"artist": "Sora Obscura", "title": "Observations of a lineman"}, None),
    ],
)
def test_signs_are_tags_that_name_a_program(tag: dict[str, str], sign: str | None, tmp_path: Path) -> None:
    assert facts_of(tagged(tmp_path / "a.mp4", tag)).origin_signs == ((sign,) if sign else ())


@pytest.mark.parametrize(
    ("name", "codec", "container"),
    [
        ("a.mov", "libx264", "mov"),
        ("a.mkv", "libx264", "matroska"),
        ("a.webm", "libvpx", "webm"),
        ("a.avi", "mpeg4", "avi"),
        ("a.ts", "mpeg2video", "mpegts"),
        ("a.gif", "gif", "gif"),
    ],
)
def test_containers_are_named(name: str, codec: str, container: str, tmp_path: Path) -> None:
    if codec == "gif":
        with av.open(str(tmp_path / name), "w") as output:
            stream = output.add_stream("gif", rate=10)
            assert isinstance(stream, av.VideoStream)
            stream.width, stream.height, stream.pix_fmt = 64, 64, "rgb8"
            for pixels in numbered(5):
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format="rgb8")
                output.mux(stream.encode(frame))
            output.mux(stream.encode(None))
    else:
        write_video(tmp_path / name, numbered(50), codec=codec)
    facts = facts_of(tmp_path / name)
    assert facts.container == container
    assert facts.num_audio_streams == 0
    if container in ("mov", "matroska", "webm", "avi"):
        assert facts.muxer is not None
        assert facts.muxer.startswith("Lavf")
    assert (facts.num_edits is not None) == (container == "mov")


def test_bit_rate_and_key_frames_come_from_the_packets(tmp_path: Path) -> None:
    for num_frames in (50, 1000):  # of a longer stream, only the index is read
        path = tmp_path / f"{num_frames}.mp4"
        write_video(path, numbered(num_frames), gop=12)
        facts = facts_of(path)
        with av.open(str(path)) as container:
            num_bytes = sum(packet.size for packet in container.demux(video=0))
        assert facts.bit_rate_bps == round(8 * num_bytes / (num_frames / 25))
        assert facts.gop_frames == 12


def test_sound_is_counted(tmp_path: Path) -> None:
    both = with_sound(tmp_path / "both.mp4")
    assert facts_of(both).num_audio_streams == 1


def test_facts_of_a_file_that_cannot_be_judged_are_kept(tmp_path: Path) -> None:
    end = ends(with_sound(tmp_path / "sound.mp4", pictures=False))["sound.mp4"]
    assert end.failure is not None
    assert end.failure.code == "no_video"
    assert end.facts is not None
    assert (end.facts.container, end.facts.num_audio_streams, end.facts.bit_rate_bps) == ("mp4", 1, None)


def test_a_file_that_is_no_container_has_no_facts(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("not a video")
    assert ends(tmp_path / "text.mp4")["text.mp4"].facts is None


def edit_list(data: bytes) -> int:
    """Return the position of the entries of the only edit list."""
    assert data.count(b"elst") == 1
    return data.index(b"elst") + 12


def test_an_edit_list_that_hides_a_part_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    write_video(path, numbered(50), options={"bf": "2"})
    plain = facts_of(path)
    assert (plain.num_edits, plain.hidden_s) == (1, None), "the usual entry for the delay of B-frames hides nothing"
    data = bytearray(path.read_bytes())
    at = edit_list(data)
    (shown_ms,) = struct.unpack_from(">I", data, at)
    struct.pack_into(">I", data, at, shown_ms - 1500)
    path.write_bytes(data)
    trimmed = facts_of(path)
    assert trimmed.num_edits == 1
    assert trimmed.hidden_s == pytest.approx(1.5, abs=0.01)


@pytest.mark.parametrize("number", [0, 1 << 31, (1 << 32) - 1])
def test_a_damaged_edit_list_is_no_failure(number: int, tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    write_video(path, numbered(5))
    data = bytearray(path.read_bytes())
    at = edit_list(data)
    struct.pack_into(">I", data, at - 4, number)
    path.write_bytes(data)
    assert facts_of(path).num_edits is not None


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (
            b"\x06\x05x264 - core 164 r3108 31e19f9 - H.264/MPEG-4 AVC - options: keyint=250 rc=crf crf=23.0 qp=0",
            "x264 - core 164 r3108 31e19f9; keyint=250; crf=23.0; qp=0",
        ),
        (b"\0\0x265 (build 199) - 3.5:[Linux] - options: bitrate=900\0", "x265 (build 199); bitrate=900"),
        (b"\0\0\1\xb2XviD0064\0", "XviD0064"),
        (b"\0" * 100, None),
    ],
)
def test_encoders_sign_their_streams(data: bytes, text: str | None) -> None:
    assert encoder_text(data) == text


def test_long_and_odd_text_is_cut_and_escaped(tmp_path: Path) -> None:
    facts = facts_of(tagged(tmp_path / "a.mkv", {"software": "n" * 5000, "make": "a\x1b[31m\nb"}))
    assert facts.muxer is not None
    assert facts.muxer.endswith("n" * 200)
    assert len(facts.muxer) == 300
    report = tmp_path / "r.jsonl"
    assert facts.device == "a\x1b[31m\nb"
    result = VideoResult("a.mkv", "ok", Verdict("no_face"), VideoInfo(1), facts=facts)
    with open_writer(report, REPORT_COLUMNS, format="jsonl") as writer:
        writer.append(report_row(result, checkpoint="c", version="v"))
    assert json.loads(report.read_text())["device"] == "a\\x1b[31m\\nb"


# How it is kept


def test_a_child_gives_the_same_facts_as_this_process(tmp_path: Path) -> None:
    path = tagged(tmp_path / "a.mp4", {"comment": "vid:v09044g40000abcd"})
    with FileIO(path) as file:
        decoding = Decoding(file, Sampling(2))
        list(decoding.samples())
    assert facts_of(path) == decoding.facts


@pytest.mark.parametrize("facts", [[], {"num_edits": "many"}, {"origin_signs": [1]}, {"muxer": {}}])
def test_facts_of_another_type_are_a_violation_of_the_protocol(
    facts: object, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    message = {"kind": "done", "info": None, "facts": facts, "cpu_s": 0, "open_cpu_s": 0, "peak_rss_bytes": 0}
    child = (
        "import sys, time; from multiprocessing.connection import Connection; c = Connection(int(sys.argv[-1])); "
        f"c.recv_bytes(); c.send_bytes({json.dumps(message).encode()!r}); time.sleep(60)"
    )
    monkeypatch.setattr(isolate, "_CHILD", child)
    (tmp_path / "x.mp4").write_bytes(b"1")
    failure = ends(tmp_path / "x.mp4")["x.mp4"].failure
    assert failure is not None
    assert failure.code == "crashed"


def test_ledgers_from_before_have_no_facts_and_later_ones_may_have_more() -> None:
    facts = FileFacts("mp4", num_audio_streams=1, origin_signs=("a: b",))
    document = json.loads(json.dumps(to_json(VideoResult("a", "ok", Verdict("real"), VideoInfo(1), facts=facts))))
    assert from_json(document).facts == facts
    assert from_json(document | {"facts": document["facts"] | {"from_the_future": 1}}).facts == facts
    del document["facts"]
    assert from_json(document).facts is None


def test_a_report_from_a_ledger_without_facts_has_empty_cells(clips: Path, untrained: Path, tmp_path: Path) -> None:
    out, again = tmp_path / "r.csv", tmp_path / "again.csv"
    assert scan(untrained, clips / "one.mp4", "-o", out).exit_code == 0
    told = pd.read_csv(out).iloc[0]
    assert (told.container, told.sound, told.num_audio_streams, told.rotation_deg) == ("mp4", "none", 0, 0)
    assert told.bit_rate_bps > 1000
    with closing(sqlite3.connect(f"{out}.ledger")) as database, database:
        database.execute("UPDATE videos SET result = json_remove(result, '$.facts')")
    assert run("report", f"{out}.ledger", "-o", again, "--html", tmp_path / "p.html").exit_code == 0
    empty = pd.read_csv(again).iloc[0]
    assert empty[["container", "muxer", "encoder", "bit_rate_bps", "num_audio_streams", "sound"]].isna().all()
    before_facts = list(told.index).index("container")
    assert list(told.iloc[:before_facts].dropna()) == list(empty.iloc[:before_facts].dropna())
    assert '"stated":' not in (tmp_path / "p.html").read_text()


# A file that changes while it is read


def overwritten_in_place(path: Path) -> None:
    """Change the content but neither size, inode nor modification time."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(-100, os.SEEK_END)
        old = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([old[0] ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def touched(path: Path) -> None:
    os.utime(path)


def linked(path: Path) -> None:
    os.link(path, path.with_suffix(".link"))


def grown(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


@pytest.mark.parametrize(
    ("happens", "has_changed"), [(overwritten_in_place, True), (grown, True), (touched, False), (linked, False)]
)
def test_a_file_that_changes_while_it_is_read_is_changed(
    happens: Callable[[Path], None], has_changed: bool, tmp_path: Path
) -> None:
    path = tmp_path / "big.mp4"  # its frames exceed any buffer, so that the child waits for this process
    write_video(path, numbered(30, width_px=640, height_px=640))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    events = decode_videos([str(path)], sampling=Sampling(30), num_workers=1, limits=Limits(60))
    end = None
    for event in events:
        if isinstance(event, Decoded) and event.frame.index == 0:
            happens(path)
        end = event
    assert isinstance(end, Ended)
    assert end.info is not None
    assert (end.failure and end.failure.code, end.info.sha256) == (("changed", None) if has_changed else (None, digest))


# The page


def test_the_page_quotes_the_file(tmp_path: Path) -> None:
    from tests.test_page import block, make, track, video

    facts = FileFacts("mp4", muxer="</script>", hidden_s=1.5, num_audio_streams=2, origin_signs=("a: b\x1b", "c: d"))
    results = [video("a.mp4", "real", 0.1, track(0, [0.1] * 3), facts=facts), video("b.mp4", "no_face")]
    make(tmp_path / "p.html", results)
    page = (tmp_path / "p.html").read_text()
    details = block(page, "details")
    assert details[0]["stated"] == {
        "container": "mp4",
        "muxer": "</script>",
        "signs": "a: b\\x1b; c: d",
        "hidden": 1.5,
        "sounds": 2,
    }
    assert "stated" not in details[1]
