"""Flags made from the tables of settings, each also read from its ``DFSCAN_*`` variable or the ``--config`` file."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, get_origin

import typer

from dfscan.config import BEHAVIOUR, Setting, Settings, build_settings, read_file, rows

Command = Callable[..., None]

_SOURCES = ("COMMANDLINE", "ENVIRONMENT")
"""Sources of a flag's value, in order of precedence. A file comes after them."""

Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        envvar="DFSCAN_CONFIG",
        rich_help_panel=BEHAVIOUR,
        help="TOML file with settings; flags and environment variables take precedence.",
        metavar="FILE",
    ),
]


def with_settings(names: str = "", *panels: str, whole_file: bool = False) -> Callable[[Command], Command]:
    """Give a command flags for the settings in the table that its parameter `settings` is annotated with.

    The flags take the place of that parameter, which then holds the settings given by flags, ``DFSCAN_*`` variables
    and the file of the command's parameter `config`, if it has one.

    Args:
        names: the settings to take, separated by spaces.
        *panels: sections of which to take all settings. Without names and sections, all settings are taken.
        whole_file: use all settings of the file, not only those for which the command has a flag.
    """

    def decorate(command: Command) -> Command:
        own = inspect.signature(command, eval_str=True).parameters
        table: type[Settings] = own["settings"].annotation
        known = rows(table)
        wanted = {*names.split(), *panels}
        taken = [row for row in known.values() if not wanted or {row.name, row.panel} & wanted]
        if unknown := wanted - {text for row in taken for text in (row.name, row.panel)}:
            raise ValueError(f"{table.__name__} has no {sorted(unknown)}")

        @functools.wraps(command)
        def run(context: typer.Context, **arguments: Any) -> None:
            given = {row.name: arguments.pop(row.name) for row in taken}
            given = {name: value for name, value in given.items() if value is not None and value != []}
            for row in taken:
                if row.separator and row.variable and _source(context, row.name) == "ENVIRONMENT":
                    given[row.name] = re.split(row.separator, os.environ[row.variable])
            path = arguments.get("config")
            from_file = read_file(path, table) if path else {}
            if not whole_file:
                from_file = {row.name: from_file[row.name] for row in taken if row.name in from_file}
            if "context" in own:
                arguments["context"] = context
            values = _preferred(context, table, {**from_file, **given}, given)
            command(settings=build_settings(table, values), **arguments)

        parameters = [inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)]
        for parameter in own.values():
            if parameter.name == "settings":
                parameters += map(_flag, taken)
            elif parameter.name != "context":
                parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return run

    return decorate


def _source(context: typer.Context, name: str) -> str | None:
    source = context.get_parameter_source(name)
    return source.name if source else None


def _preferred(
    context: typer.Context, table: type[Settings], values: dict[str, Any], given: Mapping[str, Any]
) -> dict[str, Any]:
    """Of two settings that exclude each other, drop the one whose source has lower precedence."""

    def rank(name: str) -> int:
        source = _source(context, name) if name in given else None
        return _SOURCES.index(source) if source else len(_SOURCES)

    for one, other in table.EXCLUSIVE:
        if {one, other} <= set(values) and rank(one) != rank(other):
            del values[max(one, other, key=rank)]
    return values


def _flag(row: Setting) -> inspect.Parameter:
    """Return a command's parameter for a setting; it is None if it was not given."""
    kind = row.given_kind
    names = [f"{row.flag}/--no-{row.flag.removeprefix('--')}" if kind is bool else row.flag]
    default = row.shown_default()
    option = typer.Option(
        *names,
        *([row.short] if row.short else []),
        envvar=row.variable,
        help=f"{row.help} Default: {default}." if default else row.help,
        rich_help_panel=row.panel,
        show_default=False,
        show_envvar=False,
        metavar=row.metavar or "|".join(row.choices) or ("FILE" if kind is Path else None),
    )
    is_required = row.default is dataclasses.MISSING
    parsed = row.flag_type or (str if row.choices else list[str] if get_origin(kind) is tuple else kind)
    return inspect.Parameter(
        row.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=inspect.Parameter.empty if is_required else None,
        annotation=Annotated[parsed if is_required else parsed | None, option],
    )
