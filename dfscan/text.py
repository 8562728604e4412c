"""Make untrusted text safe to print and to open in a spreadsheet: file names, reasons, codecs; and shorten lists."""

from __future__ import annotations

import re
from collections.abc import Sequence

from dfscan.objects import is_url

# Controls (C0, DEL, C1), bidi controls, line and paragraph separators, lone surrogates.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_SHORT_ESCAPES = {"\t": "\\t", "\n": "\\n", "\r": "\\r"}
_FORMULA_STARTS = tuple("=+-@\t\r＝＋－＠")  # noqa: RUF001 - spreadsheets accept the fullwidth forms too


def printable(text: str) -> str:
    r"""Backslash-escape characters that could break a line, a terminal or UTF-8; leave all others unchanged.

    A byte that is not UTF-8 is shown as that byte: ``os.fsdecode(b"\xff")`` gives ``\xff``. Other characters are
    shown like ``\n`` or ``\x1b`` below 128, and like ``\u0085`` from there on, so they cannot be mistaken for a byte.
    """
    return _UNSAFE.sub(_escape, text)


def display_path(path: str) -> str:
    """Return a printable path that names the same file and never starts like an option or a formula."""
    return printable(path if path.startswith(("/", "./", "../")) or is_url(path) else f"./{path}")


def report_order(path: str) -> tuple[str, str]:
    """Return the sort key of a report row: the displayed path, then the path itself."""
    return display_path(path), path


def is_escaped(path: str) -> bool:
    """Return True if `printable` changes the path, so that its text no longer names the file."""
    return _UNSAFE.search(path) is not None


def guard_formula(text: str) -> str:
    """Prefix an apostrophe to text that a spreadsheet would run as a formula."""
    return f"'{text}" if text.startswith(_FORMULA_STARTS) else text


def first_few(items: Sequence[object], limit: int = 3) -> str:
    """Return the first items and the number of the others, such as ``2, 5, 6 and 4 more``."""
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return f"{', '.join(map(str, items[:limit]))}{more}"


def _escape(match: re.Match[str]) -> str:
    character = match.group()
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    if code < 0x80:
        return _SHORT_ESCAPES.get(character, f"\\x{code:02x}")
    return f"\\u{code:04x}"
