"""The report in a real browser: it draws, answers, sorts, and asks nobody."""

from __future__ import annotations

import csv
import json
import os
import re
from pathlib import Path

import pytest

from schemas.train import SweepSpec
from tests.support import make_store
from tests.support_browser import needs_browser, opened, serious_violations
from trainer.analysis.densities import compute_densities
from trainer.analysis.evidence import write_evidence
from trainer.reports.report import report as write_report
from trainer.runs.run_data import read_run
from trainer.training.sweep import expand
from trainer.training.train_group import train_group

# Where screenshots are kept, to be looked at: CI sets it.
SHOTS = os.environ.get("ACTSTORE_SCREENSHOTS")
HOSTILE = "A <report> & its </script><script>alert(1)</script> title"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page about nine runs, with a table of another analysis."""
    folder = tmp_path_factory.mktemp("report")
    store = make_store(folder / "store", n_units=40, unit_sequences=4)
    base = {
        "store": store.url,
        "sae": {"kind": "topk", "expansion": 4},
        "stream": {"batch": 128},
        "rows": 128 * 40,
        "log_every": 5,
    }
    grid = {"stream.rescale": ["none", "log", "sqrt"], "sae.k": [1, 2, 3]}
    sweep = SweepSpec(base=base, grid=grid)
    runs = train_group(
        store, {str(folder / name): spec for name, spec in expand(sweep).items()}
    )
    write_report(runs[:1], str(folder / "first.html"), latents=0)
    densities = compute_densities([read_run(runs[0])])
    write_evidence(densities, str(folder / "evidence"))
    write_report(
        runs,
        str(folder / "report.html"),
        latents=4,
        title=HOSTILE,
        text="In short.\n\n<b>",
        evidence=str(folder / "evidence"),
    )
    return folder / "report.html"


def test_the_page_says_what_it_should(report: Path) -> None:
    text = report.read_text()
    assert "A &lt;report&gt; &amp; its &lt;/script&gt;" in text
    assert "<p>&lt;b&gt;</p>" in text
    body = re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
    assert not re.findall(r"(?:src|href)=['\"]?(?:https?:)?//", body)
    headings = re.findall(r"<h2>(.*?)</h2>", body)
    assert headings[:4] == [
        "Norm by layer",
        "Runs",
        "FVU against L0",
        "Metrics by layer",
    ]
    assert "9 SAEs trained on 3 sites of" in body
    assert 1 <= body.count("<article ") <= 4
    assert len(text) < 1_000_000
    # Every link leads to the one part of that name.
    ids = re.findall(r'\sid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    links = re.findall(r'href="#([^"]+)"', body)
    assert len(links) >= 9
    assert set(links) <= set(ids)


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_it_is_whole_at_every_width(report: Path, width: int, scheme: str) -> None:
    with opened(report, width, color_scheme=scheme) as (page, told):
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.locator("figure svg.figure").count() >= 14
        for svg in page.locator("figure svg.figure").all():
            box = svg.bounding_box()
            assert box
            assert box["width"] <= width
            assert box["height"] > 100
        assert serious_violations(page) == []
        assert told.errors == []
        assert told.fetched == [report.as_uri()]
        if SHOTS:
            shot = Path(SHOTS) / f"report-{width}-{scheme}.png"
            page.screenshot(path=shot, full_page=True)


@needs_browser
def test_the_pointer_shows_values_and_a_drag_zooms(report: Path) -> None:
    with opened(report) as (page, told):
        figure = page.locator("svg.figure[data-name='runs-fvu_l0']")
        figure.scroll_into_view_if_needed()
        large = figure.locator(".series[data-layer='']").or_(
            figure.locator(".series:not([data-layer])")
        )
        large = large.first
        l0, fvu = large.get_attribute("data-x"), large.get_attribute("data-y")
        place = large.locator("path").evaluate("path => path.getBoundingClientRect()")
        page.mouse.move(
            place["x"] + place["width"] / 2, place["y"] + place["height"] / 2
        )
        tip = page.inner_text("#tip")
        assert f"L0 (latents a row): {float(str(l0)):.4g}" in tip
        assert f"FVU: {float(str(fvu)):.4g}" in tip
        before = figure.locator(".x.tick").all_inner_texts()
        field = figure.locator(".field").bounding_box()
        assert field
        x, y = field["x"] + field["width"] / 4, field["y"] + field["height"] / 4
        page.mouse.move(x, y)
        page.mouse.down()
        page.mouse.move(x + field["width"] / 3, y + field["height"] / 3, steps=4)
        page.mouse.up()
        zoomed = figure.locator(".x.tick").all_inner_texts()
        assert zoomed != before
        page.mouse.dblclick(x, y)
        assert figure.locator(".x.tick").all_inner_texts() != zoomed
        assert told.errors == []


@needs_browser
def test_the_keyboard_walks_through_the_points(report: Path) -> None:
    with opened(report) as (page, _):
        figure = page.locator("svg.figure[data-name='norms-by_layer']")
        figure.focus()
        page.keyboard.press("ArrowRight")
        first = page.inner_text("#tip")
        page.keyboard.press("ArrowRight")
        assert page.inner_text("#tip") != first
        page.keyboard.press("Escape")
        assert not page.locator("#tip").is_visible()


@needs_browser
def test_one_legend_colours_and_hides_runs_in_all_figures(report: Path) -> None:
    with opened(report) as (page, _):
        legend = page.locator("#legend")
        legend.locator("select").first.select_option("rescale")
        names = legend.locator("button.entry").all_inner_texts()
        assert names == ["none", "log", "sqrt"]
        shown = "svg.figure[data-name='runs-fvu_over_training'] .series:not(.gone)"
        colours = page.locator(shown).evaluate_all(
            "all => all.map(one => one.getAttribute('class'))"
        )
        assert len(colours) == 9
        assert len(set(colours)) == 3
        legend.locator("button.entry").nth(1).click()
        assert page.locator(shown).count() == 6
        scatter = "svg.figure[data-name='runs-fvu_l0'] .series:not(.gone)"
        assert page.locator(scatter).count() == 6 * 4
        legend.locator("select").nth(1).select_option("2 mlp_out")
        assert page.locator(scatter).count() == 6 * 2
        assert page.locator(shown).count() == 6


@needs_browser
def test_tables_sort_and_data_opens(report: Path) -> None:
    with opened(report) as (page, told):
        table = page.locator("#runs table.sortable").first
        page.locator("#runs table.sortable th button", has_text="FVU").first.click()
        column = page.locator("#runs table.sortable tbody tr td:nth-child(5)")
        values = [float(text) for text in column.all_inner_texts()]
        assert values == sorted(values)
        page.locator("#runs table.sortable th button", has_text="FVU").first.click()
        falling = [float(text) for text in column.all_inner_texts()]
        assert falling == sorted(values, reverse=True)
        assert table.locator("td.best").count() >= 2
        # `dead` is among what is seen without scrolling.
        dead = page.locator("#runs table.sortable th", has_text="dead").bounding_box()
        assert dead
        assert dead["x"] + dead["width"] <= 1280
        first = page.locator("#runs table.sortable tbody td:first-child")
        names = set(first.all_inner_texts())
        details = page.locator("#fronts details.data")
        details.locator("summary").click()
        details.locator("tbody tr").first.wait_for()
        assert details.locator("tbody tr").count() == 9 * 4
        with page.expect_download() as download:
            page.locator("#fronts button.csv").first.click()
        lines = Path(download.value.path()).read_text().splitlines()
        assert len(lines) == 1 + 9 * 4
        # Text is whole again, and each row its own run's.
        rows = list(csv.DictReader(lines))
        assert {row["run"] for row in rows} == names
        assert {row["kind"] for row in rows} == {"topk"}
        assert len({(row["run"], row["site"]) for row in rows}) == 9 * 4
        with page.expect_download() as download:
            page.locator("#fronts button.svg").first.click()
        svg = Path(download.value.path()).read_text()
        assert svg.startswith("<svg")
        assert "--c0" in svg
        assert told.errors == []


def test_data_in_the_page_cannot_end_its_element(report: Path) -> None:
    text = report.read_text()
    for block in re.findall(
        r'<script type="application/json"[^>]*>(.*?)</script>', text, re.DOTALL
    ):
        json.loads(block)
    assert text.count("<script") == text.count("</script>")
