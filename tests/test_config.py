"""Settings: validation and the wording of refusals."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, get_args

import pytest

from dfscan.config import FailOn, ScanSettings, build_settings, check_environment, read_file
from dfscan.errors import ConfigError


def refusal(**values: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        build_settings(ScanSettings, values)
    return str(caught.value)


def test_the_defaults_are_valid() -> None:
    assert build_settings(ScanSettings, {}) == ScanSettings()
    assert build_settings(ScanSettings, {"num_frames": None, "timeout": None}) == ScanSettings(), (
        "None counts as not given"
    )


@pytest.mark.parametrize(("given", "expected"), [("all", "all"), ("main", "main"), ("2", 2), (0, 0)])
def test_a_stream_is_a_name_or_a_number(given: str | int, expected: str | int) -> None:
    assert build_settings(ScanSettings, {"stream": given}).stream == expected


def test_settings_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        ScanSettings().quiet = True  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[(name, 0) for name in ("num_frames", "max_frames", "every", "max_faces", "batch_size", "min_faces")],
        *[(name, 0) for name in ("explain_top", "workers", "threads", "timeout")],
        *[(name, -0.01) for name in ("detection_threshold", "threshold")],
        *[(name, 1.01) for name in ("detection_threshold", "threshold")],
        *[(name, float("nan")) for name in ("detection_threshold", "threshold", "every", "timeout")],
        *[(name, float("inf")) for name in ("every", "timeout")],
        ("min_face_px", 19),
        ("stream", -1),
        ("stream", "second"),
        ("num_frames", 1.5),
        ("num_frames", "many"),
        ("format", "xml"),
        ("explain_format", "gif"),
        ("fail_on", "fake,maybe"),
        ("quiet", "perhaps"),
        ("include", 3),
        *[("shard", value) for value in ("1-4", "0/4", "5/4", "1/0", "4", "1/4/2", "a/b", "1 / 4")],
        ("on", "slurm"),
        ("max_workers", 0),
        ("gpus_per_worker", -0.5),
        ("delimiter", "|"),
    ],
)
def test_values_out_of_range_are_refused_with_the_setting_named(name: str, value: Any) -> None:
    assert name in refusal(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_frames", 1),
        ("threshold", 0.0),
        ("threshold", 1.0),
        ("min_face_px", 20),
        ("every", 0.01),
        ("format", "csv"),
        ("shard", "1/1"),
        ("shard", "4/4"),
        ("delimiter", ";"),
    ],
)
def test_values_at_the_limit_are_accepted(name: str, value: Any) -> None:
    assert getattr(build_settings(ScanSettings, {name: value}), name) == value


def test_a_bad_shard_is_explained_without_a_regular_expression() -> None:
    assert refusal(shard="1-4") == (
        "shard: must be auto or I/N with I from 1 to N, such as 1/4 for the first of four parts, got '1-4'"
    )


def test_every_and_num_frames_together_are_refused() -> None:
    assert refusal(every=1.5, num_frames=8) == (
        "every = 1.5 and num_frames = 8 exclude each other: give only one of --every and --num-frames"
    )


def test_all_problems_are_listed_together() -> None:
    message = refusal(num_frames=0, threshold=2, tiemout=3, format="xml")
    for name in ("num_frames", "threshold", "tiemout", "format"):
        assert name in message


@pytest.mark.parametrize(
    ("name", "hint"),
    [("tiemout", "did you mean 'timeout'?"), ("num_frame", "did you mean 'num_frames'?"), ("zzz", "known names are ")],
)
def test_an_unknown_setting_is_refused_with_a_hint(name: str, hint: str) -> None:
    message = refusal(**{name: 1})
    assert f"'{name}'" in message
    assert hint in message


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("fake", ("fake",)),
        ("fake,error", ("fake", "error")),
        (" fake , partial,", ("fake", "partial")),
        ("", ()),
        (["no_face"], ("no_face",)),
        (get_args(FailOn), get_args(FailOn)),
    ],
)
def test_fail_on_is_a_list_or_comma_separated(value: Any, expected: tuple[str, ...]) -> None:
    assert build_settings(ScanSettings, {"fail_on": value}).fail_on == expected


def test_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "scan.toml"
    path.write_text('num-frames = 8\nmin_faces = 2\nfail-on = ["fake"]\nout = "r.csv"\n')
    assert read_file(path, ScanSettings) == {"num_frames": 8, "min_faces": 2, "fail_on": ["fake"], "out": "r.csv"}


def test_a_file_may_have_a_byte_order_mark_and_windows_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "scan.toml"
    path.write_bytes(b"\xef\xbb\xbfnum-frames = 8\r\nquiet = true\r\n")
    assert read_file(path, ScanSettings) == {"num_frames": 8, "quiet": True}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"num-frames = ", ["not valid TOML"]),
        (b"num-frames = 1\nnum-frames = 2\n", ["not valid TOML"]),
        (b"out = '\xff'\n", ["not valid TOML"]),
        (b"num-frame = 3\n", ["num_frame", "did you mean 'num_frames'?"]),
        (b"[scan]\nnum-frames = 3\n", ["unknown setting 'scan'"]),
        (b"num-frames = 0\nthreshold = 7.0\n", ["num_frames", "threshold"]),
    ],
)
def test_a_bad_file_is_named_and_explained(content: bytes, words: list[str], tmp_path: Path) -> None:
    path = tmp_path / "scan.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_file(path, ScanSettings)
    for word in [str(path), *words]:
        assert word in str(caught.value)


@pytest.mark.parametrize("name", ["absent.toml", "."])
def test_a_file_that_cannot_be_read_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--config"):
        read_file(tmp_path / name, ScanSettings)


def test_known_and_unrelated_variables_are_accepted() -> None:
    variables = {"DFSCAN_NUM_FRAMES": "8", "DFSCAN_CONFIG": "x", "HOME": "/", "dfscan_zzz": "1"}
    check_environment(variables, [ScanSettings])


def test_misspelt_variables_are_refused_together() -> None:
    with pytest.raises(ConfigError) as caught:
        check_environment({"DFSCAN_TIEMOUT": "1", "DFSCAN_ZZZ": "2"}, [ScanSettings])
    for word in ("DFSCAN_TIEMOUT", "did you mean 'DFSCAN_TIMEOUT'?", "DFSCAN_ZZZ"):
        assert word in str(caught.value)


def test_the_known_names_are_listed_only_once(tmp_path: Path) -> None:
    path = tmp_path / "scan.toml"
    path.write_text("aaaa = 1\nbbbb = 2\ntiemout = 3\n")
    with pytest.raises(ConfigError) as caught:
        read_file(path, ScanSettings)
    assert str(caught.value).count("known names are") == 1
    assert "unknown setting 'aaaa', 'bbbb', 'tiemout' (did you mean 'timeout'?); known names are " in str(caught.value)


def array(task: str, first: str, count: str, step: str = "") -> dict[str, str]:
    names = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_COUNT", "SLURM_ARRAY_TASK_STEP")
    return {name: value for name, value in zip(names, (task, first, count, step), strict=True) if value}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        (array("0", "0", "4"), "1/4"),
        (array("3", "0", "4"), "4/4"),
        (array("7", "5", "4", "1"), "3/4"),
        (array("9", "5", "3", "2"), "3/3"),
    ],
)
def test_a_task_of_a_job_array_takes_its_part(
    environment: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert build_settings(ScanSettings, {"shard": "auto"}).shard == expected


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({}, "auto needs SLURM_ARRAY_TASK_ID, SLURM_ARRAY_TASK_MIN, SLURM_ARRAY_TASK_COUNT"),
        (array("x", "0", "4"), "auto needs SLURM_ARRAY_TASK_ID"),
        (array("7", "1", "3"), "a job array without gaps"),
        (array("6", "5", "3", "2"), "a job array without gaps"),
    ],
)
def test_a_part_that_is_not_clear_is_refused(
    environment: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert message in refusal(shard="auto")
