"""The report in a real browser: every figure drawn, no error, nothing fetched, nothing
wider than the screen.
"""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from schemas.train import SweepSpec
from tests.support import make_store
from trainer.reports.report import report as write_report
from trainer.training.sweep import expand
from trainer.training.train_group import train_group

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--virtual-time-budget=9000",
]
PROBE = """<script>
const errors = [];
window.addEventListener('error', e => errors.push(String(e.message)));
setTimeout(() => {
  const frame = document.documentElement;
  const found = {width: frame.scrollWidth, screen: window.innerWidth, errors: errors,
    figures: document.querySelectorAll('.figure').length, drawn: document.querySelectorAll('.figure .main-svg').length,
    fetched: performance.getEntriesByType('resource').map(e => e.name)};
  const target = window.parent === window ? document.body : window.parent.document.body;
  target.setAttribute('data-probe', JSON.stringify(found));
}, 5000);
</script>"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    store = make_store(folder / "store", n_units=40, unit_sequences=4)
    base = {
        "store": store.url,
        "sae": {"kind": "topk", "k": 3, "expansion": 4},
        "stream": {"batch": 128},
        "rows": 128 * 40,
        "log_every": 5,
    }
    sweep = SweepSpec(base=base, grid={"stream.rescale": ["none", "log"]})
    runs = train_group(
        store, {str(folder / name): spec for name, spec in expand(sweep).items()}
    )
    write_report(
        runs, str(folder / "report.html"), latents=4, title="A <report> & its title"
    )
    return folder / "report.html"


def test_the_page_says_what_it_should(report: Path) -> None:
    text = report.read_text()
    assert "A &lt;report&gt; &amp; its title" in text
    body = re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
    assert not re.findall(r"(?:src|href)=['\"]?(?:https?:)?//", body)
    for heading in (
        "Norm by layer",
        "FVU against L0",
        "L1 by layer",
        "MSE by layer",
        "Density",
        "Training",
        "Cross-layer",
    ):
        assert heading in body
    assert 1 <= body.count("<article>") <= 4
    assert "<mark>" in body


@pytest.mark.skipif(
    BROWSER is None, reason="needs Debian's chromium: apt-get install chromium"
)
@pytest.mark.parametrize("width", [390, 1280])
def test_in_a_browser(report: Path, tmp_path: Path, width: int) -> None:
    page = tmp_path / "page.html"
    page.write_text(report.read_text().replace("<head>", "<head>" + PROBE, 1))
    # a phone's width: headless windows are never so narrow
    frame = tmp_path / "frame.html"
    frame.write_text(
        f"<body style='margin:0'><iframe src='page.html' width='{width}' height='900' style='border:0'></iframe>"
    )
    more = [
        "--allow-file-access-from-files",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--window-size=1400,1000",
    ]
    done = subprocess.run(
        [str(BROWSER), *FLAGS, *more, "--dump-dom", frame.as_uri()],
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
    )
    found = re.search(r'data-probe="([^"]*)"', done.stdout)
    assert found, done.stdout[:2000] + done.stderr[-2000:]
    probe = json.loads(html.unescape(found.group(1)))
    assert probe["errors"] == []
    assert probe["figures"] >= 8
    assert probe["drawn"] >= probe["figures"]
    assert probe["fetched"] == []
    assert probe["screen"] == width
    assert probe["width"] <= width
