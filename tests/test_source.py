"""Only regular, non-empty files are passed to a decoder."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from dfscan.errors import VideoError
from dfscan.media import source
from dfscan.media.source import hash_file, open_source


def refusal(path: str) -> str:
    before = os.listdir("/proc/self/fd")
    with pytest.raises(VideoError) as caught:
        open_source(path)
    assert len(os.listdir("/proc/self/fd")) == len(before)
    return caught.value.code


def test_a_file_is_read_through_its_descriptor(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"1234")
    descriptor = open_source(str(tmp_path / "x"))
    try:
        assert os.read(descriptor, 9) == b"1234"
        assert not os.get_inheritable(descriptor)
    finally:
        os.close(descriptor)


def test_refused_paths_and_their_codes(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    expected = {"empty": "empty", "pipe": "not_regular", "none": "not_found", "loop": "unreadable", ".": "not_regular"}
    assert {name: refusal(str(tmp_path / name)) for name in expected} == expected
    assert refusal("/dev/zero") == "not_regular"
    assert refusal(str(tmp_path / "a\0b")) == "not_found"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_unreadable(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"1")
    (tmp_path / "x").chmod(0)
    assert refusal(str(tmp_path / "x")) == "unreadable"


def test_a_file_replaced_by_a_pipe_before_opening_does_not_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x").write_bytes(b"1")
    look = source._require_regular

    def exchange(mode: int) -> None:
        if (tmp_path / "x").is_file():
            (tmp_path / "x").unlink()
            os.mkfifo(tmp_path / "x")
        look(mode)

    monkeypatch.setattr(source, "_require_regular", exchange)
    assert refusal(str(tmp_path / "x")) == "not_regular"


def test_the_whole_file_is_hashed(tmp_path: Path) -> None:
    data = bytes(range(256)) * 5000
    (tmp_path / "x").write_bytes(data)
    assert hash_file(str(tmp_path / "x")) == hashlib.sha256(data).hexdigest()


def test_a_read_error_makes_a_file_unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    (tmp_path / "x").write_bytes(b"1")
    monkeypatch.setattr(source.hashlib, "file_digest", fail)
    with pytest.raises(VideoError, match="Input/output error") as caught:
        hash_file(str(tmp_path / "x"))
    assert caught.value.code == "unreadable"
