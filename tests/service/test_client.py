"""The client of the service, against servers that are not as they should be."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from actstore.errors import ActstoreError, ExistsError, SpecError
from schemas.train import SweepSpec
from tests.service.stand_in import (
    EVENTS,
    Answer,
    Asked,
    Said,
    StandIn,
    answering,
    events_text,
    run_json,
)
from tests.service.support import spec
from trainer import ServiceClient
from trainer.client import connection
from trainer.errors import (
    BusyError,
    ConflictError,
    ForbiddenError,
    ServiceError,
    TokenError,
    UnknownRunError,
    UnreachableError,
)

TOKEN = "actstore_abc_planted-secret"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "FIRST_WAIT_S", 0.01)
    for name in ("ACTSTORE_SERVICE", "ACTSTORE_TOKEN", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@contextmanager
def asking(
    answer: Answer, patience_s: float = 5.0
) -> Iterator[tuple[StandIn, ServiceClient]]:
    """A stand-in and a client of it."""
    with (
        answering(answer) as server,
        ServiceClient(
            server.url, token=TOKEN, timeout_s=5.0, patience_s=patience_s
        ) as service,
    ):
        yield server, service


def in_turn(*said: Said) -> Answer:
    """Answers one after the other; the last one again and again."""
    left = list(said)
    return lambda _: left.pop(0) if len(left) > 1 else left[0]


def test_a_run_is_submitted_once_whatever_fails_on_the_way() -> None:
    answer = in_turn(
        Said([run_json()], 201, cut=True),
        Said({"detail": "a"}, 503),
        Said([run_json()], 201),
    )
    with asking(answer) as (server, service):
        [run] = service.submit(
            {"store": "s", "sae": {"k": 2}, "rows": "1M"}, priority=3
        )
        assert run.name == "a"
        first, second, third = server.asked
        assert (
            first.headers["idempotency-key"]
            == second.headers["idempotency-key"]
            == third.headers["idempotency-key"]
        )
        assert (
            first.body
            == third.body
            == {
                "spec": {"store": "s", "sae": {"k": 2}, "rows": "1M"},
                "name": None,
                "priority": 3,
                "dry_run": False,
            }
        )
        service.submit({"store": "s"})
        assert (
            server.asked[-1].headers["idempotency-key"]
            != first.headers["idempotency-key"]
        )


def test_specs_may_be_given_in_every_form(tmp_path: Path) -> None:
    file = tmp_path / "spec.yaml"
    file.write_text("store: s\nrows: 1M\n")
    sweep = SweepSpec.model_validate(
        {"base": spec().model_dump(), "grid": {"sae.k": [1, 2]}}
    )
    with asking(in_turn(Said([run_json()], 201))) as (server, service):
        for given in (
            spec(),
            sweep,
            file,
            str(file),
            {"sae": spec().sae, "store": "s"},
        ):
            service.submit(given)
        sent = [asked.body["spec"] for asked in server.asked]
    assert sent[0]["sae"]["k"] == 2
    assert sent[1]["base"]["store"] == "store"
    assert sent[2] == sent[3] == {"store": "s", "rows": "1M"}
    assert sent[4]["sae"]["kind"] == "topk"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: [", "not valid YAML"),
        ("- 1", "wanted keys and values"),
        ("when: 2026-01-01", "is no text, number"),
        ("x: .nan", "is no text, number"),
        ("\0", "not valid YAML"),
    ],
)
def test_what_is_no_spec_is_never_sent(tmp_path: Path, text: str, told: str) -> None:
    file = tmp_path / "spec.yaml"
    file.write_text(text)
    with asking(in_turn(Said([]))) as (server, service):
        with pytest.raises(SpecError, match=told):
            service.submit(file)
        with pytest.raises(SpecError, match="no such file"):
            service.submit(tmp_path / "other.yaml")
        with pytest.raises(SpecError, match="priority"):
            service.submit({"store": "s"}, priority=1000)
        with pytest.raises(SpecError, match="run: wanted text"):
            service.run("")
        assert not server.asked


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (401, TokenError),
        (403, ForbiddenError),
        (404, UnknownRunError),
        (409, ConflictError),
        (422, SpecError),
        (413, SpecError),
        (500, ServiceError),
    ],
)
def test_the_service_s_words_come_through(status: int, error: type[Exception]) -> None:
    said = Said({"detail": "because\x1b[31m of that"}, status)
    with asking(in_turn(said)) as (server, service):
        with pytest.raises(error, match=r"because\\x1b\[31m of that"):
            service.run("x")
        assert len(server.asked) == 1


def test_too_often_is_asked_again_when_the_service_says() -> None:
    busy = Said({"detail": "too often"}, 429, {"Retry-After": "0"})
    with asking(in_turn(busy, busy, Said(run_json()))) as (server, service):
        assert service.cancel("a").name == "a"
        assert len(server.asked) == 3
    # Longer than it is waited for: said at once.
    later = Said({"detail": "too often"}, 429, {"Retry-After": "1e9"})
    with asking(in_turn(later)) as (server, service):
        with pytest.raises(BusyError, match="too often"):
            service.cancel("a")
        assert len(server.asked) == 1


def test_a_change_that_may_have_happened_is_not_asked_for_again() -> None:
    with asking(in_turn(Said(run_json(), cut=True))) as (server, service):
        with pytest.raises(UnreachableError, match="does not answer"):
            service.cancel("a")
        assert len(server.asked) == 1
        with pytest.raises(UnreachableError, match="does not answer"):
            ServiceClient(server.url, token=TOKEN, patience_s=0.1).run("a")
        assert len(server.asked) > 2


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (Said("<html>login</html>"), "no training service .*a web page"),
        (Said("<html>not found</html>", 404), "no training service .*a web page"),
        (Said(b"[" * 5000, headers={"content-type": "application/json"}), "no JSON"),
        (Said([1, 2]), "not one that this version"),
        (Said({**run_json(), "state": "resting"}), "state: Input should be"),
        (Said({"detail": ["x"]}, 422), "status 422"),
    ],
)
def test_what_else_may_answer_is_told(said: Said, told: str) -> None:
    with asking(in_turn(said)) as (server, service):
        with pytest.raises(UnreachableError, match=told):
            service.run("a")
        assert len(server.asked) == 1


def test_a_newer_service_may_say_more() -> None:
    run = run_json()
    newer = {
        **run,
        "cost": {"eur": 3},
        "spec": {**run["spec"], "sae": {**run["spec"]["sae"], "new": 1}},
    }
    page = {"runs": [newer, newer], "total": 2, "next": None, "more": 1}
    with asking(in_turn(Said(newer), Said(page))) as (server, service):
        assert service.run("a").model_dump(mode="json") == run
        assert [one.id for one in service.runs()] == ["id-a", "id-a"]


def test_an_answer_without_end_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "MOST_BYTES", 1000)
    with (
        asking(in_turn(Said([run_json()] * 10))) as (server, service),
        pytest.raises(UnreachableError, match="larger than 1,000 bytes"),
    ):
        service.stores()


def test_runs_are_asked_for_page_by_page() -> None:
    def answer(asked: Asked) -> Said:
        after = asked.path.partition("after=")[2]
        n = int(after or 0)
        following = str(n + 1) if n < 2 else None
        return Said({"runs": [run_json(str(n))], "total": 3, "next": following})

    with asking(answer) as (server, service):
        found = service.runs(("queued", "running"), user="a&b", text="x y")
        assert next(found).name == "0"
        assert len(server.asked) == 1
        assert [run.name for run in found] == ["1", "2"]
        assert (
            server.asked[0].path
            == "/runs?state=queued&state=running&user=a%26b&text=x+y&limit=200"
        )


def test_ids_stay_one_part_of_the_path() -> None:
    with asking(in_turn(Said(run_json()))) as (server, service):
        service.run("../state?x=#1")
        assert server.asked[0].path == "/runs/..%2Fstate%3Fx%3D%231"


def test_a_token_goes_to_the_service_only(tmp_path: Path) -> None:
    with answering(in_turn(Said(run_json()))) as other:
        leads_on = Said({"detail": "there"}, 307, {"Location": f"{other.url}/runs/a"})
        with (
            asking(in_turn(leads_on)) as (server, service),
            pytest.raises(UnreachableError, match="leads on to http://127"),
        ):
            service.run("a")
        assert not other.asked
    for url in (
        "http://example.org",
        "http://10.0.0.1:8321",
        "http://127.0.0.1.example.org",
    ):
        with pytest.raises(SpecError, match="plain http"):
            ServiceClient(url, token=TOKEN)
    for url in ("ftp://127.0.0.1", "127.0.0.1:1", "https://", "http://127.0.0.1:x"):
        with pytest.raises(SpecError):
            ServiceClient(url, token=TOKEN)
    with pytest.raises(SpecError, match="alone") as caught:
        ServiceClient(f"https://user:{TOKEN}@example.org", token=TOKEN)
    assert TOKEN not in str(caught.value)
    ServiceClient("https://example.org/actstore/", token=TOKEN).close()
    ServiceClient("http://[::1]:8321", token=TOKEN).close()


def test_where_a_token_comes_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}-of-file\n")
    with answering(in_turn(Said(run_json()))) as server:
        monkeypatch.setenv("ACTSTORE_SERVICE", server.url)
        with pytest.raises(TokenError, match="there is no token"):
            ServiceClient()
        monkeypatch.setenv("ACTSTORE_TOKEN", f"{TOKEN}-of-environment")
        givens: list[dict[str, Any]] = [{}, {"token_file": file}, {"token": TOKEN}]
        for given in givens:
            with ServiceClient(**given) as service:
                service.run("a")
        sent = [asked.headers["authorization"] for asked in server.asked]
    assert sent == [
        f"Bearer {TOKEN}-of-environment",
        f"Bearer {TOKEN}-of-file",
        f"Bearer {TOKEN}",
    ]
    with pytest.raises(TokenError, match="cannot be read"):
        ServiceClient(token_file=tmp_path / "nothing")
    for text in ("two words", "ä" * 10, "x" * 1000):
        file.write_text(text)
        with pytest.raises(TokenError) as caught:
            ServiceClient(token_file=file)
        assert text not in str(caught.value)


def test_a_proxy_is_not_asked_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = in_turn(Said(run_json()))
    with answering(in_turn(Said("proxy"))) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        monkeypatch.setenv("ALL_PROXY", proxy.url)
        with asking(answer) as (_, service):
            service.run("a")
        assert not proxy.asked


def test_events_go_on_where_a_connection_broke() -> None:
    """The service dies in the middle of an event, answers with a proxy's page, is busy,
    ends the stream early, and then is there again.
    """
    half = events_text("progress", first=3)[:-20]
    answer = in_turn(
        Said(events_text("queued", "started") + half, headers=EVENTS, cut=True),
        Said("<html>bad gateway</html>", 502),
        Said({"detail": "busy"}, 429, {"Retry-After": "0"}),
        Said(b"", headers=EVENTS),
        # an event that is known comes again
        Said(events_text("started", "progress", first=2), headers=EVENTS),
        Said(b": waiting\n\n" + events_text("completed", first=4), headers=EVENTS),
    )
    with asking(answer) as (server, service):
        events = list(service.events("a"))
        assert [event.id for event in events] == [1, 2, 3, 4]
        sent = [asked.headers.get("last-event-id") for asked in server.asked]
        assert sent == [None, "2", "2", "2", "2", "3"]


def test_events_of_a_run_that_has_ended_are_nothing_new() -> None:
    with asking(in_turn(Said(b"", 204))) as (server, service):
        assert list(service.events("a", after=9)) == []
        assert server.asked[0].headers["last-event-id"] == "9"
    unknown = Said({"detail": "there is no run a"}, 404)
    with asking(in_turn(unknown)) as (server, service), pytest.raises(UnknownRunError):
        list(service.events("a"))


def test_events_that_are_there_end_where_nothing_is_followed() -> None:
    said = Said(events_text("queued", "started"), headers=EVENTS)
    with asking(in_turn(said)) as (server, service):
        assert len(list(service.events("a", follow=False))) == 2
        assert server.asked[0].path == "/runs/a/events?follow=false"


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (Said(events_text("queued"), headers=EVENTS), "again and again"),
        (Said("<html></html>"), "no training service: a web page"),
        (Said({"detail": "x"}, 500), "x"),
        (Said(b"data: {\n\n", headers=EVENTS), "no JSON"),
    ],
)
def test_events_that_never_come_end_in_an_error(said: Said, told: str) -> None:
    with (
        asking(in_turn(said), 0.2) as (server, service),
        pytest.raises(ServiceError, match=told),
    ):
        list(service.events("a"))


def test_a_service_that_comes_back_is_waited_for() -> None:
    answer = in_turn(
        Said(events_text("queued"), headers=EVENTS),
        Said(events_text("completed", first=2), headers=EVENTS),
    )
    first = StandIn(answer)
    with ServiceClient(first.url, token=TOKEN) as service:
        events = service.events("a")
        assert next(events).kind == "queued"
        first.close()
        second = StandIn(answer, first.port)
        try:
            assert [event.kind for event in events] == ["completed"]
        finally:
            second.close()


def test_a_wrong_address_is_told_soon() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with (
            ServiceClient(url, token=TOKEN, patience_s=600) as service,
            pytest.raises(UnreachableError, match="does not answer") as caught,
        ):
            service.state()
    assert TOKEN not in str(caught.value)


def test_a_file_is_there_once_it_is_whole(tmp_path: Path) -> None:
    whole = b"x" * 100_000
    kind = {"content-type": "application/octet-stream"}
    answer = in_turn(
        Said(whole[:500], headers=kind, cut=True),
        Said({"detail": "b"}, 503),
        Said(whole, headers=kind),
    )
    out = tmp_path / "sae.safetensors"
    with asking(answer) as (server, service):
        assert service.download("a", "checkpoints/ä b/x", out) == out
        assert out.read_bytes() == whole
        assert server.asked[-1].path == "/runs/a/artifacts/checkpoints/%C3%A4%20b/x"
        with pytest.raises(ExistsError):
            service.download("a", "x", out)
    cut = in_turn(Said(whole, headers=kind, cut=True))
    with asking(cut, 0.1) as (server, service), pytest.raises(UnreachableError):
        service.download("a", "x", tmp_path / "y")
    with (
        asking(in_turn(Said({"detail": "there is no x"}, 404))) as (server, service),
        pytest.raises(UnknownRunError),
    ):
        service.download("a", "x", tmp_path / "y")
    assert [path.name for path in tmp_path.iterdir()] == ["sae.safetensors"]


def test_no_error_tells_the_token() -> None:
    for said in (
        Said({"detail": "no"}, 401),
        Said("x"),
        Said({}, 302, {"Location": "/"}),
    ):
        with asking(in_turn(said)) as (server, service):
            with pytest.raises(ActstoreError) as caught:
                service.state()
            assert TOKEN not in str(caught.value) + repr(caught.value)


def test_json_is_bounded_in_depth() -> None:
    deep = json.loads("[" * 500 + "]" * 500)
    with asking(in_turn(Said({**run_json(), "new": deep}))) as (server, service):
        assert service.run("a").name == "a"
