"""The reviewer's word: stored beside the verdict, shown in every report, and a source of labels."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import shutil
import sqlite3
from pathlib import Path

import jsonschema
import openpyxl
import pytest

from dfscan.dataset.sources import read_sources
from dfscan.errors import DataError
from dfscan.media.source import FileIdentity
from dfscan.report.row_schema import row_schema
from dfscan.report.schema import REPORT_COLUMNS
from dfscan.scan.ledger import Ledger, LedgerReader, Recipe, add_reviews
from dfscan.scan.reviews import read_review_list
from dfscan.types import Reason, Review, Verdict, VideoInfo, VideoResult
from tests.test_cli import run, scan
from tests.test_cli import surroundings as surroundings

COLUMNS = ("reviewer_verdict", "reviewer", "reviewed_utc", "reviewer_note")
TIME = "2026-11-25T14:30:00Z"


@pytest.fixture(scope="module")
def scanned(clips: Path, trained: Path, session_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the ledger and the report of one scan."""
    folder = tmp_path_factory.mktemp("scanned")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(session_cache))
        done = scan(trained, clips, "-o", folder / "r.csv", "--exit-zero")
    assert done.exit_code == 0, done.stderr
    return folder


@pytest.fixture
def ledger(scanned: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(scanned / "r.csv.ledger", tmp_path / "r.ledger"))


def rows(text: str) -> dict[str, dict[str, str]]:
    return {Path(row["path"]).name: row for row in csv.DictReader(io.StringIO(text))}


def reported(ledger: Path, *arguments: object) -> dict[str, dict[str, str]]:
    return rows(run("report", ledger, *arguments).stdout)


def test_a_review_stands_beside_the_verdict_in_every_report(
    clips: Path, scanned: Path, ledger: Path, tmp_path: Path
) -> None:
    done = run("label", ledger, clips / "one.mp4", "--verdict", "real", "--by", "A. Müller", "--note", "=the <author>")
    assert (done.exit_code, done.stdout) == (0, ""), done.stderr
    outs = [argument for kind in ("csv", "jsonl", "xlsx", "jsonld") for argument in ("-o", tmp_path / f"r.{kind}")]
    assert run("report", ledger, *outs, "--html", tmp_path / "r.html").exit_code == 0
    before, after = rows((scanned / "r.csv").read_text()), rows((tmp_path / "r.csv").read_text())
    kept = [column.name for column in REPORT_COLUMNS if column.name not in COLUMNS]
    assert [[row[name] for name in kept] for row in after.values()] == [
        [row[name] for name in kept] for row in before.values()
    ]
    one = after["one.mp4"]
    assert (one["verdict"], one["reviewer_verdict"], one["reviewer"]) == ("inconclusive", "real", "A. Müller")
    assert one["reviewer_note"] == "'=the <author>"
    assert {row["reviewer_verdict"] for name, row in after.items() if name != "one.mp4"} == {""}
    validator = jsonschema.Draft202012Validator(row_schema())
    lines = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    for line in lines:
        validator.validate(line)
    assert [line["reviewer_note"] for line in lines if line["reviewer_verdict"]] == ["=the <author>"]
    sheet = openpyxl.load_workbook(tmp_path / "r.xlsx")["report"]
    header = [cell.value for cell in sheet[1]]
    assert [row[header.index("reviewer")] for row in sheet.iter_rows(values_only=True)].count("A. Müller") == 1
    graph = json.loads((tmp_path / "r.jsonld").read_text())["@graph"]
    (action,) = [node for node in graph if node.get("core:name") == "Review a video"]
    of = {node["@id"]: node for node in graph}
    assert of[action["action:performer"]["@id"]]["core:name"] == "A. Müller"
    assert "reviewer_verdict: real" in of[action["action:result"]["@id"]]["core:statement"]
    assert action["action:endTime"]["@value"] == one["reviewed_utc"]
    assert sum("reviewer" in json.dumps(node) for node in graph) == 1, "the machine's result does not have it"
    page = (tmp_path / "r.html").read_text()
    assert '"reviewer":"A. Müller"' in page
    assert "<author>" not in page


def test_the_last_review_counts_and_all_are_kept(clips: Path, ledger: Path) -> None:
    path = clips / "two.mkv"
    for verdict, by in (("fake", "A"), ("fake", "A"), ("inconclusive", "B")):
        assert run("label", ledger, path, "--verdict", verdict, "--by", by).exit_code == 0
    assert [reported(ledger)["two.mkv"][name] for name in COLUMNS[:2]] == ["inconclusive", "B"]
    listed = list(csv.DictReader(io.StringIO(run("label", ledger).stdout)))
    assert [(row["reviewer_verdict"], row["reviewer"]) for row in listed] == [("fake", "A"), ("inconclusive", "B")]
    assert run("label", ledger, path, "--verdict", "withdrawn", "--by", "B").exit_code == 0
    assert [reported(ledger)["two.mkv"][name] for name in COLUMNS] == [""] * 4
    assert len(list(csv.DictReader(io.StringIO(run("label", ledger, path).stdout)))) == 3
    assert "1 already in the ledger" in run("label", ledger, path, "--verdict", "withdrawn", "--by", "B").stderr


def test_a_changed_file_does_not_inherit_and_a_copy_does(
    clips: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    for name in ("a.mp4", "b.mp4"):
        shutil.copy(clips / "nobody.mp4", Path("in", name))
    base = ("in", "--ledger", "all.ledger", "--exit-zero", "-o")
    assert scan(trained, *base, "1.csv").exit_code == 0
    assert run("label", "all.ledger", "./in/a.mp4", "--verdict", "real", "--by", "A").exit_code == 0
    assert {row["reviewer_verdict"] for row in reported(Path("all.ledger")).values()} == {"real"}, "one content"
    shutil.copy(clips / "one.mp4", "in/a.mp4")
    done = run("label", "all.ledger", "in/a.mp4", "--verdict", "fake", "--by", "A")
    assert done.exit_code == 1
    assert "./in/a.mp4: changed: its content has changed since it was scanned; scan it again" in done.stderr
    done = scan(trained, *base, "2.csv")
    assert "1 known from the ledger" in done.stderr
    after = rows(Path("2.csv").read_text())
    assert (after["a.mp4"]["reviewer_verdict"], after["b.mp4"]["reviewer_verdict"]) == ("", "real")
    os.utime("in/b.mp4")
    assert run("label", "all.ledger", "in/b.mp4", "--verdict", "fake", "--by", "A").exit_code == 0, "same content"
    done = run("label", "all.ledger", "--from", "1.csv", "--by", "A")
    assert (done.exit_code, "0 reviews stored" in done.stderr) == (0, True), "a report without reviews stores nothing"
    old_rows = list(csv.DictReader(io.StringIO(Path("1.csv").read_text())))
    with Path("old.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(old_rows[0]))
        writer.writeheader()
        writer.writerow({**old_rows[0], "reviewer_verdict": "fake"})
    assert run("label", "all.ledger", "--from", "old.csv", "--by", "B").exit_code == 0, "the copy has that content"
    assert reported(Path("all.ledger"))["a.mp4"]["reviewer_verdict"] == ""
    assert reported(Path("all.ledger"))["b.mp4"]["reviewer"] == "B"


def test_a_filled_in_report_is_a_list(ledger: Path, tmp_path: Path) -> None:
    table = list(reported(ledger).values())
    table[0] |= {"reviewer_verdict": "Fake", "reviewer": "C", "reviewer_note": "edge; halo"}
    path = tmp_path / "filled.csv"
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, list(table[0]), delimiter=";")
        writer.writeheader()
        writer.writerows(table)
    assert "1 review stored" in run("label", ledger, "--from", path).stderr
    assert "0 reviews stored, 1 already in the ledger" in run("label", ledger, "--from", path).stderr
    name = Path(table[0]["path"]).name
    assert reported(ledger)[name]["reviewer_note"] == "edge; halo"
    without = tmp_path / "machine.csv"
    without.write_text("path,verdict,dfscan_version\na.mp4,fake,1\n")
    done = run("label", ledger, "--from", without, "--by", "C")
    assert done.exit_code == 2
    assert "may hold the detector's verdicts" in done.stderr


def test_an_older_list_does_not_override_newer_reviews(clips: Path, ledger: Path, tmp_path: Path) -> None:
    with LedgerReader(ledger) as reader:
        of = {Path(entry.path).name: entry.sha256 for entry in reader.entries()}
    monday, tuesday = "2026-11-23T10:00:00Z", "2026-11-24T10:00:00Z"
    add_reviews(ledger, [(of["one.mp4"], Review("real", "C", "", monday))])
    assert run("report", ledger, "-o", tmp_path / "exported.csv").exit_code == 0
    add_reviews(ledger, [(of["one.mp4"], Review("fake", "A", "", tuesday))])

    def imported(name: str, into: Path = ledger, **cells: str) -> object:
        table = rows((tmp_path / "exported.csv").read_text())
        table[name] |= cells
        with (tmp_path / "filled.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(table[name]))
            writer.writeheader()
            writer.writerows(table.values())
        return run("label", into, "--from", tmp_path / "filled.csv")

    done = imported("two.mkv", reviewer_verdict="fake", reviewer="B")
    assert "1 review stored, 1 already in the ledger" in done.stderr
    assert [reported(ledger)["one.mp4"][name] for name in COLUMNS[:3]] == ["fake", "A", tuesday]
    done = imported("one.mp4", reviewer_verdict="inconclusive", reviewer="B")
    assert done.exit_code == 1
    assert f"A reviewed this content later, at {tuesday}; make the report again" in done.stderr
    assert reported(ledger)["one.mp4"]["reviewer"] == "A"
    assert run("report", ledger, "-o", tmp_path / "exported.csv").exit_code == 0
    assert imported("one.mp4", reviewer_verdict="inconclusive", reviewer="B").exit_code == 0
    one = reported(ledger)["one.mp4"]
    assert (one["reviewer_verdict"], one["reviewer"]) == ("inconclusive", "B")
    assert one["reviewed_utc"] > tuesday, "an edited row is a review of now"
    fresh = Path(shutil.copy(ledger, tmp_path / "fresh.ledger"))
    with sqlite3.connect(fresh) as database:
        database.execute("DELETE FROM reviews")
    database.close()
    assert imported("one.mp4", fresh).exit_code == 0
    assert reported(fresh)["one.mp4"]["reviewed_utc"] == tuesday, "a row from another ledger keeps its time"
    assert "is not a past time" in imported("one.mp4", reviewed_utc="yesterday").stderr


def test_unknown_files_are_named_and_the_others_stored(clips: Path, ledger: Path, tmp_path: Path) -> None:
    listed = tmp_path / "labels.csv"
    listed.write_text(f"File,Verdict\n{clips}/nowhere.mp4,fake\n{clips}/one.mp4,real\nunknown.mp4,\n")
    done = run("label", ledger, "--from", listed, "--by", "D")
    assert done.exit_code == 1
    assert f"not stored: {listed}, line 2: {clips}/nowhere.mp4 is not in the ledger" in done.stderr
    assert "1 review stored, 1 not stored" in done.stderr
    assert reported(ledger)["one.mp4"]["reviewer"] == "D"


@pytest.mark.parametrize(
    "text",
    [
        "path,label,by,note\na.mp4,FAKE,E,\n\nb.mp4,real,F,ok\n",
        "﻿sep=;\r\nPath;Reviewer_Verdict;Reviewer;Reviewer_Note\r\na.mp4;fake;E\r\n;;;\r\nb.mp4;Real;F;ok\r\n",
        "note\tby\tverdict\tpath\n\tE\tfake\ta.mp4\nok\tF\treal\tb.mp4\n",
    ],
)
def test_lists_are_read_forgivingly(tmp_path: Path, text: str) -> None:
    (tmp_path / "l.csv").write_text(text, newline="")
    found = read_review_list(tmp_path / "l.csv", reviewer="", time_utc=TIME)
    assert [(each.path, each.review) for each in found] == [
        ("a.mp4", Review("fake", "E", "", TIME)),
        ("b.mp4", Review("real", "F", "ok", TIME)),
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("path,label\na.mp4,fake\nb.mp4,genuine\n", "line 3: 'genuine' is not one of fake, real, inconclusive"),
        ("path,label\n,fake\n", "line 2: no path"),
        ("path,label,by\na.mp4,fake,\n", "line 2: no reviewer; fill in `reviewer`, or give --by"),
        ("path,label,note\na.mp4,fake,it is, perhaps\n", "line 2: 4 cells, but 3 columns"),
        ("path,opinion\na.mp4,fake\n", "line 1: no column `reviewer_verdict`; the columns are path, opinion"),
        ("path,label,label\n", "line 1: the column label occurs twice"),
        ("path,verdict,score\n", "line 1: the column `verdict` may hold the detector's verdicts"),
        ("path,label,verdict\n", "line 1: the column `verdict` may hold the detector's verdicts"),
        ("", "line 1: no column"),
        ("path,label\n\xfc.mp4,fake\n", "not a CSV file in UTF-8"),
    ],
)
def test_an_unusable_list_is_refused_whole(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "l.csv").write_text(text, encoding="latin-1")
    with pytest.raises(DataError) as refused:
        read_review_list(tmp_path / "l.csv", reviewer="", time_utc=TIME)
    assert problem in str(refused.value)


def test_options_that_do_not_fit_together_are_refused(ledger: Path, tmp_path: Path) -> None:
    for arguments in (
        ["--verdict", "fake", "--by", "A"],
        ["a.mp4", "--verdict", "fake"],
        ["--by", "A"],
        ["a.mp4", "--verdict", "fake", "--by", "  "],
        ["a.mp4", "--from", "l.csv"],
        ["--from", tmp_path / "missing.csv"],
        ["unknown.mp4"],
    ):
        done = run("label", ledger, *arguments)
        assert (done.exit_code, done.stdout) == (2, ""), arguments
    assert run("label", tmp_path / "no.ledger").exit_code == 2


def test_ledgers_from_before_reviews_work(clips: Path, ledger: Path) -> None:
    with sqlite3.connect(ledger) as database:
        database.execute("DROP TABLE reviews")
    database.close()
    assert reported(ledger)["one.mp4"]["reviewer"] == ""
    assert run("label", ledger).stdout.count("\n") == 1
    assert run("label", ledger, clips / "one.mp4", "--verdict", "real", "--by", "A").exit_code == 0
    assert reported(ledger)["one.mp4"]["reviewer"] == "A"


def test_reviews_of_several_ledgers_join_by_time(clips: Path, ledger: Path, tmp_path: Path) -> None:
    other = Path(shutil.copy(ledger, tmp_path / "other.ledger"))
    with LedgerReader(ledger) as reader:
        sha256 = next(entry.sha256 for entry in reader.entries() if entry.path.endswith("one.mp4"))
    add_reviews(ledger, [(sha256, Review("fake", "late", "", "2026-11-26T00:00:00Z"))])
    add_reviews(other, [(sha256, Review("real", "early", "", "2026-11-25T00:00:00Z"))])
    assert rows(run("report", ledger, other).stdout)["one.mp4"]["reviewer"] == "late"


def test_equal_reviews_of_one_ledger_all_count(clips: Path, ledger: Path) -> None:
    with LedgerReader(ledger) as reader:
        sha256 = next(entry.sha256 for entry in reader.entries() if entry.path.endswith("one.mp4"))
    for verdict in ("fake", "withdrawn", "fake"):  # all in one second
        add_reviews(ledger, [(sha256, Review(verdict, "A", "", TIME))])
    assert reported(ledger)["one.mp4"]["reviewer_verdict"] == "fake"
    done = run("label", ledger, clips / "one.mp4", "--verdict", "real", "--by", os.fsdecode(b"M\xfcller"))
    assert done.exit_code == 0, done.stderr
    assert reported(ledger)["one.mp4"]["reviewer"] == "M\\xfcller"


def test_the_order_of_review(tmp_path: Path) -> None:
    recipe = Recipe("c", "0" * 64, "1", "cpu", {})
    verdicts = {
        "a_real.mp4": Verdict("real", 0.05, 0.9),
        "b_none.mp4": Verdict("no_face"),
        "c_broken.mp4": Verdict("error", reason=Reason("not_video", "no video")),
        "d_later.mp4": Verdict("error", reason=Reason("timeout", "too slow")),
        "e_far.mp4": Verdict("inconclusive", 0.3, 0.9),
        "f_near.mp4": Verdict("inconclusive", 0.6, 0.7),
        "g_few.mp4": Verdict("inconclusive"),
        "h_fake.mp4": Verdict("fake", 0.93, 0.9),
        "i_fake.mp4": Verdict("fake", 0.99, 0.9),
        "j_seen.mp4": Verdict("fake", 0.999, 0.9),
        "k_seen.mp4": Verdict("real", 0.01, 0.9),
    }
    path = tmp_path / "l.ledger"
    with Ledger(path, recipe=recipe) as ledger:
        for name, verdict in verdicts.items():
            status = "error" if verdict.label == "error" else "ok"
            ledger.put(VideoResult(name, status, verdict, VideoInfo(1, sha256=name[0] * 64)), None)
    add_reviews(path, [(letter * 64, Review("fake", "A", "", TIME)) for letter in "jk"])
    done = run("report", path, "--order", "review")
    assert "".join(name[0] for name in rows(done.stdout)) == "ihfegdcbajk"
    assert list(reported(path)) == sorted(verdicts)


def test_a_ledger_gives_labels(clips: Path, ledger: Path, trained: Path, tmp_path: Path) -> None:
    labels = {"one.mp4": "real", "two.mkv": "fake", "nobody.mp4": "inconclusive"}
    for name, verdict in labels.items():
        assert run("label", ledger, clips / name, "--verdict", verdict, "--by", "A").exit_code == 0
    found = read_sources([str(ledger)])
    assert {(Path(source.path).name, source.label) for source in found.items} == {
        ("one.mp4", "real"),
        ("two.mkv", "fake"),
    }
    done = run("calibrate", ledger, "--checkpoint", trained, "--out", tmp_path / "own.safetensors")
    assert "1 genuine videos in 1 groups are too few" in done.stderr
    done = run("evaluate", ledger, "--checkpoint", trained, "--split", "test", "--out", tmp_path / "evaluation")
    assert "none of the 2 videos is in --split test" in done.stderr


def test_labels_of_missing_and_changed_files_are_skipped(tmp_path: Path) -> None:
    paths = [tmp_path / f"{name}.mp4" for name in "abcd"]
    path = tmp_path / "l.ledger"
    with Ledger(path, recipe=Recipe("c", "0" * 64, "1", "cpu", {})) as ledger:
        for each in paths:
            each.write_bytes(each.name.encode())
            info = VideoInfo(5, sha256=hashlib.sha256(each.name.encode()).hexdigest())
            ledger.put(VideoResult(str(each), "ok", Verdict("no_face"), info), FileIdentity.of(str(each)))
    with pytest.raises(DataError, match="no review says `fake` or `real`"):
        read_sources([str(path)])
    assert run("label", path, *paths, "--verdict", "real", "--by", "A").exit_code == 0
    paths[0].unlink()
    paths[1].write_bytes(b"other")
    os.utime(paths[2], (0, 0))
    found = read_sources([str(path)])
    assert [Path(source.path).name for source in found.items] == ["c.mp4", "d.mp4"]
    assert [(Path(path).name, why.partition(":")[0]) for path, why in found.skipped] == [
        ("a.mp4", "not_there"),
        ("b.mp4", "changed"),
    ]
