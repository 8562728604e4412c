"""Files appear complete or not at all, and every failure names the file and a remedy; see also test_report.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from dfscan.errors import OutputError
from dfscan.files import AtomicFile, make_folder, write_bytes, writing


def test_a_block_that_fails_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    write_bytes(path, b"old")

    def write_half() -> None:
        with AtomicFile(path) as file:
            file.write(b"half")
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        write_half()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_caller_can_give_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"cannot write '.*file/sub': Not a directory\. Choose another --out\."):
        make_folder(tmp_path / "file" / "sub", remedy="Choose another --out.")
    with pytest.raises(OutputError, match=r"absent/a.bin': No such file or directory\. Try elsewhere\.$"):
        write_bytes(tmp_path / "absent" / "a.bin", b"data", remedy="Try elsewhere.")


def test_a_closed_pipe_stays_a_closed_pipe() -> None:
    with pytest.raises(BrokenPipeError), writing("standard output"):
        raise BrokenPipeError
