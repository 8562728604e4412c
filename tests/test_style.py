"""Find words that have a plainer equivalent, in strings, docstrings, comments and pages. See docs/pages/style.md.

``python -m tests.test_style`` prints every finding with the word to use.
"""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PLAIN = {
    r"anew": "again",
    r"likest": "most similar",
    r"(hang|hangs|hung|hanging) (up)?on": "depend on",
    r"so (many|much)": "at most N, this many, this much",
    r"be had": "be available",
    r"who(m|so)?ever": "callers, users, anyone who",
    r"under way": "in progress",
    r"(passed|passing) over": "skipped",
    r"(go|goes|going|went|gone) on": "continue",
    r"(lie|lies|lay|lying) (beside|there|about)": "be next to, be there",
    r"(is|are) said": "is reported, is printed",
    r"says? (nothing )?of": "describes, reports on",
    r"talks? nonsense": "violates the protocol",
    r"loners?": "isolated nodes",
    r"messengers?": "messaging apps",
    r"(be|is|are|was|were) at (work|it)": "be busy",
    r"thought to be": "expected",
    r"nobody's business": "private",
    r"for lack of": "without",
    r"(row|line|column) an? (crop|face|file|frame|input|person|step|video)": "row per video",
    r"(one|two|three|four|several) an? (core|face|file|frame|line|person|shot|track|video)": "one per video",
    r"(at )?least [a-z]+": "minimum, smallest",
    r"most (MB|MiB|frames of|faces of|pixels of|seconds of)": "maximum",
}
"""Patterns of whole words, and the plain words to use. A space also matches a line break within a text."""
FINE = re.compile(r"at\s|least\s+(common|likely|recent(ly)?|significant|squares)\b", re.IGNORECASE)
"""Findings that are idiomatic."""

CHECKED = ("dfscan/**/*.py", "dfscan/**/*.md", "dfscan/**/*.j2", "dfscan/**/*.js", "dfscan/**/*.css", "configs/*.toml")
PAGES = ("README.md", "docs/mkdocs.yml", "docs/pages/**/*.md")
TEXT_TOKENS = {tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", -1)}


@dataclass(frozen=True, slots=True)
class Finding:
    """A word that has a plainer equivalent."""

    line: int
    words: str
    plain: str


PATTERNS = [
    (re.compile(r"\b(" + pattern.replace(" ", r"\s+") + r")\b", re.IGNORECASE), plain)
    for pattern, plain in PLAIN.items()
]


def python_text(source: str) -> str:
    """Keep strings and comments, without their quotes and hashes; lines keep their numbers.

    Code becomes NUL, which no pattern matches, so a sentence ends where its string ends.
    """
    originals = source.splitlines()
    lines = [list(re.sub(r"\S", "\0", line)) for line in originals]
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in TEXT_TOKENS:
            continue
        (first, start), (last, end) = token.start, token.end
        for number in range(first, last + 1):
            low = start if number == first else 0
            high = end if number == last else len(originals[number - 1])
            lines[number - 1][low:high] = re.sub(r'["#]', " ", originals[number - 1][low:high])
    return "\n".join("".join(line) for line in lines)


def page_text(source: str) -> str:
    """Blank code blocks and code spans; lines keep their numbers."""

    def blanked(found: re.Match[str]) -> str:
        return re.sub(r"[^\n]", "\0", found[0])

    without_blocks = re.sub(r"^ *```.*?^ *```", blanked, source, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`\n]*`", blanked, without_blocks)


def settings_text(source: str) -> str:
    """Blank the hashes of comments."""
    return source.replace("#", " ")


TEXT_OF = {".py": python_text, ".md": page_text, ".toml": settings_text, ".yml": settings_text}


def findings(path: Path) -> list[Finding]:
    """Return the findings of a file by line."""
    source = path.read_text(encoding="utf-8")
    prepare = TEXT_OF.get(path.suffix)
    return sorted(_findings(prepare(source) if prepare else source), key=lambda finding: finding.line)


def _findings(text: str) -> Iterator[Finding]:
    for pattern, plain in PATTERNS:
        for found in pattern.finditer(text):
            if FINE.match(found[0]):
                continue
            yield Finding(text.count("\n", 0, found.start()) + 1, " ".join(found[0].split()), plain)


def files() -> list[str]:
    """Return the checked files, relative to the project."""
    paths = {path for pattern in (*CHECKED, *PAGES) for path in ROOT.glob(pattern)}
    return sorted(path.relative_to(ROOT).as_posix() for path in paths)


@pytest.mark.parametrize("name", files())
def test_words_are_plain(name: str) -> None:
    report = [f"{name}:{each.line}: {each.words!r} -> {each.plain}" for each in findings(ROOT / name)]
    assert not report, "\n".join(report)


@pytest.mark.parametrize(
    "text",
    [
        "# begins anew",
        '"""Hangs\n    on it."""',
        '"so many faces"',
        '"Least scale."',
        "# goes\n# on",
        '"one row a video"',
        '"Most MB of pictures"',
        'print("it goes "\n      "on")',
    ],
)
def test_a_word_is_found(text: str) -> None:
    assert len(list(_findings(python_text(text)))) == 1


@pytest.mark.parametrize(
    "text",
    ["anew = 1", '"at least one"', '"most similar"', '"the least squares"', '"say so; many do"', '("so", "many")'],
)
def test_plain_text_and_code_are_left_alone(text: str) -> None:
    assert list(_findings(python_text(text))) == []


def test_code_in_pages_is_left_alone() -> None:
    assert list(_findings(page_text("`anew`\n\n```sh\ngo on\n```\n"))) == []


if __name__ == "__main__":
    for file in files():
        for each in findings(ROOT / file):
            print(f"{file}:{each.line}: {each.words!r} -> {each.plain}")
