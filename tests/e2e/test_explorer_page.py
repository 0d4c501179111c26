"""The explorer in a real browser: what is shown, hostile text, no network, a phone."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.trainer.explorer.explored import small_store, trained
from trainer.explorer.explore import explore
from trainer.explorer.page_file import page_file
from trainer.explorer.read_explorer import Explorer
from trainer.explorer.serve import ExplorerServer

playwright = pytest.importorskip("playwright.sync_api")
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(
    BROWSER is None, reason="needs Debian's chromium: apt-get install chromium"
)
# Where screenshots are kept, to be looked at: CI sets it.
SHOTS = os.environ.get("ACTSTORE_SCREENSHOTS")
HOSTILE = [
    "<script>window.hacked = 1</script>",
    "</script><img src=x onerror='window.hacked=1'>",
    "\u202eevil\u202c \u05d0\u05d1",
    "nul\0here",
    "x" * 10_000,
    "{{ 7 * 7 }}",
]
PLANTED = "needleinhay"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    store = small_store(folder / "store")
    sae = {"kind": "topk", "k": 4, "n_latents": 300}
    trained(store, folder / "run", sae, stream={"rescale": "log"})
    trained(store, folder / "other", {**sae, "n_latents": 64}, seed=1)
    files = explore(folder / "run", beside=[folder / "other"], logits=False)
    table = pq.read_table(f"{files}/tokens.parquet")
    texts = [HOSTILE[i] if i < len(HOSTILE) else f" word{i}" for i in range(len(table))]
    texts[-1] = PLANTED
    table = table.set_column(1, "text", pa.array(texts))
    pq.write_table(table, f"{files}/tokens.parquet")
    page_file(Explorer(files), folder / "page.html")
    return folder / "page.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield opened
        opened.close()


class Tab:
    """A page in the browser, with what it asked for and what went wrong."""

    def __init__(
        self, browser: Any, url: str, width: int = 1280, **options: Any
    ) -> None:
        self.errors: list[str] = []
        self.requests: list[str] = []
        size = {"width": width, "height": 844}
        self.tab = browser.new_page(viewport=size, **options)
        self.tab.on("pageerror", lambda error: self.errors.append(str(error)))
        self.tab.on("console", lambda said: self.errors.append(said.text))
        self.tab.on("request", lambda request: self.requests.append(request.url))
        self.tab.goto(url)
        self.tab.wait_for_selector("body[data-ready]", timeout=20_000)

    def shown(self) -> str:
        self.tab.wait_for_selector("#view h2")
        return str(self.tab.text_content("#view h2"))

    def wait(self, expression: str) -> None:
        """Wait until an expression is true; the page's policy forbids playwright's way."""
        ends = time.monotonic() + 15
        while not self.tab.evaluate(expression):
            assert time.monotonic() < ends, f"never: {expression}"
            time.sleep(0.02)

    def close(self) -> None:
        requests = self.requests[1:]
        ours = ("data:", "blob:", "http://127.0.0.1:")
        assert all(url.startswith(ours) for url in requests), requests
        assert self.errors == []
        self.tab.close()


@pytest.fixture
def tab(browser: Any, page: Path) -> Iterator[Tab]:
    opened = Tab(browser, page.as_uri() + "#all/7")
    yield opened
    opened.close()


def test_a_permalink_opens_its_latent_and_keys_go_on(tab: Tab) -> None:
    assert tab.shown() == "Latent 7"
    for key, latent in (("j", 8), ("j", 9), ("k", 8)):
        tab.tab.keyboard.press(key)
        tab.wait(
            f"document.querySelector('#view h2').textContent === 'Latent {latent}'"
        )
        assert tab.tab.url.endswith(f"#all/{latent}")
    tab.tab.keyboard.press("r")
    tab.wait("!location.hash.endsWith('/8')")
    tab.tab.keyboard.press("?")
    assert tab.tab.is_visible("#help")
    tab.tab.keyboard.press("Escape")
    tab.tab.keyboard.press("/")
    assert tab.tab.evaluate("document.activeElement.id") == "search"
    latent = tab.tab.evaluate(
        "chunk(0).then((c) => c.latents.find((one) => one.contexts.layer.includes(1)).latent)"
    )
    tab.tab.evaluate(f"location.hash = '#1-mlp_out/{latent}'")
    tab.wait("document.querySelector('#layer').value === '1'")
    tab.wait(f"document.querySelector('#view h2')?.textContent === 'Latent {latent}'")
    tab.wait(
        "[...document.querySelectorAll('.where')].every((one) => one.textContent.startsWith('1 '))"
    )
    where = tab.tab.locator(".context .where").all_text_contents()
    assert where
    assert all(text.startswith("1 mlp_out") for text in where)
    assert tab.tab.input_value("#layer") == "1"
    tab.tab.evaluate("location.hash = '#all/300'")
    tab.tab.wait_for_selector("#view [role=alert]")


def test_the_list_sorts(tab: Tab) -> None:
    def densities() -> list[float]:
        cells = tab.tab.locator("#sizer .row > :nth-child(3)").all_text_contents()
        return [float(cell) for cell in cells]

    tab.tab.get_by_role("button", name="density").click()
    assert densities() == sorted(densities(), reverse=True)
    tab.tab.get_by_role("button", name="density").click()
    assert densities() == sorted(densities())
    tab.tab.select_option("#sort", "max_cosine")
    tab.tab.keyboard.press("k")
    # Only what can be seen is in the page.
    assert tab.tab.locator("#sizer .row").count() < 60


def test_search_finds_a_latent_by_number_token_and_context(
    tab: Tab, page: Path
) -> None:
    tab.tab.fill("#search", PLANTED.upper())
    tab.wait("document.querySelector('#scan').hidden")
    tab.wait("!document.querySelector('#count').textContent.startsWith('300')")
    tab.tab.wait_for_selector("#sizer .row")
    found = tab.tab.evaluate("list.order")
    files = Explorer(page.parent / "run/explorer")
    planted = next(token for token, text in files.texts.items() if text == PLANTED)
    wanted = set()
    for group in range(files.n_groups):
        contexts = files.contexts(group)
        has = (contexts["tokens"] == planted).any(axis=1)
        wanted |= set(contexts["latent"][has].tolist())
    tab.wait(f"list.order.length === {len(wanted)}")
    found = tab.tab.evaluate("list.order")
    assert set(found) == wanted
    tab.tab.fill("#search", "123")
    tab.wait("list.order.length === 1 && list.order[0] === 123")


def test_hostile_text_is_text(tab: Tab) -> None:
    for text in HOSTILE:
        assert tab.tab.evaluate("window.hacked") is None
        shown = tab.tab.evaluate("(text) => visible(text)", text)
        assert len(shown) < 300
        assert not set(shown) & {"\0", "\u202e"}
    tab.tab.evaluate("(text) => search(text)", HOSTILE[0])
    tab.wait("list.order.length > 0 && document.querySelector('#scan').hidden")
    tab.tab.evaluate("go(list.order[0])")
    tab.wait("document.querySelectorAll('#view .text span').length > 5")
    texts = tab.tab.locator("#view .text span").all_text_contents()
    assert HOSTILE[0] in texts
    assert tab.tab.locator("#view script, #view img").count() == 0


def test_bookmarks_are_kept_and_exported(tab: Tab) -> None:
    assert tab.shown() == "Latent 7"
    tab.tab.keyboard.press("b")
    tab.tab.click("#show-lists")
    assert tab.tab.locator("#list-items a").all_text_contents()[0].startswith("7 ")
    with tab.tab.expect_download() as download:
        tab.tab.click("#export-lists")
    assert '"bookmarks"' in Path(download.value.path()).read_text()
    tab.tab.set_input_files(
        "#import-lists",
        {
            "name": "a.json",
            "mimeType": "application/json",
            "buffer": b'{"mine": [3, 999, "x"]}',
        },
    )
    tab.wait("document.querySelectorAll('#list-name option').length === 2")
    assert tab.tab.evaluate("marks.lists.mine") == [3]
    with tab.tab.expect_download() as download:
        tab.tab.get_by_role("button", name="JSON").click()
    assert '"latent": 7' in Path(download.value.path()).read_text()


def test_light_and_dark(browser: Any, page: Path) -> None:
    paper = "getComputedStyle(document.body).backgroundColor"
    tab = Tab(browser, page.as_uri(), color_scheme="dark")
    assert tab.tab.evaluate(paper) == "rgb(22, 24, 27)"
    tab.tab.click("#theme")
    assert tab.tab.evaluate(paper) == "rgb(255, 255, 255)"
    tab.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_accessible_and_no_wider_than_the_screen(
    browser: Any, page: Path, width: int, scheme: str
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    # The tests' own script is no part of the page.
    tab = Tab(
        browser, page.as_uri() + "#all/7", width, color_scheme=scheme, bypass_csp=True
    )
    assert tab.shown() == "Latent 7"
    assert tab.tab.evaluate("document.documentElement.scrollWidth") <= width
    violations = axe.Axe().run(tab.tab).response["violations"]
    bad = [one for one in violations if one["impact"] in {"serious", "critical"}]
    assert not bad, [(one["id"], one["nodes"][0]["html"][:200]) for one in bad]
    if SHOTS:
        tab.tab.screenshot(path=Path(SHOTS) / f"explorer-{width}-{scheme}.png")
    tab.close()


def test_served_it_is_the_same(browser: Any, page: Path) -> None:
    server = ExplorerServer(Explorer(page.parent / "run/explorer"))
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        tab = Tab(browser, server.url + "#all/290")
        assert tab.shown() == "Latent 290"
        assert any(url.endswith("/chunk/1") for url in tab.requests)
        tab.close()
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.slow
def test_with_20_000_latents_it_opens_within_a_second(
    browser: Any, tmp_path: Path
) -> None:
    """The list is there, and a latent, before the rest of the file has been read."""
    store = small_store(tmp_path / "store", unit_sequences=64)
    sae = {"kind": "topk", "k": 16, "n_latents": 20_000}
    trained(store, tmp_path / "run", sae)
    explore(tmp_path / "run", tmp_path / "page.html", logits=False)
    assert (tmp_path / "page.html").stat().st_size > 10_000_000
    taken = []
    for _ in range(3):
        tab = Tab(browser, (tmp_path / "page.html").as_uri() + "#all/19999")
        taken.append(int(tab.tab.evaluate("document.body.dataset.ready")))
        assert tab.tab.locator("#sizer .row").count() > 10
        assert tab.shown() == "Latent 19999"
        tab.close()
    assert min(taken) < 1000, taken
