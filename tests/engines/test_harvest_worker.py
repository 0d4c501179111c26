"""The worker of a harvest in a thread of this process, with the driver that it has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import actstore
from actstore.engines.ray_engine import Reply, Room
from actstore.engines.worker_place import place_like_here
from actstore.errors import HarvestWarning
from actstore.format.storage import Storage
from actstore.harvesting import harvest_on_ray
from actstore.harvesting.harvest_driver import HarvestDriver
from actstore.harvesting.harvest_spec import resolve_spec
from actstore.harvesting.harvest_worker import HarvestWorker
from schemas.engines import HarvestAnswer, HarvestQuestion, HarvestSetup
from tests.engines.test_cluster import objects

SPEC: dict[str, Any] = {
    "model": "builtin:mini",
    "sites": ["blocks.0.hook_mlp_out"],
    # More than the text has.
    "tokens": 64 * 2 * 16,
    "context": 16,
    "unit_sequences": 2,
    "batch": 2,
}


class Threads:
    """Stands where Ray's workers stand: each is asked in turn."""

    def __init__(self, n: int) -> None:
        self.room = Room(n, 1, 0)
        self.workers: dict[int, HarvestWorker] = {}
        self.asked: dict[int, str] = {}

    def begin(self, setup: str, question: str) -> int:
        number = len(self.workers)
        self.workers[number] = HarvestWorker(setup)
        self.asked[number] = question
        return number

    def ask(self, worker: int, question: str) -> None:
        self.asked[worker] = question

    def replies(self, _: float) -> list[Reply]:
        asked, self.asked = self.asked, {}
        return [Reply(n, self.workers[n].answer(one)) for n, one in asked.items()]

    def close(self) -> None:
        for worker in self.workers.values():
            worker._units.end()
            worker._thread.join()


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A harvest of a text that has some 20 units."""
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("def one(two):\n    return three(four)\n\n" * 50)
    corpus = {"name": "text.txt", "kind": "text"}
    return {**SPEC, "corpus": corpus}


def setup_of(spec: dict[str, Any], out: str) -> str:
    return HarvestSetup(
        place=place_like_here("cpu", 1),
        spec=resolve_spec(spec, None, None),
        out=out,
        options={},
    ).to_json()


def test_a_corpus_that_ends_early(spec: dict[str, Any], tmp_path: Path) -> None:
    with pytest.warns(HarvestWarning, match="the corpus ended early") as alone:
        actstore.harvest(spec, "alone")
    threads = Threads(1)
    storage = Storage("out")
    driver = HarvestDriver(storage, setup_of(spec, "out"), threads, lambda _: None)  # type: ignore[arg-type]
    driver.run()
    threads.close()
    with pytest.warns(HarvestWarning, match="the corpus ended early") as placed:
        harvest_on_ray.finished(storage, driver.tokenizer_keys, "out", None)
    assert objects(tmp_path / "out") == objects(tmp_path / "alone")
    assert [str(one.message) for one in placed] == [str(one.message) for one in alone]


def test_a_worker_joins_only_what_it_sees(spec: dict[str, Any]) -> None:
    worker = HarvestWorker(setup_of(spec, "elsewhere"))
    may_write = ""
    answer = None
    while answer is None or answer.error is None:
        question = HarvestQuestion.model_validate({"may_write": may_write})
        answer = HarvestAnswer.model_validate_json(worker.answer(question.to_json()))
        may_write = "join" if answer.stage == "loaded" else ""
    assert "does not see what another machine has written" in answer.error.text
    assert not Path("elsewhere").exists()
