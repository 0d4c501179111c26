"""Parts of the page that need no browser."""

from __future__ import annotations

import pytest

from actstore.format.storage import Storage
from schemas.train import TrainSpec
from tests.support import make_store
from trainer.errors import RunError
from trainer.reports.report import _folder_and_name, report
from trainer.reports.tables import Cell, _table
from trainer.training.train_group import train_group


def test_cells_are_escaped() -> None:
    cell = Cell("<script>&", value='"', classes="best", title="<")
    text = str(_table(["<a>"], [[cell]]))
    expected = (
        '<td class="best" data-value="&#34;" title="&lt;">&lt;script&gt;&amp;</td>'
    )
    assert expected in text
    assert "&lt;a&gt;" in text


@pytest.mark.parametrize(
    ("url", "folder", "name"),
    [
        ("page.html", ".", "page.html"),
        ("/page.html", "/", "page.html"),
        ("a/b/page.html", "a/b", "page.html"),
        ("memory://a/page.html", "memory://a", "page.html"),
        ("s3://bucket/a/page.html", "s3://bucket/a", "page.html"),
        ("file:///tmp/page.html", "file:///tmp", "page.html"),
    ],
)
def test_where_the_page_goes(url: str, folder: str, name: str) -> None:
    assert _folder_and_name(url) == (folder, name)


@pytest.mark.parametrize(
    "url", ["folder/", "memory://page.html", "s3://bucket/", "file:///page.html"]
)
def test_a_page_without_a_place_is_refused(url: str) -> None:
    with pytest.raises(RunError, match="wanted a file"):
        report("nowhere", url)


def test_a_report_of_one_run_on_memory(memory_url: str) -> None:
    store = make_store(f"{memory_url}/store", n_units=24, unit_sequences=4)
    spec = TrainSpec.model_validate(
        {
            "store": store.url,
            "sae": {"kind": "topk", "k": 3, "expansion": 2},
            "stream": {"batch": 128},
            "rows": 128 * 10,
        }
    )
    train_group(store, {f"{memory_url}/run": spec})
    report(
        [f"{memory_url}/run"], f"{memory_url}/report.html", latents=2, title="One run"
    )
    text = Storage(memory_url).read("report.html").decode()
    assert store.manifest.content_id in text
    assert "latent-card" in text
    # What was not done is told, with how to do it.
    assert "trainer eval RUN --ce" in text
    assert "1 SAE trained on 3 sites" in text
