"""Too large, too slow, too often, from the wrong place: refused, and told so."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.requests import Request

from tests.service.served import Served, served
from trainer.service import limits
from trainer.service.from_proxy import FromProxy, checked_proxies
from trainer.service.limits import Scope, address_of
from trainer.service.patient_protocol import PatientProtocol
from trainer.service.rates import Rate, RateLimit
from trainer.service.tokens import User


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("service")) as found:
        yield found


def connected(there: Served) -> socket.socket:
    host, port = there.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=20)


def head(there: Served, *lines: str) -> bytes:
    token = there.tokens.make("ada", "submitter")
    host = there.url.removeprefix("http://")
    common = (f"Host: {host}", f"Authorization: Bearer {token}")
    all_lines = (
        "POST /runs HTTP/1.1",
        *common,
        "Content-Type: application/json",
        *lines,
    )
    return "\r\n".join((*all_lines, "", "")).encode()


def status_of(connection: socket.socket) -> int:
    answer = b""
    while b"\r\n" not in answer:
        part = connection.recv(4096)
        assert part, f"closed after {answer!r}"
        answer += part
    return int(answer.split()[1])


def test_a_body_that_says_it_is_too_large(there: Served) -> None:
    with connected(there) as connection:
        connection.sendall(head(there, f"Content-Length: {(1 << 20) + 1}"))
        assert status_of(connection) == 413


def test_a_body_in_chunks_that_is_too_large(there: Served) -> None:
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    with connected(there) as connection:
        connection.sendall(head(there, "Transfer-Encoding: chunked"))
        try:
            for _ in range(40):
                connection.sendall(chunk)
        except OSError:
            pass  # it does not listen any more
        assert status_of(connection) == 413


def test_a_body_of_just_the_limit_is_read(there: Served) -> None:
    body = b'{"spec": {}, "dry_run": true}'
    body += b" " * ((1 << 20) - len(body))
    with there.client() as client:
        answer = client.post(
            "/runs", content=body, headers={"Content-Type": "application/json"}
        )
        assert (answer.status_code, "which store?" in answer.text) == (422, True)


def test_a_body_that_does_not_come(
    there: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "BODY_S", 0.3)
    with connected(there) as connection:
        connection.sendall(head(there, "Content-Length: 100") + b"{")
        assert status_of(connection) == 408


def test_a_head_that_does_not_come(
    there: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PatientProtocol, "head_s", 0.3)
    for start in (b"", b"GET /health HT", b"GET /health HTTP/1.1\r\nX: "):
        with connected(there) as connection:
            connection.sendall(start)
            assert connection.recv(100) == b""
    # a second one on the same connection, drop by drop
    with connected(there) as connection:
        request = f"GET /health HTTP/1.1\r\nHost: {there.url[7:]}\r\n\r\n".encode()
        connection.sendall(request)
        assert status_of(connection) == 200
        n_sent = 0
        with contextlib.suppress(OSError):
            for byte in request * 10:
                connection.sendall(bytes([byte]))
                time.sleep(0.02)
                n_sent += 1
        assert n_sent < len(request)


def test_a_client_that_does_not_take_its_answer(
    there: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PatientProtocol, "take_s", 0.3)
    run = there.submitted()
    there.ended(run)
    folder = Path(run.url)
    folder.mkdir(parents=True)
    (folder / "large.bin").write_bytes(bytes(64 << 20))
    token = there.tokens.make("ada", "reader")
    request = (
        f"GET /runs/{run.id}/artifacts/large.bin HTTP/1.1\r\n"
        f"Host: {there.url[7:]}\r\nAuthorization: Bearer {token}\r\n\r\n"
    )
    with connected(there) as connection:
        connection.sendall(request.encode())
        time.sleep(1.5)
        taken = 0
        try:
            while part := connection.recv(1 << 20):
                taken += len(part)
        except ConnectionError:
            pass
    assert taken < 64 << 20


@pytest.mark.parametrize(
    "request_head",
    [
        b"GET /health HTTP/1.1\r\nX: " + b"y" * (1 << 16) + b"\r\n\r\n",
        b"GET /health HTTP/1.1\r\n" + b"X: y\r\n" * (1 << 13) + b"\r\n",
        b"GET /" + b"x" * (1 << 16) + b" HTTP/1.1\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n",
        b"GET /health\r\n\r\n",
        b"POST /runs HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n",
        b"POST /runs HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
    ],
)
def test_a_head_that_is_none(there: Served, request_head: bytes) -> None:
    with connected(there) as connection:
        connection.sendall(request_head)
        assert status_of(connection) == 400


def test_a_web_socket_is_not_opened(there: Served) -> None:
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket"}
    assert httpx.get(there.url + "/nothing", headers=upgrade).status_code == 404


@pytest.mark.parametrize(
    "host",
    ["evil.example", "127.0.0.1", "localhost", "127.0.0.1:1", "", "localhost:80"],
)
def test_a_name_that_was_made_to_lead_here(there: Served, host: str) -> None:
    answer = httpx.get(there.url + "/health", headers={"Host": host})
    assert answer.status_code == 403


def test_an_address_may_not_ask_too_often(
    there: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "ADDRESS_RATE", Rate(0.1, 3))
    one = limits.Limits(there.app)
    scope = {"method": "GET", "headers": []}
    addresses = ("192.0.2.1", "192.0.2.1", "192.0.2.1", "192.0.2.1", "192.0.2.2")
    found = [one._refusal({**scope, "client": (name, 1)}) for name in addresses]
    assert [None if one is None else one.status_code for one in found] == [
        None, None, None, 429, None,
    ]  # fmt: skip
    assert found[3].headers["retry-after"] == "10"


def test_addresses_of_one_network_of_ipv6_are_one_user() -> None:
    def of(text: str) -> str:
        return limits.address_of({"client": (text, 1)})

    assert of("2001:db8::1") == of("2001:db8::ffff") != of("2001:db8:0:1::1")
    assert of("192.0.2.1") != of("192.0.2.2")


def test_json_that_is_nested_too_deeply(there: Served) -> None:
    body = b'{"spec": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    with there.client() as client:
        answer = client.post(
            "/runs", content=body, headers={"Content-Type": "application/json"}
        )
    assert (answer.status_code, "nested" in answer.json()["detail"]) == (422, True)


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b"\xff", b'{"spec": {}}x', b'{"spec": {"rows": ' + b"9" * 5000 + b"}}",
     b'{"spec": {}, "more": 1}', b'{"spec": []}', b'{"spec": {}, "priority": 101}', b'{"spec": {}, "name": "a\\nb"}'],
)  # fmt: skip
def test_bodies_that_are_no_submissions(there: Served, body: bytes) -> None:
    with there.client() as client:
        answer = client.post(
            "/runs", content=body, headers={"Content-Type": "application/json"}
        )
    assert answer.status_code in {400, 422}
    assert isinstance(answer.json()["detail"], str)


def test_a_form_of_another_site_is_no_json(there: Served) -> None:
    """What a page elsewhere can send without asking first is not taken."""
    body = json.dumps({"spec": there.spec()}).encode()
    kinds = ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data")
    with there.client() as client:
        for kind in kinds:
            answer = client.post("/runs", content=body, headers={"Content-Type": kind})
            assert answer.status_code == 422
        assert client.post("/runs", content=body).status_code == 422
    login = b'{"token": "x"}'
    for kind in kinds:
        headers = {"Content-Type": kind}
        answer = httpx.post(there.url + "/session", content=login, headers=headers)
        assert answer.status_code == 422


def test_only_the_proxy_is_believed(tmp_path: Path) -> None:
    forwarded = {"X-Forwarded-For": "192.0.2.7", "X-Forwarded-Proto": "https"}
    seen: list[object] = []
    with served(
        tmp_path, own_hosts=False, proxies=("127.0.0.1/32",), tls=True
    ) as there:
        layer = there.app.state.context
        real = layer.access.user

        def noted(request: Request) -> User:
            seen.append(request.client)
            return real(request)

        layer.access.user = noted
        with there.client() as client:
            answer = client.get("/state", headers={**forwarded, "Host": "ours.example"})
            assert answer.status_code == 200
    assert seen[0].host == "192.0.2.7"  # type: ignore[attr-defined]
    elsewhere = ("192.0.2.1/32",)
    with (
        served(tmp_path, own_hosts=False, proxies=elsewhere) as there,
        there.client() as client,
    ):
        for headers in ({}, forwarded, {"X-Forwarded-For": "192.0.2.1"}):
            refused = client.get("/state", headers=headers)
            assert (refused.status_code, "proxy" in refused.text) == (403, True)
        assert client.get("/health").status_code == 200
    assert FromProxy(there.app, ["10.0.0.0/8"])._is_proxy("10.9.9.9")


FORWARDED = {
    # in private networks users are, too: what one wrote itself counts for nothing
    ("", "10.9.9.9, 10.1.2.3"): "10.1.2.3",
    ("", "10.9.9.9,192.0.2.7, 10.1.2.3"): "10.1.2.3",
    ("", "192.0.2.7"): "192.0.2.7",
    ("", "192.0.2.7:4711"): "192.0.2.7",
    ("", "[2001:db8::7]:4711"): "2001:db8::7",
    ("", "2001:db8::7"): "2001:db8::7",
    ("", "10.9.9.9, nobody"): "127.0.0.1",
    ("", ""): "127.0.0.1",
    # proxies that were named: whoever asked the first of them
    ("127.0.0.1 10.1.2.3", "10.9.9.9, 192.0.2.7, 10.1.2.3"): "192.0.2.7",
    ("127.0.0.1 10.1.2.3", "10.9.9.9, 10.1.2.3"): "10.9.9.9",
    ("127.0.0.1 10.1.2.3", "10.1.2.3"): "10.1.2.3",
}


@pytest.mark.parametrize(("named", "header"), FORWARDED)
def test_whoever_asks_the_proxy_is_who_asks(named: str, header: str) -> None:
    """Nobody takes another's address, whose share of requests would then be used up."""
    seen: list[Any] = []

    async def app(scope: Scope, _receive: Any, _send: Any) -> None:
        seen.append((address_of(scope), scope["scheme"]))

    layer = FromProxy(app, checked_proxies(named.split()))
    headers = [(b"x-forwarded-for", header.encode()), (b"x-forwarded-proto", b"https")]
    scope = {"type": "http", "client": ("127.0.0.1", 1), "scheme": "http"}
    asyncio.run(layer({**scope, "headers": headers}, None, None))  # type: ignore[arg-type]
    wanted = address_of({"client": (FORWARDED[named, header], 0)})
    assert seen == [(wanted, "https")]


def test_without_a_proxy_nothing_is_believed(
    there: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    door = there.app.state.context.access
    monkeypatch.setattr(door, "_failures", RateLimit(Rate(0.01, 3)))
    answers = [
        httpx.get(
            there.url + "/state",
            headers={"Authorization": "Bearer x", "X-Forwarded-For": f"192.0.2.{i}"},
        )
        for i in range(5)
    ]
    assert [answer.status_code for answer in answers] == [401] * 3 + [429] * 2
