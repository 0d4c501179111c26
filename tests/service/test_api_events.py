"""Streams of events: in order, without gaps, resumed, bounded, and ended."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from schemas.service import RunEvent, RunProgress
from tests.service.served import SLOT, Served, served
from trainer.queue.queue_records import Outcome
from trainer.service import event_feed

PROGRESS = RunProgress(
    step=1, steps=9, rows=64, rows_per_s=1e3, stall=0.0, loss=1.0, l0=4.0, fvu=0.5
)


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("service")) as found:
        yield found


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_feed, "LOOK_S", 0.05)
    monkeypatch.setattr(event_feed, "HEARTBEAT_S", 0.3)


def read(text: str) -> list[RunEvent]:
    """The events of a stream's text; each is whole, and comes with its id."""
    events = []
    for block in text.split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.splitlines())
        if "data" in lines:
            event = RunEvent.model_validate_json(lines["data"])
            assert (lines["id"], lines["event"]) == (str(event.id), event.kind)
            events.append(event)
    return events


def stream(there: Served, run_id: str, last: int | None = None, **params: Any) -> Any:
    headers = {} if last is None else {"Last-Event-ID": str(last)}
    with there.client("reader") as client:
        return client.get(f"/runs/{run_id}/events", headers=headers, params=params)


def test_what_is_there_and_what_is_new(there: Served) -> None:
    run = there.submitted()
    answer = stream(there, run.id, follow=False)
    assert answer.headers["content-type"].startswith("text/event-stream")
    (queued,) = read(answer.text)
    assert queued.kind == "queued"
    assert read(stream(there, run.id, queued.id, follow=False).text) == []
    for bad in ("x", "-1", "9" * 30):
        with there.client("reader") as client:
            url = f"/runs/{run.id}/events"
            told = client.get(url, headers={"Last-Event-ID": bad})
            assert told.status_code == 422
    assert stream(there, "nosuch").status_code == 404


def test_a_stream_ends_with_its_run_and_has_all_of_it(there: Served) -> None:
    run = there.submitted()
    other = there.submitted()
    texts: list[str] = []
    threads = [
        threading.Thread(target=lambda: texts.append(stream(there, run.id).text))
        for _ in range(5)
    ]
    for thread in threads:
        thread.start()
    queue = there.service.queue
    lease = queue.start([run.id], SLOT.name)
    for _ in range(20):
        queue.add_event(run.id, "progress", "on", PROGRESS)
        queue.add_event(other.id, "progress", "not its", PROGRESS)
        time.sleep(0.02)
    queue.end(lease.id, {run.id: Outcome("completed", "done")})
    for thread in threads:
        thread.join(20)
    wanted = queue.events(0, run.id)
    assert len(texts) == 5
    for text in texts:
        assert read(text) == wanted
    last = wanted[-1].id
    assert stream(there, run.id, last).status_code == 204
    assert read(stream(there, run.id, wanted[3].id).text) == wanted[4:]


def test_a_stream_that_waits_says_so_and_ends_with_its_token(there: Served) -> None:
    run = there.submitted()
    token = there.tokens.make("ada", "reader")
    headers = {"Authorization": f"Bearer {token}"}
    url = f"{there.url}/runs/{run.id}/events"
    lines = []
    with httpx.stream("GET", url, headers=headers, timeout=20) as answer:
        for line in answer.iter_lines():
            lines.append(line)
            if lines.count(": waiting") == 2:
                there.tokens.revoke(token.split("_")[1])
    assert lines.count(": waiting") == 2


def test_a_token_has_so_many_streams_and_they_are_given_back(
    there: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_feed, "MOST_OF_TOKEN", 2)
    run = there.submitted()
    token = there.tokens.make("ada", "reader")
    headers = {"Authorization": f"Bearer {token}"}
    url = f"{there.url}/runs/{run.id}/events"
    with httpx.Client(headers=headers, timeout=20) as client:
        with client.stream("GET", url) as one, client.stream("GET", url) as two:
            assert (one.status_code, two.status_code) == (200, 200)
            third = client.get(url)
            assert third.status_code == 429
            assert "retry-after" in third.headers
            with there.client("reader") as other:
                assert other.get(url, params={"follow": False}).status_code == 200
        deadline = time.monotonic() + 20
        while there.app.state.context.feed.n_streams:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        with client.stream("GET", url) as again:
            assert again.status_code == 200
