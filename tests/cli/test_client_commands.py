"""The commands that ask a service: what they print, and how they end."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Cli
from tests.service.stand_in import (
    EVENTS,
    Asked,
    Said,
    StandIn,
    answering,
    events_text,
    run_json,
)

TOKEN = "actstore_abc_planted-secret"
PROGRESS = {
    "step": 5, "steps": 10, "rows": 640, "rows_per_s": 1000.0, "stall": 0.1, "loss": 0.5,
    "l0": 3.0, "fvu": 0.25,
}  # fmt: skip
ESTIMATE = {
    "runs": ["a", "b"],
    "rows": 1000,
    "passes": 1,
    "memory_bytes": 1 << 30,
    "fits": True,
    "seconds": None,
}


def service(asked: Asked) -> Said:
    """Answers as a service with two runs."""
    path = asked.path.partition("?")[0]
    if asked.method == "POST" and path == "/runs":
        if asked.body["dry_run"]:
            return Said(ESTIMATE)
        return Said([run_json("a"), {**run_json("b"), "name": "b[red]\x1b[31m"}], 201)
    if path == "/runs":
        runs = [
            run_json("a", progress=PROGRESS, state="running"),
            run_json("b", waits_for="a free slot"),
        ]
        return Said({"runs": runs, "total": 2, "next": None})
    if path.endswith("/events"):
        kind = "failed" if "id-b" in path else "completed"
        return Said(events_text("queued", "started", kind), headers=EVENTS)
    if path == "/runs/nope/cancel":
        return Said({"detail": "there is no run nope"}, 404)
    state = {"cancel": "cancelled", "resume": "queued"}[path.rpartition("/")[2]]
    return Said(run_json("a", state=state))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    with answering(service) as server:
        monkeypatch.setenv("ACTSTORE_SERVICE", server.url)
        monkeypatch.setenv("ACTSTORE_TOKEN", TOKEN)
        yield server


@pytest.fixture
def spec(tmp_path: Path) -> str:
    path = tmp_path / "spec.yaml"
    path.write_text("store: s\nrows: 1M\n")
    return str(path)


def test_submit(server: StandIn, spec: str, cli: Cli) -> None:
    code, out, _ = cli("trainer", "submit", spec, "--name", "mine", "--priority", "3")
    assert code == 0
    # What others call their runs is shown, and not obeyed.
    assert out == "id-a  a  queued\nid-b  b[red]\\x1b[31m  queued\n"
    body = server.asked[-1].body
    assert (body["name"], body["priority"], body["dry_run"]) == ("mine", 3, False)
    code, out, _ = cli("trainer", "submit", spec, "--json")
    assert [run["id"] for run in json.loads(out)] == ["id-a", "id-b"]


def test_a_dry_run_tells_what_it_would_take(
    server: StandIn, spec: str, cli: Cli
) -> None:
    code, out, _ = cli("trainer", "submit", spec, "--dry-run")
    assert code == 0
    assert "1,000 for each" in out
    assert "not known" in out
    code, out, _ = cli("trainer", "submit", spec, "--dry-run", "--json")
    assert json.loads(out) == ESTIMATE
    for option in ("--follow", "--priority=3"):
        code, _, err = cli("trainer", "submit", spec, "--dry-run", option)
        assert code == 1
        assert option.partition("=")[0] in err


def test_submit_follows_and_tells_of_a_failure(
    server: StandIn, spec: str, cli: Cli
) -> None:
    code, out, _ = cli("trainer", "submit", spec, "--follow")
    assert code == 1
    assert "  a  completed" in out
    assert "  failed" in out
    code, out, _ = cli("trainer", "submit", spec, "--follow", "--json")
    kinds = [json.loads(line)["kind"] for line in out.splitlines()]
    assert kinds == ["queued", "started", "completed", "queued", "started", "failed"]


def test_runs(server: StandIn, cli: Cli) -> None:
    filters = ("--state", "queued", "--user", "ann", "--sweep", "s", "--text", "x")
    code, out, err = cli("trainer", "runs", *filters)
    assert (code, err) == (0, "")
    for word in ("id-a", "5/10", "0.25", "running", "id-b: a free slot"):
        assert word in out
    assert server.asked[-1].path.startswith(
        "/runs?state=queued&user=ann&sweep=s&text=x&"
    )
    code, out, err = cli("trainer", "runs", "--most", "1", "--json")
    assert [run["id"] for run in json.loads(out)] == ["id-a"]
    assert "more than 1" in err


def test_logs_cancel_and_resume(server: StandIn, cli: Cli) -> None:
    code, out, _ = cli("trainer", "logs", "id-a")
    assert code == 0
    assert server.asked[-1].path == "/runs/id-a/events?follow=false"
    assert [line.split("  ")[1] for line in out.splitlines()] == [
        "queued",
        "started",
        "completed",
    ]
    code, out, _ = cli("trainer", "logs", "-f", "id-a", "--json")
    assert server.asked[-1].path == "/runs/id-a/events"
    assert [json.loads(line)["id"] for line in out.splitlines()] == [1, 2, 3]
    assert cli("trainer", "cancel", "id-a")[:2] == (0, "id-a  a  cancelled\n")
    code, out, _ = cli("trainer", "resume", "id-a", "--json")
    assert json.loads(out)["state"] == "queued"
    code, _, err = cli("trainer", "cancel", "nope")
    assert (code, err) == (1, "error: there is no run nope\n")


COMMANDS: dict[str, tuple[str, ...]] = {
    "submit": ("FILE",), "runs": (), "logs": ("id-a",), "cancel": ("id-a",), "resume": ("id-a",),
}  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_each_says_which_service_and_whose_token(
    command: str,
    server: StandIn,
    spec: str,
    tmp_path: Path,
    cli: Cli,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = (
        "trainer",
        command,
        *(spec if word == "FILE" else word for word in COMMANDS[command]),
    )
    token_file = tmp_path / "token"
    token_file.write_text(f"{TOKEN}-of-file")
    assert cli(*words, "--token-file", str(token_file))[0] == 0
    assert server.asked[-1].headers["authorization"] == f"Bearer {TOKEN}-of-file"
    code, _, err = cli(*words, "--service", "http://example.org")
    assert code == 1
    assert "over plain http" in err
    given: list[dict[str, Any]] = [{"ACTSTORE_TOKEN": None}, {"ACTSTORE_SERVICE": None}]
    for variables in given:
        with monkeypatch.context() as patch:
            for name in variables:
                patch.delenv(name)
            code, _, err = cli(*words)
        assert code == 1
        assert next(iter(variables)) in err
        assert TOKEN not in err
