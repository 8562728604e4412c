"""Comparing two scans: what changed, and why."""

from __future__ import annotations

import csv
import html
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from dfscan.report.schema import REPORT_COLUMNS
from dfscan.scan.compare import CHANGE_COLUMNS, compare_scans
from tests.test_cli import run
from tests.test_cli import surroundings as surroundings
from tests.test_rejudge import calibrated

ROW: dict[str, object] = {column.name: None for column in REPORT_COLUMNS} | {
    "verdict": "inconclusive",
    "score": 0.5,
    "threshold": 0.9,
    "status": "ok",
    "size_bytes": 1000,
    "sha256": "ab" * 32,
    "checkpoint": "best@0123456789ab",
    "dfscan_version": "1.0",
}


def write(path: Path, rows: dict[str, dict[str, object]], *, settings: object = None, device: str = "cpu") -> Path:
    """Write a report as JSON Lines with the metadata beside it."""
    records = [ROW | {"path": f"./{name}"} | row for name, row in rows.items()]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    if settings is not None:
        Path(f"{path}.meta.json").write_text(json.dumps({"settings": settings, "device": device}))
    return path


def changes(text: str) -> dict[str, dict[str, str]]:
    return {Path(row["path"]).name: row for row in csv.DictReader(io.StringIO(text))}


# Two nights


@pytest.fixture(scope="module")
def nights(
    clips: Path, trained: Path, session_cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Return the reports of three nights over one folder, in which files change after the first.

    ``same``: nothing else differs. ``strict``: another threshold and another setting.
    """
    folder = tmp_path_factory.mktemp("nights")
    videos = folder / "videos"
    videos.mkdir()
    for name, clip in (("a", "one.mp4"), ("b", "one.mp4"), ("gone", "nobody.mp4")):
        shutil.copy(clips / clip, videos / f"{name}.mp4")

    def scan(name: str, checkpoint: Path, *flags: object) -> Path:
        report = folder / f"{name}.csv"
        base = ("--checkpoint", checkpoint, "--device", "cpu", "--num-frames", 4, "--exit-zero", "--out", report)
        assert run("scan", videos, *base, *flags).exit_code == 0
        return report

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(session_cache))
        old = scan("old", trained)
        shutil.copy(clips / "text.mp4", videos / "b.mp4")
        (videos / "gone.mp4").rename(videos / "new.mp4")
        return {
            "old": old,
            "same": scan("same", trained),
            "strict": scan("strict", trained, "--threshold", 0.2, "--min-faces", 2),
            "folder": folder,
        }


def test_a_changed_file_a_missing_and_a_new_one(nights: dict[str, Path]) -> None:
    done = run("compare", nights["old"], nights["same"])
    assert done.exit_code == 1
    found = changes(done.stdout)
    assert {name: (row["change"], row["cause"]) for name, row in found.items()} == {
        "b.mp4": ("verdict", "file"),
        "gone.mp4": ("missing", ""),
        "new.mp4": ("new", ""),
    }
    assert (found["b.mp4"]["old_verdict"], found["b.mp4"]["new_verdict"]) == ("inconclusive", "error")
    assert found["b.mp4"]["new_reason"].startswith("not_video")
    assert (found["gone.mp4"]["old_verdict"], found["gone.mp4"]["new_verdict"]) == ("no_face", "")
    summary = "1 verdicts changed (1 inconclusive to error), 0 status, 0 scores, 1 missing, 1 new, 1 unchanged"
    assert summary in done.stderr


def test_a_changed_threshold_and_settings(nights: dict[str, Path]) -> None:
    done = run("compare", nights["old"], nights["strict"])
    row = changes(done.stdout)["a.mp4"]
    assert (row["old_verdict"], row["new_verdict"]) == ("inconclusive", "fake")
    assert row["cause"] == "threshold; settings: min_faces"
    assert (row["old_threshold"], row["new_threshold"]) == ("0.900000", "0.200000")
    assert row["score_shift"] == "0.000000"


def test_another_checkpoint(nights: dict[str, Path], trained: Path, tmp_path: Path) -> None:
    """The other checkpoint has another calibration, with which the old night is judged again."""
    from dfscan.detector.card import Calibration

    new = calibrated(tmp_path / "new.safetensors", trained, Calibration(trained=True, fake_threshold=0.01))
    report = tmp_path / "again.csv"
    assert run("report", f"{nights['old']}.ledger", "--calibration", new.path, "--out", report).exit_code == 0
    done = run("compare", nights["old"], report)
    assert done.exit_code == 1
    row = changes(done.stdout)["a.mp4"]
    assert (row["new_verdict"], row["cause"]) == ("fake", "checkpoint; threshold")
    assert row["new_checkpoint"] == new.label
    assert float(row["score_shift"]) == pytest.approx(float(row["new_score"]) - float(row["old_score"]), abs=1e-6)
    assert float(row["score_shift"]) != 0


def test_ledgers_and_reports_give_the_same_rows(nights: dict[str, Path]) -> None:
    old, new = nights["old"], nights["strict"]
    expected = run("compare", old, new).stdout
    assert expected
    assert run("compare", f"{old}.ledger", new).stdout == expected
    assert run("compare", f"{old}.ledger", f"{new}.ledger").stdout == expected
    with_semicolons, lines = nights["folder"] / "excel.csv", nights["folder"] / "old.jsonl"
    assert run("report", f"{old}.ledger", "--out", with_semicolons, "--delimiter", ";", "--excel").exit_code == 0
    assert run("report", f"{old}.ledger", "--out", lines).exit_code == 0
    for report in (with_semicolons, lines):  # reports made from ledgers have no settings beside them
        assert run("compare", report, new).stdout == expected.replace("; settings: min_faces", "")


# Single rules


@pytest.mark.parametrize(
    ("old", "new", "change", "causes"),
    [
        ({}, {}, None, ()),
        ({}, {"score": 0.509}, None, ()),
        ({}, {"score": 0.51}, "score", ()),
        ({}, {"score": None}, "score", ()),
        ({}, {"status": "partial", "score": 0.9}, "status", ()),
        ({}, {"verdict": "fake", "status": "partial", "score": 0.95}, "verdict", ()),
        ({}, {"verdict": "fake", "score": 0.95, "sha256": "cd" * 32}, "verdict", ("file",)),
        ({"sha256": None}, {"verdict": "fake", "score": 0.95, "size_bytes": 2000}, "verdict", ("file",)),
        ({"sha256": None}, {"verdict": "fake", "score": 0.95}, "verdict", ()),
        ({"sha256": "sha256:" + "ab" * 32}, {"verdict": "fake", "score": 0.95}, "verdict", ()),
        ({}, {"verdict": "fake", "threshold": 0.4}, "verdict", ("threshold",)),
        ({}, {"verdict": "fake", "threshold": None, "dfscan_version": "2.0"}, "verdict", ("threshold", "version")),
        ({}, {"verdict": "fake", "checkpoint": "other@1"}, "verdict", ("checkpoint",)),
    ],
)
def test_changes_and_causes(
    old: dict[str, object], new: dict[str, object], change: str | None, causes: tuple[str, ...], tmp_path: Path
) -> None:
    reports = [write(tmp_path / f"{i}.jsonl", {"a.mp4": row}) for i, row in enumerate((old, new))]
    found = compare_scans(*reports, min_shift=0.01)
    assert [(each.kind, each.causes) for each in found.changes] == ([(change, causes)] if change else [])
    assert found.num_same == (change is None)


def test_settings_and_the_device_are_causes(tmp_path: Path) -> None:
    base = {"num_frames": 32, "min_faces": 3, "workers": 2, "threshold": 0.9}
    old = write(tmp_path / "old.jsonl", {"a.mp4": {}}, settings=base)
    changed = base | {"num_frames": 16, "workers": 4, "threshold": 0.8}
    new = write(tmp_path / "new.jsonl", {"a.mp4": {"score": 0.7}}, settings=changed, device="cuda:0")
    (change,) = compare_scans(old, new, min_shift=0.01).changes
    assert change.causes == ("settings: num_frames", "device")


def test_the_exit_code_depends_on_fail_on(tmp_path: Path) -> None:
    old = write(tmp_path / "old.jsonl", {"a.mp4": {}, "b.mp4": {}})
    new = write(tmp_path / "new.jsonl", {"a.mp4": {"score": 0.6}, "c.mp4": {}})
    codes = {kinds: run("compare", old, new, "--fail-on", kinds).exit_code
             for kinds in ("verdict", "status", "score", "missing", "new", "verdict, new", "")}  # fmt: skip
    assert codes == {"verdict": 0, "status": 0, "score": 1, "missing": 1, "new": 1, "verdict, new": 1, "": 0}
    assert run("compare", old, new, "--fail-on", "score", "--min-shift", 0.2).exit_code == 0
    wrong = run("compare", old, new, "--fail-on", "fake")
    assert wrong.exit_code == 2
    assert "--fail-on: unknown change fake; use verdict, status, score, missing, new" in wrong.stderr


def test_files_in_every_format_and_a_page(tmp_path: Path) -> None:
    hostile = "</td><script>alert(1)</script>\u202e.mp4"
    old = write(tmp_path / "old.jsonl", {"a.mp4": {}, hostile: {"verdict": "real"}})
    new = write(tmp_path / "new.jsonl", {"a.mp4": {"verdict": "fake", "score": 0.95}})
    frames = {}
    for name in ("c.csv", "c.jsonl", "c.xlsx", "c.parquet"):
        done = run("compare", old, new, "--out", tmp_path / name)
        assert (done.exit_code, done.stdout) == (1, "")
        read: Any = {"csv": pd.read_csv, "xlsx": pd.read_excel, "parquet": pd.read_parquet}.get(name.split(".")[1])
        frames[name] = read(tmp_path / name) if read else pd.read_json(tmp_path / name, lines=True)
        assert list(frames[name].columns)[: len(CHANGE_COLUMNS)] == [column.name for column in CHANGE_COLUMNS]
        assert list(frames[name].change) == ["missing", "verdict"]
    page = tmp_path / "c.html"
    assert run("compare", old, new, "--html", page).stdout == ""
    text = page.read_text()
    assert "<script" not in text
    assert "\u202e" not in text
    assert "&lt;/td&gt;&lt;script&gt;" in text
    assert "Verdicts that changed" in text
    assert "0.9500" in text
    assert "default-src 'none'; style-src 'sha256-" in html.unescape(text)
    run("compare", old, old, "--html", page)
    assert "The scans do not differ." in page.read_text()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "not a report"),
        ("path,verdict\na,fake\n", "it lacks the columns checkpoint, dfscan_version"),
        ('"path\n', "not a report"),
        ("\x00\x01", "not a report"),
        (",".join(ROW) + "\n1,2\n", "not a report of dfscan"),
        (",".join(ROW) + "\n" + ",".join("x" for _ in ROW) + "\n", "could not convert string to float"),
    ],
)
def test_other_files_are_refused(content: str, message: str, tmp_path: Path) -> None:
    good = write(tmp_path / "old.jsonl", {"a.mp4": {}})
    (tmp_path / "x.csv").write_text(content)
    done = run("compare", good, tmp_path / "x.csv")
    assert done.exit_code == 2
    assert message in done.stderr


def test_inputs_are_not_overwritten_and_formats_are_named(tmp_path: Path) -> None:
    old = write(tmp_path / "old.jsonl", {"a.mp4": {}})
    for arguments in (("--out", old), ("--html", old), ("--out", "x.csv", "--html", "x.csv")):
        done = run("compare", old, old, *arguments)
        assert done.exit_code == 2
        assert "is named twice" in done.stderr
    (tmp_path / "x.parquet").touch()
    done = run("compare", old, tmp_path / "x.parquet")
    assert "only CSV and JSON Lines can be read; give the ledger beside it" in done.stderr
    assert "cannot be read (No such file" in run("compare", tmp_path / "gone.csv", old).stderr
