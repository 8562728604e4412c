"""Several reports at once, and reports rebuilt from ledgers without scanning, with the same bytes."""

from __future__ import annotations

import csv
import io
import os
import re
import shutil
from pathlib import Path
from urllib.parse import unquote_to_bytes

import cv2
import numpy as np
import pytest

from dfscan.media.discover import Discovery
from dfscan.scan.ledger import LedgerReader
from dfscan.scan.run import select_shard
from dfscan.types import Reason
from tests.pictures import astronaut, other_person
from tests.test_cli import run
from tests.test_cli import surroundings as surroundings
from tests.videos import write_video

REPORTS = ("r.csv", "r.jsonl", "r.xlsx", "r.parquet")


@pytest.fixture(scope="module")
def scanned(clips: Path, trained: Path, session_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with every report of one scan."""
    folder = tmp_path_factory.mktemp("scanned")
    outs = [argument for name in REPORTS for argument in ("--out", folder / name)]
    outs += ["--html", folder / "r.html", "--frames-out", folder / "f.csv", "--explain", folder / "dumps"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(session_cache))
        done = run("scan", clips, "--checkpoint", trained, "--device", "cpu", "--num-frames", 4, "--exit-zero", *outs)
    assert done.exit_code == 0, done.stderr
    assert done.stdout == ""
    return folder


def jpegs(page: str) -> list[str]:
    return re.findall(r'"(/9j/[^"]+)"', page)


def labels(csv_text: str) -> list[str]:
    return [row["verdict"] for row in csv.DictReader(io.StringIO(csv_text))]


def paths(csv_text: str) -> list[str]:
    return [row["path"] for row in csv.DictReader(io.StringIO(csv_text))]


def test_rebuilt_reports_equal_those_of_the_scan(scanned: Path, tmp_path: Path) -> None:
    outs = [argument for name in REPORTS for argument in ("-o", tmp_path / name)]
    done = run("report", scanned / "r.csv.ledger", *outs, "--frames-out", tmp_path / "f.csv")
    assert (done.exit_code, done.stdout) == (0, "")
    for name in ("r.csv", "r.jsonl", "r.parquet", "f.csv"):
        assert (tmp_path / name).read_bytes() == (scanned / name).read_bytes(), name


def test_a_rebuilt_page_has_the_same_pictures(scanned: Path, tmp_path: Path) -> None:
    ledger, page = scanned / "r.csv.ledger", tmp_path / "again.html"
    assert run("report", ledger, "--html", page).stdout == ""
    pictures = (scanned / "r.html").read_text().count("/9j/")
    assert page.read_text().count("/9j/") == pictures > 8
    without = tmp_path / "small.html"
    done = run("report", ledger, "--html", without, "--html-max-mb", 0)
    assert "raise --html-max-mb" in done.stderr
    assert without.read_text().count("/9j/") == 0


def test_pictures_show_the_faces(scanned: Path) -> None:
    with LedgerReader(scanned / "r.csv.ledger") as ledger:
        entries = {Path(entry.path).name: entry for entry in ledger.entries()}
        two, pictures = ledger.result(entries["two.mkv"]), ledger.pictures(entries["two.mkv"])
        assert [each.track_id for each in pictures if each.kind == "face"] == [0] * 4 + [1] * 4
        assert {each.kind for each in ledger.pictures(entries["nobody.mp4"])} == {"frame"}
    heat_maps = [each for each in pictures if each.kind == "heat_map"]
    scores = sorted((face.score for track in two.tracks for face in track.faces), reverse=True)
    assert [each.score for each in heat_maps] == pytest.approx(scores[:3])
    for each, side_px in [(pictures[0], 96), (heat_maps[0], 192)]:
        pixels = cv2.imdecode(np.frombuffer(each.jpeg, np.uint8), cv2.IMREAD_COLOR)
        assert pixels is not None
        assert pixels.shape == (side_px, side_px, 3)
        assert pixels.std() > 20


def test_the_workbook_links_to_dumps(scanned: Path) -> None:
    import openpyxl

    sheet = openpyxl.load_workbook(scanned / "r.xlsx")["report"]
    links = [cell.hyperlink.target for (cell,) in sheet.iter_rows(min_row=2, max_col=1) if cell.hyperlink]
    assert len(links) >= 2
    assert all((scanned / link).is_dir() for link in links)


def test_missing_pictures_are_recreated_on_resume(clips: Path, trained: Path, tmp_path: Path) -> None:
    def scan(*more: object) -> str:
        base = ("--checkpoint", trained, "--device", "cpu", "--num-frames", 3, "-o", tmp_path / "r.csv", "--resume")
        done = run("scan", clips / "one.mp4", clips / "nobody.mp4", *base, *more)
        assert done.exit_code == 0
        return done.stderr

    assert "known from the ledger" not in scan()
    assert "2 known" in scan()
    assert "known from the ledger" not in scan("--html", tmp_path / "r.html")
    assert "2 known" in scan("--html", tmp_path / "r.html")
    assert (tmp_path / "r.html").read_text().count("/9j/") == 3 + 3 + 3


def test_reports_of_all_shards_join_to_the_whole(clips: Path, trained: Path, tmp_path: Path, scanned: Path) -> None:
    ledgers = []
    for i in (1, 2):
        out = tmp_path / f"{i}.csv"
        base = ("--checkpoint", trained, "--device", "cpu", "--num-frames", 4, "--exit-zero")
        assert run("scan", clips, *base, "-o", out, "--shard", f"{i}/2").exit_code == 0
        ledgers.append(f"{out}.ledger")
    parts = [paths((tmp_path / f"{i}.csv").read_text()) for i in (1, 2)]
    whole = run("report", *ledgers).stdout
    assert sorted(parts[0] + parts[1]) == sorted(paths(whole))
    assert whole == (scanned / "r.csv").read_text()


def test_shards_are_about_equal_and_depend_only_on_paths() -> None:
    paths = [f"clips/{i}.mp4" for i in range(1000)]
    problems = {f"gone/{i}.mp4": Reason("not_found", "it is not there") for i in range(100)}
    parts = [select_shard(Discovery(paths, problems, [], []), f"{i}/4") for i in range(1, 5)]
    assert sorted(path for part in parts for path in part.paths) == sorted(paths)
    assert sum(len(part.problems) for part in parts) == 100
    assert all(200 < len(part.paths) < 300 for part in parts)
    fewer = select_shard(Discovery(paths[::7], {}, [], []), "2/4")
    assert fewer.paths == [path for path in parts[1].paths if path in set(paths[::7])]


def test_the_last_of_two_ledgers_with_a_file_is_used(clips: Path, trained: Path, tmp_path: Path) -> None:
    for frames in (3, 4):
        base = ("--checkpoint", trained, "--device", "cpu", "--exit-zero", "-q")
        run("scan", clips / "one.mp4", *base, "--num-frames", frames, "-o", tmp_path / f"{frames}.csv")
    for first, last in ((3, 4), (4, 3)):
        done = run("report", tmp_path / f"{first}.csv.ledger", tmp_path / f"{last}.csv.ledger")
        assert done.stdout == (tmp_path / f"{last}.csv").read_text()


def test_a_file_missing_in_one_run_is_reported_as_last_confirmed(clips: Path, trained: Path, tmp_path: Path) -> None:
    video, elsewhere = tmp_path / "one.mp4", tmp_path / "elsewhere"
    shutil.copy(clips / "one.mp4", video)
    (tmp_path / "list").write_text(f"{video}\n")
    told = []
    for move in (None, (video, elsewhere), (elsewhere, video)):
        if move:
            move[0].rename(move[1])
        base = ("--checkpoint", trained, "--device", "cpu", "--num-frames", 3, "-q", "--exit-zero")
        run("scan", "--files-from", tmp_path / "list", *base, "--ledger", tmp_path / "l", "-o", tmp_path / "r.csv")
        assert run("report", tmp_path / "l").stdout == (tmp_path / "r.csv").read_text()
        told.append(labels((tmp_path / "r.csv").read_text()))
    assert told == [["inconclusive"], ["error"], ["inconclusive"]]


def test_a_report_never_replaces_a_video(clips: Path, trained: Path, tmp_path: Path) -> None:
    video = tmp_path / "one.mp4"
    shutil.copy(clips / "one.mp4", video)
    run("scan", video, "--checkpoint", trained, "--device", "cpu", "--num-frames", 2, "-o", tmp_path / "r.csv")
    (tmp_path / "link").symlink_to(video)
    for out in (video, tmp_path / "link"):
        for option in ("--out", "--html", "--frames-out"):
            done = run("report", tmp_path / "r.csv.ledger", option, out)
            assert done.exit_code == 2
            assert "would overwrite the input" in done.stderr
    assert video.read_bytes() == (clips / "one.mp4").read_bytes()


def test_an_unwritable_page_fails_before_anything_is_scanned(clips: Path, tmp_path: Path) -> None:
    done = run("scan", clips, "-o", tmp_path / "r.csv", "--html", tmp_path)
    assert done.exit_code == 2
    assert "it is a directory" in done.stderr
    assert [path.name for path in tmp_path.iterdir() if path.name != "r.csv.lock"] == []


def test_dumps_in_a_folder_with_an_odd_name(clips: Path, trained: Path, tmp_path: Path) -> None:
    import openpyxl

    folder = tmp_path / os.fsdecode(b"d\xff")
    base = ("--checkpoint", trained, "--device", "cpu", "--num-frames", 3, "--explain", folder)
    done = run("scan", clips / "one.mp4", *base, "-o", tmp_path / "r.csv", "-o", tmp_path / "r.xlsx")
    assert done.exit_code == 0, done.stderr
    link = openpyxl.load_workbook(tmp_path / "r.xlsx")["report"]["A2"].hyperlink.target
    assert (tmp_path / os.fsdecode(unquote_to_bytes(link))).is_dir()
    assert run("report", tmp_path / "r.csv.ledger", "-o", tmp_path / "again.xlsx").exit_code == 0
    assert openpyxl.load_workbook(tmp_path / "again.xlsx")["report"]["A2"].hyperlink.target == link
    shutil.rmtree(folder)
    assert run("report", tmp_path / "r.csv.ledger", "-o", tmp_path / "without.xlsx").exit_code == 0
    assert openpyxl.load_workbook(tmp_path / "without.xlsx")["report"]["A2"].hyperlink is None


def test_files_that_differ_between_ledgers_are_counted(clips: Path, trained: Path, tmp_path: Path) -> None:
    for i, name in enumerate(("one.mp4", "nobody.mp4")):
        shutil.copy(clips / name, tmp_path / "a.mp4")
        base = ("--checkpoint", trained, "--device", "cpu", "--num-frames", 2, "-q")
        run("scan", tmp_path / "a.mp4", *base, "-o", tmp_path / f"{i}.csv")
    done = run("report", tmp_path / "0.csv.ledger", tmp_path / "1.csv.ledger")
    assert "1 files differ between ledgers" in done.stderr
    assert labels(done.stdout) == ["no_face"]


def test_one_relative_path_on_two_machines_is_two_videos_with_their_own_pictures(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = {"a": astronaut(), "b": other_person()}
    for name, picture in pictures.items():
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        write_video(Path("clip.mp4"), [picture] * 3)
        base = ("--checkpoint", trained, "--device", "cpu", "--num-frames", 3, "--detection-threshold", 0.9, "-q")
        assert run("scan", "clip.mp4", *base, "-o", "r.csv", "--html", "r.html").exit_code == 0
    monkeypatch.chdir(tmp_path)
    assert run("report", "a/r.csv.ledger", "b/r.csv.ledger", "--html", "both.html").exit_code == 0
    both = jpegs(Path("both.html").read_text())
    assert len(both) > 2
    assert both == jpegs(Path("a/r.html").read_text()) + jpegs(Path("b/r.html").read_text())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["report", "no.ledger"], "no such ledger"),
        (["report", "{ledger}", "-o", "{ledger}"], "is named twice, or is a ledger"),
        (["report", "{ledger}", "-o", "x.csv", "-o", "./x.csv"], "is named twice"),
        (["report", "{ledger}", "-o", "no/x.csv"], "Create its directory first"),
        (["scan", ".", "-o", "x.csv", "-o", "./x.csv"], "are the same file"),
        (["scan", ".", "-o", "x.csv", "--html", "x.csv"], "are the same file"),
        (["report", "{ledger}", "-o", "-", "-o", "-"], "names standard output twice"),
        (["scan", ".", "-o", "-", "-o", "-"], "names standard output twice"),
        (["scan", ".", "--shard", "3/2"], "shard: must be auto or I/N with I from 1 to N"),
        (["scan", ".", "--shard", "1-4"], "such as 1/4 for the first of four parts, got '1-4'"),
        (["report", "{ledger}", "-o", "x.xls"], "dfscan cannot write .xls files; use .csv, "),
        (["scan", ".", "-o", "x.txt"], "dfscan cannot write .txt files; use .csv, "),
        (["scan", ".", "-o", "x.csv", "--frames-out", "f.json"], "dfscan cannot write .json files; use .csv, "),
        (
            ["scan", ".", "-o", "x.xlsx", "--format", "csv"],
            "has the suffix .xlsx, but --format is csv; change one of them",
        ),
    ],
)
def test_unusable_outputs_are_refused(
    scanned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    before = (scanned / "r.csv.ledger").read_bytes()
    done = run(*(argument.format(ledger=scanned / "r.csv.ledger") for argument in arguments))
    assert done.exit_code == 2
    assert message in done.stderr
    assert (scanned / "r.csv.ledger").read_bytes() == before


def test_several_outs_from_environment_and_file(
    clips: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    base = ("scan", clips / "nobody.mp4", "--checkpoint", trained, "--device", "cpu", "--num-frames", 2)
    (tmp_path / "c.toml").write_text('out = ["a b.csv", "c.jsonl"]')
    assert run(*base, "--config", "c.toml").stdout == ""
    assert (tmp_path / "a b.csv").exists()
    assert (tmp_path / "c.jsonl").exists()
    monkeypatch.setenv("DFSCAN_OUT", "e 1.csv:e2.xlsx")
    assert run(*base, "--config", "c.toml").stdout == ""
    assert (tmp_path / "e 1.csv").exists()
    assert (tmp_path / "e2.xlsx").exists()
    assert run(*base, "-o", "-", "-o", "f.csv").stdout == (tmp_path / "f.csv").read_text()
    (tmp_path / "one.toml").write_text('out = "single.csv"')
    monkeypatch.delenv("DFSCAN_OUT")
    assert run(*base, "--config", "one.toml").stdout == ""
    assert (tmp_path / "single.csv").exists()
