"""The ``dfscan schema`` command."""

from __future__ import annotations

import json

import typer

from dfscan.cli.guard import guarded


@guarded
def schema() -> None:
    """Print the JSON Schema of a report row.

    It describes one line of a JSON Lines report, for programs that check or import reports.

    Examples:

    \b
      dfscan schema
      dfscan schema > row.schema.json
      dfscan schema | jq -r '.properties | keys[]'
    """
    from dfscan.report.row_schema import row_schema

    typer.echo(json.dumps(row_schema(), indent=2))
