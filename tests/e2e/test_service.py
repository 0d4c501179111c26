"""The training service from its start to a report, in a real browser."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Page, sync_playwright

from tests.support import make_store
from tests.support_browser import (
    BROWSER,
    FLAGS,
    Told,
    needs_browser,
    serious_violations,
)

# Two processes are started and a report is made: half a minute.
pytestmark = [needs_browser, pytest.mark.slow]
SHOTS = os.environ.get("ACTSTORE_SCREENSHOTS")
WAIT_S = 90
# Long enough to be watched and cancelled: some ten passes over the rows.
SPEC = """
log_every: 10
checkpoint_every: 100
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_store(str(tmp_path / "store"), n_units=40)
    return tmp_path


@contextmanager
def serving(folder: Path) -> Iterator[tuple[str, str]]:
    """`trainer serve` in a process of its own; yields its address and its token."""
    command = [
        sys.executable,
        "-m",
        "trainer",
        "serve",
        "--runs",
        "runs",
        "--port",
        "0",
        "--catalog",
        "catalog",
    ]
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(
            [*command, "--device", "cpu"],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        ) as process,
    ):
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            found = re.fullmatch(r"service: (\S+?/)login#token=(\w+)\n", line)
            assert found, (folder / "log").read_text()
            yield found[1], found[2]
        finally:
            process.terminate()
            process.wait(90)


@pytest.fixture
def page() -> Iterator[Page]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=list(FLAGS))
        page = browser.new_page()
        page.set_default_timeout(WAIT_S * 1000)
        yield page
        browser.close()


def test_a_run_is_started_watched_cancelled_resumed_and_reported(
    folder: Path, page: Page
) -> None:
    told = Told(page)
    with serving(folder) as (address, token):
        page.goto(f"{address}login#token={token}")
        page.wait_for_url(address)
        assert "#" not in page.url
        assert "Nothing was submitted yet" in page.inner_text("main")
        page.click("text=Stores")
        page.click("text=Start a run")
        page.fill("#name", "by-hand")
        page.fill("#l0", "4")
        page.fill("#batch", "128")
        page.fill("#rows", "600k")
        page.click("summary >> text=More, as YAML")
        page.fill("#yaml", SPEC)
        until(page, "document.querySelector('#estimate').textContent.includes('600,')")
        page.click("button[value=start]")
        page.wait_for_url("**/pages/runs/*")
        run = page.url
        until(page, f"{STATE} === 'running' && document.querySelector('.chart canvas')")
        before = rows(page)
        until(page, f"{ROWS}.textContent !== '{before}'")
        if SHOTS:
            page.screenshot(path=Path(SHOTS) / "service-training.png", full_page=True)
        page.click("text=Cancel")
        until(page, f"{STATE} === 'cancelled'")
        stopped = page.inner_text("#now .facts >> text=/of /")
        assert not (folder / "runs/by-hand/sae.json").exists()
        page.click("text=Resume")
        until(page, f"['queued', 'running'].includes({STATE})")
        page.goto(address)
        assert "by-hand" in page.inner_text(".runs")
        page.goto(run)
        until(page, f"{STATE} === 'completed'")
        assert page.inner_text("#now .facts >> text=/of /") != stopped
        assert (folder / "runs/by-hand/sae.json").exists()
        events = page.inner_text("#more .events")
        assert "cancelled" in events
        assert "completed" in events
        assert serious_violations(page) == []
        page.click(".actions >> text=Report")
        page.wait_for_selector("figure svg.figure")
        assert "1 SAE trained on" in page.inner_text("body")
        page.goto(run)
        assert "Evaluation" in page.inner_text("#more")
        page.click("summary >> text=Publish")
        page.fill(".publish input[name=name]", "ours")
        page.click(".publish button")
        until(page, "document.body.innerText.includes('catalog:ours:latest')")
        assert [text for text in told.errors if "sandbox" not in text] == []
        assert all(url.startswith(address) for url in told.fetched)
    assert "Traceback" not in (folder / "log").read_text()


STATE = "document.querySelector('#now')?.dataset.state"
ROWS = "document.querySelector('#now .facts div:nth-child(5) dd')"


def rows(page: Page) -> str:
    return str(page.evaluate(f"{ROWS}.textContent"))


def until(page: Page, expression: str) -> None:
    """Wait until an expression is true; the page's policy forbids playwright's way."""
    ends = time.monotonic() + WAIT_S
    while not page.evaluate(expression):
        assert time.monotonic() < ends, (
            f"never: {expression}: {page.inner_text('main')}"
        )
        time.sleep(0.1)
