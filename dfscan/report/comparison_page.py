"""The page of a comparison: one self-contained HTML file without a script, in the style of the report page."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from dfscan.files import write_bytes
from dfscan.report.page import asset, markup, source_hash, template
from dfscan.text import printable

MAX_ROWS = 1000
"""Maximum number of rows in each table of the page."""


@dataclass(frozen=True, slots=True)
class ChangeTable:
    """One kind of changes."""

    title: str
    columns: Sequence[str]
    """Titles of the columns."""
    rows: Sequence[Sequence[object]]
    """Cells in display order, the most important row first. A float is shown with four digits."""


def write_comparison_page(
    path: str | os.PathLike[str], *, title: str, facts: Mapping[str, object], tables: Iterable[ChangeTable]
) -> None:
    """Write the page, atomically replacing an older one.

    Args:
        path: the HTML file.
        title: title of the page.
        facts: names and values to show before the tables.
        tables: the changes; tables without rows are omitted.

    Raises:
        OutputError: the file cannot be written; an older one is unchanged.
    """
    style = asset("page.css")
    text = template("comparison.html.j2").render(
        title=printable(title),
        style=markup(style),
        policy=f"default-src 'none'; style-src '{source_hash(style)}'; base-uri 'none'; form-action 'none'",
        facts=[(name, printable(str(value))) for name, value in facts.items()],
        tables=[
            {
                "title": table.title,
                "columns": table.columns,
                "rows": [
                    [
                        f"{cell:.4f}" if isinstance(cell, float) else "" if cell is None else printable(str(cell))
                        for cell in row
                    ]
                    for row in table.rows[:MAX_ROWS]
                ],
                "num_rows": len(table.rows),
            }
            for table in tables
            if table.rows
        ],
    )
    write_bytes(path, text.encode())
