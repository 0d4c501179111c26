"""The worker of a sweep, in this process."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from actstore.engines.worker_place import place_like_here
from actstore.format.storage import Storage
from schemas.engines import PassAnswer, PassQuestion, PassSetup
from schemas.service import PassSpec
from schemas.train import TrainSpec
from tests.support import make_store
from trainer.runs.run_lock import RunLock
from trainer.training import pass_worker
from trainer.training.pass_worker import PassWorker


def worker() -> PassWorker:
    return PassWorker(PassSetup(place=place_like_here("cpu", 1)).to_json())


def ask(worker: PassWorker, question: PassQuestion) -> PassAnswer:
    return PassAnswer.model_validate_json(worker.answer(question.to_json()))


def until_ended(worker: PassWorker, begun: PassAnswer) -> PassAnswer:
    answer = begun
    while answer.stage == "training":
        answer = ask(worker, PassQuestion())
    return answer


@pytest.fixture
def spec(tmp_path: Path) -> PassSpec:
    make_store(tmp_path / "store", n_units=21)
    store = str(tmp_path / "store")
    keys: dict[str, Any] = {
        "store": store,
        "sae": {"kind": "topk", "k": 2, "n_latents": 16},
        "stream": {"batch": 64},
        "rows": 6_400,
    }
    run = TrainSpec.model_validate(keys)
    return PassSpec(runs={str(tmp_path / "run"): run}, store=store)


def test_a_pass(spec: PassSpec, tmp_path: Path) -> None:
    one = worker()
    assert ask(one, PassQuestion()).stage == "idle"
    answer = until_ended(one, ask(one, PassQuestion(begin=spec)))
    assert (answer.stage, answer.error) == ("ended", None)
    assert answer.progress is not None
    assert answer.progress.step == answer.progress.steps == 100
    assert (tmp_path / "run" / "sae.json").exists()
    # How it ended is said once.
    assert ask(one, PassQuestion()).stage == "idle"


def test_it_waits_for_who_still_holds_a_run(spec: PassSpec, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    lock = RunLock(Storage(tmp_path / "run"))
    lock.take()
    threading.Timer(1.0, lock.free).start()
    one = worker()
    answer = until_ended(one, ask(one, PassQuestion(begin=spec)))
    assert answer.stage == "ended"


def test_a_run_that_another_process_trains_is_told(
    spec: PassSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pass_worker, "LOCK_S", 0.0)
    (tmp_path / "run").mkdir()
    lock = RunLock(Storage(tmp_path / "run"))
    lock.take()
    one = worker()
    answer = until_ended(one, ask(one, PassQuestion(begin=spec)))
    lock.free()
    assert answer.stage == "failed"
    assert answer.error is not None
    assert answer.error.kind == "RunLockedError"
    assert answer.error.is_users


def test_a_pass_that_is_stopped_saves(spec: PassSpec, tmp_path: Path) -> None:
    url, run = next(iter(spec.runs.items()))
    long = run.model_copy(update={"rows": 10_000_000, "log_every": 1})
    one = worker()
    ask(one, PassQuestion(begin=spec.model_copy(update={"runs": {url: long}})))
    while not (tmp_path / "run" / "journal.jsonl").exists():
        time.sleep(0.01)
    answer = until_ended(one, ask(one, PassQuestion(stop=signal.SIGINT)))
    assert answer.stage == "stopped"
    assert answer.saved.startswith("stopped and saved at step")
    assert list((tmp_path / "run" / "checkpoints").iterdir())


def test_another_version_is_refused(spec: PassSpec) -> None:
    place = place_like_here("cpu", 1).model_copy(update={"version": "0.0.0"})
    one = PassWorker(PassSetup(place=place).to_json())
    answer = until_ended(one, ask(one, PassQuestion(begin=spec)))
    assert answer.error is not None
    assert "install the same on all machines" in answer.error.text
