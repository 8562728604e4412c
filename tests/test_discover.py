"""Discovery: which files get a row, in which order, and that nothing odd is ever opened."""

import io
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from dfscan.errors import ConfigError
from dfscan.media import discover as module
from dfscan.media.discover import discover, looks_like_video, read_list

MP4_HEAD = b"\x00\x00\x00\x20ftypisom\x00\x00\x02\x00"


def make(root: Path, *names: str, data: bytes = b"") -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def found(root: Path, **options) -> list[str]:
    return [os.path.relpath(path, root) for path in discover([root], **options).paths]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Paths that were opened."""
    paths: list[str] = []
    real_open = os.open

    def recording_open(path, *args, **kwargs):
        paths.append(os.fspath(path))
        return real_open(path, *args, **kwargs)

    monkeypatch.setattr(module.os, "open", recording_open)
    return paths


def test_walks_directories_in_code_point_order(tmp_path: Path) -> None:
    names = ["b.mp4", "a/z.MKV", "a.b/x.mov", "a/b/c/d.webm", "B.mp4", "é.ts", "😀.avi", "-x.mp4"]
    make(tmp_path, *names)
    result = discover([tmp_path])
    assert result.paths == sorted(f"{tmp_path}/{name}" for name in names)
    assert (result.problems, result.passed_over) == ({}, {})


def test_empty_directory_gives_nothing(tmp_path: Path) -> None:
    result = discover([tmp_path])
    assert (result.paths, result.problems, result.passed_over) == ([], {}, {})


def test_paths_keep_the_form_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "d/a.mp4", "b.mp4")
    monkeypatch.chdir(tmp_path)
    assert discover(["."]).paths == ["./b.mp4", "./d/a.mp4"]
    assert discover(["d/", "b.mp4"]).paths == ["b.mp4", "d/a.mp4"]


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    name = os.fsdecode(b"\xff\xfe.mp4")
    make(tmp_path, name, "new\nline.mp4")
    assert found(tmp_path) == ["new\nline.mp4", name]


def test_known_suffixes_are_disjoint() -> None:
    assert module.VIDEO_SUFFIXES.isdisjoint(module.OTHER_SUFFIXES)


@pytest.mark.parametrize("name", ["a.mp4", "a.M2TS", "a.dvr-ms", "a.b.webm", "a.264", "a.ts"])
def test_video_suffix_is_taken_unopened(tmp_path: Path, opened: list[str], name: str) -> None:
    make(tmp_path, name)
    assert found(tmp_path) == [name]
    assert opened == []


@pytest.mark.parametrize("name", ["a.jpg", "a.GIF", "a.mp3", "a.txt", "a.zip", "a.py", "a.safetensors", "a.csv"])
def test_other_suffix_is_passed_over_unopened(tmp_path: Path, opened: list[str], name: str) -> None:
    make(tmp_path, name, data=MP4_HEAD)
    result = discover([tmp_path])
    assert (result.paths, result.passed_over) == ([], {"not_video": 1})
    assert opened == []


@pytest.mark.parametrize("name", ["noext", "clip.mp4.part", ".mp4", "x.", "IMG.0001"])
def test_unknown_suffix_is_judged_by_content(tmp_path: Path, opened: list[str], name: str) -> None:
    make(tmp_path, name, data=MP4_HEAD)
    make(tmp_path, "notes", data=b"The free lunch")
    result = discover([tmp_path])
    assert result.paths == [f"{tmp_path}/{name}"]
    assert result.passed_over == {"not_video": 1}
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


@pytest.mark.parametrize(("options", "expected", "passed_over"), PATTERNS.values(), ids=PATTERNS.keys())
def test_patterns(tmp_path: Path, options: dict, expected: list[str], passed_over: dict) -> None:
    make(tmp_path, "a.mp4", "d/c.txt", "d/e/f.mov", "n")
    assert found(tmp_path, **options) == expected
    assert discover([tmp_path], **options).passed_over == passed_over


def test_named_file_is_always_taken(tmp_path: Path) -> None:
    make(tmp_path, "a.txt", "b.jpg")
    result = discover([tmp_path / "a.txt"], listed=[str(tmp_path / "b.jpg")], include=["*.mp4"], exclude=["*"])
    assert result.paths == [f"{tmp_path}/a.txt", f"{tmp_path}/b.jpg"]


def test_duplicates_keep_the_first_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "d/x.mp4")
    (tmp_path / "link.mp4").symlink_to("d/x.mp4")
    monkeypatch.chdir(tmp_path)
    result = discover(["d", "./d/x.mp4", "link.mp4", "d"], listed=["d/x.mp4", str(tmp_path / "d")])
    assert result.paths == ["./d/x.mp4"]
    assert result.passed_over == {"duplicate": 5}


def test_hard_links_are_two_files(tmp_path: Path) -> None:
    make(tmp_path, "a.mp4")
    os.link(tmp_path / "a.mp4", tmp_path / "b.mp4")
    assert found(tmp_path) == ["a.mp4", "b.mp4"]


def test_missing_inputs_are_named_together(tmp_path: Path) -> None:
    make(tmp_path, "a.mp4")
    with pytest.raises(ConfigError, match=r"'.*gone1', '.*a\.mp4/under', 'esc\\x1b'.*Check the spelling"):
        discover([tmp_path / "gone1", tmp_path / "a.mp4", tmp_path / "a.mp4" / "under", "esc\x1b"])


def test_dangling_link_named_is_missing(tmp_path: Path) -> None:
    (tmp_path / "l.mp4").symlink_to("gone")
    with pytest.raises(ConfigError, match=r"l\.mp4"):
        discover([tmp_path / "l.mp4"])


def test_missing_listed_entry_is_a_problem(tmp_path: Path) -> None:
    make(tmp_path, "d/a.mp4")
    result = discover([], listed=[f"{tmp_path}/gone", f"{tmp_path}/d", "nul\0name"])
    assert result.paths == [f"{tmp_path}/d/a.mp4"]
    assert {path: reason.code for path, reason in result.problems.items()} == {
        f"{tmp_path}/gone": "not_found",
        "nul\0name": "not_found",
    }


def test_special_files_are_never_opened(tmp_path: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the name of a socket must be short
    os.mkfifo(tmp_path / "x.mp4")
    os.mkfifo(tmp_path / "noext")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("s.mp4")
        walked = discover([tmp_path])
        named = discover([tmp_path / "x.mp4", "/dev/null"], listed=[f"{tmp_path}/s.mp4"], include=["*"])
    assert (walked.paths, walked.problems, walked.passed_over) == ([], {}, {"not_regular": 3})
    assert named.paths == []
    assert {path: reason.code for path, reason in named.problems.items()} == dict.fromkeys(
        [f"{tmp_path}/s.mp4", f"{tmp_path}/x.mp4", "/dev/null"], "not_regular"
    )
    assert opened == []


def test_file_exchanged_for_a_fifo_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert module._read_head(str(tmp_path / "pipe")) == b""


def test_links_inside_directories_are_passed_over(tmp_path: Path) -> None:
    make(tmp_path, "real/a.mp4", "out/b.mp4")
    (tmp_path / "real/l.mp4").symlink_to("../out/b.mp4")
    (tmp_path / "real/dir").symlink_to("../out")
    result = discover([tmp_path / "real"])
    assert result.paths == [f"{tmp_path}/real/a.mp4"]
    assert result.passed_over == {"symlink": 2}


def test_links_on_the_command_line_are_followed(tmp_path: Path) -> None:
    make(tmp_path, "real/a.mp4")
    (tmp_path / "l").symlink_to("real")
    (tmp_path / "f.mp4").symlink_to("real/a.mp4")
    assert discover([tmp_path / "l"]).paths == [f"{tmp_path}/l/a.mp4"]
    assert discover([tmp_path / "f.mp4"]).paths == [f"{tmp_path}/f.mp4"]


def test_followed_links_and_loops_end(tmp_path: Path) -> None:
    make(tmp_path, "d/a.mp4", "other/noext", data=MP4_HEAD)
    (tmp_path / "d/up").symlink_to("..")
    (tmp_path / "d/self.mp4").symlink_to("self.mp4")
    (tmp_path / "d/gone.mp4").symlink_to("nowhere")
    (tmp_path / "d/b.mp4").symlink_to("a.mp4")
    (tmp_path / "d/linked").symlink_to("../other/noext")
    result = discover([tmp_path / "d"], follow_symlinks=True)
    assert result.paths == [f"{tmp_path}/d/a.mp4", f"{tmp_path}/d/linked"]
    # b.mp4, up/other/noext and up/d
    assert result.passed_over == {"not_regular": 2, "duplicate": 3}


@pytest.mark.parametrize("link", ["c", "d.x"])  # as paths "d.x/a.mp4" < "d/a.mp4", although "d" < "d.x"
def test_of_two_ways_to_a_directory_the_first_in_order_stays(tmp_path: Path, link: str) -> None:
    make(tmp_path, "d/a.mp4")
    (tmp_path / link).symlink_to("d")
    result = discover([tmp_path], follow_symlinks=True)
    assert (result.paths, result.passed_over) == ([f"{tmp_path}/{link}/a.mp4"], {"duplicate": 1})


def test_unreadable_directory_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_unreadable_file_of_unknown_kind_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "noext")

    def refuse(*args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(module.os, "open", refuse)
    result = discover([tmp_path])
    assert (result.paths, [*result.problems]) == ([], [f"{tmp_path}/noext"])


def test_link_that_leads_to_itself_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "l.mp4").symlink_to("l.mp4")
    assert discover([tmp_path / "l.mp4"]).problems[f"{tmp_path}/l.mp4"].code == "unreadable"


def test_deep_trees(tmp_path: Path) -> None:
    deep = "/".join(["d"] * 200)
    make(tmp_path, f"{deep}/x.mp4")
    assert found(tmp_path) == [f"{deep}/x.mp4"]


def test_links_are_resolved_once_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    "exact names": (b" a.mp4 \nb.mp4\r\n", False, [" a.mp4 ", "b.mp4\r"]),
    "undecodable": (b"\xff.mp4\n", False, ["\udcff.mp4"]),
    "null": (b"a\nb.mp4\0\0 \0c.mp4\0", True, ["a\nb.mp4", " ", "c.mp4"]),
    "empty": (b"", False, []),
}


@pytest.mark.parametrize(("data", "null", "expected"), LISTS.values(), ids=LISTS.keys())
def test_read_list(data: bytes, null: bool, expected: list[str]) -> None:
    assert read_list(io.BytesIO(data), null=null) == expected


def test_import_brings_nothing_heavy() -> None:
    code = "import sys, dfscan.media.discover; print({'numpy', 'av', 'cv2', 'torch'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout == "set()\n"
