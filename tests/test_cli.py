"""The command line as users and cron jobs run it: streams, exit codes, settings and help."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
import tomllib
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import duckdb
import pandas as pd
import pytest
import typer
from typer.testing import CliRunner, Result

from dfscan.cli import app
from dfscan.config import ScanSettings, build_settings, rows
from dfscan.report.schema import REPORT_COLUMNS
from tests.signing import identity

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = (
    "scan",
    "report",
    "label",
    "bundle",
    "verify",
    "schema",
    "compare",
    "explain",
    "prepare",
    "shortcuts",
    "train",
    "preview-training",
    "bench-training",
    "calibrate",
    "calibrate-folds",
    "fit-head",
    "evaluate",
    "init-checkpoint",
    "import-checkpoint",
    "export-onnx",
    "info",
    "bench",
)

REQUIRED_ARGUMENTS = {
    "scan": ["."],
    "report": ["a.ledger"],
    "label": ["a.ledger"],
    "bundle": ["a.csv", "--out", "a.zip"],
    "verify": ["a.zip"],
    "schema": [],
    "compare": ["a.csv", "b.csv"],
    "explain": ["a.mp4", "--out", "dumps"],
    "prepare": [".", "--out", "dataset"],
    "shortcuts": [],
    "train": [],
    "preview-training": ["--out", "preview.png"],
    "bench-training": [],
    "calibrate": [".", "--label", "real", "--out", "b.safetensors"],
    "calibrate-folds": ["run", "--checkpoint", "a.safetensors", "--out", "b.safetensors"],
    "fit-head": ["a.safetensors", "--data", ".", "--out", "b.safetensors"],
    "evaluate": [".", "--out", "evaluation"],
    "init-checkpoint": ["a.safetensors"],
    "import-checkpoint": ["a.pth", "--out", "a.safetensors"],
    "export-onnx": ["a.safetensors", "--out", "a.onnx"],
    "info": [],
    "bench": ["."],
}


@pytest.fixture(autouse=True)
def surroundings(session_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(session_cache))
    for name in [name for name in os.environ if name.startswith("DFSCAN_")]:
        monkeypatch.delenv(name)


def run(*arguments: object, stdin: bytes | None = None) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)


def scan(checkpoint: Path, *arguments: object, stdin: bytes | None = None) -> Result:
    return run("scan", "--checkpoint", checkpoint, "--device", "cpu", "--num-frames", 4, *arguments, stdin=stdin)


# The report


def test_scan_writes_all_requested_outputs(clips: Path, untrained: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.csv"
    result = scan(untrained, clips, "-o", out, "--frames-out", tmp_path / "f.csv", "--explain", tmp_path / "d")
    assert result.exit_code == 2, result.stderr  # text.mp4 is an error, and nothing is fake
    report = pd.read_csv(out)
    assert [Path(path).name for path in report.path] == ["nobody.mp4", "one.mp4", "text.mp4", "two.mkv"]
    assert list(report.columns) == [column.name for column in REPORT_COLUMNS]
    assert result.stdout == ""
    assert result.stderr.splitlines()[-1].startswith(
        "dfscan: 4 videos: 0 fake, 0 real, 2 inconclusive, 1 no_face, 1 error; skipped: 1 not_video in "
    )
    faces = pd.read_csv(tmp_path / "f.csv")
    assert len(faces) == report.num_faces.sum() == 12
    meta = json.loads((tmp_path / "report.csv.meta.json").read_text())
    assert meta["counts"]["inconclusive"] == 2
    assert meta["settings"]["num_frames"] == 4
    assert meta["versions"]["ffmpeg"]
    assert meta["report_version"] == 2
    assert meta["skipped"] == [{"path": str(clips / "notes.txt"), "reason": "not_video"}]
    assert report.sha256[0] == hashlib.sha256((clips / "nobody.mp4").read_bytes()).hexdigest()
    index = pd.read_csv(tmp_path / "d" / "index.csv")
    assert len(index) == 6
    for row in index.itertuples():
        assert {(tmp_path / "d" / file).suffix for file in (row.face_file, row.heat_map_file, row.frame_file)} == {
            ".png"
        }
        assert all((tmp_path / "d" / file).is_file() for file in (row.face_file, row.heat_map_file, row.frame_file))
    assert (tmp_path / "report.csv.ledger").read_bytes().startswith(b"SQLite format 3")


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_two_runs_give_the_same_bytes(clips: Path, untrained: Path, tmp_path: Path, kind: str) -> None:
    for name, workers in (("a", 1), ("b", 3)):
        scan(untrained, clips, "-o", tmp_path / f"{name}.{kind}", "--workers", workers)
    assert (tmp_path / f"a.{kind}").read_bytes() == (tmp_path / f"b.{kind}").read_bytes() != b""


NAMES = [b"=1+1.mp4", b"a,b.mp4", b'a"b.mp4', b"a\nb.mp4", "\N{GRINNING FACE}.mp4".encode(), b"[/b].mp4", b"\xff.mp4"]
NAMES += [b"-rf.mp4", b"--out=x.mp4", b"http:a.mp4", b"concat:a|b.mp4", b"a%03d.mp4", b"n" * 251 + b".mp4"]


def test_pandas_and_duckdb_read_hostile_names_alike(
    clips: Path, untrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").mkdir()
    for name in NAMES:
        path = tmp_path / "in" / os.fsdecode(name)
        path.parent.mkdir(exist_ok=True)  # "[/b].mp4" is in a folder "["
        path.write_bytes((clips / "nobody.mp4").read_bytes())
    monkeypatch.chdir(tmp_path)
    assert scan(untrained, "in", "-o", "r.csv").exit_code == 0
    assert scan(untrained, "in", "-o", "r.jsonl").exit_code == 0
    frame = pd.read_csv("r.csv", keep_default_na=False)
    rows = duckdb.sql("select * from 'r.csv'").fetchall()
    records = [json.loads(line) for line in Path("r.jsonl").read_text().splitlines()]
    assert len(frame) == len(rows) == len(records) == len(NAMES)
    assert list(frame.path) == [row[0] for row in rows] == [record["path"] for record in records]
    assert all(path.startswith("./in/") for path in frame.path)
    assert {"./in/a\\nb.mp4", "./in/\\xff.mp4", "./in/=1+1.mp4", "./in/[/b].mp4"} <= set(frame.path)
    assert sum("path_bytes" in record for record in records) == 2
    assert list(frame.num_frames) == [row[6] for row in rows] == [4] * len(NAMES)


def test_stdout_contains_only_the_report(clips: Path, untrained: Path) -> None:
    result = scan(untrained, clips / "one.mp4", "--format", "jsonl", "--quiet")
    assert json.loads(result.stdout)["verdict"] == "inconclusive"
    assert result.stderr == ""


def test_list_on_stdin_and_missing_entries(clips: Path, untrained: Path) -> None:
    listing = b"\0".join([os.fsencode(clips / "one.mp4"), b"gone.mp4", b""])
    result = scan(untrained, "--files-from", "-", "-0", "--format", "jsonl", stdin=listing)
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["verdict"] for row in rows] == ["error", "inconclusive"]  # "./gone.mp4" sorts before "/..."
    assert any(row["reason"] and row["reason"].startswith("not_found") for row in rows)
    assert result.exit_code == 2


def test_empty_folder_gives_a_header(untrained: Path, tmp_path: Path) -> None:
    result = scan(untrained, tmp_path)
    assert result.exit_code == 0
    assert result.stdout.count("\n") == 1


def test_an_empty_folder_is_reported_when_quiet_and_can_fail(clips: Path, untrained: Path, tmp_path: Path) -> None:
    empty = tmp_path / "mnt"
    empty.mkdir()
    line = f"dfscan: nothing to scan in {empty}: no videos found; check the path, and that its disk is mounted\n"
    for inputs in ([empty], [clips / "nobody.mp4", empty]):
        result = scan(untrained, *inputs, "--quiet", "-o", tmp_path / "r.csv")
        assert (result.exit_code, result.stderr) == (0, line)
        result = scan(untrained, *inputs, "-q", "-o", tmp_path / "r.csv", "--fail-on", "fake,error,empty", "--new-only")
        assert result.exit_code == 2
        assert result.stderr.startswith(line)
        assert scan(untrained, *inputs, "-q", "--fail-on", "empty", "--exit-zero").exit_code == 0
    assert scan(untrained, clips / "nobody.mp4", "--fail-on", "empty").exit_code == 0


def test_an_empty_list_is_reported(untrained: Path) -> None:
    result = scan(untrained, "--files-from", "-", "-q", "--fail-on", "empty", stdin=b"\n")
    assert result.exit_code == 2
    assert "nothing to scan in the list of --files-from" in result.stderr


def test_a_folder_of_photographs_gives_a_hint(untrained: Path, tmp_path: Path) -> None:
    for name in ("a.jpg", "b.PNG", "notes.txt"):
        (tmp_path / name).write_bytes(b"\xff\xd8\xff")
    result = scan(untrained, tmp_path)
    hint = "2 pictures were skipped; to scan pictures, add --images"
    assert f"nothing to scan in {tmp_path}: {hint}" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("dfscan: 0 videos:")


def test_skipped_files_are_listed_in_the_metadata_and_the_log(
    clips: Path, untrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("in/@eaDir").mkdir(parents=True)
    Path("in/nobody.mp4").write_bytes((clips / "nobody.mp4").read_bytes())
    Path("in/._nobody.mp4").write_bytes(b"\0\5\x16\7")
    Path("in/new.mp4.crdownload").write_bytes(b"\0")
    Path(os.fsdecode(b"in/\xff\n.txt")).write_text("")
    result = scan(untrained, "in", "-q", "-o", "r.csv", "--log-file", "log", "--html", "r.html")
    assert (result.exit_code, result.stderr) == (0, ""), "cron would send mail"
    meta = json.loads(Path("r.csv.meta.json").read_text())
    assert meta["num_skipped"] == {"not_video": 1, "system_file": 1, "system_folder": 1, "unfinished": 1}
    expected = {
        "./in/._nobody.mp4": "system_file",
        "./in/@eaDir": "system_folder",
        "./in/new.mp4.crdownload": "unfinished",
        "./in/\\xff\\n.txt": "not_video",
    }
    assert {each["path"]: each["reason"] for each in meta["skipped"]} == expected
    assert sorted(re.findall(r"INFO (.*): skipped, (\w+)", Path("log").read_text())) == sorted(expected.items())
    assert re.search(r"Skipped \(no row in the table\):\s+1 <code>not_video</code>", Path("r.html").read_text())


def test_windows_lists_and_animated_images_are_accepted(clips: Path, untrained: Path, tmp_path: Path) -> None:
    from PIL import Image

    from tests.pictures import astronaut

    frames = [Image.fromarray(astronaut()).quantize(64) for _ in range(4)]
    for i, frame in enumerate(frames):
        frame.putpixel((0, 0), i)  # equal frames become one
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:], duration=100)
    shutil.copy(clips / "one.mp4", tmp_path / "upload.jpg")
    listing = "\ufeff" + f"{clips / 'nobody.mp4'}\r\n{tmp_path}\r\n"
    result = scan(untrained, "--files-from", "-", "--format", "jsonl", stdin=listing.encode())
    rows = {Path(row["path"]).name: row for row in map(json.loads, result.stdout.splitlines())}
    assert {name: (row["status"], row["num_faces"]) for name, row in rows.items()} == {
        "nobody.mp4": ("ok", 0),
        "moving.gif": ("ok", 4),
        "upload.jpg": ("ok", 4),
    }


def test_fake_is_exit_1_and_outranks_error(clips: Path, trained: Path) -> None:
    arguments = (clips / "one.mp4", clips / "text.mp4", "--threshold", "0")
    assert scan(trained, *arguments).exit_code == 1
    assert scan(trained, *arguments, "--exit-zero").exit_code == 0
    assert scan(trained, *arguments, "--fail-on", "error").exit_code == 2


# Refusals: one line and exit code 2, before any work


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere"),
        ([], "nothing to scan"),
        ([".", "--num-frames", "0"], "num_frames"),
        ([".", "--fail-on", "fake,weird"], "weird"),
        ([".", "--max-frames", "5"], "--every"),
        ([".", "--every", "5"], "every = 5 and num_frames = 4 exclude each other"),
        ([".", "-0"], "--null needs --files-from"),
        ([".", "--shard", "1-4"], "such as 1/4"),
        ([".", "--out", "r.xls"], "cannot write .xls files"),
        ([".", "--delimiter", "|"], "delimiter: input should be ',' or ';'"),
        ([".", "--device", "tpu"], "tpu"),
        ([".", "--out", "no/such/folder/r.csv"], "no/such/folder/r.csv"),
        ([".", "--checkpoint", "gone.safetensors"], "gone.safetensors"),
        ([".", "--threshold", "0.5"], "untrained"),
        ([".", "--files-from", "gone.txt"], "gone.txt"),
        ([".", "--config", "gone.toml"], "gone.toml"),
        ([".", "--bogus"], "--bogus"),
    ],
)
def test_unusable_arguments_are_refused(
    clips: Path, untrained: Path, arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(clips)
    result = scan(untrained, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_without_a_checkpoint_scan_says_how_to_get_one(clips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dfscan.scan.setup.default_checkpoint_path", lambda: None)
    result = run("scan", clips)
    assert result.exit_code == 2
    assert "init-checkpoint" in result.stderr


@pytest.mark.parametrize(
    "arguments", [("-o", "in.mp4"), ("-o", "r.csv", "--frames-out", "r.csv"), ("--log-file", "in.mp4")]
)
def test_no_output_replaces_an_input_or_another_output(
    clips: Path, untrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    before = (clips / "nobody.mp4").read_bytes()
    Path("in.mp4").write_bytes(before)
    result = scan(untrained, "in.mp4", *arguments)
    assert result.exit_code == 2
    assert Path("in.mp4").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"]


@pytest.mark.parametrize("output", ["--out", "--html", "--frames-out", "--ledger", "--log-file"])
@pytest.mark.parametrize("read", ["checkpoint", "config", "files-from"])
def test_no_output_replaces_a_checkpoint_config_or_list(
    clips: Path, untrained: Path, tmp_path: Path, output: str, read: str
) -> None:
    contents = {"config": b"num_frames = 2\n", "files-from": b"a.mp4\n", "checkpoint": untrained.read_bytes()}
    path = tmp_path / "precious"
    path.write_bytes(contents[read])
    result = run("scan", clips, f"--{read}", path, output, path)
    assert result.exit_code == 2
    assert f"would overwrite the input {path}" in result.stderr
    assert path.read_bytes() == contents[read]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("options", "changed"),
    [
        (["--num-frames", "2"], "num_frames"),
        (["--every", "2"], "every"),
        (["--every", "2", "--threshold", "0.7"], "every, threshold"),
        ([], None),
    ],
)
def test_settings_that_invalidate_the_error_rates_are_listed(
    clips: Path, trained: Path, tmp_path: Path, options: list[str], changed: str | None
) -> None:
    page = tmp_path / "page.html"
    result = run("scan", clips / "nobody.mp4", "--checkpoint", trained, "--device", "cpu", *options, "--html", page)
    warning = f"the checkpoint's error rates are valid only for its own settings; changed: {changed}"
    assert (warning in result.stderr) == (changed is not None)
    is_warned = "These rates do not apply to this scan" in page.read_text(encoding="utf-8")
    assert is_warned == (changed is not None)
    assert changed is None or f"({changed}; see" in page.read_text(encoding="utf-8")


def test_refused_run_leaves_nothing_behind(clips: Path, untrained: Path, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for arguments in (("-o", tmp_path / "r.csv", "--device", "cuda:99"), ("-o", tmp_path / "folder")):
        assert run("scan", clips, "--checkpoint", untrained, *arguments).exit_code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_nul_separated_list_without_null_is_an_error_row(untrained: Path) -> None:
    result = scan(untrained, "--files-from", "-", "--format", "jsonl", stdin=b"a.mp4\0b.mp4\0")
    assert json.loads(result.stdout)["reason"].startswith("not_found")
    assert result.exit_code == 2


def test_quiet_still_prints_findings(clips: Path, trained: Path, tmp_path: Path) -> None:
    for threshold, lines in (("0", 1), ("0.999", 0)):
        arguments = (clips / "one.mp4", "-q", "-o", tmp_path / "r.csv", "--threshold", threshold)
        said = [line for line in scan(trained, *arguments).stderr.splitlines() if "videos" in line or "video:" in line]
        assert len(said) == lines


def test_rows_are_sorted_by_their_displayed_path(
    clips: Path, untrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.mp4", "b.mp4"):
        Path(name).write_text("no video")
    result = scan(untrained, "./b.mp4", "a.mp4", clips / "text.mp4", "--format", "jsonl")
    paths = [json.loads(line)["path"] for line in result.stdout.splitlines()]
    assert paths == ["./a.mp4", "./b.mp4", str(clips / "text.mp4")] == sorted(paths)


def test_a_bug_exits_with_2_and_logs_its_traceback(
    clips: Path, untrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("dfscan.scan.run.discover", broken)
    result = scan(untrained, clips, "--log-file", tmp_path / "log")
    assert result.exit_code == 2
    assert "unexpected ZeroDivisionError: oops" in result.stderr
    assert "Traceback" not in result.stderr
    assert "Traceback" in (tmp_path / "log").read_text()


def test_a_failed_scan_keeps_the_old_report(
    clips: Path, untrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "r.csv"
    out.write_text("old")
    monkeypatch.setattr("dfscan.scan.run.load_engine", lambda *_: 1 / 0)
    assert scan(untrained, clips, "-o", out).exit_code == 2
    assert out.read_text() == "old"
    assert not list(tmp_path.glob(".*partial"))


# Settings


def num_frames_used(result: Result) -> int:
    return int(json.loads(result.stdout)["num_frames"])


def test_flag_beats_environment_beats_file_beats_checkpoint(
    clips: Path, untrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "c.toml"
    config.write_text(f'num-frames = 2\nformat = "jsonl"\nquiet = true\ncheckpoint = "{untrained}"\n')
    base = ("scan", clips / "nobody.mp4", "--device", "cpu")
    assert num_frames_used(run(*base, "--config", config)) == 2
    monkeypatch.setenv("DFSCAN_NUM_FRAMES", "3")
    assert num_frames_used(run(*base, "--config", config)) == 3
    assert num_frames_used(run(*base, "--config", config, "--num-frames", 5)) == 5
    monkeypatch.delenv("DFSCAN_NUM_FRAMES")
    config.write_text(config.read_text().replace("num-frames = 2\n", ""))
    assert (
        num_frames_used(run(*base, "--config", config)) == 10
    )  # the checkpoint's default is 32, but the clip has only 10


def test_the_sampling_option_with_precedence_is_used(
    clips: Path, untrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "c.toml"
    config.write_text("num_frames = 2\n")
    base = ("scan", clips / "nobody.mp4", "--checkpoint", untrained, "--format", "jsonl", "--config", config)
    assert num_frames_used(run(*base, "--every", "0.1")) == 10
    monkeypatch.setenv("DFSCAN_EVERY", "0.5")
    assert num_frames_used(run(*base)) == 2
    assert num_frames_used(run(*base, "--num-frames", 3)) == 3
    config.write_text("every = 0.1\nnum_frames = 2\n")
    result = run(*base)
    assert result.exit_code == 2
    assert f"{config}: every = 0.1 and num_frames = 2 exclude each other" in result.stderr


def test_unknown_settings_are_refused(clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "c.toml"
    config.write_text("num_frame = 2\n")
    result = run("scan", clips, "--config", config)
    assert result.exit_code == 2
    assert "did you mean 'num_frames'" in result.stderr
    monkeypatch.setenv("DFSCAN_TRESHOLD", "0.5")
    result = run("scan", clips)
    assert result.exit_code == 2
    assert "did you mean 'DFSCAN_THRESHOLD'" in result.stderr


@pytest.mark.parametrize("command", sorted(typer.main.get_group(app).commands))
def test_every_command_refuses_a_misspelt_variable(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DFSCAN_CHEKPOINT", "/nope")
    result = run(command, *REQUIRED_ARGUMENTS[command])
    message = "unknown environment variable 'DFSCAN_CHEKPOINT' (did you mean 'DFSCAN_CHECKPOINT'?)"
    assert (result.exit_code, result.stdout, result.stderr) == (2, "", f"dfscan: error: {message}\n")
    assert list(tmp_path.iterdir()) == []


def test_configuration_file_lists_every_option() -> None:
    text = (ROOT / "configs" / "scan.toml").read_text()
    assert tomllib.loads(text) == {}
    keys = re.findall(r"^# (\w+) = ", text, flags=re.MULTILINE)
    assert sorted(keys) == sorted(rows(ScanSettings))
    values = tomllib.loads("\n".join(re.findall(r"^# (\w+ = .*)", text, flags=re.MULTILINE)))
    for omitted in ("every", "num_frames"):  # mutually exclusive
        build_settings(ScanSettings, {key: value for key, value in values.items() if key != omitted})
    defaults = ScanSettings().document()
    stated = {key: value for key, value in values.items() if defaults[key] is not None and key not in ("format",)}
    assert stated == {key: defaults[key] for key in stated}


def test_configuration_file_works_with_every_line_uncommented(
    clips: Path, untrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = re.sub(r"^# (\w+ = )", r"\1", (ROOT / "configs" / "scan.toml").read_text(), flags=re.MULTILINE)
    text = re.sub(r"^(threshold|every|max_frames) = .*$", "", text, flags=re.MULTILINE)  # need a trained checkpoint
    (tmp_path / "all.toml").write_text(text)
    (tmp_path / "trusted.pem").write_text(identity().root_pem)
    video = clips / "one.mp4"
    base = ("--config", "all.toml", "--checkpoint", untrained, "--device", "cpu", "--num-frames", 2)
    assert run("scan", video, *base).exit_code == 0
    assert (tmp_path / "faces.csv").is_file()
    assert run("explain", video, *base, "--out", "shown").exit_code == 0
    assert (tmp_path / "shown" / "index.csv").is_file()


def test_every_setting_has_a_flag_and_every_flag_help() -> None:
    help_text = run("scan", "--help").stdout
    for name in rows(ScanSettings):
        assert f"--{name.replace('_', '-')}" in help_text


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_three_examples(command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    examples = result.stdout.split("Examples:")[1].split("\n\n")[1]
    assert len(re.findall(r"^ +(?:dfscan|find)\b", examples, flags=re.MULTILINE)) == 3


# The other commands


def test_explain_one_video_and_one_picture(clips: Path, untrained: Path, tmp_path: Path) -> None:
    from PIL import Image

    from tests.pictures import astronaut

    Image.fromarray(astronaut()).save(tmp_path / "portrait.png")
    for name in (clips / "one.mp4", tmp_path / "portrait.png"):
        result = run("explain", name, "--out", tmp_path / "d", "--top", 1, "--checkpoint", untrained, "--num-frames", 2)
        assert result.exit_code == 0, result.stderr
        assert "inconclusive" in result.stdout
        assert result.stdout.count("_frame.png") == 1
    result = run("explain", clips / "text.mp4", "--out", tmp_path / "d", "--checkpoint", untrained)
    assert result.exit_code == 2
    assert "not_video" in result.stdout


def test_init_checkpoint_is_reproducible_and_does_not_overwrite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    def make(path: Path, *, seed: int) -> object:
        made.append(seed)
        path.write_bytes(b"x")
        return type("Made", (), {"path": path, "sha256": "0"})

    monkeypatch.setattr("dfscan.detector.checkpoint.create_untrained", make)
    assert run("init-checkpoint", tmp_path / "c", "--seed", 5).exit_code == 0
    assert run("init-checkpoint", tmp_path / "c").exit_code == 2
    assert run("init-checkpoint", tmp_path / "c", "--force").exit_code == 0
    assert made == [5, 0]


def test_info_shows_versions_devices_and_card(untrained: Path) -> None:
    result = run("info", "--checkpoint", untrained, "--json")
    document = json.loads(result.stdout)
    assert "cpu" in document["devices"]
    assert document["checkpoint"]["architecture"] == "test_efficientnet"
    assert document["versions"]["torch"]
    assert "calibration:" in run("info", "--checkpoint", untrained).stdout


def test_info_describes_the_pytorch_build_and_the_space_a_cpu_build_saves(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    def build(cuda: str | None, *, has_gpu: bool) -> str:
        monkeypatch.setattr(torch.version, "cuda", cuda)
        monkeypatch.setattr(torch.version, "hip", None)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
        return str(json.loads(run("info", "--json").stdout)["pytorch"])

    assert build(None, has_gpu=False) == "built for CPUs"
    assert build("13.2", has_gpu=True) == "built for CUDA 13.2"
    packages = [
        SimpleNamespace(name="nvidia-cublas", files=[SimpleNamespace(name="libcublas.so", size=2_000_000_000)]),
        SimpleNamespace(
            name="torch",
            files=[
                SimpleNamespace(name="libtorch_cuda.so", size=500_000_000),
                SimpleNamespace(name="libtorch_cpu.so", size=400_000_000),
                SimpleNamespace(name="RECORD", size=None),
            ],
        ),
        SimpleNamespace(name="numpy", files=[SimpleNamespace(name="cuda.h", size=9_000_000_000)]),
        SimpleNamespace(name="triton", files=None),
    ]
    monkeypatch.setattr("importlib.metadata.distributions", lambda: packages)
    description = build("13.2", has_gpu=False)
    assert "no usable GPU was found: a build for CPUs saves 2.5 GB" in description
    assert description.endswith("--index-url https://download.pytorch.org/whl/cpu")


def test_info_refuses_incompatible_torch_and_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    result = run("info")
    assert result.exit_code == 2
    assert "pip install" in result.stderr


def test_the_figures_of_bench_are_consistent(clips: Path, untrained: Path) -> None:
    result = run("bench", clips, "--checkpoint", untrained, "--num-frames", 4, "--json")
    figures = json.loads(result.stdout)
    stages, floor = figures["stages"], figures["floor"]
    assert figures["videos"] == stages["open"]["count"] == stages["write"]["count"] == 4
    assert figures["frames"] == stages["detect"]["count"] == stages["decode"]["count"] == 12
    assert figures["faces"] == stages["classify"]["count"] == stages["crop"]["count"] == 12
    assert 0 < sum(stage["cpu_s"] for stage in stages.values()) <= figures["cpu_s"] * 1.05
    assert floor["cpu_s"] == pytest.approx(floor["decode_cpu_s"] + floor["classify_cpu_s"])
    assert figures["ratio_to_floor"] == pytest.approx(figures["cpu_s"] / floor["cpu_s"])
    assert figures["peak_all_rss_bytes"] > figures["peak_rss_bytes"] > 0
    assert "videos per hour" in run("bench", clips / "nobody.mp4", "--checkpoint", untrained).stdout


def test_a_second_scan_on_a_cpu_imports_no_torch(clips: Path, untrained: Path) -> None:
    arguments = ["scan", str(clips / "one.mp4"), "--checkpoint", str(untrained), "--device", "cpu", "--num-frames", "4"]
    assert run(*arguments).exit_code == 0
    code = (
        "import sys; from dfscan.cli import app\n"
        "try: app()\n"
        "finally: print(sorted({'torch', 'timm', 'facenet_pytorch'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "[]"
    assert done.stdout.count("inconclusive") == 1


# As a process


def program(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "dfscan", *map(str, arguments)]


@pytest.mark.parametrize("arguments", [["--help"], ["scan", "--help"], ["bench", ".", "-h"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        f"import sys; sys.argv = ['dfscan', *{arguments}]\n"
        "from dfscan.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
        "heavy = set(sys.modules) & {'torch', 'numpy', 'cv2', 'av', 'pandas', 'pydantic', 'rich.console'}\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"Usage: {' '.join(['dfscan', *arguments[:-1][:1]])} " in done.stdout


def on_a_terminal(command: list[str], **environment: str) -> tuple[int, str]:
    """Run a program whose stderr is a terminal with 120 columns; return its exit code and the text shown there."""
    shown, stderr = os.openpty()
    fcntl.ioctl(stderr, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=stderr, env={**os.environ, "TERM": "xterm-256color", **environment}
    ) as process:
        os.close(stderr)
        text = b""
        with suppress(OSError):  # Linux raises an error at the end of a terminal's output
            while data := os.read(shown, 65536):
                text += data
        os.close(shown)
    return process.returncode, text.decode()


COLOUR = re.compile(r"\x1b\[(?:\d+;)*(?:3[0-8]|4[0-8]|9\d|10[0-7])(?:;\d+)*m")


def test_a_terminal_shows_progress_and_then_the_summary(clips: Path, untrained: Path) -> None:
    command = program("scan", clips, "--checkpoint", untrained, "--device", "cpu", "--num-frames", 4, "--exit-zero")
    code, shown = on_a_terminal(command)
    assert code == 0
    assert COLOUR.search(shown)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown).replace("\r", "\n")
    assert re.search(r"\d/4 .*faces/s .*1 (error|no_face|inconclusive)", plain)
    lines = [line for line in plain.split("\n") if line.strip()]
    assert lines[-1].startswith("dfscan: 4 videos: 0 fake, 0 real, 2 inconclusive, 1 no_face, 1 error")
    assert sum("dfscan: 4 videos" in line for line in lines) == 1


def test_no_color_disables_colours(clips: Path, untrained: Path) -> None:
    command = program("scan", clips, "--checkpoint", untrained, "--device", "cpu", "--num-frames", 4, "--exit-zero")
    code, shown = on_a_terminal(command, NO_COLOR="1")
    assert code == 0
    assert "faces/s" in shown
    assert not COLOUR.search(shown)


def test_a_quiet_scan_shows_nothing_on_a_terminal(clips: Path, untrained: Path) -> None:
    command = program("scan", clips / "one.mp4", "--checkpoint", untrained, "--device", "cpu", "--num-frames", 2, "-q")
    assert on_a_terminal(command) == (0, "")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete_commands_and_options(shell: str) -> None:
    def completed(words: str) -> str:
        number = str(len(words.split()) - 1)
        asked = {"_DFSCAN_COMPLETE": f"complete_{shell}", "COMP_WORDS": words, "COMP_CWORD": number}
        asked |= {"_TYPER_COMPLETE_ARGS": words, "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
        code = "import sys; sys.argv = ['dfscan']; from dfscan.cli import main; main()"
        done = subprocess.run([sys.executable, "-c", code], env=os.environ | asked, capture_output=True, text=True)
        assert done.stderr == ""
        return done.stdout

    assert "scan" in completed("dfscan sc")
    assert "--html" in completed("dfscan scan --ht")


def test_version() -> None:
    assert run("--version").stdout.startswith("dfscan ")


def test_a_closed_pipe_ends_without_a_traceback(clips: Path, untrained: Path) -> None:
    command = program("scan", clips, clips / "text.mp4", "--checkpoint", untrained, "--num-frames", 4, "--quiet")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        said = process.stderr.read()
        process.wait(timeout=600)
    assert b"Traceback" not in said
    assert b"Exception" not in said
    assert process.returncode == 128 + signal.SIGPIPE


@pytest.mark.parametrize("is_buffered", [True, False])
def test_an_unwritable_stderr_does_not_change_the_exit_code(is_buffered: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With buffering, the default, text that could not be written is flushed again at exit."""
    monkeypatch.setenv("PYTHONUNBUFFERED", "" if is_buffered else "1")
    with open("/dev/full", "wb") as full:
        command = program("scan", "nowhere")
        assert subprocess.run(command, stderr=full, check=False).returncode == 2
    closed = subprocess.run(
        ["sh", "-c", 'exec "$@" 2>&-', "sh", *program("scan", "nowhere")], capture_output=True, check=False
    )
    assert (closed.returncode, closed.stdout) == (2, b"")


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads Linux's /proc")
def test_terminated_scan_leaves_143_no_report_and_no_process(clips: Path, untrained: Path, tmp_path: Path) -> None:
    out = tmp_path / "r.csv"
    command = program(
        "scan", clips, "--checkpoint", untrained, "-o", out, "--log-file", tmp_path / "log", "--every", "0.01"
    )
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        while not (children := children_of(process.pid)) or not (tmp_path / "r.csv.ledger").exists():
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.01)
        process.terminate()
        assert b"Traceback" not in process.stderr.read()
        process.wait(timeout=300)
    assert process.returncode == 143
    assert not out.exists()
    assert not list(tmp_path.glob(".*partial"))
    # A child that was starting when the signal arrived ends on its own, because its socket is closed.
    end_s = time.monotonic() + 60
    while (left := [child for child in children if Path(f"/proc/{child}").exists()]) and time.monotonic() < end_s:
        time.sleep(0.05)
    assert not left


KEPT = "finished videos are kept in {}; to continue, run the same command again"
NOT_KEPT = "no results are kept; use --out or --ledger to make a scan resumable"


@pytest.mark.parametrize(
    ("number", "outputs", "message"),
    [
        (signal.SIGINT, ["-o", "r.csv"], f"interrupted: {KEPT.format('r.csv.ledger')} with --resume"),
        (signal.SIGTERM, ["-o", "r.csv"], f"terminated: {KEPT.format('r.csv.ledger')} with --resume"),
        (signal.SIGINT, ["-o", "r.csv", "--ledger", "all.ledger"], f"interrupted: {KEPT.format('all.ledger')}"),
        (signal.SIGINT, [], f"interrupted: {NOT_KEPT}"),
    ],
)
def test_an_interrupt_prints_how_to_continue(
    clips: Path,
    untrained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    outputs: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("dfscan.scan.run.resolve", lambda _: signal.raise_signal(number))
    result = scan(untrained, clips, *outputs)
    assert (result.exit_code, result.stderr) == (128 + number, f"dfscan: {message}\n")


def children_of(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []
