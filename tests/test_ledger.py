"""The ledger returns what was stored, and changes no file of other programs."""

from __future__ import annotations

import dataclasses
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dfscan.errors import DataError, OutputError
from dfscan.media.source import FileIdentity
from dfscan.scan.ledger import Ledger, LedgerReader, Recipe, from_json, to_json
from dfscan.types import (
    Bounded,
    DetectorResult,
    Face,
    FaceScore,
    FileFacts,
    Fingerprint,
    Picture,
    Provenance,
    Reason,
    Remarks,
    Track,
    Validation,
    Verdict,
    VideoInfo,
    VideoResult,
)


def face(frame_index: int) -> FaceScore:
    box_xyxy = np.array([1.5, -2.25, 0.1, 4e3], np.float32)
    landmarks = np.arange(10, dtype=np.float32).reshape(5, 2) / 3
    place = frame_index, frame_index / 7, frame_index // 4, box_xyxy, landmarks
    found = Face(*place, 0.1 + 0.2, np.ones(8, np.float32), sharpness=1 / 7, blockiness=1.5)
    return FaceScore(found, logit=-1 / 3 + frame_index)


PROVENANCE = Provenance("invalid", "Signer, Org", "Editor 1", ("c2pa.created", "c2pa.edited"), "generated", "mismatch")
DAMAGE = Reason("damaged", "cut off")
VALIDATION = Validation(Bounded(0.01, 0.0, 0.02), 300, True, True, "below 0.1", Bounded(20, 5, 80))
FACES = (face(0), face(1)), (face(9),)
OTHER_DETECTOR = DetectorResult(
    name="b",
    checkpoint="b@0123",
    verdict=Verdict("real", 0.25, 0.5, 5, DAMAGE),
    tracks=(
        Track(0, tuple(FaceScore(scored.face, 2 * scored.logit) for scored in FACES[0])),
        Track(5, (FaceScore(FACES[1][0].face, -7.5),)),
    ),
    used_for="training",
)
FULL = VideoResult(
    path="clips/a.mp4",
    status="partial",
    verdict=Verdict("fake", 1 / 3, 0.8, 5, Reason("damaged", "cut off, naïvely\n"), VALIDATION),
    info=VideoInfo(10**12, "ab" * 32, 640, 480, 30000 / 1001, 77, 2.5, "h264", 90, True, 1),
    num_frames=32,
    tracks=(Track(0, FACES[0]), Track(5, FACES[1])),
    dumps=({"path": "clips/a.mp4", "file": "x.png", "time_s": 0.1, "box": [1, 2, 3, 4], "note": None},),
    facts=FileFacts("mp4", "isom", "m", "e", "d", "2024", 2, 1.5, 800_000, 250, 1, ("a: b", "c: d"), PROVENANCE, True),
    remarks=Remarks(
        DAMAGE, Reason("too_many_faces", "12"), True, "validation", (Reason("few_frames", "3"), DAMAGE), 90
    ),
    fingerprint=Fingerprint(b"\xff\xd8", b"\x00\x81", b"\x89PNG"),
    detectors=(OTHER_DETECTOR,),
)
BARE = VideoResult("b.mp4", "error", Verdict("error", reason=Reason("empty", "the file is empty")), VideoInfo(0))
NO_REASON = dataclasses.replace(FULL, status="ok", verdict=Verdict("no_face"), tracks=(), dumps=(), detectors=())
ODD_NAME = dataclasses.replace(BARE, path=os.fsdecode(b"odd \xff\n\xf0\x9f\x98\x80.mp4"))
RECIPE = Recipe("tiny@0123", "cd" * 32, "1.2.3", "cpu", {"num_frames": 32})
OTHER = dataclasses.replace(RECIPE, device_kind="cuda")
RESULTS = [FULL, BARE, NO_REASON, ODD_NAME]


def plain(value: Any) -> Any:
    """Convert to nested fields, with arrays as (type, values), without descriptors, which are not stored."""
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.tolist()
    if dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value) if field.name != "descriptor"]
        return {name: plain(getattr(value, name)) for name in names}
    return [plain(item) for item in value] if isinstance(value, tuple) else value


@pytest.mark.parametrize("result", RESULTS, ids=["full", "bare", "no-reason", "odd-name"])
def test_every_field_comes_back(result: VideoResult, tmp_path: Path) -> None:
    assert plain(from_json(to_json(result))) == plain(result)
    with Ledger(tmp_path / "x.ledger", recipe=RECIPE) as ledger:
        ledger.put(result, None)
        found = ledger.get(result.path, None)
    assert found is not None
    assert plain(found) == plain(result)


def test_the_test_result_sets_every_field() -> None:
    parts = (FULL.verdict, FULL.info, FULL.facts, FULL.remarks, FULL.fingerprint, PROVENANCE, VALIDATION)
    for value in (FULL, *parts, OTHER_DETECTOR):
        for field in dataclasses.fields(value):  # type: ignore[arg-type]
            if field.compare:  # the others are kept beside the JSON: pictures in a table, the checkpoint in a recipe
                assert getattr(value, field.name) != field.default, field.name


def test_results_are_not_shared_between_recipes_or_paths(tmp_path: Path) -> None:
    with Ledger(tmp_path / "x.ledger", recipe=RECIPE) as ledger:
        ledger.put(FULL, None)
        assert ledger.get("clips/b.mp4", None) is None
    with Ledger(tmp_path / "x.ledger", recipe=OTHER) as ledger:
        assert ledger.get(FULL.path, None) is None
        ledger.put(dataclasses.replace(FULL, num_frames=7), None)
    with Ledger(tmp_path / "x.ledger", recipe=RECIPE) as ledger:
        found = ledger.get(FULL.path, None)
    assert found is not None
    assert found.num_frames == FULL.num_frames


def test_one_relative_path_in_two_folders_is_two_videos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, name in enumerate(("a", "b")):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        with Ledger(tmp_path / "x.ledger", recipe=RECIPE) as ledger:
            ledger.put(dataclasses.replace(FULL, num_frames=number), None)
    monkeypatch.chdir(tmp_path / "a")
    with Ledger(tmp_path / "x.ledger", recipe=RECIPE) as ledger:
        found = ledger.get(FULL.path, None)
    assert found is not None
    assert found.num_frames == 0


def test_each_state_of_a_changed_file_keeps_its_latest_result(tmp_path: Path) -> None:
    first, second = FileIdentity(1, 1, 5), FileIdentity(2, 2, 5)
    with Ledger(tmp_path / "x.ledger", recipe=RECIPE) as ledger:
        for number, identity in enumerate((first, second, first)):
            ledger.put(dataclasses.replace(FULL, num_frames=number), identity)
        found = [ledger.get(FULL.path, identity) for identity in (first, second, FileIdentity(1, 2, 5), None)]
    assert [each and each.num_frames for each in found] == [2, 1, None, None]
    database = sqlite3.connect(tmp_path / "x.ledger")
    assert database.execute("SELECT count(*) FROM videos").fetchone() == (2,)
    ((digest, document),) = database.execute("SELECT * FROM recipes").fetchall()
    assert (digest, document) == (RECIPE.digest, RECIPE.document)
    database.close()


def test_a_result_has_the_requested_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with Ledger(tmp_path / "x.ledger", recipe=RECIPE) as ledger:
        ledger.put(FULL, None)
        found = ledger.get(str(tmp_path / FULL.path), None)
    assert found is not None
    assert found.path == found.dumps[0]["path"] == str(tmp_path / FULL.path)


@pytest.mark.parametrize("is_torn", [False, True], ids=["cut short", "torn"])
def test_a_damaged_write_ahead_log_loses_only_whole_rows_at_its_end(tmp_path: Path, is_torn: bool) -> None:
    code = (
        "import os, signal, sys, dataclasses; from pathlib import Path; from dfscan.scan.ledger import Ledger; "
        "from tests.test_ledger import FULL, RECIPE; ledger = Ledger(Path(sys.argv[1]), recipe=RECIPE); "
        "[ledger.put(dataclasses.replace(FULL, path=f'{i}.mp4', num_frames=i), None) for i in range(8)]; "
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    source = tmp_path / "source.ledger"
    root = Path(__file__).parents[1]
    subprocess.run([sys.executable, "-c", code, str(source)], cwd=root, check=False)
    log = source.with_name("source.ledger-wal").read_bytes()
    counts = []
    for place in np.linspace(0, len(log), 20, dtype=int).tolist():
        copy = tmp_path / f"{place}.ledger"
        copy.write_bytes(source.read_bytes())
        rest = bytes(byte ^ 0x5A for byte in log[place:]) if is_torn else b""
        copy.with_name(f"{copy.name}-wal").write_bytes(log[:place] + rest)
        with Ledger(copy, recipe=RECIPE) as ledger:
            kept = [ledger.get(os.path.join(root, f"{i}.mp4"), None) for i in range(8)]
            numbers = [result.num_frames for result in kept if result]
            assert numbers == list(range(len(numbers))), "whole rows, in the order in which they were put"
            ledger.put(dataclasses.replace(FULL, num_frames=99), None)
            again = ledger.get(FULL.path, None)
        assert again is not None
        assert again.num_frames == 99
        counts.append(len(numbers))
    assert counts == sorted(counts)
    assert (counts[0], counts[-1]) == (0, 8)


def test_a_temporary_ledger_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with Ledger(None, recipe=RECIPE) as ledger:
        ledger.put(FULL, None)
        assert ledger.get(FULL.path, None) is not None
    assert list(tmp_path.iterdir()) == []


def test_results_survive_a_killed_process(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from dfscan.scan.ledger import Ledger; "
        "from tests.test_ledger import FULL, RECIPE; ledger = Ledger(Path(sys.argv[1]), recipe=RECIPE); "
        "ledger.put(FULL, None); os.kill(os.getpid(), signal.SIGKILL)"
    )
    root = Path(__file__).parents[1]
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "x.ledger")], cwd=root, check=False)
    with Ledger(tmp_path / "x.ledger", recipe=RECIPE) as ledger:
        assert ledger.get(FULL.path, None) is not None


def foreign_text(path: Path) -> None:
    path.write_text("a report, and not a ledger\n" * 100)


def foreign_database(path: Path, version: int = 0) -> None:
    database = sqlite3.connect(path)
    database.execute("CREATE TABLE songs (title TEXT)")
    database.execute(f"PRAGMA user_version = {version}")
    database.commit()
    database.close()


def newer_ledger(path: Path) -> None:
    foreign_database(path, version=2)


@pytest.mark.parametrize("make", [foreign_text, foreign_database, newer_ledger, Path.mkdir])
def test_a_file_that_is_not_a_ledger_is_refused_and_unchanged(make: Any, tmp_path: Path) -> None:
    path = tmp_path / "x.ledger"
    make(path)
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(OutputError, match=r"x\.ledger"):
        Ledger(path, recipe=RECIPE)
    assert (path.read_bytes() if path.is_file() else None) == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.ledger"]


def test_opening_waits_for_a_program_that_holds_the_write_lock(tmp_path: Path) -> None:
    """A report holds the lock briefly when it recovers the log of a killed scan."""
    path = tmp_path / "x.ledger"
    with Ledger(path, recipe=RECIPE) as ledger:
        ledger.put(FULL, None)
    reopened: list[bool] = []

    def reopen() -> None:
        with Ledger(path, recipe=RECIPE) as ledger:
            reopened.append(ledger.get(FULL.path, None) is not None)

    opener = threading.Thread(target=reopen)
    other = sqlite3.connect(path)
    try:
        other.execute("BEGIN IMMEDIATE")
        opener.start()
        opener.join(1.0)
        assert opener.is_alive(), "it gave up at once"
        other.rollback()
        opener.join()
    finally:
        other.close()
    assert reopened == [True]


def test_a_ledger_that_cannot_be_created_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="--ledger"):
        Ledger(tmp_path / "absent" / "x.ledger", recipe=RECIPE)


def test_identity_differs_for_a_changed_file(tmp_path: Path) -> None:
    path = tmp_path / "x"
    assert FileIdentity.of(str(path)) is None
    path.write_bytes(b"12")
    first = FileIdentity.of(str(path))
    assert first is not None
    assert first == FileIdentity.of(str(path))
    assert first.size_bytes == 2
    os.utime(path, ns=(0, first.mtime_ns + 1_000_000))
    assert FileIdentity.of(str(path)) != first


def test_inode_and_change_time_are_stored_with_the_result(tmp_path: Path) -> None:
    first = FileIdentity(1, 1, inode=2**64 - 1, ctime_ns=7)
    with Ledger(tmp_path / "x.ledger", recipe=RECIPE) as ledger:
        ledger.put(FULL, first)
        assert ledger.has_stamp(FULL.path, first)
        for other in (FileIdentity(1, 1, 2**64 - 2, 7), FileIdentity(1, 1, 2**64 - 1, 8)):
            assert not ledger.has_stamp(FULL.path, other)
            assert ledger.get(FULL.path, other) is not None
            ledger.touch(FULL.path, other)
            assert ledger.has_stamp(FULL.path, other)
        assert not ledger.has_stamp(FULL.path, first)


def test_identity_ignores_permissions_and_links(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"12")
    first = FileIdentity.of(str(path))
    path.chmod(0o600)
    second = FileIdentity.of(str(path))
    assert first == second
    assert first is not None
    assert second is not None
    assert first.ctime_ns < second.ctime_ns


# Pictures and `LedgerReader`

PICTURES = (Picture("face", 0, 3, 1.5, 0.25, b"\xff\xd8one"), Picture("heat_map", 1, 4, 2.5, 0.75, b"\xff\xd8two"))


def values(pictures: Iterable[Picture]) -> list[tuple[Any, ...]]:
    return [dataclasses.astuple(each) for each in pictures]


def test_pictures_are_stored_with_their_result(tmp_path: Path) -> None:
    path = tmp_path / "x.ledger"
    with Ledger(path, recipe=OTHER) as ledger:
        ledger.put(dataclasses.replace(FULL, pictures=PICTURES[:1]), None)
    with Ledger(path, recipe=RECIPE) as ledger:
        assert ledger.pictures(FULL.path, None) == []
        ledger.put(dataclasses.replace(FULL, pictures=PICTURES), None)
        assert values(ledger.pictures(FULL.path, None)) == values(PICTURES)
        assert ledger.pictures("clips/b.mp4", None) == []
        ledger.put(dataclasses.replace(FULL, pictures=PICTURES[1:]), None)
        assert values(ledger.pictures(FULL.path, None)) == values(PICTURES[1:])
        found = ledger.get(FULL.path, None)
        assert found is not None
        assert found.pictures == ()
    with Ledger(path, recipe=OTHER) as ledger:
        assert values(ledger.pictures(FULL.path, None)) == values(PICTURES[:1])


def test_old_ledger_lists_the_latest_result_of_each_file(tmp_path: Path) -> None:
    path = tmp_path / "x.ledger"
    other = dataclasses.replace(FULL, path="clips/b.mp4")
    with Ledger(path, recipe=RECIPE, cards={RECIPE.checkpoint_sha256: {"name": "first"}}) as ledger:
        ledger.put(FULL, None)
        ledger.put(other, None)
    with Ledger(path, recipe=OTHER, cards={OTHER.checkpoint_sha256: {"name": "second"}}) as ledger:
        ledger.put(dataclasses.replace(FULL, num_frames=7, pictures=PICTURES), None)
    with LedgerReader(path) as old:
        entries = {entry.path: entry for entry in old.entries()}
        assert {path: entry.recipe for path, entry in entries.items()} == {FULL.path: OTHER, other.path: RECIPE}
        assert old.result(entries[FULL.path]).num_frames == 7
        assert old.result(entries[other.path]).path == other.path
        assert values(old.pictures(entries[FULL.path])) == values(PICTURES)
        assert old.pictures(entries[other.path]) == []
        assert old.cards()[OTHER.checkpoint_sha256] == {"name": "second"}


def test_a_renewed_result_is_the_latest_again(tmp_path: Path) -> None:
    path = tmp_path / "x.ledger"
    gone = dataclasses.replace(BARE, path=FULL.path)
    identity = FileIdentity(7, 8, 9)
    with Ledger(path, recipe=RECIPE) as ledger:
        ledger.put(FULL, identity)
        ledger.put(gone, None)

        def latest() -> str:
            with LedgerReader(path) as old:
                (entry,) = old.entries()
                return old.result(entry).verdict.label

        assert latest() == "error"
        ledger.touch(FULL.path, identity)
        assert latest() == "fake"
        found = ledger.get(FULL.path, identity)
        assert found is not None
        assert to_json(found) == to_json(FULL)


def test_confirming_a_result_writes_only_what_has_changed(tmp_path: Path) -> None:
    identity = FileIdentity(7, 8, inode=9, ctime_ns=10)
    with Ledger(tmp_path / "x.ledger", recipe=RECIPE) as ledger:
        ledger.put(FULL, identity)
        num_changes = ledger._database.total_changes
        ledger.touch(FULL.path, identity)
        assert ledger._database.total_changes == num_changes
        ledger.touch(FULL.path, dataclasses.replace(identity, ctime_ns=11))
        assert ledger._database.total_changes > num_changes


def test_an_old_ledger_reads_one_snapshot(tmp_path: Path) -> None:
    path = tmp_path / "x.ledger"
    with Ledger(path, recipe=RECIPE) as ledger:
        ledger.put(dataclasses.replace(FULL, pictures=PICTURES), None)
        with LedgerReader(path) as old:
            (entry,) = old.entries()
            ledger.put(dataclasses.replace(FULL, num_frames=7, pictures=()), None)
            assert old.result(entry).num_frames == FULL.num_frames
            assert values(old.pictures(entry)) == values(PICTURES)


def test_a_damaged_card_is_reported(tmp_path: Path) -> None:
    with Ledger(tmp_path / "x.ledger", recipe=RECIPE, cards={RECIPE.checkpoint_sha256: {}}) as ledger:
        ledger.put(FULL, None)
    with sqlite3.connect(tmp_path / "x.ledger") as database:
        database.execute("UPDATE checkpoints SET card = 'no JSON'")
    database.close()
    with LedgerReader(tmp_path / "x.ledger") as old, pytest.raises(DataError, match="a record is damaged"):
        old.cards()


def test_a_ledger_without_a_pictures_table_can_be_read_and_written(tmp_path: Path) -> None:
    path = tmp_path / "x.ledger"
    with Ledger(path, recipe=RECIPE) as ledger:
        ledger.put(FULL, None)
    with sqlite3.connect(path) as database:
        database.executescript("DROP TABLE pictures; DROP TABLE checkpoints")
    database.close()
    with LedgerReader(path) as old:
        (entry,) = old.entries()
        assert (old.pictures(entry), old.cards()) == ([], {})
    with Ledger(path, recipe=RECIPE) as ledger:
        ledger.put(dataclasses.replace(FULL, pictures=PICTURES), None)
        assert len(ledger.pictures(FULL.path, None)) == 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "no such ledger"),
        (lambda path: path.write_text("no database" * 100), "cannot be read as a ledger"),
        (lambda path: path.touch(), "not a ledger of this version"),
        (lambda path: path.mkdir(), "no such ledger"),
    ],
)
def test_old_ledger_refuses_other_files(tmp_path: Path, make: Callable[[Path], object], message: str) -> None:
    make(tmp_path / "x.ledger")
    with pytest.raises(DataError, match=message):
        LedgerReader(tmp_path / "x.ledger")


@pytest.mark.parametrize("result", ["no JSON", '{"path": 1}', '{"path": "eA=="}', "{}"])
def test_a_damaged_record_is_reported(tmp_path: Path, result: str) -> None:
    with Ledger(tmp_path / "x.ledger", recipe=RECIPE) as ledger:
        ledger.put(FULL, None)
    with sqlite3.connect(tmp_path / "x.ledger") as database:
        database.execute("UPDATE videos SET result = ?", (result,))
    database.close()
    with LedgerReader(tmp_path / "x.ledger") as old, pytest.raises(DataError, match="a record is damaged"):
        old.result(old.entries()[0])
