"""Write the texts that are made from the tables of settings: files in ``configs`` and tables in the configuration page.

Run ``python docs/make_reference.py`` after changing a table. `tests/test_docs.py` fails if a text is stale.
"""

from __future__ import annotations

import itertools
import json
import re
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

import typer

from dfscan.cli import app
from dfscan.config import ScanSettings, Setting, Settings, rows
from dfscan.dataset.settings import PrepareSettings
from dfscan.train.settings import TrainSettings

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/pages/configuration.md"
COLUMN = 34
"""Column in which the comments of a TOML file start."""
WIDTH = 120
OTHERS = ("report", "explain", "bench", "evaluate", "info")
"""Commands that share settings with `dfscan scan`."""

SCAN_HEAD = """\
# Settings of `dfscan scan --config configs/scan.toml`. Every setting is listed, commented out at its default or with an
# example. A flag takes precedence over a variable DFSCAN_OPTION_NAME, and a variable over this file. Unknown keys are
# refused. Settings that default to the checkpoint's own are those for which its error rates were measured.
"""
TRAIN_HEAD = """\
# Settings of `dfscan train --config configs/train.toml`: every setting at its default, which is the project's recipe.
# Settings without a default are commented out. Flags such as --lr-head 1e-4 take precedence. Unknown keys are refused.
"""


def texts() -> dict[Path, str]:
    """Return the current text of every file."""
    page = PAGE.read_text()
    for name, table in {"scan": ScanSettings, "prepare": PrepareSettings, "train": TrainSettings}.items():
        start, end = f"<!-- made from the settings of {name} -->\n", f"<!-- end of the settings of {name} -->"
        made = "\n".join(_reference(table))
        page = re.sub(f"{start}.*?{end}", lambda _, text=f"{start}\n{made}\n{end}": text, page, flags=re.DOTALL)
    return {
        ROOT / "configs/scan.toml": SCAN_HEAD + "\n".join(_toml(ScanSettings, is_commented=True)) + "\n",
        ROOT / "configs/train.toml": TRAIN_HEAD + "\n".join(_toml(TrainSettings, is_commented=False)) + "\n",
        PAGE: page,
    }


def _sections(table: type[Settings]) -> Iterator[tuple[str, Iterator[Setting]]]:
    yield from itertools.groupby(rows(table).values(), key=lambda row: row.panel)


def _toml(table: type[Settings], *, is_commented: bool) -> Iterator[str]:
    for panel, settings in _sections(table):
        yield f"\n# --- {panel}"
        for row in settings:
            value = row.default if row.default is not None else row.of_checkpoints or row.example
            mark = "# " if is_commented or row.default is None else ""
            setting = f"{mark}{row.name} = {json.dumps(value, ensure_ascii=False)}"
            comment = textwrap.wrap(_comment(row), WIDTH - COLUMN - 2)
            yield f"{setting:<{COLUMN - 1}} # {comment[0]}"
            yield from (f"{mark.strip():<{COLUMN - 1}} # {line}" for line in comment[1:])


def _comment(row: Setting) -> str:
    parts = [row.help]
    if row.choices and not row.metavar:
        parts.append(f"One of {', '.join(row.choices)}.")
    if row.default is None or row.default_text:
        parts.append(f"Default: {row.shown_default() or 'not set'}.")
    return " ".join(parts)


def _reference(table: type[Settings]) -> Iterator[str]:
    shared: dict[str, list[str]] = {}
    for name, command in typer.main.get_group(app).commands.items():
        for parameter in command.params if name in OTHERS and table is ScanSettings else ():
            shared.setdefault(str(parameter.name), []).append(name)
    for panel, settings in _sections(table):
        yield f"**{panel}**\n"
        yield from ("| flag | default | meaning |", "|---|---|---|")
        for row in settings:
            choices = (
                f" One of {', '.join(f'`{choice}`' for choice in row.choices)}."
                if row.choices and not row.metavar
                else ""
            )
            others = f" Also in {', '.join(f'`{name}`' for name in shared[row.name])}." if row.name in shared else ""
            flag = f"`{row.flag}`" + (f", `{row.short}`" if row.short else "")
            yield f"| {flag} | {_cell(row)} | {row.help}{choices}{others} |"
        yield ""


def _listed(start: str, names: Sequence[str]) -> str:
    return f" {start} {', '.join(f'`{name}`' for name in names)}." if names else ""


def _cell(row: Setting) -> str:
    """Return the default: in words, or as a value."""
    is_value = row.default_text is None and row.of_checkpoints is None and row.default not in (None, ())
    return f"`{row.shown_default()}`" if is_value and row.shown_default() else row.shown_default()


if __name__ == "__main__":
    for path, text in texts().items():
        path.write_text(text)
