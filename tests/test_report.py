"""Reports: columns, hostile names in every format, and atomic writing."""

import base64
import csv
import errno
import io
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import duckdb
import numpy as np
import pytest

from dfscan import files
from dfscan.errors import ConfigError, OutputError
from dfscan.files import AtomicFile
from dfscan.report import tables
from dfscan.report.formats import ReportFormat, format_for, open_writer
from dfscan.report.meta import versions, write_meta
from dfscan.report.schema import FRAME_COLUMNS, REPORT_COLUMNS, REPORT_VERSION, Column, frame_rows, report_row
from dfscan.report.statement import statement
from dfscan.report.tables import LINK, VERDICT_COLOURS
from dfscan.text import display_path, guard_formula, is_escaped, printable
from dfscan.types import Face, FaceScore, FileFacts, Provenance, Reason, Track, Verdict, VideoInfo, VideoResult

SUFFIXES = ("csv", "jsonl", "xlsx", "parquet")

FACT_COLUMNS = (
    "container container_brand muxer encoder device creation_time num_edits hidden_s bit_rate_bps gop_frames"
    " rotation_deg num_audio_streams sound origin_signs provenance provenance_signer provenance_generator"
    " provenance_actions provenance_problem declared_ai"
).split()
STATEMENT_COLUMNS = "statement likelihood_ratio likelihood_ratio_low likelihood_ratio_high".split()
QUALITY_COLUMNS = "face_px sharpness blockiness bits_per_pixel".split()

REVIEW_COLUMNS = "reviewer_verdict reviewer reviewed_utc reviewer_note".split()
CASE_COLUMNS = ["case", "exhibit", "examiner"]
LAST_COLUMNS = [*FACT_COLUMNS, *REVIEW_COLUMNS]

SHA256 = "0e91b9c5d2a7f3864cb05f1e7d8a2b3c4d5e6f708192a3b4c5d6e7f80912a3b4"

NAMES = {
    b"=1+1.mp4": "./=1+1.mp4",
    b"a,b.mp4": "./a,b.mp4",
    b'a"b".mp4': './a"b".mp4',
    b"a\nb.mp4": "./a\\nb.mp4",
    "😀\u200d👩.mp4".encode(): "./😀\u200d👩.mp4",
    b"[/b].mp4": "./[/b].mp4",
    b"bad\xff.mp4": "./bad\\xff.mp4",
    b"/abs/-x'; .mp4": "/abs/-x'; .mp4",
    b"../up.mp4": "../up.mp4",
    b"123": "./123",
    b"true": "./true",
}


def face(logit: float, *, frame: int = 0, time_s: float = 0.0) -> FaceScore:
    box = np.array([-0.04, 1.25, 64.06, 65], np.float32)
    no_points, no_likeness = np.zeros((5, 2), np.float32), np.zeros(1, np.float32)
    found = Face(frame, time_s, 0, box, no_points, 0.9876543, no_likeness, frame_number=10 * frame, stream=1)
    return FaceScore(found, logit)


def judged(path: str) -> VideoResult:
    quiet = Track(0, (face(-2.0), face(-1.0, frame=1, time_s=0.25)))
    loud = Track(3, (face(3.0, frame=2, time_s=1.5), face(0.0, frame=5, time_s=2.33349)))
    return VideoResult(
        path,
        "partial",
        Verdict("fake", 0.12345678, 0.5, 3, Reason("damaged", "3 packets, of 9, were lost")),
        VideoInfo(1234567890123, SHA256, 640, 480, 30000 / 1001, 99, 3.3, "h264", num_skipped_streams=1),
        num_frames=8,
        tracks=(quiet, loud),
    )


def unjudged(path: str) -> VideoResult:
    return VideoResult(path, "error", Verdict("error"), VideoInfo(0))


def row(result: VideoResult) -> dict[str, object]:
    return report_row(result, checkpoint="b2-plain", version="0.1.0")


def write(path: Path, rows: Iterable[dict[str, object]], columns=REPORT_COLUMNS, **options) -> Path:
    with open_writer(path, columns, format=format_for(path), **options) as writer:
        for one in rows:
            writer.append(one)
    return path


PRINTABLE = {
    "plain": ("a b.mp4", "a b.mp4"),
    "brackets, quotes and backslash": ("[/b] 'a\" \\n", "[/b] 'a\" \\n"),
    "emoji with joiner": ("👩\u200d🔬é", "👩\u200d🔬é"),
    "newline, tab, return": ("a\nb\tc\r", "a\\nb\\tc\\r"),
    "escape, null, delete": ("\x1b[31m\0\x7f", "\\x1b[31m\\x00\\x7f"),
    "C1": ("\x85\x9b", "\\u0085\\u009b"),
    "undecodable bytes": (os.fsdecode(b"\xff\x85"), "\\xff\\x85"),
    "other surrogates": ("\ud83d", "\\ud83d"),
    "separators": ("\u2028\u2029", "\\u2028\\u2029"),
    "bidi": (
        "\u061c\u200e\u200f\u202a\u202e\u2066\u2069",
        "\\u061c\\u200e\\u200f\\u202a\\u202e\\u2066\\u2069",
    ),
    "beside bidi": ("\u202f\u2065\u206a", "\u202f\u2065\u206a"),
}


@pytest.mark.parametrize(("text", "expected"), PRINTABLE.values(), ids=PRINTABLE.keys())
def test_printable(text: str, expected: str) -> None:
    assert printable(text) == expected
    assert printable(expected) == expected
    assert is_escaped(text) == (text != expected)


@pytest.mark.parametrize(("name", "expected"), NAMES.items(), ids=map(ascii, NAMES))
def test_display_path(name: bytes, expected: str) -> None:
    assert display_path(os.fsdecode(name)) == expected


@pytest.mark.parametrize(
    ("path", "expected"),
    [("./a", "./a"), ("../a", "../a"), ("..a", "./..a"), (".a", "./.a"), ("a//b/../c", "./a//b/../c")],
)
def test_display_path_does_not_normalise(path: str, expected: str) -> None:
    assert display_path(path) == expected


@pytest.mark.parametrize("text", ["=1", "+1", "-1", "@a", "\ta", "\ra", "＝1", "＋1", "－1", "＠a"])  # noqa: RUF001
def test_formulas_are_guarded(text: str) -> None:
    assert guard_formula(text) == f"'{text}"


@pytest.mark.parametrize("text", ["", "a=1", "'=1", "./=1", " =1", "h264"])
def test_text_that_is_no_formula_is_not_guarded(text: str) -> None:
    assert guard_formula(text) == text


def test_report_columns_are_stable() -> None:
    first = (
        "path verdict score threshold status reason num_frames num_faces num_tracks max_face_score"
        " fake_face_ratio evidence_start_s evidence_end_s duration_s width_px height_px fps codec size_bytes"
        " sha256 checkpoint dfscan_version num_skipped_streams"
    ).split()
    last = [*LAST_COLUMNS, *STATEMENT_COLUMNS, *CASE_COLUMNS, *QUALITY_COLUMNS, "same_as"]
    assert [column.name for column in REPORT_COLUMNS] == [*first, *last]


def test_report_row() -> None:
    assert row(judged("a.mp4")) == {
        "path": "a.mp4",
        "verdict": "fake",
        "score": 0.12345678,
        "threshold": 0.5,
        "status": "partial",
        "reason": "damaged: 3 packets, of 9, were lost",
        "num_frames": 8,
        "num_faces": 4,
        "num_tracks": 2,
        "max_face_score": 1 / (1 + math.exp(-3)),
        "fake_face_ratio": 0.5,
        "evidence_start_s": 1.5,
        "evidence_end_s": 2.33349,
        "duration_s": 3.3,
        "width_px": 640,
        "height_px": 480,
        "fps": 30000 / 1001,
        "codec": "h264",
        "size_bytes": 1234567890123,
        "sha256": SHA256,
        "checkpoint": "b2-plain",
        "dfscan_version": "0.1.0",
        "num_skipped_streams": 1,
        **dict.fromkeys([*LAST_COLUMNS, *STATEMENT_COLUMNS, *CASE_COLUMNS, *QUALITY_COLUMNS, "same_as"]),
        "rotation_deg": 0,
        "statement": statement(judged("a.mp4")),
        "face_px": float(np.float32(63.75)),
    }


def test_facts_of_the_file_are_quoted_at_the_end_of_the_row(tmp_path: Path) -> None:
    provenance = Provenance("invalid", "Signer", "Camera", ("c2pa.created", "c2pa.edited"), "generated", "mismatch")
    facts = FileFacts(
        "mp4", "isom", "=Lavf", "x264", "Apple", "2024", 2, 1.5, 800_000, 250, 1, ("a: b", "c: d"), provenance
    )
    told = row(replace(judged("a.mp4"), facts=facts))
    stated = ["mp4", "isom", "=Lavf", "x264", "Apple", "2024", 2, 1.5, 800_000, 250, 0, 1, "not examined", "a: b; c: d"]
    signed = ["invalid", "Signer", "Camera", "c2pa.created; c2pa.edited", "mismatch", "generated"]
    assert [told[name] for name in FACT_COLUMNS] == stated + signed
    assert row(replace(judged("a.mp4"), facts=FileFacts(num_audio_streams=0)))["sound"] == "none"
    before, after = (write(tmp_path / "r.csv", [each]).read_text() for each in (row(judged("a.mp4")), told))
    old_cells = before[: before.index(",,")]
    assert old_cells.endswith(',"b2-plain","0.1.0",1')
    assert after.startswith(old_cells), "the columns that were there before keep their bytes"
    assert ',"\'=Lavf",' in after, "text of a file is no formula"


def test_row_of_an_error_has_empty_cells_not_zeros() -> None:
    given = {name: value for name, value in row(unjudged("a.mp4")).items() if value is not None}
    assert given == {
        "path": "a.mp4",
        "verdict": "error",
        "status": "error",
        "num_frames": 0,
        "num_faces": 0,
        "num_tracks": 0,
        "size_bytes": 0,
        "checkpoint": "b2-plain",
        "dfscan_version": "0.1.0",
        "statement": "The file could not be examined. Nothing can be said about it.",
    }


def test_ratio_needs_a_threshold() -> None:
    result = VideoResult("a", "ok", Verdict("inconclusive", 0.4), VideoInfo(1), 1, (Track(0, (face(1.0),)),))
    assert row(result)["fake_face_ratio"] is None
    assert row(result)["evidence_start_s"] is None


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_rows_never_hold_nan(bad: float) -> None:
    info = VideoInfo(1, fps=bad, duration_s=bad)
    result = VideoResult("a", "ok", Verdict("fake", bad, bad), info)
    cells = row(result)
    assert [cells[name] for name in ("score", "threshold", "fps", "duration_s")] == [None] * 4


def test_frame_rows() -> None:
    rows = list(frame_rows(judged("a.mp4")))
    assert [(r["track"], r["frame"], r["time_s"]) for r in rows] == [
        (0, 0, 0.0),
        (0, 10, 0.25),
        (3, 20, 1.5),
        (3, 50, 2.33349),
    ]
    assert list(rows[0]) == [column.name for column in FRAME_COLUMNS]
    assert (rows[2]["logit"], rows[2]["score"]) == (3.0, 1 / (1 + math.exp(-3)))
    assert list(frame_rows(unjudged("a.mp4"))) == []


def test_csv_bytes(tmp_path: Path) -> None:
    path = write(tmp_path / "r.csv", list(frame_rows(judged("=1+1.mp4")))[:1], FRAME_COLUMNS)
    assert path.read_bytes() == (
        b'"path","track","frame","time_s","x1","y1","x2","y2","detection_score","logit","score","stream",'
        b'"sharpness","blockiness"\n'
        b'"./=1+1.mp4",0,0,0.000,0.0,1.2,64.1,65.0,0.987654,-2.000000,0.119203,1,,\n'
    )


def test_csv_missing_is_empty(tmp_path: Path) -> None:
    last = write(tmp_path / "r.csv", [row(unjudged("a"))]).read_text().splitlines()[-1]
    assert last == '"./a","error",,,"error",,0,0,0,,,,,,,,,,0,,"b2-plain","0.1.0",' + "," * len(LAST_COLUMNS) + (
        ',"The file could not be examined. Nothing can be said about it.",,,'
        + "," * len([*CASE_COLUMNS, *QUALITY_COLUMNS, "same_as"])
    )


def test_csv_guards_text_but_json_lines_is_exact(tmp_path: Path) -> None:
    columns = [Column("reason", "text"), Column("score", "score")]
    rows = [{"reason": "=1\n", "score": math.nan}, {"reason": 'say "x"', "score": -1e-9}]
    assert write(tmp_path / "r.csv", rows, columns).read_text() == (
        '"reason","score"\n"\'=1\\n",\n"say ""x""",0.000000\n'
    )
    assert write(tmp_path / "r.jsonl", rows, columns).read_text() == (
        '{"reason": "=1\\\\n", "score": null}\n{"reason": "say \\"x\\"", "score": 0.0}\n'
    )


def test_text_in_a_number_column_raises(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"'n' holds a number, got '=1'"):
        write(tmp_path / "r.csv", [{"n": "=1"}], [Column("n", "int")])


def test_json_lines(tmp_path: Path) -> None:
    results = [judged(os.fsdecode(name)) for name in NAMES]
    lines = write(tmp_path / "r.jsonl", [row(one) for one in results]).read_bytes().splitlines()
    records = [json.loads(line) for line in lines]
    names = [column.name for column in REPORT_COLUMNS]
    for record, (name, shown) in zip(records, NAMES.items(), strict=True):
        changed = shown.removeprefix("./").encode() != name.removeprefix(b"./")
        assert list(record) == names + ["path_bytes"] * changed
        assert record["path"] == shown
        assert base64.b64decode(record.get("path_bytes", b"")) == (name if changed else b"")
    assert records[0]["score"] == 0.123457
    assert records[0]["fps"] == 29.97


def read_pandas(path: Path) -> list[dict[str, object]]:
    import pandas as pd

    if path.suffix == ".jsonl":
        table = pd.read_json(path, lines=True, precise_float=True)
    else:
        table = {".csv": pd.read_csv, ".xlsx": pd.read_excel, ".parquet": pd.read_parquet}[path.suffix](path)
    return table.astype(object).where(table.notna(), None).to_dict("records")


def read_duckdb(path: Path) -> list[dict[str, object]]:
    table = duckdb.sql(f"SELECT * FROM '{path}'")
    return [dict(zip(table.columns, values, strict=True)) for values in table.fetchall()]


READERS = [(read_pandas, suffix) for suffix in SUFFIXES] + [
    (read_duckdb, suffix) for suffix in SUFFIXES if suffix != "xlsx"
]


@pytest.mark.parametrize(("read", "suffix"), READERS)
def test_pandas_and_duckdb_read_every_value(tmp_path: Path, read, suffix: str) -> None:
    make_result = [judged, unjudged]
    rows = [row(make_result[index % 2](os.fsdecode(name))) for index, name in enumerate(NAMES)]
    digits = {"score": 6, "time": 3, "ratio": 6, "pixel": 1}
    got = read(write(tmp_path / f"r.{suffix}", rows))
    assert len(got) == len(rows)
    for got_row, want_row, shown in zip(got, rows, NAMES.values(), strict=True):
        assert got_row["path"] == shown
        for column in REPORT_COLUMNS[1:]:
            want = want_row[column.name]
            want = round(want, digits[column.kind]) if isinstance(want, float) else want
            assert got_row[column.name] == want, column.name


def test_csv_is_read_with_default_settings(tmp_path: Path) -> None:
    path = write(tmp_path / "r.csv", [row(judged(os.fsdecode(name))) for name in NAMES])
    with path.open(newline="", encoding="utf-8") as stream:
        assert [record["path"] for record in csv.DictReader(stream)] == list(NAMES.values())


@pytest.mark.parametrize("excel", [False, True])
def test_byte_order_mark(tmp_path: Path, excel: bool) -> None:
    data = write(tmp_path / "r.csv", [row(judged("a"))], excel=excel).read_bytes()
    assert data.startswith(b'\xef\xbb\xbf"path"' if excel else b'"path"')
    assert data.count(b"\xef\xbb\xbf") == excel
    assert data.count(b'"verdict"') == 1
    assert not write(tmp_path / "r.jsonl", [row(judged("a"))], excel=excel).read_bytes().startswith(b"\xef")


@pytest.mark.parametrize(
    ("name", "asked", "expected"),
    [
        ("r.csv", None, "csv"),
        ("r.jsonl", None, "jsonl"),
        ("r.NDJSON", None, "jsonl"),
        ("r", None, "csv"),
        ("report-2026.11.25", None, "csv"),
        ("a.b/r.XLSX", None, "xlsx"),
        ("r.parquet", None, "parquet"),
        ("r.jsonld", None, "case"),
        ("r", "jsonl", "jsonl"),
        ("r.txt", "csv", "csv"),
        ("r.ndjson", "jsonl", "jsonl"),
    ],
)
def test_format_for(name: str, asked: ReportFormat | None, expected: str) -> None:
    assert format_for(name, asked) == format_for(Path(name), asked) == expected


@pytest.mark.parametrize("name", ["r.xls", "r.txt", "r.json", "r.tsv", "r.csv.gz", "r.ods", "r.HTML", "r.excel2007"])
def test_an_unknown_suffix_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"cannot write \.\w+ files; use \.csv, .*\.jsonld, or give --format"):
        format_for(name)


@pytest.mark.parametrize(("name", "asked"), [("r.xlsx", "csv"), ("r.CSV", "jsonl"), ("r.jsonl", "parquet")])
def test_a_suffix_that_contradicts_the_format_is_refused(name: str, asked: ReportFormat) -> None:
    with pytest.raises(ConfigError, match="change one of them"):
        format_for(name, asked)


@pytest.mark.parametrize("excel", [False, True])
def test_semicolons_come_with_decimal_commas(tmp_path: Path, excel: bool) -> None:
    import pandas as pd

    rows = [row(judged("a;b,c.mp4")), row(unjudged("d.mp4"))]
    path = write(tmp_path / "r.csv", rows, excel=excel, delimiter=";")
    lines = path.read_bytes().decode("utf-8").splitlines()
    assert lines[0].removeprefix("\ufeff").startswith('"path";"verdict";"score"')
    assert lines[0].startswith("\ufeff") == excel
    assert lines[1].startswith('"./a;b,c.mp4";"fake";0,123457;0,500000;"partial";')
    assert lines[2].count(";") == len(REPORT_COLUMNS) - 1
    read = pd.read_csv(path, sep=";", decimal=",")
    plain = pd.read_csv(write(tmp_path / "plain.csv", rows))
    pd.testing.assert_frame_equal(read, plain)


def test_report_appears_only_when_complete(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    writer = open_writer(path, REPORT_COLUMNS, format="csv")
    writer.append(row(judged("a")))
    (partial,) = tmp_path.iterdir()
    assert partial.name.startswith(".r.csv.")
    assert partial.name.endswith(".partial")
    writer.close()
    writer.close()
    assert list(tmp_path.iterdir()) == [path]


def rows_until(error: type[BaseException]) -> Iterator[dict[str, object]]:
    yield row(judged("a"))
    raise error


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_old_report_survives_an_exception(tmp_path: Path, error: type[BaseException], suffix: str) -> None:
    path = tmp_path / f"r.{suffix}"
    path.write_text("old")
    with pytest.raises(error):
        write(path, rows_until(error))
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_old_report_survives_a_failing_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, suffix: str
) -> None:
    def fail(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / f"r.{suffix}"
    path.write_text("old")
    writer = open_writer(path, REPORT_COLUMNS, format=format_for(path))
    monkeypatch.setattr(files.os, step, fail)
    with pytest.raises(OutputError, match=rf"r\.{suffix}': No space left on device. Free some space"):
        writer.close()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


class FullDisk(io.BytesIO):
    def write(self, data) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_failed_row_discards_the_report(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    path.write_text("old")
    file = AtomicFile(path)
    file._file.close()
    file._file = FullDisk()
    with pytest.raises(OutputError, match="No space left"):
        file.write(b"row")
    file.commit()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_replacing_keeps_permissions_and_links(tmp_path: Path) -> None:
    target = tmp_path / "target.csv"
    target.touch()
    target.chmod(0o640)
    (tmp_path / "r.csv").symlink_to("target.csv")
    write(tmp_path / "r.csv", [row(judged("a"))])
    assert (tmp_path / "r.csv").is_symlink()
    assert target.stat().st_mode & 0o777 == 0o640
    assert target.read_bytes().startswith(b'"path"')


def test_new_report_respects_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        path = write(tmp_path / "r.csv", [])
    finally:
        os.umask(old)
    assert path.stat().st_mode & 0o777 == 0o640


def test_data_is_on_disk_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(files.os, name, lambda *args, name=name, real=real: steps.append(name) or real(*args))
    write(tmp_path / "r.csv", [])
    assert steps == ["fsync", "replace", "fsync"]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing/r", "No such file or directory. Create its directory first"),
        ("", "it is a directory. Name a file in it"),
        ("fifo", "not a regular file"),
        ("plain/r", "Not a directory"),
    ],
)
def test_unusable_targets_are_refused_at_once(tmp_path: Path, name: str, message: str, suffix: str) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "plain").touch()
    with pytest.raises(OutputError, match=rf"cannot write '{tmp_path}.*{message}"):
        open_writer(tmp_path / name, REPORT_COLUMNS, format=suffix)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fifo", "plain"]


def test_longest_file_names_work(tmp_path: Path) -> None:
    path = write(tmp_path / ("é" * 125 + ".csv"), [])
    assert path.exists()


def test_every_row_is_flushed_to_a_stream() -> None:
    raw = io.BytesIO()
    stream = io.BufferedWriter(raw, buffer_size=1 << 20)
    with open_writer(stream, REPORT_COLUMNS, format="csv") as writer:
        assert raw.getvalue() == b""  # a run that fails before its first row leaves stdout empty
        writer.append(row(judged("a")))
        assert raw.getvalue().count(b"\n") == 2
    assert not stream.closed


def test_stream_that_takes_one_byte_at_a_time() -> None:
    class Slow(io.BytesIO):
        def write(self, data) -> int:
            return super().write(data[:1])

    stream = Slow()
    open_writer(stream, FRAME_COLUMNS[:2], format="csv").close()
    assert stream.getvalue() == b'"path","track"\n'


def test_full_standard_output() -> None:
    with (
        open("/dev/full", "wb", buffering=0) as stream,
        pytest.raises(OutputError, match=r"cannot write 'standard output': No space left on device\. Free"),
    ):
        open_writer(stream, REPORT_COLUMNS, format="csv").close()


def test_closed_pipe_passes_through() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    with open(write_end, "wb", buffering=0) as stream, pytest.raises(BrokenPipeError):
        open_writer(stream, REPORT_COLUMNS, format="csv").close()


def test_same_results_give_the_same_bytes(tmp_path: Path) -> None:
    for suffix in SUFFIXES:
        rows = [row(judged("a")), row(unjudged("b"))]
        first = write(tmp_path / f"1.{suffix}", rows).read_bytes()
        time.sleep(2 if suffix == "xlsx" else 0)  # zip files store times in steps of two seconds
        assert write(tmp_path / f"2.{suffix}", rows).read_bytes() == first


@pytest.mark.parametrize("suffix", ["xlsx", "parquet"])
def test_a_report_without_rows_has_its_columns(tmp_path: Path, suffix: str) -> None:
    import pandas as pd

    path = write(tmp_path / f"r.{suffix}", [])
    table = pd.read_excel(path) if suffix == "xlsx" else pd.read_parquet(path)
    assert list(table.columns) == [column.name for column in REPORT_COLUMNS]
    assert table.empty


def test_workbook(tmp_path: Path) -> None:
    import openpyxl

    rows = [{**row(judged("=1+1 _x0041_.mp4")), LINK: "dumps/a%20b"}, row(unjudged("b.mp4"))]
    rows[0]["codec"] = "=cmd|'/c calc'!A1"
    about = {"checkpoint": "b2-plain", "settings": "=1"}
    book = openpyxl.load_workbook(write(tmp_path / "r.xlsx", rows, about=about))
    sheet = book["report"]
    cells = {column.name: sheet.cell(2, i) for i, column in enumerate(REPORT_COLUMNS, start=1)}
    assert all(cell.data_type in ("s", "n") for line in sheet.iter_rows() for cell in line)
    assert cells["codec"].value == "'=cmd|'/c calc'!A1"
    # Excel's escape (ECMA-376, ST_Xstring), which openpyxl does not decode.
    assert cells["path"].value == "./=1+1 _x005F_x0041_.mp4"
    assert cells["path"].hyperlink.target == "dumps/a%20b"
    assert sheet["A3"].hyperlink is None
    assert (cells["score"].value, cells["score"].number_format) == (0.123457, "0.000000")
    assert cells["size_bytes"].value == 1234567890123
    assert cells["verdict"].fill.fgColor.rgb.endswith(VERDICT_COLOURS["fake"])
    assert sheet.freeze_panes == "B2"
    assert sheet.auto_filter.ref == f"A1:{openpyxl.utils.get_column_letter(len(REPORT_COLUMNS))}3"
    assert [[cell.value for cell in line] for line in book["about"].iter_rows()] == [
        list(each) for each in about.items()
    ]


def test_workbook_with_more_rows_than_excel_opens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "MAX_XLSX_ROWS", 1)
    with pytest.raises(OutputError, match=r"at most 1 rows; write .csv or .parquet"):
        write(tmp_path / "r.xlsx", [row(judged("a")), row(judged("b"))])
    assert list(tmp_path.iterdir()) == []


def test_parquet_types(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow.parquet

    monkeypatch.setattr(tables, "ROWS_PER_GROUP", 2)
    path = write(tmp_path / "r.parquet", [row(judged("a")), row(unjudged("b")), row(unjudged("c"))])
    file = pyarrow.parquet.ParquetFile(path)
    types = {field.name: str(field.type) for field in file.schema_arrow}
    kinds = {"path": "string", "text": "string", "int": "int64", "score": "double", "time": "double"}
    kinds |= {"ratio": "double", "pixel": "double"}
    assert types == {column.name: kinds[column.kind] for column in REPORT_COLUMNS}
    assert file.num_row_groups == 2
    assert file.read()["score"].to_pylist() == [0.123457, None, None]


def test_meta(tmp_path: Path) -> None:
    document = {"argv": ["dfscan", os.fsdecode(b"\xff.mp4"), "😀"], "num": 1.5, "out": Path("x"), "none": None}
    path = write_meta(tmp_path / "r.csv", document)
    assert path == tmp_path / "r.csv.meta.json"
    assert json.loads(Path(path).read_text(encoding="utf-8")) == {
        "report_version": REPORT_VERSION,
        "argv": ["dfscan", "\\xff.mp4", "😀"],
        "num": 1.5,
        "out": "x",
        "none": None,
    }
    with pytest.raises(ValueError, match="JSON compliant"):
        write_meta(tmp_path / "r.csv", {"bad": math.nan})
    assert [file.name for file in tmp_path.iterdir()] == ["r.csv.meta.json"]


def test_versions_import_nothing() -> None:
    code = (
        "import json, sys; from dfscan.report.meta import versions; found = versions();"
        "print(json.dumps([found, [name for name in ('av', 'cv2', 'torch') if name in sys.modules]]))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found, imported = json.loads(out.stdout)
    assert imported == []
    assert found["numpy"] == np.__version__
    assert (
        list(found)
        == (
            "dfscan python platform av numpy opencv onnxruntime torch torchvision timm facenet-pytorch c2pa pyarrow ray"
        ).split()
    )


def test_versions_include_ffmpeg_once_pyav_is_imported() -> None:
    import av

    assert versions()["ffmpeg"] == av.ffmpeg_version_info
    assert versions()["libavcodec"].startswith(f"{av.library_versions['libavcodec'][0]}.")
