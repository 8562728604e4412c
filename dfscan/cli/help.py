"""Plain help text with options in sections. Typer's boxed help imports rich, which triples the time."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperArgument, TyperCommand


class SectionedCommand(TyperCommand):
    """A command whose help groups options by panel."""

    def format_options(self, ctx: typer.Context, formatter: Any) -> None:  # type: ignore[override]
        """Write the arguments, then the panels in the order of their first options."""
        sections: dict[str, list[tuple[str, str]]] = {"Arguments": []}
        for param in self.get_params(ctx):
            title = "Arguments" if isinstance(param, TyperArgument) else getattr(param, "rich_help_panel", None)
            record = param.get_help_record(ctx)
            if record is not None:
                sections.setdefault(title or "Options", []).append(record)
        for title, records in sections.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records, col_max=26)
