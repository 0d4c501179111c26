"""A service whose runs, stores and catalog lie in a real object store; and that no
secret of it is found in anything that it writes or answers.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest

from actstore.format.storage import Storage
from tests.service.served import SAE
from tests.service.test_serve_command import COMMAND, Running, running, wait_until
from tests.support import make_store
from trainer.explorer.explore import explore
from trainer.runs.trained_sae import load

pytestmark = [pytest.mark.real_s3, pytest.mark.timeout(300)]


def test_runs_and_stores_in_an_object_store(
    real_s3_server: dict[str, str],
    real_s3_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state-home"))
    store = make_store(f"{real_s3_url}/stores/small", n_units=40)
    places = ["--stores", f"{real_s3_url}/stores", "--catalog", f"{real_s3_url}/cat"]
    runs = f"{real_s3_url}/runs"
    answers: list[str] = []
    with running(tmp_path, *places, runs=runs) as service, service.client() as client:
        client.event_hooks["response"].append(lambda answer: _note(answer, answers))
        spec = {"store": store.url, "sae": SAE, "rows": 50_000, "checkpoint_every": 100}
        spec["stream"] = {"epochs": None, "batch": 64}
        long = {**spec, "rows": "50M"}
        run = _submitted(client, long, "long")
        _wait_for(client, run, "progress")
        assert _told(client, run, "journal")
        client.post(f"/runs/{run}/cancel")
        wait_until(lambda: _told(client, run)["state"] == "cancelled")
        keys = [one["key"] for one in _told(client, run, "artifacts")]
        assert any(key.startswith("checkpoints/") for key in keys)
        # what is there in another service's runs is not written over
        Storage(f"{runs}/theirs").put("spec.json", b"{}")
        taken = client.post("/runs", json={"spec": spec, "name": "theirs"})
        assert taken.status_code == 409

        run = _submitted(client, spec, "first")
        events = client.get(f"/runs/{run}/events").text
        assert "event: completed" in events, events
        weights = client.get(f"/runs/{run}/artifacts/sae.safetensors").content
        assert weights == Storage(f"{runs}/first").read("sae.safetensors")
        report = client.get(f"/runs/{run}/report", timeout=120)
        assert report.status_code == 200, report.text
        assert _told(client, run, "evaluation")["rows"] > 0
        published = client.post(f"/runs/{run}/publish", json={"name": "ours"})
        assert published.json()["published"] == "catalog:ours:latest"
        monkeypatch.setenv("ACTSTORE_CATALOG", f"{real_s3_url}/cat")
        assert load("catalog:ours").n_latents == 32
        assert [one["url"] for one in client.get("/stores").json()] == [store.url]
        _check_pages(service, client, f"{runs}/first", run)
        # a store that goes between a submission and its pass
        first = _submitted(client, long, "before")
        gone = _submitted(client, {**spec, "seed": 3, "stream": {"seed": 9}}, "gone")
        _wait_for(client, first, "progress")
        for key in Storage(store.url).list():
            Storage(store.url).delete(key)
        client.post(f"/runs/{first}/cancel")
        wait_until(lambda: _told(client, gone)["state"] == "failed")
        assert "small" in _told(client, gone)["error"]
        assert client.get("/ready").status_code == 200
        assert service.token is not None
        secrets = [service.token.rpartition("_")[2]]
    secrets.append(real_s3_server["AWS_SECRET_ACCESS_KEY"])
    _check_secrets(secrets, answers, tmp_path, runs)


def _submitted(client: httpx.Client, spec: Any, name: str) -> str:
    answer = client.post("/runs", json={"spec": spec, "name": name})
    assert answer.status_code == 201, answer.text
    return str(answer.json()[0]["id"])


def _told(client: httpx.Client, run: str, what: str = "") -> Any:
    return client.get(f"/runs/{run}/{what}".rstrip("/")).json()


def _wait_for(client: httpx.Client, run: str, what: str) -> None:
    wait_until(lambda: _told(client, run)[what] is not None)


def _note(answer: httpx.Response, answers: list[str]) -> None:
    answer.read()
    answers.append(f"{answer.headers}\n{answer.text}")


def _check_pages(service: Running, client: httpx.Client, url: str, run: str) -> None:
    """The run's page, its curves and its explorer, which is made elsewhere."""
    assert service.token is not None
    begun = client.post("/session", json={"token": service.token})
    assert begun.status_code == 201
    page = client.get(f"/pages/runs/{run}")
    assert "Explorer</a>" not in page.text
    assert f"trainer explore {url} --no-open" in page.text
    assert explore(url, logits=False) == f"{url}/explorer"
    page = client.get(f"/pages/runs/{run}")
    assert "Explorer</a>" in page.text
    explorer = client.get(f"/pages/runs/{run}/explorer/")
    assert explorer.status_code == 200
    assert client.get(f"/pages/runs/{run}/explorer/index").content
    assert client.get(f"/pages/runs/{run}/explorer/chunk/0").content
    (curves,) = client.get(f"/pages/curves?run={run}").json()
    assert curves


def _check_secrets(
    secrets: list[str], answers: list[str], folder: Path, runs: str
) -> None:
    """Nothing that was written here or there, or answered, has a secret in it."""
    written = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert any(path.name == "service.sqlite" for path in written)
    assert any(path.suffix == ".log" for path in written)
    there = {key: Storage(runs).read(key) for key in Storage(runs).list()}
    for secret in secrets:
        assert len(secret) >= 8
        for where, data in [*written.items(), *there.items()]:
            assert secret.encode() not in data, where
        for answer in answers:
            assert secret not in answer


def test_a_storage_that_cannot_be_reached_is_told(
    real_s3_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wrong credentials: a sentence, and neither a traceback nor the key."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state-home"))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted-and-wrong")
    words = ["--stores", real_s3_url]
    with (
        running(tmp_path, *words, runs=f"{real_s3_url}/runs") as service,
        service.client() as client,
    ):
        ready = client.get("/ready")
        assert ready.status_code == 503
        spec = {"store": f"{real_s3_url}/small", "sae": SAE}
        refused = client.post("/runs", json={"spec": spec, "name": "x"})
        assert refused.status_code in {422, 503}
        assert client.get("/stores").json() == []
        assert "planted" not in ready.text + refused.text
    log = (tmp_path / "log").read_text()
    assert "not ready" in log
    assert "planted" not in log
    assert "Traceback" not in log
    made = subprocess.run(
        [*COMMAND, "token", "ls", "--runs", f"{real_s3_url}/runs"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0
