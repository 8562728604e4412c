"""Open pages in a real, headless Chromium and check their requests.

Usage: ``with browser() as chromium, visit(chromium, path) as page: ...``. The second block fails at its end if the page
logged anything, violated its content security policy or requested anything besides its own file.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

_ARGUMENTS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    " --disable-component-update --disable-sync"
).split()


def chromium_path() -> str | None:
    """Return the path of an installed Chromium, or None."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next((path for name in names if (path := shutil.which(name))), None)


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    """Run Chromium; skip the test if there is none."""
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    path = chromium_path()
    if path is None:
        pytest.skip("needs Chromium (Debian's package chromium)")
    with api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=path, args=_ARGUMENTS)
        try:
            yield running
        finally:
            running.close()


@contextlib.contextmanager
def visit(
    running: Browser, path: Path, *, width_px: int = 1280, height_px: int = 800, **options: Any
) -> Iterator[Page]:
    """Open a file in a fresh profile; `options` are passed to playwright's ``new_context``."""
    context = running.new_context(viewport={"width": width_px, "height": height_px}, **options)
    try:
        page = context.new_page()
        complaints: list[str] = []
        requests: list[str] = []
        page.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(path.as_uri())
        yield page
        page.wait_for_timeout(50)
        assert complaints == []
        assert [url for url in requests if not url.startswith("data:image/jpeg;base64,")] == [path.as_uri()]
    finally:
        context.close()
