"""The client and the real service: what one says the other understands."""

from __future__ import annotations

import doctest
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from actstore.errors import SpecError
from schemas.service import RunProgress
from tests.service.served import SAE, SLOT, Served, served
from tests.support import make_store
from trainer import ServiceClient
from trainer.errors import (
    ConflictError,
    ForbiddenError,
    TokenError,
    UnknownRunError,
)
from trainer.queue.queue_records import Outcome

ROOT = Path(__file__).parents[2]
PROGRESS = RunProgress(
    step=1, steps=2, rows=64, rows_per_s=1.0, stall=0.0, loss=1.0, l0=4.0, fvu=float("nan")
)  # fmt: skip


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("service")) as service:
        yield service


def client(
    service: Served, role: Any = "submitter", user: str = "ada"
) -> ServiceClient:
    return ServiceClient(service.url, token=service.tokens.make(user, role))


def test_a_run_from_its_submission_to_its_files(
    service: Served, tmp_path: Path
) -> None:
    with client(service) as ada:
        estimate = ada.estimate(service.spec())
        assert (estimate.fits, estimate.passes) == (True, 1)
        [run] = ada.submit(service.spec(), name="first", priority=7)
        assert (run.name, run.user, run.state, run.priority) == (
            "first",
            "ada",
            "queued",
            7,
        )
        assert run in list(ada.runs("queued", user="ada", text="firs"))
        assert not list(ada.runs("completed", text="first"))
        events = ada.events(run.id)
        assert next(events).kind == "queued"
        queue = service.service.queue
        lease = queue.start([run.id], SLOT.name)
        queue.heartbeat(lease.id, {run.id: PROGRESS})
        kinds = [next(events).kind for _ in range(2)]
        assert kinds == ["started", "progress"]
        folder = Path(run.url)
        folder.mkdir(parents=True)
        (folder / "sae.json").write_bytes(b"{}")
        queue.end(lease.id, {run.id: Outcome("completed", "so it ended")})
        assert [event.kind for event in events] == ["completed"]
        assert [event.kind for event in ada.events(run.id, follow=False)][
            -1
        ] == "completed"
        assert ada.run(run.id).state == "completed"
        assert ada.journal(run.id) == []
        assert ada.evaluation(run.id) is None
        assert "sae.json" in [one.key for one in ada.artifacts(run.id)]
        ada.download(run.id, "sae.json", tmp_path / "sae.json")
        assert (tmp_path / "sae.json").read_bytes() == b"{}"
        with pytest.raises(UnknownRunError):
            ada.download(run.id, "../../state/service.sqlite", tmp_path / "no")
        with pytest.raises(ConflictError, match="no catalog"):
            ada.publish(run.id, "name")
        with pytest.raises(ConflictError):
            ada.cancel(run.id)
        assert [store.rows > 0 for store in ada.stores()] == [True]
        assert ada.state().slots[0].name == SLOT.name


def test_the_example_runs(service: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(service.folder)
    monkeypatch.setenv("ACTSTORE_SERVICE", service.url)
    monkeypatch.setenv("ACTSTORE_TOKEN", service.tokens.make("ada", "submitter"))
    [example] = doctest.DocTestFinder(recurse=False).find(ServiceClient, globs={})
    results = doctest.DocTestRunner().run(example)
    assert (results.failed, results.attempted) == (0, 7)


def test_a_sweep_is_cancelled_and_resumed_run_by_run(service: Served) -> None:
    sweep = {"base": service.spec(), "grid": {"sae.k": [2, 3]}}
    with client(service) as ada:
        first, second = ada.submit(sweep, name="pair")
        assert first.sweep == second.sweep == "pair"
        assert ada.cancel(first.id).state == "cancelled"
        assert [event.kind for event in ada.events(first.id)] == ["queued", "cancelled"]
        assert ada.resume(first.id).state == "queued"
        assert {run.id for run in ada.runs(sweep="pair")} == {first.id, second.id}


def test_refusals_say_what_the_command_line_says(service: Served) -> None:
    with client(service) as ada:
        with pytest.raises(SpecError, match=r"sae.k"):
            ada.submit(service.spec(sae={**SAE, "k": 0}))
        with pytest.raises(SpecError, match="does not read from there"):
            ada.submit({"store": "/etc", "sae": SAE})
        with pytest.raises(UnknownRunError):
            ada.run("nope")
        [run] = ada.submit(service.spec())
    with client(service, "reader") as reader:
        with pytest.raises(ForbiddenError):
            reader.submit(service.spec())
        assert reader.run(run.id).id == run.id
    with client(service, user="bob") as bob, pytest.raises(ForbiddenError):
        bob.cancel(run.id)
    wrong = f"actstore_{'0' * 12}_{'0' * 64}"
    with ServiceClient(service.url, token=wrong) as nobody, pytest.raises(TokenError):
        nobody.state()


def started(folder: Path, port: int) -> tuple[subprocess.Popen[str], str]:
    """`trainer serve` of a folder, once it answers, and its address."""
    words = [
        "--runs",
        str(folder / "runs"),
        "--stores",
        str(folder),
        "--port",
        str(port),
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "trainer", "serve", "--device", "cpu", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        text=True,
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("service: http://127.0.0.1:"), line
    return process, line.removeprefix("service: ").strip()


@pytest.mark.slow
def test_a_follower_outlives_a_killed_service(tmp_path: Path) -> None:
    """The service is killed while a run of it is followed, and started again: every
    event of the run comes once, and the run completes.
    """
    store = make_store(tmp_path / "stores" / "small")
    runs = ["--runs", str(tmp_path / "runs"), "--user", "ada", "--role", "submitter"]
    made = subprocess.run(
        [sys.executable, "-m", "trainer", "token", "make", *runs],
        capture_output=True, text=True, check=True, cwd=ROOT,
    )  # fmt: skip
    first, url = started(tmp_path, 0)
    second = None
    try:
        with ServiceClient(url, token=made.stdout.strip(), patience_s=120) as ada:
            [run] = ada.submit(
                {
                    "store": store.url,
                    "sae": SAE,
                    "rows": 20_000,
                    "stream": {"batch": 64},
                }
            )
            events = ada.events(run.id)
            seen = [next(events)]
            first.send_signal(signal.SIGKILL)
            first.wait()
            second, _ = started(tmp_path, int(url.strip("/").rpartition(":")[2]))
            seen += list(events)
            assert seen[-1].kind == "completed"
            assert [event.id for event in seen] == sorted({event.id for event in seen})
            assert [event.kind for event in seen].count("started") >= 1
            assert seen == list(ada.events(run.id, follow=False))
    finally:
        for process in (first, second):
            if process is not None:
                process.terminate()
                process.wait(60)
                assert process.stdout is not None
                process.stdout.close()
