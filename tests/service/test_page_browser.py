"""The pages in a real browser: they live, they fit a phone, keys and readers reach all."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, ViewportSize, sync_playwright

import actstore
from tests.service.page_support import PlayedService, make_stores, record, served
from tests.service.test_pages import HOSTILE
from tests.support_browser import (
    BROWSER,
    FLAGS,
    Told,
    needs_browser,
    serious_violations,
)
from tests.trainer.explorer.explored import trained
from trainer.evaluation.evaluate import evaluate
from trainer.explorer.explore import explore

pytestmark = needs_browser
# Where screenshots are kept, to be looked at: CI sets it.
SHOTS = os.environ.get("ACTSTORE_SCREENSHOTS")
WAIT_MS = 15_000


class Live(PlayedService):
    """A service with runs in every state, and one pass that is trained."""

    def __init__(self, folder: Path, stores: Path) -> None:
        super().__init__(folder, stores)
        self.done = self.add(["done-0", "done-1"])
        lease = self.start(self.done)
        self.advance(lease, 400)
        self.end(lease)
        (self.failed,) = self.add(["failed"])
        lease = self.start([self.failed])
        self.advance(lease, 40)
        self.end(lease, "failed", "the loss is no longer a number at step 47")
        self.waiting = self.add([f"waiting-{n}" for n in range(3)], user="root")
        self.hostile = self.add(HOSTILE, user=HOSTILE[0], sweep=HOSTILE[1])
        self.training = self.add(["mix/k=4", "mix/k=8"], sweep="mix")
        self.lease = self.start(self.training)
        self.advance(self.lease, 100)

    def paths(self) -> dict[str, str]:
        compared = "&".join(f"run={run}" for run in [*self.training, *self.done])
        return {
            "runs": "/",
            "run": f"/pages/runs/{self.training[0]}",
            "finished": f"/pages/runs/{self.done[0]}",
            "failed": f"/pages/runs/{self.failed}",
            "hostile": f"/pages/runs/{self.hostile[1]}",
            "compare": f"/pages/compare?{compared}&fields=all",
            "stores": "/pages/stores",
            "new": "/pages/new",
            "error": "/pages/runs/nothing",
        }


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_stores(tmp_path_factory.mktemp("stores"))


@pytest.fixture
def live(tmp_path: Path, stores: Path) -> Iterator[tuple[Live, str]]:
    played = Live(tmp_path, stores)
    with served(played.app) as address:
        yield played, address
    played.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=BROWSER, args=list(FLAGS))
        yield opened
        opened.close()


@contextmanager
def logged_in(
    browser: Browser, address: str, token: str, width: int = 1280, **options: Any
) -> Iterator[Page]:
    """A page at `/`; what goes wrong on it, and what it asks of others, fails the test."""
    size = ViewportSize(width=width, height=900)
    context = browser.new_context(viewport=size, **options)
    page = context.new_page()
    page.set_default_timeout(WAIT_MS)
    told = Told(page)
    page.goto(f"{address}/login#token={token}")
    page.wait_for_url(f"{address}/")
    yield page
    # A page that is not there, or a form that is wrong, is told of in the console too.
    expected = ("status of 404", "status of 422")
    unexpected = [
        text for text in told.errors if not any(one in text for one in expected)
    ]
    assert unexpected == []
    assert all(url.startswith((address, "data:", "blob:")) for url in told.fetched)
    assert not any("token=" in url for url in told.fetched[1:])
    context.close()


def until(page: Page, expression: str) -> None:
    """Wait until an expression is true; the page's policy forbids playwright's way."""
    ends = time.monotonic() + WAIT_MS / 1000
    while not page.evaluate(expression):
        assert time.monotonic() < ends, f"never: {expression}"
        time.sleep(0.05)


def test_readers_reach_all_and_a_phone_needs_no_sideways_scrolling(
    browser: Browser, live: tuple[Live, str]
) -> None:
    played, address = live
    token = played.tokens["ada"]
    with logged_in(browser, address, token, reduced_motion="reduce") as page:
        for name, path in played.paths().items():
            page.goto(address + path)
            check_page(page, name)
        page.goto(address)
        page.click("text=Log out")
        page.wait_for_url(f"{address}/login")
        check_page(page, "login")


def check_page(page: Page, name: str) -> None:
    """Check what a page is to readers, light and dark, and on a phone."""
    assert page.evaluate("window.hacked") is None
    for width in (1280, 375):
        page.set_viewport_size(ViewportSize(width=width, height=900))
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            if width == 1280:
                assert serious_violations(page) == [], (name, scheme)
            if SHOTS:
                shot = Path(SHOTS) / f"service-{name}-{width}-{scheme}.png"
                page.screenshot(path=shot, full_page=True)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
    page.set_viewport_size(ViewportSize(width=1280, height=900))


def test_a_run_lives_by_events_and_the_list_by_asking(
    browser: Browser, live: tuple[Live, str]
) -> None:
    played, address = live
    run = played.training[0]
    with logged_in(browser, address, played.tokens["ada"]) as page:
        until(page, "document.querySelectorAll('#training canvas').length === 3")
        box = page.locator(f"#run-{run} input")
        box.check()
        page.focus("input[name=text]")
        page.keyboard.type("mi")
        played.advance(played.lease, 200)
        until(page, f"document.querySelector('#run-{run} progress').value === 0.5")
        # What was ticked, typed and focused stays as it was.
        assert box.is_checked()
        assert page.input_value("input[name=text]") == "mi"
        assert page.evaluate("document.activeElement.name") == "text"
        page.goto(f"{address}/pages/runs/{run}")
        until(page, "document.querySelectorAll('.chart canvas').length === 5")
        played.advance(played.lease, 300)
        until(
            page,
            "document.querySelector('#now .facts').textContent.includes('300 of 400')",
        )
        label = "document.querySelector('.chart').getAttribute('aria-label')"
        until(page, f"{label}.endsWith('now {record(300).fvu:.4g}')")
        page.locator("summary", has_text="Every field").click()
        played.advance(played.lease, 400)
        played.end(played.lease)
        until(page, "document.querySelector('#now').dataset.state === 'completed'")
        until(page, "document.querySelector('#told').textContent.endsWith('completed')")
        until(page, "document.querySelector('#more').textContent.includes('finished')")
        assert page.locator(".actions >> text=Report").is_visible()
        assert page.locator("details[open] >> text=log_every").count()


def test_curves_come_without_events_too(
    browser: Browser, live: tuple[Live, str]
) -> None:
    played, address = live
    with logged_in(browser, address, played.tokens["eve"]) as page:
        page.route("**/events", lambda route: route.fulfill(status=204))
        page.goto(f"{address}/pages/runs/{played.training[0]}")
        until(page, "document.querySelectorAll('.chart canvas').length === 5")
        before = page.get_attribute(".chart", "aria-label")
        played.advance(played.lease, 150)
        until(
            page,
            f"document.querySelector('.chart').getAttribute('aria-label') !== '{before}'",
        )


def test_keys_alone_filter_choose_and_compare(
    browser: Browser, live: tuple[Live, str]
) -> None:
    played, address = live
    with logged_in(browser, address, played.tokens["ada"]) as page:
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline == "solid"
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.id") == "main"
        page.focus("input[name=text]")
        page.keyboard.type("done")
        page.keyboard.press("Enter")
        page.wait_for_url("**/?text=done*")
        for run in played.done:
            page.focus(f"#run-{run} input")
            page.keyboard.press("Space")
        # Chosen ones stay chosen on another page of the list.
        page.goto(f"{address}/?text=mix")
        assert page.inner_text("#picked") == "2 selected"
        page.focus(f"#run-{played.training[0]} input")
        page.keyboard.press("Space")
        page.focus("#compare")
        page.keyboard.press("Enter")
        page.wait_for_url("**/pages/compare*")
        assert page.inner_text("h1") == "3 runs compared"
        figure = page.locator("svg.figure[data-name='runs-fvu_l0']")
        assert figure.locator(".series").count() == 3
        figure.focus()
        page.keyboard.press("ArrowRight")
        assert "FVU: " in page.inner_text("#tip")
        page.click("text=Every field")
        assert page.locator("tr:not(.differs)").count() > 20


def test_the_form_estimates_while_it_is_filled_in(
    browser: Browser, live: tuple[Live, str]
) -> None:
    played, address = live
    with logged_in(browser, address, played.tokens["ada"]) as page:
        page.goto(f"{address}/pages/stores")
        until(page, "document.querySelector('img.norms').naturalWidth > 0")
        page.click("text=Start a run")
        until(
            page,
            "document.querySelector('#estimate').textContent.includes('Passes over the data')",
        )
        page.fill("#l0", "many")
        until(
            page,
            "document.querySelector('#estimate').textContent.includes('sae.k: wanted')",
        )
        page.click("button[value=start]")
        assert page.evaluate("document.activeElement.id") == "wrong"
        assert page.input_value("#l0") == "many"
        page.click("#wrong a")
        assert page.evaluate("document.activeElement.id") == "l0"
        page.fill("#l0", "4")
        page.fill("#name", "filled-in")
        page.click("button[value=start]")
        page.wait_for_url("**/pages/runs/*")
        assert "filled-in" in page.inner_text("h1")


def test_pages_are_whole_without_a_script(
    browser: Browser, live: tuple[Live, str]
) -> None:
    played, address = live
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.set_default_timeout(WAIT_MS)
    page.goto(address)
    page.fill("#token", played.tokens["ada"])
    page.click("button")
    page.locator("input[name=run]").nth(0).check()
    page.locator("input[name=run]").nth(1).check()
    page.click("#compare")
    assert page.inner_text("h1") == "2 runs compared"
    page.goto(f"{address}/pages/new")
    page.fill("#name", "without")
    page.click("button[value=estimate]")
    assert "Passes over the data" in page.inner_text("#estimate")
    page.click("button[value=start]")
    assert "without" in page.inner_text("h1")
    page.click(".actions >> text=Cancel")
    assert "cancelled" in page.inner_text("h1")
    page.click(".actions >> text=Resume")
    assert "queued" in page.inner_text("h1")
    context.close()


def test_a_thousand_runs_are_no_burden(
    browser: Browser, live: tuple[Live, str]
) -> None:
    played, address = live
    played.add([f"many-{n}" for n in range(1000)])
    with logged_in(browser, address, played.tokens["ada"]) as page:
        # However many there are, the page has some hundred cells.
        assert page.locator(".runs tbody tr").count() == 50
        assert page.evaluate("document.querySelectorAll('*').length") < 2500
        page.click("text=Older")
        page.wait_for_url("**after=*")
        assert "51–100 of" in page.inner_text(".pages")


def test_a_finished_run_has_its_figures_and_its_explorer(
    browser: Browser, live: tuple[Live, str], stores: Path
) -> None:
    played, address = live
    (run,) = played.add(["explored"])
    url = played.service.run(run).url
    store = actstore.open(str(stores / "tiny"))
    sae = {"kind": "topk", "k": 4, "n_latents": 64}
    trained(store, Path(url), sae)
    evaluate(url)
    explore(url, logits=False)
    played.end(played.start([run], "cpu-1"))
    with logged_in(browser, address, played.tokens["eve"]) as page:
        page.goto(f"{address}/pages/runs/{run}")
        assert "held-out rows" in page.inner_text("#more")
        assert "Training began" in page.inner_text("#more")
        assert page.locator("#more svg.figure").count() == 1
        page.click(".actions >> text=Explorer")
        page.wait_for_selector("body[data-ready]")
        page.locator("#sizer .row").first.click()
        page.wait_for_selector("#view h2")
        page.goto(f"{address}/pages/compare?run={run}&run={played.training[0]}")
        assert "(training rows)" in page.inner_text("#legend")
        assert "held out" in page.inner_text("main")
