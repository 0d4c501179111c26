"""A real browser for tests of pages: Debian's chromium, driven by playwright."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, ViewportSize, sync_playwright

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking")
needs_browser = pytest.mark.skipif(
    BROWSER is None, reason="needs Debian's chromium: apt-get install chromium"
)


class Told:
    """What a page has said and asked for: its errors, and what it fetched."""

    def __init__(self, page: Page) -> None:
        self.errors: list[str] = []
        self.fetched: list[str] = []
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on(
            "console",
            lambda said: (
                self.errors.append(said.text) if said.type == "error" else None
            ),
        )
        page.on("request", lambda request: self.fetched.append(request.url))


@contextmanager
def opened(
    path: Path, width: int = 1280, **context: Any
) -> Iterator[tuple[Page, Told]]:
    """Open a file in the browser, in a window of a width, and close it again."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=list(FLAGS))
        try:
            size = ViewportSize(width=width, height=900)
            page = browser.new_context(viewport=size, **context).new_page()
            told = Told(page)
            page.goto(path.as_uri())
            yield page, told
        finally:
            browser.close()


def serious_violations(page: Page) -> list[str]:
    """Return what axe finds wrong with a page, of serious and critical impact."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    return [
        f"{one['id']}: {one['help']}: {one['nodes'][0]['html'][:200]}"
        for one in found
        if one["impact"] in {"serious", "critical"}
    ]
