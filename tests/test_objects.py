"""Scans of a bucket on a real S3 server on this machine."""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import Result

import dfscan
from dfscan import objects
from dfscan.errors import ConfigError, VideoError
from dfscan.media import staging
from dfscan.media.discover import discover
from dfscan.text import display_path
from tests.stores import BUCKET, DENIED, KEY, SECRET, Store, running_store
from tests.test_cli import run
from tests.test_cli import surroundings as surroundings
from tests.test_resume import scanned as scanned

ROOT = f"s3://{BUCKET}"
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


@pytest.fixture(scope="module")
def server() -> Iterator[Store]:
    with running_store() as store:
        yield store


@pytest.fixture
def store(server: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """The server, with an empty bucket, no pauses between attempts, and an open gate."""
    monkeypatch.setattr(objects, "PAUSES_S", (0.0, 0.0))
    yield server
    server.gate.open()
    for url in objects.find(ROOT):
        server.delete(url.removeprefix(f"{ROOT}/"))


@pytest.fixture
def inbox(store: Store, clips: Path) -> Store:
    store.put_files(clips, "inbox")
    return store


def scan(checkpoint: Path, *arguments: object) -> Result:
    return run("scan", "--checkpoint", checkpoint, "--device", "cpu", "--num-frames", 2, "--exit-zero", *arguments)


def num_copies() -> int:
    """Return the number of open files without a name in the temporary folder."""
    folder = os.path.join(tempfile.gettempdir(), "")
    links = []
    for descriptor in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            links.append(os.readlink(f"/proc/self/fd/{descriptor}"))
    return sum(link.startswith(folder) and link.endswith(" (deleted)") for link in links)


def urls(*names: str) -> list[str]:
    return [f"{ROOT}/inbox/{name}" for name in names]


def test_a_bucket_gives_the_results_of_its_files(inbox: Store, clips: Path, untrained: Path, tmp_path: Path) -> None:
    before = num_copies()
    done = scan(untrained, f"{ROOT}/inbox", "-o", tmp_path / "r.csv", "--explain", tmp_path / "d")
    assert done.exit_code == 0, done.stderr
    assert num_copies() == before
    scan(untrained, clips, "-o", tmp_path / "l.csv")
    remote, local = pd.read_csv(tmp_path / "r.csv"), pd.read_csv(tmp_path / "l.csv")
    assert list(remote.path) == urls("nobody.mp4", "one.mp4", "text.mp4", "two.mkv")
    pd.testing.assert_frame_equal(remote.drop(columns="path"), local.drop(columns="path"))
    assert list((tmp_path / "d").glob("one.mp4-*/*_face.png"))
    again = run("report", tmp_path / "r.csv.ledger", "-o", tmp_path / "again.csv")
    assert again.exit_code == 0
    assert (tmp_path / "again.csv").read_bytes() == (tmp_path / "r.csv").read_bytes()


def test_only_changed_and_new_objects_are_scanned_again(
    inbox: Store, clips: Path, untrained: Path, tmp_path: Path, scanned: list[str]
) -> None:
    nightly = (f"{ROOT}/inbox", "--ledger", tmp_path / "all.ledger", "-o", tmp_path / "r.csv")
    scan(untrained, *nightly)
    report = (tmp_path / "r.csv").read_bytes()
    scanned.clear()
    scan(untrained, *nightly)
    assert scanned == []
    assert (tmp_path / "r.csv").read_bytes() == report
    data = (clips / "nobody.mp4").read_bytes()
    inbox.put("inbox/one.mp4", data)
    inbox.put("inbox/nobody.mp4", data[:-1] + bytes([data[-1] ^ 1]))  # of equal size, perhaps within the same second
    inbox.put("inbox/new.mp4", data)
    inbox.delete("inbox/two.mkv")
    scan(untrained, *nightly)
    assert sorted(scanned) == ["new.mp4", "nobody.mp4", "one.mp4"]
    assert list(pd.read_csv(tmp_path / "r.csv").path) == urls("new.mp4", "nobody.mp4", "one.mp4", "text.mp4")
    scanned.clear()
    scan(untrained, *nightly, "--verify")
    assert scanned == []


def test_objects_are_chosen_like_files(store: Store, clips: Path) -> None:
    video, text = (clips / "nobody.mp4").read_bytes(), b"import x from 'y'\n"
    taken = ["a.mp4", "sub/b c#%20?.mkv", "sub/ü.mp4", "without-suffix", "stream.ts"]
    for name in taken:
        store.put(f"inbox/{name}", video)
    store.put("inbox-2/other.mp4", video)
    skipped = {
        "app.ts": "not_video",
        "notes": "not_video",
        "picture.jpg": "not_video",
        "half.mp4.part": "unfinished",
        "x.mp4.download/x.mp4": "unfinished",
        "@eaDir/a.mp4": "system_folder",
        "drafts/deep/a.mp4": "excluded",
        "sub/draft.mp4": "excluded",
    }
    for name in skipped:
        store.put(f"inbox/{name}", text)
    for folder in (f"{ROOT}/inbox", f"{ROOT}/inbox/"):
        found = discover([folder], exclude=["drafts", "draft.mp4"])
        assert found.paths == sorted(urls(*taken))
        assert dict(found.skipped) == {f"{ROOT}/inbox/{name}": reason for name, reason in skipped.items()}
    assert discover([ROOT], include=["*.jpg"]).paths == urls("picture.jpg")
    assert discover([f"{ROOT}/inbox/notes"]).paths == urls("notes"), "an object that is named is always scanned"
    assert discover([ROOT], include=["*.avi"]).empty == [ROOT]
    assert [display_path(path) for path in urls("a.mp4")] == urls("a.mp4")
    assert dfscan.objects.download(f"{ROOT}/inbox/sub/b c#%20?.mkv")[1].size_bytes == len(video)


def test_what_is_missing_is_one_clear_sentence(store: Store, tmp_path: Path) -> None:
    store.put("inbox/a.mp4", b"x")
    expected = {
        "s3://no-such-bucket/x": "there is no bucket no-such-bucket",
        f"{ROOT}/inbox/b.mp4": "there is no such object or folder",
        "s3://": "the URL names no bucket",
        "gs://": "the URL names no bucket",
        f"{ROOT}/x//y.mp4": "a folder in it has no name",
        "s3://KEY:secret@footage/x": "the URL of footage contains a user name or a key",
        "abfss://name:secret@account/x": "the URL of account contains a user name or a key",
    }
    for url, message in expected.items():
        with pytest.raises(ConfigError) as caught:
            discover([url])
        assert message in str(caught.value)
        assert "secret" not in str(caught.value)
    listed = discover([], listed=[f"{ROOT}/inbox/b.mp4", *urls("a.mp4")])
    assert listed.paths == urls("a.mp4")
    assert listed.problems[f"{ROOT}/inbox/b.mp4"].code == "not_found"


def test_a_denied_object_costs_one_row_and_no_key_is_written_down(
    inbox: Store, clips: Path, untrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inbox.put(DENIED, (clips / "one.mp4").read_bytes())
    with inbox.guest() as guest:
        for name, value in guest.items():
            monkeypatch.setenv(name, value)
        objects._file_system.cache_clear()
        done = scan(untrained, f"{ROOT}/inbox", "-o", tmp_path / "r.csv", "--log-file", tmp_path / "log")
        assert done.exit_code == 0, done.stderr
        report = pd.read_csv(tmp_path / "r.csv", index_col="path")
        assert list(report.index[report.reason.str.startswith("unreadable: access is denied")]) == urls("denied.mp4")
        assert len(report) == 5
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        objects._file_system.cache_clear()
        refused = scan(untrained, f"{ROOT}/inbox", "-o", tmp_path / "s.csv")
        assert refused.exit_code == 2
        assert f"{ROOT}/inbox: access is denied; check the credentials" in refused.stderr
    objects._file_system.cache_clear()
    written = [path.read_bytes() for path in tmp_path.iterdir()] + [done.stderr.encode(), refused.stderr.encode()]
    for secret in (KEY, SECRET, *guest.values()):
        assert not [data for data in written if secret.encode() in data]


def test_a_connection_lost_in_the_middle_is_taken_up_again(store: Store) -> None:
    data = os.urandom(300_000)
    store.put("big.mp4", data)
    store.gate.break_after(100_000, num_refusals=3)
    descriptor, info = objects.download(f"{ROOT}/big.mp4")
    with os.fdopen(descriptor, "rb") as file:
        assert file.read() == data
    assert info.version == hashlib.md5(data).hexdigest()
    assert store.gate.num_refused == 3


def test_a_server_that_stops_in_mid_read_loses_no_row(
    inbox: Store, untrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "PAUSES_S", ())
    arguments = (f"{ROOT}/inbox", "-o", tmp_path / "r.csv", "--resume", "--workers", 1)
    scan(untrained, f"{ROOT}/inbox", "-o", tmp_path / "whole.csv")
    original = staging.download
    done: list[str] = []

    def cut(url: str, **options: object) -> object:
        if url.endswith("two.mkv"):
            end_s = time.monotonic() + 60
            while len(done) < 3 and time.monotonic() < end_s:
                time.sleep(0.01)
            inbox.gate.break_after(10_000)
        try:
            return original(url, **options)  # type: ignore[arg-type]
        finally:
            done.append(url)

    with monkeypatch.context() as patch:
        patch.setattr(staging, "download", cut)
        stopped = scan(untrained, *arguments)
    assert stopped.exit_code == 0, stopped.stderr
    report = pd.read_csv(tmp_path / "r.csv", index_col="path")
    assert list(report.index) == urls("nobody.mp4", "one.mp4", "text.mp4", "two.mkv")
    lost = report.reason[urls("two.mkv")[0]]
    assert lost.startswith(f"unreadable: the connection to {ROOT} failed (NETWORK_CONNECTION)")
    inbox.gate.open()
    resumed = scan(untrained, *arguments)
    assert "3 known from the ledger" in resumed.stderr
    assert (tmp_path / "r.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_an_object_that_changes_meanwhile_is_read_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = b"1" * 50_000, b"2" * 40_000
    store.put("a.mp4", first)
    original = objects._copy
    num_changes = 1

    def copy_and_change(*arguments: object) -> None:
        nonlocal num_changes
        original(*arguments)  # type: ignore[arg-type]
        if num_changes:
            num_changes -= 1
            store.put("a.mp4", second + bytes([num_changes]))

    monkeypatch.setattr(objects, "_copy", copy_and_change)
    descriptor, info = objects.download(f"{ROOT}/a.mp4")
    with os.fdopen(descriptor, "rb") as file:
        assert file.read() == second + b"\0"
    assert info.size_bytes == len(second) + 1
    num_changes = 9
    with pytest.raises(VideoError) as caught:
        objects.download(f"{ROOT}/a.mp4")
    assert caught.value.code == "changed"


def test_a_full_disk_and_an_empty_object_have_their_reasons(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.put("empty.mp4", b"")
    store.put("a.mp4", b"x")

    def code_of(url: str) -> str:
        with pytest.raises(VideoError) as caught:
            objects.download(url)
        return caught.value.code

    assert code_of(f"{ROOT}/empty.mp4") == "empty"

    class Full:
        def write(self, _: bytes) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        def __getattr__(self, name: str) -> object:
            return lambda *_: 0

        def __enter__(self) -> Full:
            return self

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(objects.tempfile, "TemporaryFile", lambda **_: Full())
    assert code_of(f"{ROOT}/a.mp4") == "no_space"


def test_copies_wait_for_space_and_leave_none_behind(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "MAX_STAGED_BYTES", 250)
    names = [f"{ROOT}/{i}.mp4" for i in range(8)]
    for i, name in enumerate(names):
        store.put(name.removeprefix(f"{ROOT}/"), bytes(100 if i else 300))  # the first is larger than all the space
    before = num_copies()
    copies = staging.Staging(iter(names), num_ahead=3)
    ready: list[str] = []
    for path in copies:
        if path is None:
            continue
        ready.append(path)
        size_bytes = os.fstat(descriptor := copies.open(path)).st_size
        os.close(descriptor)
        assert size_bytes == (300 if path == names[0] else 100)
        assert copies._num_bytes <= (300 if path == names[0] else 250)
        assert num_copies() > before
        copies.release(path)
    assert sorted(ready) == names
    abandoned = staging.Staging(iter(names), num_ahead=3)
    next(abandoned)
    abandoned.close()
    assert num_copies() == before


@pytest.mark.parametrize(
    ("url", "kind", "path"),
    [
        ("gs://bucket/a b#?.mp4", "GcsFileSystem", "bucket/a b#?.mp4"),
        ("abfss://box@account.dfs.core.windows.net/a/b c.mp4", "AzureFileSystem", "box/a/b c.mp4"),
    ],
)
def test_the_other_stores_are_found(url: str, kind: str, path: str) -> None:
    """That they open the right file systems; no server is asked."""
    files, located = objects._located(url)
    assert (type(files).__name__, located) == (kind, path)
    assert objects.root_of(url) == url[: url.index("/", 8)]


def test_the_python_api_takes_urls(inbox: Store, untrained: Path) -> None:
    with dfscan.Scanner(untrained, num_frames=2, device="cpu") as scanner:
        assert scanner.scan_video(urls("nobody.mp4")[0]).verdict.label == "no_face"
