"""What a browser is told not to do, and files that are handed out."""

from __future__ import annotations

import http.client
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import pytest

from schemas.service import ServiceRun
from tests.service.served import Served, served
from trainer.service.run_reports import report_environment
from trainer.service.work_pools import FRESH_S, N_SLOW


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("service")) as found:
        yield found


@pytest.fixture(scope="module")
def run(there: Served) -> ServiceRun:
    """A run whose folder has what a run's folder may have, and more."""
    run = there.submitted(name="run")
    folder = Path(run.url)
    (folder / "explorer").mkdir(parents=True)
    (folder / "page.html").write_text("<script>alert(1)</script>")
    (folder / "image.svg").write_text("<svg onload='alert(1)'/>")
    (folder / "sae.json").write_text("{}")
    (folder / "explorer" / "data.parquet").write_bytes(b"PAR1" * 1_000_000)
    (folder / 'odd"; name.json').write_text("[]")
    (folder / "empty").write_text("")
    (folder / ".hidden").write_text("hidden")
    (folder / "out").symlink_to("/etc/passwd")
    (folder / "up").symlink_to("..")
    os.mkfifo(folder / "pipe")
    (there.folder / "runs" / "secret").write_text("secret")
    return run


def test_headers_of_every_answer(there: Served, run: ServiceRun) -> None:
    with there.client("reader") as client:
        for path in (
            "/health",
            "/runs",
            "/nothing",
            f"/runs/{run.id}/artifacts/sae.json",
        ):
            headers = client.get(path).headers
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["referrer-policy"] == "no-referrer"
            assert "frame-ancestors 'none'" in headers["content-security-policy"]
            assert "unsafe" not in headers["content-security-policy"]
            assert headers["cache-control"] == "no-store"
            assert "server" not in headers
            assert "access-control-allow-origin" not in headers
        assert client.get("/docs").status_code == 404
        assert client.request("TRACE", "/health").status_code == 405
        assert client.options("/runs").status_code == 405


def test_artifacts_are_those_of_the_listing(there: Served, run: ServiceRun) -> None:
    with there.client("reader") as client:
        listed = client.get(f"/runs/{run.id}/artifacts").json()
        kinds = {one["key"]: one["content_type"] for one in listed}
        assert kinds["sae.json"] == "application/json"
        assert kinds["image.svg"] == "application/octet-stream"
        assert not {".hidden", "up/secret"} & kinds.keys()
        for key in kinds.keys() - {"out", "up", "pipe"}:
            answer = client.get(f"/runs/{run.id}/artifacts/{quote(key)}")
            assert answer.content == (Path(run.url) / key).read_bytes()
            assert answer.headers["content-type"] == kinds[key]
            assert answer.headers["content-disposition"].startswith("attachment;")
            assert "sandbox" in answer.headers["content-security-policy"]
        for key in ("out", "pipe", "up"):
            answer = client.get(f"/runs/{run.id}/artifacts/{key}")
            assert answer.status_code in {404, 422}
            assert "root:" not in answer.text


@pytest.mark.parametrize(
    "key",
    [
        "../secret", "..%2fsecret", "%2e%2e/secret", "%2e%2e%2fsecret", "..%5csecret", "up/secret",
        "./sae.json", "%2fetc%2fpasswd", "/etc/passwd", "sae.json%00", "sae.json/", "explorer", "explorer/../sae.json",
        "%00", "", "..", ".hidden", "SAE.JSON", "sae%252ejson", "\u202e", "%ff%fe", "file:%2f%2f%2fetc%2fpasswd",
    ],
)  # fmt: skip
def test_no_other_key_leads_anywhere(there: Served, run: ServiceRun, key: str) -> None:
    token = there.tokens.make("ada", "reader")
    # which sends a path as it is
    connection = http.client.HTTPConnection(there.url.removeprefix("http://"))
    path = f"/runs/{run.id}/artifacts/{quote(key, safe='/%.~')}"
    connection.request("GET", path, headers={"Authorization": f"Bearer {token}"})
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    assert answer.status in {404, 307}, text
    assert "root:" not in text


def test_a_run_of_another_id_is_none(there: Served) -> None:
    with there.client("reader") as client:
        for run_id in ("..", "%2e%2e", "run", "a' OR '1'='1", "%00", "x" * 5000):
            assert client.get(f"/runs/{run_id}/artifacts").status_code in {404, 307}


def test_an_error_of_the_service_tells_nothing(
    there: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise RuntimeError("/a/path and a secret")

    monkeypatch.setattr(there.service, "stores", broken)
    with there.client("reader") as client:
        answer = client.get("/stores")
        assert answer.status_code == 500
        assert "secret" not in answer.text
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_who_asks_for_reports_keeps_nobody_from_anything_else(
    there: Served, run: ServiceRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A report may take minutes; a reader can ask for as many as there are threads."""
    made = threading.Event()
    begun = threading.Semaphore(0)

    def report(_run: str) -> bytes:
        begun.release()
        made.wait(60)
        return b"<html>"

    monkeypatch.setattr(there.service, "report", report)
    dry = {"spec": there.spec(), "dry_run": True}
    with (
        there.client("reader") as reader,
        there.client("submitter") as submitter,
        ThreadPoolExecutor(N_SLOW) as clients,
    ):
        url = f"/runs/{run.id}/report"
        try:
            asked = [clients.submit(reader.get, url) for _ in range(N_SLOW)]
            assert all(begun.acquire(timeout=30) for _ in asked)
            assert submitter.post("/runs", json=dry).status_code == 200
            assert reader.get("/stores").status_code == 200
            assert reader.get("/ready").status_code == 200
        finally:
            made.set()
        assert {one.result().status_code for one in asked} == {200}


def test_whoever_asks_whether_it_is_ready_costs_little(
    there: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a token, too, it can be asked for again and again."""
    looked = []
    monkeypatch.setattr(there.service, "check", lambda: looked.append(1))
    with there.client("reader") as client:
        client.headers.pop("Authorization")
        began = time.monotonic()
        answers = {client.get("/ready").status_code for _ in range(40)}
        most = 2 + (time.monotonic() - began) / FRESH_S
    assert answers == {200}
    assert len(looked) <= most


def test_a_report_is_made_without_the_service_s_secrets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("ACTSTORE_TOKEN", "HF_TOKEN", "WANDB_API_KEY", "OTHER_SECRET"):
        monkeypatch.setenv(name, "hush")
    assert "hush" not in report_environment().values()
    assert "PATH" in report_environment()
