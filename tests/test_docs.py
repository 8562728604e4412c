"""The README, the help and the code say the same: examples are understood, and those that take no training run."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from dfscan.cli import app
from tests.pictures import astronaut
from tests.test_cli import COMMANDS, run
from tests.test_cli import surroundings as surroundings
from tests.videos import write_video

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def commands_of(text: str) -> list[str]:
    """The ``dfscan`` commands in a text, without what they are piped from and to."""
    joined = re.sub(r" *\\\n +", " ", text)
    start = r"(?:^|\| |&& |; |\* )(?:torchrun \S+ -m )?(?:\S*/)?"
    found = re.findall(start + r"(dfscan [^`|&#>\n]+)", joined, flags=re.MULTILINE)
    return [each.strip() for each in found]


def blocks(language: str) -> str:
    return "\n".join(re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL))


def help_examples(command: str) -> list[str]:
    return commands_of(re.sub(r"^ +", "", run(command, "--help").stdout.split("Examples:")[1], flags=re.MULTILINE))


SHELL = commands_of(blocks("sh"))
CRON = commands_of(blocks("cron"))
HELP = [example for command in COMMANDS for example in help_examples(command)]


def test_the_examples_are_found() -> None:
    assert len(SHELL) >= 8
    assert len(CRON) == 1
    assert len(HELP) == 3 * len(COMMANDS)


@pytest.mark.parametrize("example", sorted({*SHELL, *CRON, *HELP}))
def test_every_example_is_understood(example: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By name, number and kind of its arguments; configuration files are those of the project."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "configs", "configs")
    _, name, *arguments = shlex.split(example.replace("\\%", "%"))
    command = typer.main.get_group(app).commands[name]
    with command.make_context(name, list(arguments)) as context:
        assert context.params


@pytest.fixture
def desk(clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, untrained: Path) -> Path:
    """A folder with all the files that the README's examples name."""
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


def test_the_readmes_examples_run_one_after_the_other(desk: Path) -> None:
    examples = [shlex.split(example) for example in SHELL]
    names = [arguments[1] for arguments in examples]
    assert {"scan", "explain", "report", "bench"} <= set(names)
    for arguments in examples:
        if arguments[1] in QUICK and "run/best.safetensors" not in arguments:
            done = run(*arguments[1:], stdin=b"a.mov\0" if "-0" in arguments else None)
            assert done.exit_code == 0, (arguments, done.stderr)
    assert (desk / "report.csv").is_file()
    assert (desk / "report.html").is_file()


def test_the_line_for_cron_works_as_written(desk: Path, session_cache: Path) -> None:
    """In cron's environment; only folders are moved, which a test may not make where the line has them."""
    (line,) = blocks("cron").splitlines()
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


@pytest.mark.parametrize("name", ["scan.toml", "train.toml"])
def test_readme_names_the_configuration_files(name: str) -> None:
    assert f"configs/{name}" in README


def test_links_of_the_readme_lead_somewhere() -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", README)
    assert targets
    assert [target for target in targets if "://" not in target and not (ROOT / target).exists()] == []
