"""A stand-in for the Hugging Face hub's HTTP interface, on 127.0.0.1.

Data sets only: create, preupload, LFS batch and upload, commits (NDJSON), revisions,
tree, paths-info, and resolve with ranges. Files of 2 kB and more go the way of large
ones.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

LARGE = 2000
TOKEN = "hf_planted_secret"


class Hub(ThreadingHTTPServer):
    """What was pushed, and what was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repos: dict[str, dict[str, bytes]] = {}
        self.heads: dict[str, int] = {}
        self.large: dict[str, bytes] = {}
        self.commits: list[dict[str, Any]] = []
        self.created: list[dict[str, Any]] = []
        self.refusal: int | None = None  # what every write is answered with
        self.lock = threading.Lock()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.reply({"error": "Invalid username or password."}, 401)
        if self.server.refusal is not None:
            return self.reply({"error": "no, thank you"}, self.server.refusal)
        with self.server.lock:
            self._post(path, body)
        return None

    def _post(self, path: str, body: bytes) -> None:
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            self.server.created.append(asked)
            url = f"{self.server.url}/datasets/{name}"
            if name in self.server.repos:
                told = {"error": "You already created this", "url": url, "name": name}
                return self.reply(told, 409)
            self.server.repos[name] = {".gitattributes": b"*.bin filter=lfs\n"}
            self.server.heads[name] = 0
            return self.reply({"url": url, "name": name, "id": "1"})
        if path == "/api/validate-yaml":
            return self.reply({"errors": [], "warnings": []})
        if match := re.fullmatch(r"/datasets/(.+)\.git/info/lfs/objects/batch", path):
            return self._batch(json.loads(body))
        match = re.fullmatch(
            r"/api/datasets/([^/]+/[^/]+)/(preupload|commit|paths-info)/(.+)", path
        )
        if match is None or match[1] not in self.server.repos:
            return self.missing()
        if match[2] == "preupload":
            return self._preupload(json.loads(body))
        if match[2] == "commit":
            return self._commit(match[1], body)
        return self._paths_info(match[1], body)

    def _preupload(self, asked: dict[str, Any]) -> None:
        files = [
            {
                "path": one["path"],
                "uploadMode": "lfs" if one["size"] >= LARGE else "regular",
                "shouldIgnore": False,
            }
            for one in asked["files"]
        ]
        self.reply({"files": files})

    def _batch(self, asked: dict[str, Any]) -> None:
        objects = []
        for one in asked["objects"]:
            found: dict[str, Any] = {"oid": one["oid"], "size": one["size"]}
            if one["oid"] not in self.server.large:
                href = f"{self.server.url}/upload/{one['oid']}"
                found["actions"] = {"upload": {"href": href, "header": {}}}
            objects.append(found)
        self.reply(
            {"transfer": "basic", "objects": objects},
            content="application/vnd.git-lfs+json",
        )

    def _commit(self, name: str, body: bytes) -> None:
        lines = [json.loads(line) for line in body.splitlines()]
        header = lines[0]["value"]
        head = f"{self.server.heads[name]:040x}"
        if header.get("parentCommit") not in {None, head}:
            return self.reply({"error": "A commit has happened since."}, 412)
        files = self.server.repos[name]
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.large[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        self.server.heads[name] += 1
        self.server.commits.append({**header, "n": len(lines) - 1})
        oid = f"{self.server.heads[name]:040x}"
        url = f"{self.server.url}/datasets/{name}/commit/{oid}"
        return self.reply(
            {"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": ""}
        )

    def _paths_info(self, name: str, body: bytes) -> None:
        text = body.decode()
        if text.startswith("{"):
            paths = json.loads(text)["paths"]
        else:
            from urllib.parse import parse_qs

            paths = parse_qs(text)["paths"]
        entries = {one["path"]: one for one in self._entries(name, "", deep=True)}
        self.reply([entries[path] for path in paths if path in entries])

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        oid = self.path.rpartition("/")[2]
        assert hashlib.sha256(body).hexdigest() == oid
        self.server.large[oid] = body
        self.reply({})

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if path == "/api/whoami-v2":
            return self.reply({"type": "user", "name": "me", "auth": {}})
        match = re.fullmatch(r"/api/datasets/([^/]+/[^/]+)(/.*)?", path)
        if match and match[1] in self.server.repos:
            rest = match[2] or ""
            if tree := re.fullmatch(r"/tree/[^/]+(/(.*))?", rest):
                deep = "recursive=True" in self.path or "recursive=true" in self.path
                entries = self._entries(match[1], tree[2] or "", deep=deep)
                return self.reply(entries) if entries else self.missing("EntryNotFound")
            if not rest or rest.startswith("/revision/"):
                sha = f"{self.server.heads[match[1]]:040x}"
                return self.reply({"id": match[1], "sha": sha, "siblings": []})
        match = re.fullmatch(r"/datasets/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path)
        if match and match[2] in self.server.repos.get(match[1], {}):
            return self._file(self.server.repos[match[1]][match[2]])
        known = match and match[1] in self.server.repos
        return self.missing("EntryNotFound" if known else "RepoNotFound")

    def _entries(self, name: str, folder: str, *, deep: bool) -> list[dict[str, Any]]:
        prefix = f"{folder}/" if folder else ""
        entries: dict[str, dict[str, Any]] = {}
        for path, data in self.server.repos[name].items():
            if not path.startswith(prefix):
                continue
            parts = path[len(prefix) :].split("/")
            for depth in range(1, len(parts) if deep else min(2, len(parts))):
                above = prefix + "/".join(parts[:depth])
                entries[above] = {
                    "type": "directory",
                    "path": above,
                    "size": 0,
                    "oid": "0" * 40,
                }
            if deep or len(parts) == 1:
                oid = hashlib.sha1(data, usedforsecurity=False).hexdigest()
                entries[path] = {
                    "type": "file",
                    "path": path,
                    "size": len(data),
                    "oid": oid,
                }
        return list(entries.values())

    def _file(self, data: bytes) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        status, part = 200, data
        if asked:
            first, last = int(asked[1]), int(asked[2] or len(data) - 1)
            status, part = 206, data[first : last + 1]
        self.send_response(status)
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(part)

    def missing(self, code: str = "RepoNotFound") -> None:
        self.reply({"error": "not found"}, 404, code=code)

    def reply(
        self,
        what: Any,
        status: int = 200,
        *,
        code: str = "",
        content: str = "application/json",
    ) -> None:
        data = json.dumps(what).encode()
        self.send_response(status)
        self.send_header("Content-Type", content)
        self.send_header("Content-Length", str(len(data)))
        if code:
            self.send_header("X-Error-Code", code)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        pass
