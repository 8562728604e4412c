"""Discovery: the files that get a row, their order, and that special files are never opened."""

import io
import os
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dfscan.errors import ConfigError
from dfscan.media import discover as module
from dfscan.media import names
from dfscan.media.content import is_animation, looks_like_video
from dfscan.media.discover import Discovery, discover, read_list

MP4_HEAD = b"\x00\x00\x00\x20ftypisom\x00\x00\x02\x00"


def make(root: Path, *names: str, data: bytes = b"") -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def counts(result: Discovery) -> Counter[str]:
    return Counter(reason for _, reason in result.skipped)


def found(root: Path, **options) -> list[str]:
    return [os.path.relpath(path, root) for path in discover([root], **options).paths]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record the paths that are opened."""
    paths: list[str] = []
    real_open = os.open

    def recording_open(path, *args, **kwargs):
        paths.append(os.fspath(path))
        return real_open(path, *args, **kwargs)

    monkeypatch.setattr(module.os, "open", recording_open)
    return paths


def test_directories_are_walked_in_code_point_order(tmp_path: Path) -> None:
    names = ["b.mp4", "a/z.MKV", "a.b/x.mov", "a/b/c/d.webm", "B.mp4", "é.ts", "😀.avi", "-x.mp4"]
    make(tmp_path, *names)
    result = discover([tmp_path])
    assert result.paths == sorted(f"{tmp_path}/{name}" for name in names)
    assert (result.problems, result.skipped) == ({}, [])


def test_an_empty_directory_is_reported_as_empty(tmp_path: Path) -> None:
    result = discover([tmp_path])
    assert (result.paths, result.problems, result.skipped, result.empty) == ([], {}, [], [str(tmp_path)])


def test_paths_keep_the_given_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "d/a.mp4", "b.mp4")
    monkeypatch.chdir(tmp_path)
    assert discover(["."]).paths == ["./b.mp4", "./d/a.mp4"]
    assert discover(["d/", "b.mp4"]).paths == ["b.mp4", "d/a.mp4"]


def test_names_that_are_not_utf8_use_surrogate_escapes(tmp_path: Path) -> None:
    name = os.fsdecode(b"\xff\xfe.mp4")
    make(tmp_path, name, "new\nline.mp4")
    assert found(tmp_path) == ["new\nline.mp4", name]


def test_known_suffixes_are_disjoint() -> None:
    assert names.VIDEO_SUFFIXES.isdisjoint(names.OTHER_SUFFIXES | names.SOUND_SUFFIXES)
    assert names.UNFINISHED_SUFFIXES.isdisjoint(names.VIDEO_SUFFIXES | names.OTHER_SUFFIXES)
    assert names.SHARED_WITH_TEXT <= names.VIDEO_SUFFIXES


@pytest.mark.parametrize("name", ["a.mp4", "a.M2TS", "a.dvr-ms", "a.b.webm", "a.264"])
def test_a_video_suffix_is_accepted_without_opening_the_file(tmp_path: Path, opened: list[str], name: str) -> None:
    make(tmp_path, name)
    assert found(tmp_path) == [name]
    assert opened == []


@pytest.mark.parametrize("name", ["a.jpg", "a.GIF", "a.heic", "a.mp3", "a.txt", "a.pdf", "a.docx", "a.zip", "a.csv"])
def test_a_video_with_another_suffix_is_accepted(tmp_path: Path, name: str) -> None:
    make(tmp_path, name, data=MP4_HEAD)
    make(tmp_path, f"true/{name}", data=b"\xff\xd8\xff\xe0\x00\x10JFIF" + bytes(100))
    result = discover([tmp_path])
    assert result.paths == [f"{tmp_path}/{name}"]
    assert result.skipped == [(f"{tmp_path}/true/{name}", "not_video")]


@pytest.mark.parametrize("name", ["a.m4a", "a.M4B", "a.mka", "a.wma", "a.weba"])
def test_sound_in_a_video_container_is_skipped_without_opening_it(tmp_path: Path, opened: list[str], name: str) -> None:
    make(tmp_path, name, data=MP4_HEAD)
    assert discover([tmp_path]).skipped == [(f"{tmp_path}/{name}", "not_video")]
    assert opened == []


def test_an_unreadable_image_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "a.jpg")

    def refuse(*args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(module.os, "open", refuse)
    result = discover([tmp_path])
    assert (result.problems, result.skipped) == ({}, [(f"{tmp_path}/a.jpg", "unreadable")])


def animation(suffix: str, num_frames: int) -> bytes:
    first, *rest = [Image.fromarray(np.full((8, 8, 3), 20 * i, np.uint8)) for i in range(num_frames)]
    data = io.BytesIO()
    more = {"save_all": True, "append_images": rest} if rest else {}
    first.save(data, suffix, **more)
    return data.getvalue()


@pytest.mark.parametrize("suffix", ["gif", "png", "webp"])
def test_animations_are_accepted_and_still_images_are_not(tmp_path: Path, suffix: str) -> None:
    make(tmp_path, f"moving.{suffix}", "moving", "moving.jpg", data=animation(suffix, 3))
    make(tmp_path, f"still.{suffix}", "still", data=animation(suffix, 1))
    assert found(tmp_path) == sorted(["moving", "moving.jpg", f"moving.{suffix}"])
    assert counts(discover([tmp_path])) == {"not_video": 2}


@pytest.mark.parametrize("suffix", ["gif", "png", "webp"])
def test_a_truncated_animation_is_classified_by_its_remaining_part(suffix: str) -> None:
    data = animation(suffix, 3)
    told = [is_animation(io.BytesIO(data[:length])) for length in range(len(data) + 1)]
    assert told == sorted(told)
    assert told[-1]


LEFT_BEHIND = {
    "._IMG.MOV": (b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        ", "system_file"),
    "._empty.mp4": (b"", "system_file"),
    ".nfs000000000123abcd00000001": (MP4_HEAD, "system_file"),
    ".trashed-1700000000-VID_1.mp4": (MP4_HEAD, "system_file"),
    "clip.mp4.part": (MP4_HEAD, "unfinished"),
    "clip.mp4.part-Frag12": (MP4_HEAD, "unfinished"),
    "Unconfirmed 12.crdownload": (MP4_HEAD, "unfinished"),
    "clip.MP4.PARTIAL": (MP4_HEAD, "unfinished"),
    "clip.mp4.!qB": (MP4_HEAD, "unfinished"),
    ".clip.mp4.Xy12Zs": (MP4_HEAD, "unfinished"),
    ".pending-1700000000-VID_1.mp4": (MP4_HEAD, "unfinished"),
    ".syncthing.clip.mp4.tmp": (MP4_HEAD, "unfinished"),
    "main.ts": (b"import { x } from './x';\n", "not_video"),
    "umlaut.ts": ("// für\n".encode("latin-1"), "not_video"),
    "wide.ts": ("// x\n".encode("utf-16"), "not_video"),
    "qt_de.ts": (b'<?xml version="1.0"?>', "not_video"),
    "module.mts": (b"export default 1\n", "not_video"),
    "rules.smk": (b"rule all:\n\tinput: 'a'\n", "not_video"),
}


@pytest.mark.parametrize(("name", "data", "reason"), [(name, *each) for name, each in LEFT_BEHIND.items()])
def test_other_files_with_video_suffixes_are_skipped_in_folders(
    tmp_path: Path, name: str, data: bytes, reason: str
) -> None:
    make(tmp_path, name, data=data)
    result = discover([tmp_path])
    assert (result.paths, result.problems) == ([], {})
    assert result.skipped == [(f"{tmp_path}/{name}", reason)]
    assert discover([tmp_path / name]).paths == [f"{tmp_path}/{name}"], "the file is given explicitly"


def test_patterns_include_everything_but_resource_forks(tmp_path: Path) -> None:
    make(tmp_path, "._a.mp4", data=LEFT_BEHIND["._IMG.MOV"][0])
    make(tmp_path, "a.mp4", "a.mp4.part", data=MP4_HEAD)
    assert found(tmp_path, include=["*.mp4", "*.part"]) == ["a.mp4", "a.mp4.part"]


@pytest.mark.parametrize("name", ["a.ts", "b.mts"])
def test_a_recording_with_a_text_suffix_is_accepted(tmp_path: Path, name: str) -> None:
    make(tmp_path, name, data=ts(0, 188) + bytes(4000))
    make(tmp_path, f"starts_late_{name}", data=b"\x01" * 100 + ts(0, 188))
    make(tmp_path, f"empty_{name}")
    make(tmp_path, f"._{name}", data=ts(4, 192))
    assert found(tmp_path) == sorted(["._" + name, "empty_" + name, "starts_late_" + name, name])


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        *((name, "system_folder") for name in (".Trashes", ".Trash-1000", "__MACOSX", ".Spotlight-V100")),
        *((name, "system_folder") for name in ("@eaDir", "#recycle", "@Recycle", ".@__thumb", ".snapshot")),
        *((name, "system_folder") for name in ("$RECYCLE.BIN", "System Volume Information", "lost+found")),
        ("clip.mp4.download", "unfinished"),
    ],
)
def test_system_folders_are_skipped_unless_given_explicitly(tmp_path: Path, name: str, reason: str) -> None:
    make(tmp_path, f"d/{name}/501/a.mp4", "d/a.mp4")
    result = discover([tmp_path])
    assert (result.paths, result.skipped) == ([f"{tmp_path}/d/a.mp4"], [(f"{tmp_path}/d/{name}", reason)])
    assert found(tmp_path / "d" / name) == ["501/a.mp4"]


def test_folders_without_videos_are_reported(tmp_path: Path) -> None:
    make(tmp_path, "a/x.mp4", "b/notes.txt", "c/d/e/.keep")
    result = discover([tmp_path / "a", tmp_path / "b"], listed=[str(tmp_path / "c"), str(tmp_path / "gone")])
    assert result.empty == [f"{tmp_path}/b", f"{tmp_path}/c"]
    assert discover([tmp_path, tmp_path / "a"]).empty == []


@pytest.mark.parametrize("name", ["noext", "clip.mp4.bak", ".mp4", "x.", "IMG.0001"])
def test_a_file_with_an_unknown_suffix_is_classified_by_content(tmp_path: Path, opened: list[str], name: str) -> None:
    make(tmp_path, name, data=MP4_HEAD)
    make(tmp_path, "notes", data=b"The free lunch")
    result = discover([tmp_path])
    assert result.paths == [f"{tmp_path}/{name}"]
    assert counts(result) == {"not_video": 1}
    assert sorted(os.path.basename(path) for path in opened) == sorted([name, "notes"])


def ts(first: int, step: int) -> bytes:
    head = bytearray(first + 2 * step + 1)
    head[first::step] = b"\x47" * 3
    return bytes(head)


HEADS = {
    "mp4": (MP4_HEAD, True),
    "quicktime": (b"\x00\x00\x00\x14ftypqt  ", True),
    "3gp": (b"\x00\x00\x00\x14ftyp3gp4", True),
    "m4a": (b"\x00\x00\x00\x20ftypM4A ", False),
    "heic": (b"\x00\x00\x00\x20ftypheic", False),
    "avif": (b"\x00\x00\x00\x20ftypavif", False),
    "mif1": (b"\x00\x00\x00\x20ftypmif1", False),
    "mdat": (b"\x24\x24\x24\x24mdat", True),
    "moov": (b"\x00\x01\x00\x00moov", True),
    "wide": (b"\x00\x00\x00\x08wide", True),
    "free atom": (b"\x00\x00\x00\x08free", True),
    "free text": (b"The free lunch", False),
    "skip text": (b"I'd skip it", False),
    "matroska": (b"\x1a\x45\xdf\xa3\x01", True),
    "avi": (b"RIFF\x00\x01\x00\x00AVI LIST", True),
    "wave": (b"RIFF\x00\x01\x00\x00WAVEfmt ", False),
    "program stream": (b"\x00\x00\x01\xba\x44", True),
    "mpeg video": (b"\x00\x00\x01\xb3\x16", True),
    "flv": (b"FLV\x01\x05", True),
    "asf": (bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c"), True),
    "mxf": (bytes.fromhex("060e2b34020501010d0102010102"), True),
    "real": (b".RMF\x00\x00", True),
    "ts": (ts(0, 188), True),
    "m2ts": (ts(4, 192), True),
    "ts of two packets": (ts(0, 188)[:189], True),
    "ts without third mark": (ts(0, 188)[:-1] + b"\x00", False),
    "one G": (b"G" + bytes(100), False),
    "theora": (b"OggS" + bytes(24) + b"\x80theora\x03", True),
    "vorbis": (b"OggS" + bytes(24) + b"\x01vorbis\x00", False),
    "jpeg": (b"\xff\xd8\xff\xe0\x00\x10JFIF", False),
    "text": (b"hello", False),
    "empty": (b"", False),
}


@pytest.mark.parametrize(("head", "expected"), HEADS.values(), ids=HEADS.keys())
def test_looks_like_video(head: bytes, expected: bool) -> None:
    assert looks_like_video(head) is expected


PATTERNS = {
    "everything": ({"include": ["*"]}, ["a.mp4", "d/c.txt", "d/e/f.mov", "n"], {}),
    "base name": ({"include": ["c*"]}, ["d/c.txt"], {"excluded": 3}),
    "relative path": ({"include": ["d/*"]}, ["d/c.txt", "d/e/f.mov"], {"excluded": 2}),
    "case counts": ({"include": ["*.MP4"]}, [], {"excluded": 4}),
    "exclude": ({"exclude": ["*.mp4"]}, ["d/e/f.mov"], {"excluded": 1, "not_video": 2}),
    "exclude prunes": ({"exclude": ["e"]}, ["a.mp4"], {"excluded": 1, "not_video": 2}),
    "exclude path": ({"exclude": ["d/e/*"]}, ["a.mp4"], {"excluded": 1, "not_video": 2}),
    "exclude wins": ({"include": ["*"], "exclude": ["d"]}, ["a.mp4", "n"], {"excluded": 1}),
}


@pytest.mark.parametrize(("options", "expected", "skipped"), PATTERNS.values(), ids=PATTERNS.keys())
def test_patterns(tmp_path: Path, options: dict, expected: list[str], skipped: dict) -> None:
    make(tmp_path, "a.mp4", "d/c.txt", "d/e/f.mov", "n")
    assert found(tmp_path, **options) == expected
    assert counts(discover([tmp_path], **options)) == skipped


def test_an_explicit_file_is_always_accepted(tmp_path: Path) -> None:
    make(tmp_path, "a.txt", "b.jpg")
    result = discover([tmp_path / "a.txt"], listed=[str(tmp_path / "b.jpg")], include=["*.mp4"], exclude=["*"])
    assert result.paths == [f"{tmp_path}/a.txt", f"{tmp_path}/b.jpg"]


def test_the_first_path_of_duplicates_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "d/x.mp4")
    (tmp_path / "link.mp4").symlink_to("d/x.mp4")
    monkeypatch.chdir(tmp_path)
    result = discover(["d", "./d/x.mp4", "link.mp4", "d"], listed=["d/x.mp4", str(tmp_path / "d")])
    assert result.paths == ["./d/x.mp4"]
    assert counts(result) == {"duplicate": 5}


def test_hard_links_are_two_files(tmp_path: Path) -> None:
    make(tmp_path, "a.mp4")
    os.link(tmp_path / "a.mp4", tmp_path / "b.mp4")
    assert found(tmp_path) == ["a.mp4", "b.mp4"]


def test_all_missing_inputs_are_listed_in_one_error(tmp_path: Path) -> None:
    make(tmp_path, "a.mp4")
    with pytest.raises(ConfigError, match=r"'.*gone1', '.*a\.mp4/under', 'esc\\x1b'.*Check the spelling"):
        discover([tmp_path / "gone1", tmp_path / "a.mp4", tmp_path / "a.mp4" / "under", "esc\x1b"])


def test_an_explicit_dangling_link_is_missing(tmp_path: Path) -> None:
    (tmp_path / "l.mp4").symlink_to("gone")
    with pytest.raises(ConfigError, match=r"l\.mp4"):
        discover([tmp_path / "l.mp4"])


def test_a_missing_list_entry_is_a_problem(tmp_path: Path) -> None:
    make(tmp_path, "d/a.mp4")
    result = discover([], listed=[f"{tmp_path}/gone", f"{tmp_path}/d", "nul\0name"])
    assert result.paths == [f"{tmp_path}/d/a.mp4"]
    assert {path: reason.code for path, reason in result.problems.items()} == {
        f"{tmp_path}/gone": "not_found",
        "nul\0name": "not_found",
    }


def test_special_files_are_never_opened(tmp_path: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # socket names must be short
    os.mkfifo(tmp_path / "x.mp4")
    os.mkfifo(tmp_path / "noext")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("s.mp4")
        walked = discover([tmp_path])
        named = discover([tmp_path / "x.mp4", "/dev/null"], listed=[f"{tmp_path}/s.mp4"], include=["*"])
    assert (walked.paths, walked.problems, counts(walked)) == ([], {}, {"not_regular": 3})
    assert named.paths == []
    assert {path: reason.code for path, reason in named.problems.items()} == dict.fromkeys(
        [f"{tmp_path}/s.mp4", f"{tmp_path}/x.mp4", "/dev/null"], "not_regular"
    )
    assert opened == []


def test_a_file_replaced_by_a_fifo_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert module._read_head(str(tmp_path / "pipe")) == b""


def test_links_inside_directories_are_skipped(tmp_path: Path) -> None:
    make(tmp_path, "real/a.mp4", "out/b.mp4")
    (tmp_path / "real/l.mp4").symlink_to("../out/b.mp4")
    (tmp_path / "real/dir").symlink_to("../out")
    result = discover([tmp_path / "real"])
    assert result.paths == [f"{tmp_path}/real/a.mp4"]
    assert counts(result) == {"symlink": 2}


def test_links_on_the_command_line_are_followed(tmp_path: Path) -> None:
    make(tmp_path, "real/a.mp4")
    (tmp_path / "l").symlink_to("real")
    (tmp_path / "f.mp4").symlink_to("real/a.mp4")
    assert discover([tmp_path / "l"]).paths == [f"{tmp_path}/l/a.mp4"]
    assert discover([tmp_path / "f.mp4"]).paths == [f"{tmp_path}/f.mp4"]


def test_following_links_in_loops_terminates(tmp_path: Path) -> None:
    make(tmp_path, "d/a.mp4", "other/noext", data=MP4_HEAD)
    (tmp_path / "d/up").symlink_to("..")
    (tmp_path / "d/self.mp4").symlink_to("self.mp4")
    (tmp_path / "d/gone.mp4").symlink_to("nowhere")
    (tmp_path / "d/b.mp4").symlink_to("a.mp4")
    (tmp_path / "d/linked").symlink_to("../other/noext")
    result = discover([tmp_path / "d"], follow_symlinks=True)
    assert result.paths == [f"{tmp_path}/d/a.mp4", f"{tmp_path}/d/linked"]
    # b.mp4, up/other/noext and up/d
    assert counts(result) == {"not_regular": 2, "duplicate": 3}


@pytest.mark.parametrize("link", ["c", "d.x"])  # as paths "d.x/a.mp4" < "d/a.mp4", although "d" < "d.x"
def test_the_first_of_two_paths_to_a_directory_is_kept(tmp_path: Path, link: str) -> None:
    make(tmp_path, "d/a.mp4")
    (tmp_path / link).symlink_to("d")
    result = discover([tmp_path], follow_symlinks=True)
    assert (result.paths, counts(result)) == ([f"{tmp_path}/{link}/a.mp4"], {"duplicate": 1})


def test_an_unreadable_directory_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "a.mp4", "locked/b.mp4")
    real_scandir = os.scandir

    def refuse(path):
        if path.endswith("locked"):
            raise PermissionError(13, "Permission denied")
        return real_scandir(path)

    monkeypatch.setattr(module.os, "scandir", refuse)
    result = discover([tmp_path])
    assert result.paths == [f"{tmp_path}/a.mp4"]
    assert str(result.problems[f"{tmp_path}/locked"]).startswith("unreadable: ")
    assert "Permission denied" in result.problems[f"{tmp_path}/locked"].text


def test_an_unreadable_file_of_unknown_kind_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "noext")

    def refuse(*args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(module.os, "open", refuse)
    result = discover([tmp_path])
    assert (result.paths, [*result.problems]) == ([], [f"{tmp_path}/noext"])


def test_a_link_to_itself_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "l.mp4").symlink_to("l.mp4")
    assert discover([tmp_path / "l.mp4"]).problems[f"{tmp_path}/l.mp4"].code == "unreadable"


def test_deep_directory_trees_are_walked(tmp_path: Path) -> None:
    deep = "/".join(["d"] * 200)
    make(tmp_path, f"{deep}/x.mp4")
    assert found(tmp_path) == [f"{deep}/x.mp4"]


def test_links_are_resolved_once_per_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, *(f"d/{index}.mp4" for index in range(50)))
    calls = []
    real_realpath = os.path.realpath
    monkeypatch.setattr(module.os.path, "realpath", lambda path: calls.append(path) or real_realpath(path))
    assert len(discover([tmp_path]).paths) == 50
    assert len(calls) == 1


LISTS = {
    "lines": (b"b.mp4\na b.mp4\n", False, ["b.mp4", "a b.mp4"]),
    "no last newline": (b"b.mp4\na.mp4", False, ["b.mp4", "a.mp4"]),
    "blank lines": (b"\nb.mp4\n \n\r\n\n", False, ["b.mp4"]),
    "exact names": (b" a.mp4 \n\tb.mp4\n", False, [" a.mp4 ", "\tb.mp4"]),
    "CR LF": (b"b.mp4\r\na b.mp4 \r\nc.mp4\r", False, ["b.mp4", "a b.mp4 ", "c.mp4"]),
    "mixed line ends": (b"b.mp4\r\na.mp4\n", False, ["b.mp4", "a.mp4"]),
    "one return of two": (b"b.mp4\r\r\n", False, ["b.mp4\r"]),
    "byte order mark": (b"\xef\xbb\xbfb.mp4\n\xef\xbb\xbfa.mp4", False, ["b.mp4", "\ufeffa.mp4"]),
    "UTF-16": ("é.mp4\r\nb.mp4\r\n".encode("utf-16"), False, ["é.mp4", "b.mp4"]),
    "UTF-16, big end first": (b"\xfe\xff" + "é.mp4\n".encode("utf-16-be"), False, ["é.mp4"]),
    "null keeps all": (b"\xef\xbb\xbfa\r\0b\r\n\0", True, ["\ufeffa\r", "b\r\n"]),
    "undecodable": (b"\xff.mp4\n", False, ["\udcff.mp4"]),
    "null": (b"a\nb.mp4\0\0 \0c.mp4\0", True, ["a\nb.mp4", " ", "c.mp4"]),
    "empty": (b"", False, []),
}


@pytest.mark.parametrize(("data", "null", "expected"), LISTS.values(), ids=LISTS.keys())
def test_read_list(data: bytes, null: bool, expected: list[str]) -> None:
    assert read_list(io.BytesIO(data), null=null) == expected


def test_importing_the_module_imports_no_heavy_library() -> None:
    code = "import sys, dfscan.media.discover; print({'numpy', 'av', 'cv2', 'torch'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout == "set()\n"
