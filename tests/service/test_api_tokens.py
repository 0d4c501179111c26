"""Who may enter: tokens and sessions, as a real server holds them."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actstore.errors import SpecError
from tests.service.served import Served, served
from trainer.service import access, sessions
from trainer.service.rates import Rate, RateLimit
from trainer.service.tokens import Tokens

NOT_OPEN = (
    "/runs", "/runs/x", "/runs/x/journal", "/runs/x/evaluation", "/runs/x/events",
    "/runs/x/report", "/runs/x/artifacts", "/runs/x/artifacts/a", "/stores",
    "/stores/norms?url=x", "/state", "/metrics", "/session",
)  # fmt: skip


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("service")) as found:
        yield found


@pytest.fixture(autouse=True)
def no_failures_before(there: Served) -> None:
    """Wrong tokens of one test are not counted in the next."""
    there.app.state.context.access._failures = RateLimit(access.FAILURES)


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def test_a_secret_is_written_nowhere(tmp_path: Path) -> None:
    tokens = Tokens(tmp_path)
    token = tokens.make("ada", "submitter")
    secret = token.rpartition("_")[2]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 1
    assert secret not in files[0].read_text()
    assert re.fullmatch(r"actstore_[0-9a-f]{12}_[0-9a-f]{64}", token)
    assert (tmp_path / "tokens").stat().st_mode & 0o077 == 0


def test_a_token_counts_for_its_user_and_no_other_does(tmp_path: Path) -> None:
    tokens = Tokens(tmp_path)
    token = tokens.make("ada", "reader")
    other = Tokens(tmp_path / "other").make("eve", "admin")
    user = tokens.user(token)
    assert user is not None
    assert (user.name, user.role) == ("ada", "reader")
    mixed = token[:22] + other[22:]  # the id of one, the secret of the other
    for wrong in (other, mixed, token[:-1], token + "0", token.upper(), "", " "):
        assert tokens.user(wrong) is None, wrong


def test_a_revoked_or_expired_token_counts_no_longer(tmp_path: Path) -> None:
    tokens = Tokens(tmp_path)
    token = tokens.make("ada", "admin")
    of_another_process = Tokens(tmp_path)
    assert of_another_process.user(token) is not None
    (info,) = tokens.list()
    tokens.revoke(info.id)
    assert of_another_process.user(token) is None
    short = tokens.make("ada", "admin", days=1)
    assert tokens.user(short) is not None
    path = tmp_path / "tokens" / f"{short.split('_')[1]}.json"
    record = json.loads(path.read_text())
    past = datetime.now(UTC) - timedelta(seconds=2)
    path.write_text(
        json.dumps({**record, "expires": past.isoformat(timespec="seconds")})
    )
    assert tokens.user(short) is None
    assert not tokens.has_any()


def test_a_damaged_record_lets_nobody_in(tmp_path: Path) -> None:
    tokens = Tokens(tmp_path)
    token = tokens.make("ada", "admin")
    path = tmp_path / "tokens" / f"{token.split('_')[1]}.json"
    whole = path.read_text()
    for text in ("", "{", whole.replace('"admin"', '"root"'), "[" * 100_000):
        path.write_text(text)
        assert tokens.user(token) is None
    path.unlink()
    path.symlink_to("/etc/passwd")
    assert tokens.user(token) is None


@given(st.text())
@settings(deadline=None)
def test_no_text_is_a_token(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    tokens = Tokens(tmp_path_factory.getbasetemp() / "none")
    assert tokens.user(text) is None
    assert tokens.user(f"actstore_{text}_{'0' * 64}") is None


@pytest.mark.parametrize("user", ["", "a\nb", "x" * 101])
def test_a_user_is_named_on_one_line(tmp_path: Path, user: str) -> None:
    with pytest.raises(SpecError):
        Tokens(tmp_path).make(user, "reader")


def test_nothing_but_health_is_open(there: Served) -> None:
    for headers in ({}, bearer("x"), {"Authorization": "Basic eDp5"}):
        for path in NOT_OPEN:
            answer = httpx.get(there.url + path, headers=headers)
            assert answer.status_code in {401, 429}, path
    for path in ("/health", "/ready", "/openapi.json"):
        assert httpx.get(there.url + path).status_code == 200
    assert httpx.post(there.url + "/runs", json={"spec": {}}).status_code in {401, 429}


def test_every_route_asks_who_comes(there: Served) -> None:
    open_paths = {("/health", "get"), ("/ready", "get"), ("/session", "post")}
    asked = set()
    for path, methods in httpx.get(there.url + "/openapi.json").json()["paths"].items():
        for method in methods:
            if (path, method) in open_paths:
                continue
            url = there.url + re.sub(r"\{\w+\}", "x", path)
            answer = httpx.request(method, url)
            assert answer.status_code in {401, 422}, (method, path, answer.text)
            asked.add((method, path, answer.status_code))
    # what lacks a body or a parameter may be told so first
    assert sum(status == 401 for *_, status in asked) > len(asked) - 4


def test_revoking_acts_at_once_on_tokens_and_sessions(there: Served) -> None:
    token = there.tokens.make("ada", "submitter")
    with httpx.Client(base_url=there.url) as page:
        assert page.post("/session", json={"token": token}).status_code == 201
        assert page.get("/state").status_code == 200
        there.tokens.revoke(token.split("_")[1])
        assert page.get("/state").status_code == 401
    assert httpx.get(there.url + "/state", headers=bearer(token)).status_code == 401


def test_roles(there: Served) -> None:
    body = {"spec": there.spec()}
    with there.client("reader", "rea") as reader, there.client("admin", "adm") as admin:
        assert reader.get("/runs").status_code == 200
        refused = reader.post("/runs", json=body)
        assert (refused.status_code, "may read only" in refused.text) == (403, True)
        with there.client("submitter", "ann") as ann:
            run = ann.post("/runs", json=body).json()[0]["id"]
        with there.client("submitter", "ben") as ben:
            for what in ("cancel", "resume"):
                assert ben.post(f"/runs/{run}/{what}").status_code == 403
            named = ben.post(f"/runs/{run}/publish", json={"name": "x"})
            assert named.status_code == 403
            assert ben.get(f"/runs/{run}").status_code == 200
        assert reader.post(f"/runs/{run}/cancel").status_code == 403
        assert admin.post(f"/runs/{run}/cancel").json()["state"] == "cancelled"


def test_a_session_needs_its_csrf_token_to_change_anything(there: Served) -> None:
    token = there.tokens.make("ada", "submitter")
    body = {"spec": there.spec(), "dry_run": True}
    with httpx.Client(base_url=there.url) as page:
        begun = page.post("/session", json={"token": token})
        csrf_token = begun.json()["csrf_token"]
        cookie = begun.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=strict" in cookie
        assert "Path=/" in cookie
        assert "Secure" not in cookie  # there is no TLS here
        assert token not in begun.text + cookie
        assert page.post("/runs", json=body).status_code == 403
        for wrong in ("", "x", csrf_token[:-1], "\xe9"):
            sent = page.post(
                "/runs", json=body, headers={b"X-CSRF-Token": wrong.encode("latin-1")}
            )
            assert sent.status_code == 403
        right = {"X-CSRF-Token": csrf_token}
        assert page.post("/runs", json=body, headers=right).status_code == 200
        assert page.get("/session").json()["csrf_token"] == csrf_token
        assert page.delete("/session").status_code == 403
        assert page.delete("/session", headers=right).status_code == 204
        assert page.get("/state").status_code == 401
    assert page.cookies.get(sessions.COOKIE) is None


def test_a_cookie_goes_by_tls_only_where_there_is_tls(tmp_path: Path) -> None:
    with served(tmp_path, tls=True) as there:
        token = there.tokens.make("ada", "reader")
        begun = httpx.post(there.url + "/session", json={"token": token})
        assert "Secure" in begun.headers["set-cookie"]
        assert "max-age" in begun.headers["strict-transport-security"]


def test_a_session_ends(there: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    token = there.tokens.make("ada", "reader")
    with httpx.Client(base_url=there.url) as page:
        page.post("/session", json={"token": token})
        later = time.monotonic() + sessions.LASTS_S + 1
        monkeypatch.setattr("trainer.service.sessions.monotonic", lambda: later)
        assert page.get("/state").status_code == 401


def test_wrong_tokens_are_answered_slowly_and_right_ones_always(there: Served) -> None:
    answers = [
        httpx.post(there.url + "/session", json={"token": "wrong"}) for _ in range(14)
    ]
    assert {answer.status_code for answer in answers} == {401, 429}
    assert int(answers[-1].headers["retry-after"]) >= 1
    assert httpx.get(there.url + "/state", headers=bearer("x")).status_code == 429
    with there.client("reader") as right:
        assert right.get("/state").status_code == 200


def test_a_token_may_not_ask_too_often(
    there: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    door = there.app.state.context.access
    monkeypatch.setattr(door, "_reads", RateLimit(Rate(0.1, 5)))
    with there.client("reader") as one, there.client("reader") as other:
        answers = [one.get("/state") for _ in range(7)]
        assert [answer.status_code for answer in answers] == [200] * 5 + [429] * 2
        assert 1 <= int(answers[-1].headers["retry-after"]) <= 10
        assert other.get("/state").status_code == 200


@given(
    per_s=st.floats(0.1, 100),
    burst=st.floats(1, 50),
    gaps=st.lists(st.floats(0, 5), max_size=100),
)
@settings(deadline=None)
def test_a_rate_is_never_exceeded(
    per_s: float, burst: float, gaps: list[float]
) -> None:
    limit = RateLimit(Rate(per_s, burst))
    now = 0.0
    done = 0
    for gap in gaps:
        now += gap
        wait = limit.wait_s("a", now=now)
        done += wait == 0
        assert done <= burst + now * per_s + 1e-6
        if wait:
            assert limit.wait_s("a", count=False, now=now + wait + 1e-6) == 0


def test_a_log_has_no_token_and_no_query(
    there: Served, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "trainer.service"), there.client("reader") as reader:
        reader.get("/runs?text=hidden-words", headers={"X-Other": "hidden-header"})
        reader.get("/nothing/%0aforged%20line")
    lines = [record.getMessage() for record in caplog.records]
    assert any(line.startswith("GET /runs 200 ") for line in lines)
    assert any(line.startswith("GET /nothing/%0aforged%20line 404 ") for line in lines)
    assert not any("hidden" in line or "actstore_" in line for line in lines)
