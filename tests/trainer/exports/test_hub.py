"""A push to the hub, against a hub of our own on 127.0.0.1."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import trainer
from actstore.format.storage import Storage
from tests.trainer.exchange import SITES, make_run
from trainer.errors import HubError
from trainer.exports import hub
from trainer.exports.export import export


class FakeHub(ThreadingHTTPServer):
    """Takes what a push sends; `status` above 400 refuses everything."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.status = 200
        self.created: list[dict[str, Any]] = []
        self.tokens: set[str | None] = set()
        self.files: dict[str, bytes] = {}
        self.commits: list[str] = []


class Handler(BaseHTTPRequestHandler):
    server: FakeHub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.tokens.add(self.headers.get("Authorization"))
        if self.server.status >= 400:
            return self.reply({"error": "no, thank you"}, self.server.status)
        if self.path == "/api/repos/create":
            self.server.created.append(json.loads(body))
            return self.reply(
                {"url": f"{self.server.url}/me/sae", "name": "me/sae", "id": "1"}
            )
        if self.path == "/api/validate-yaml":  # of a README.md at the root
            return self.reply({"errors": [], "warnings": []})
        if "/preupload/" in self.path:
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                for f in json.loads(body)["files"]
            ]
            return self.reply({"files": files})
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                self.server.files[line["value"]["path"]] = base64.b64decode(
                    line["value"]["content"]
                )
        self.server.commits.append(self.path)
        return self.reply(
            {
                "success": True,
                "commitOid": "abc",
                "commitUrl": f"{self.server.url}/me/sae/commit/abc",
                "hookOutput": "",
            }
        )

    def reply(self, what: dict[str, Any], status: int = 200) -> None:
        data = json.dumps(what).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def fake_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    server = FakeHub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_an_export_is_one_commit(fake_hub: FakeHub, tmp_path: Path) -> None:
    run = make_run(str(tmp_path / "run"), {"kind": "topk", "k": 5})
    assert (
        export(run, "hf://me/sae/k5", "saelens", private=True)
        == f"{fake_hub.url}/me/sae/commit/abc"
    )
    assert fake_hub.commits == ["/api/models/me/sae/commit/main"]
    assert fake_hub.tokens == {"Bearer hf_secret"}
    assert [(r["organization"], r["name"]) for r in fake_hub.created] == [("me", "sae")]
    assert "private" in json.dumps(fake_hub.created)
    export(run, str(tmp_path / "out"), "saelens")
    local = {
        str(path.relative_to(tmp_path / "out")): path
        for path in (tmp_path / "out").rglob("*")
        if path.is_file()
    }
    assert {
        f"k5/{name}": path.read_bytes() for name, path in local.items()
    } == fake_hub.files
    assert f"k5/{SITES[2]}/cfg.json" in fake_hub.files
    assert not any(b"hf_secret" in data for data in fake_hub.files.values())


def test_what_was_pushed_loads_again(fake_hub: FakeHub, tmp_path: Path) -> None:
    run = make_run(str(tmp_path / "run"), {"kind": "topk", "k": 5})
    export(run, "hf://me/sae", "safetensors")
    for name, data in fake_hub.files.items():
        Storage(str(tmp_path / "down")).put(name, data)
    assert trainer.load(str(tmp_path / "down")).sites == SITES


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (401, "not valid"),
        (403, "may not write"),
        (404, "no such repository"),
        (418, "try again"),
    ],
)
def test_refusals_say_what_to_do(fake_hub: FakeHub, status: int, text: str) -> None:
    fake_hub.status = status
    with pytest.raises(
        HubError, match=f"(?s)hf://me/sae: the hub answered {status}: .*{text}"
    ) as caught:
        hub.push({"a": b"1"}, "hf://me/sae", "m")
    assert "hf_secret" not in str(caught.value)


def test_no_token_no_network_no_repository(
    fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    for url in ("hf://me", "hf://datasets/me/sae", "hf://me/sae@/x", "hf://"):
        with pytest.raises(HubError, match="wanted hf://user/name"):
            hub.push({}, url, "m")
    with pytest.raises(HubError, match=r"hf://me/\.\.sae: "):
        hub.push({"a": b""}, "hf://me/..sae", "m")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubError, match=r"cannot be reached.*HF_ENDPOINT"):
        hub.push({"a": b""}, "hf://me/sae", "m")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HubError, match="HF_TOKEN, but it is not set"):
        hub.push({"a": b""}, "hf://me/sae", "m")
    assert fake_hub.created == []


def test_places() -> None:
    assert hub.parse("hf://me/sae") == hub.HubPlace("me/sae", None, "")
    assert hub.parse("hf://me/sae/") == hub.HubPlace("me/sae", None, "")
    assert hub.parse("hf://me/sae@v1/a/b/") == hub.HubPlace("me/sae", "v1", "a/b")
