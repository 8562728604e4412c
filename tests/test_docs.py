"""Check that the README, the pages and the help agree with the code: parse all examples, and run the quick ones."""

from __future__ import annotations

import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer

import dfscan
from dfscan.cli import app
from dfscan.report.schema import FRAME_COLUMNS, REPORT_COLUMNS
from tests.pictures import astronaut
from tests.test_cli import COMMANDS, run
from tests.test_cli import surroundings as surroundings
from tests.videos import write_video

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
PAGES = {path.name: path.read_text() for path in sorted((ROOT / "docs/pages").glob("*.md"))}
TEXTS = {"README.md": README, **PAGES}
MAX_README_WORDS = 900


def commands_of(text: str) -> list[str]:
    """Return the ``dfscan`` commands in a text, without the rest of their pipes."""
    joined = re.sub(r" *\\\n +", " ", text)
    start = r"(?:^|\| |&& |; |\* )(?:torchrun \S+ -m )?(?:\S*/)?"
    found = re.findall(start + r"(dfscan [^`|&#>\n]+)", joined, flags=re.MULTILINE)
    return [each.strip() for each in found]


def blocks(language: str) -> list[str]:
    """Return the code blocks of a language, in the README and then in the pages."""
    text = "\n".join(TEXTS.values())
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def help_examples(command: str) -> list[str]:
    return commands_of(re.sub(r"^ +", "", run(command, "--help").stdout.split("Examples:")[1], flags=re.MULTILINE))


SHELL = list(dict.fromkeys(commands_of("\n".join(blocks("sh")))))
CRON = commands_of("\n".join(blocks("cron")))
PYTHON = list(dict.fromkeys(blocks("python")))
HELP = [example for command in COMMANDS for example in help_examples(command)]


def test_the_examples_are_found() -> None:
    assert len(SHELL) >= 30
    assert len(CRON) == len(PYTHON) == 1
    assert len(HELP) == 3 * len(COMMANDS)


@pytest.mark.parametrize("example", sorted({*SHELL, *CRON, *HELP}))
def test_every_example_is_understood(example: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By name, number and kind of its arguments; configuration files are those of the project."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "configs", "configs")
    _, name, *arguments = shlex.split(example.replace("\\%", "%"))
    command = typer.main.get_group(app).commands[name]
    with command.make_context(name, list(arguments)) as context:
        assert context.params or not command.params


@pytest.fixture
def desk(clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, untrained: Path) -> Path:
    """Make a folder with all the files that the examples name."""
    monkeypatch.chdir(tmp_path)
    Path("videos").mkdir()
    for name in ("one.mp4", "nobody.mp4"):
        shutil.copy(clips / name, "videos")
    for name in ("clip.mp4", "interview.mp4", "a.mov"):
        shutil.copy(clips / "one.mp4", name)
    write_video(Path("portrait.mp4"), [astronaut()] * 3)
    monkeypatch.setenv("DFSCAN_CHECKPOINT", str(untrained))
    monkeypatch.setenv("DFSCAN_DEVICE", "cpu")
    return tmp_path


QUICK = ("scan", "explain", "report", "bench", "info", "init-checkpoint")
UNAVAILABLE = {
    "run/best.safetensors",
    "own.safetensors",
    "sbi.calibrated.safetensors",
    "hf://lab/detector",
    "cuda",
    "ray",
    "auto",
    "s3://bucket/inbox",
}
"""Arguments that need a training run, a calibration, a network, a GPU, a cluster, a job array or an object store."""


def test_the_quick_examples_run_one_after_the_other(desk: Path) -> None:
    examples = [shlex.split(example) for example in SHELL]
    names = [arguments[1] for arguments in examples]
    assert set(QUICK) <= set(names)
    for arguments in examples:
        if arguments[1] in QUICK and not UNAVAILABLE & set(arguments):
            done = run(*arguments[1:], stdin=b"a.mov\0" if "-0" in arguments else None)
            assert done.exit_code == 0, (arguments, done.stderr)
    assert (desk / "report.csv").is_file()
    assert (desk / "report.html").is_file()


def test_the_line_for_cron_works_as_written(desk: Path, session_cache: Path) -> None:
    """In cron's environment; only folders are moved, which a test may not make where the line has them."""
    (line,) = "".join(blocks("cron")).splitlines()
    schedule, command = line.split(" ", 5)[:5], line.split(" ", 5)[5]
    assert schedule == ["15", "2", "*", "*", "*"]
    for name, folder in (("/opt/dfscan", "opt"), ("/srv/video", "videos"), ("/srv/reports", "reports")):
        assert f" {name}" in line
        command = command.replace(name, str(desk / folder))
    (desk / "opt/.venv/bin").mkdir(parents=True)
    (desk / "opt/.venv/bin/dfscan").symlink_to(Path(sys.executable).with_name("dfscan"))
    (desk / "reports").mkdir()
    assert not re.search(r"(?<!\\)%", command), "cron would end the line there"
    environment = ["PATH=/usr/bin:/bin", f"XDG_CACHE_HOME={session_cache}", f"HOME={desk}"]
    settings = [f"{name}={os.environ[name]}" for name in ("DFSCAN_CHECKPOINT", "DFSCAN_DEVICE")]
    shell = ["env", "-i", *environment, *settings, "sh", "-c", command.replace("\\%", "%")]
    done = subprocess.run(shell, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    (report,) = (desk / "reports").glob("20??-??-??.csv")
    assert report.read_text().count("\n") == 3
    shutil.rmtree(desk / "videos")
    (desk / "videos").mkdir()  # where nothing is mounted
    done = subprocess.run(shell, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "nothing to scan" in done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_says_what_it_does(command: str) -> None:
    parameters = typer.main.get_group(app).commands[command].params
    assert all(getattr(parameter, "help", None) for parameter in parameters if parameter.name != "help")


def test_the_texts_made_from_the_settings_are_current() -> None:
    for path, text in runpy.run_path(str(ROOT / "docs/make_reference.py"))["texts"]().items():
        assert path.read_text() == text, f"{path} is stale: run `python docs/make_reference.py`"


@pytest.mark.parametrize("name", ["scan.toml", "train.toml"])
def test_readme_names_the_configuration_files(name: str) -> None:
    assert f"configs/{name}" in README


def test_links_of_the_readme_lead_somewhere() -> None:
    """Links between the pages are checked by ``mkdocs build --strict``."""
    targets = re.findall(r"\]\(([^)#]+)\)", README)
    assert targets
    assert [target for target in targets if "://" not in target and not (ROOT / target).exists()] == []


def test_the_readme_links_all_pages_for_users() -> None:
    others = {"index.md", "model-card.md", "development.md"}
    assert {name for name in PAGES if f"docs/pages/{name}" not in README} == others


def test_the_readme_is_short() -> None:
    assert len(README.split()) <= MAX_README_WORDS


def test_the_pages_document_every_column_and_reason() -> None:
    columns = {column.name for column in (*REPORT_COLUMNS, *FRAME_COLUMNS)}
    source = "\n".join(path.read_text() for path in (ROOT / "dfscan").rglob("*.py"))
    reasons = set(re.findall(r"""(?:Reason|VideoError)\(\s*"([a-z_]+)",""", source))
    assert len(reasons) > 20
    assert {name for name in columns | reasons if f"`{name}`" not in PAGES["reports.md"]} == set()


def test_the_texts_mention_every_command() -> None:
    names = typer.main.get_group(app).commands
    assert [name for name in names if not any(f"dfscan {name}" in text for text in TEXTS.values())] == []


@pytest.mark.parametrize("snippet", PYTHON)
def test_the_python_lines_use_public_names(snippet: str) -> None:
    compile(snippet, "README.md", "exec")
    if not hasattr(dfscan, "Scanner"):
        pytest.skip("dfscan has no Python API yet")
    assert [name for name in re.findall(r"\bdfscan\.(\w+)", snippet) if not hasattr(dfscan, name)] == []
