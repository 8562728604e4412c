"""Judging the results of a ledger again: the same bytes as a new scan, without decoding anything."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from dfscan.detector.card import Calibration, QualityLevel, SeenFiles
from dfscan.detector.checkpoint import Checkpoint, create_untrained, read_card, save_calibrated
from dfscan.scan.ledger import LedgerReader
from tests.test_cli import run
from tests.test_cli import surroundings as surroundings

FLAGS = ("--device", "cpu", "--num-frames", 4, "--exit-zero")


def calibrated(
    path: Path,
    checkpoint: Path,
    calibration: Calibration,
    seen: SeenFiles | None = None,
    quality: tuple[QualityLevel, ...] = (),
) -> Checkpoint:
    old = read_card(checkpoint)
    changes = {"calibration": calibration, "seen": seen, "quality": quality}
    return save_calibrated(path, old, old.card.model_copy(update=changes))


@pytest.fixture(scope="module")
def scanned(clips: Path, trained: Path, session_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the ledger of a scan; its folder also has the report and the faces."""
    folder = tmp_path_factory.mktemp("scanned")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(session_cache))
        outs = ("--out", folder / "r.csv", "--frames-out", folder / "f.csv", "--keep-pictures")
        assert run("scan", clips, "--checkpoint", trained, *FLAGS, *outs).exit_code == 0
    return folder / "r.csv.ledger"


@pytest.fixture
def no_scan(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("dfscan.scan.pipeline.decode_videos", None)
    monkeypatch.setattr("dfscan.detector.runtime.create_runtime", None)
    return


def verdicts(path: Path) -> dict[str, str]:
    records = [json.loads(line) for line in path.read_text().splitlines()]
    return {Path(record["path"]).name: record["verdict"] for record in records}


def test_reports_equal_those_of_a_new_scan(scanned: Path, clips: Path, trained: Path, tmp_path: Path) -> None:
    """With another temperature, other thresholds, a video on which the new calibration was made, and levels of quality.

    The thresholds do not hold at the sharpness of the other video.
    """
    with LedgerReader(scanned) as ledger:
        one, two = (
            next(entry for entry in ledger.entries() if entry.path.endswith(name)) for name in ("one.mp4", "two.mkv")
        )
        score = ledger.result(one).verdict.score
        pictures = ledger.pictures(one)
        sharpness = [ledger.result(entry).tracks[0].sharpness or 0 for entry in (one, two)]
    assert score is not None
    held = QualityLevel(fake_threshold=0.05, real_threshold=0.01)
    broken = QualityLevel(num_real_groups=40, real_called_fake_at_calibrated=0.2, real_threshold=0.01)
    low, high = (broken, held) if sharpness[1] < sharpness[0] else (held, broken)
    new = calibrated(
        tmp_path / "new.safetensors",
        trained,
        Calibration(trained=True, temperature=0.5, fake_threshold=0.05, real_threshold=0.01),
        SeenFiles.of([], [one.sha256]),
        quality=(low.model_copy(update={"below": sum(sharpness) / 2}), high),
    )
    again = [tmp_path / name for name in ("r.csv", "f.csv", "r.jsonl", "r.html")]
    outs = ("--out", again[0], "--frames-out", again[1], "--out", again[2], "--html", again[3])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dfscan.scan.pipeline.decode_videos", None)
        done = run("report", scanned, "--calibration", new.path, *outs)
    assert done.exit_code == 0, done.stderr
    fresh = [tmp_path / name for name in ("r2.csv", "f2.csv", "r2.jsonl", "r2.html")]
    outs = ("--out", fresh[0], "--frames-out", fresh[1], "--out", fresh[2], "--html", fresh[3])
    assert run("scan", clips, "--checkpoint", new.path, *FLAGS, *outs).exit_code == 0
    for one_path, other_path in zip(again[:3], fresh[:3], strict=True):
        assert one_path.read_bytes() == other_path.read_bytes(), one_path.name
    assert verdicts(again[2])["one.mp4"] == "fake"
    assert verdicts(again[2])["two.mkv"] == "inconclusive"
    assert "low_quality: sharpness " in again[0].read_text()
    assert "of 40 groups of genuine videos of this sharpness, 20.0 % would be fake" in again[0].read_text()
    assert "seen_in_validation" in again[0].read_text()
    assert new.label in again[0].read_text()
    blocks = [path.read_text().split('id="pictures-')[1].split("/9j/")[0] for path in (again[3], fresh[3])]
    assert blocks[0] == blocks[1]  # kind, person, time and score of the first picture
    assert f"{pictures[0].score:.4f}" not in blocks[0]
    meta = json.loads((tmp_path / "r.csv.meta.json").read_text())
    assert meta["judged_again"] == {"calibration": str(new.path), "threshold": None}


def test_a_threshold_gives_the_report_of_a_scan_with_it(
    scanned: Path, clips: Path, trained: Path, tmp_path: Path
) -> None:
    again, fresh = tmp_path / "again.jsonl", tmp_path / "fresh.jsonl"
    done = run("report", scanned, "--threshold", 0.2, "--out", again)
    assert done.exit_code == 0
    assert (
        "the checkpoint's error rates are valid only for its own settings; changed: num_frames, threshold"
        in done.stderr
    )
    run("scan", clips, "--checkpoint", trained, *FLAGS, "--threshold", 0.2, "--out", fresh)
    assert again.read_bytes() == fresh.read_bytes()
    assert verdicts(again)["one.mp4"] == "fake"
    # The threshold of the scan does not limit a new calibration.
    back = tmp_path / "back.csv"
    assert run("report", f"{fresh}.ledger", "--calibration", trained, "--out", back).exit_code == 0
    assert back.read_bytes() == (scanned.parent / "r.csv").read_bytes()


def test_the_threshold_in_a_configuration_file_is_one_for_scans(scanned: Path, tmp_path: Path) -> None:
    (tmp_path / "scan.toml").write_text("threshold = 0.2\n")
    done = run("report", scanned, "--config", tmp_path / "scan.toml")
    assert done.stdout == (scanned.parent / "r.csv").read_text()


def changed(scanned: Path, folder: Path, statement: str) -> Path:
    """Return a copy of the ledger, changed by a statement of SQL."""
    path = folder / "changed.ledger"
    shutil.copy(scanned, path)
    with sqlite3.connect(path) as database:
        database.execute(statement)
    database.close()
    return path


@pytest.mark.usefixtures("no_scan")
def test_a_ledger_that_lacks_something_is_refused(scanned: Path, trained: Path, tmp_path: Path) -> None:
    new = calibrated(tmp_path / "new.safetensors", trained, Calibration(trained=True, fake_threshold=0.6))
    create_untrained(tmp_path / "other.safetensors", seed=9, architecture="test_efficientnet", input_size_px=96)
    without_card = changed(scanned, tmp_path, "DELETE FROM checkpoints")
    for ledger, checkpoint, message in (
        (scanned, "other.safetensors", "4 videos were scored by trained@"),
        (scanned, "gone.safetensors", "gone.safetensors: no such file"),
        (without_card, new.path, "the ledger does not have the card of trained@"),
    ):
        out = tmp_path / "r.csv"
        done = run("report", ledger, "--calibration", tmp_path / checkpoint, "--out", out)
        assert done.exit_code == 2, message
        assert message in done.stderr
        assert not out.exists()
    old = changed(scanned, tmp_path, "UPDATE videos SET result = json_remove(result, '$.remarks')")
    done = run("report", old, "--threshold", 0.5)
    assert done.exit_code == 2
    assert (
        "3 of 4 results come from a version of dfscan that did not store what judging them again needs" in done.stderr
    )
    assert done.stdout == ""
    assert run("report", old).stdout == (scanned.parent / "r.csv").read_text()


def test_the_checkpoint_is_not_overwritten(scanned: Path, trained: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.csv"
    shutil.copy(trained, copy)
    done = run("report", scanned, "--calibration", copy, "--out", copy)
    assert done.exit_code == 2
    assert copy.read_bytes() == trained.read_bytes()


def test_levels_of_quality_need_a_ledger_with_sharpness(scanned: Path, trained: Path, tmp_path: Path) -> None:
    old = changed(scanned, tmp_path, "UPDATE recipes SET document = json_set(document, '$.method', 4)")
    calibration = Calibration(trained=True, fake_threshold=0.6)
    plain = calibrated(tmp_path / "plain.safetensors", trained, calibration)
    assert run("report", old, "--calibration", plain.path).exit_code == 0
    new = calibrated(tmp_path / "new.safetensors", trained, calibration, quality=(QualityLevel(),))
    done = run("report", old, "--calibration", new.path)
    assert done.exit_code == 2
    assert "did not measure sharpness" in done.stderr
    assert "scan these videos again" in done.stderr
