"""The driver of a harvest, with workers that do what a test says."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import actstore
from actstore.engines.ray_engine import Reply, Room
from actstore.errors import EngineError, SiteError
from actstore.format import object_keys
from actstore.format.storage import Storage
from actstore.harvesting.harvest_driver import UNITS_AT_ONCE, HarvestDriver
from actstore.harvesting.progress import Progress
from schemas.engines import DoneUnit, HarvestAnswer, HarvestQuestion, WorkError

UNITS = 10


class Actor:
    """One worker: which units it has, and what it was allowed."""

    def __init__(self) -> None:
        self.stage: Any = "loading"
        self.units: list[int] = []
        self.may_write = ""
        self.number: int | None = None


class Workers:
    """Stand where Ray's workers stand. At each answer the script says what becomes of
    the worker: `works`, `waits` or `dies`; when the script is over, all work.
    """

    def __init__(self, made: Path, out: Path, n: int, script: list[str]) -> None:
        self.room = Room(n, 1, 0)
        self.made, self.out = made, out
        self.script = iter(script)
        self.actors: dict[int, Actor] = {}
        self.asked: list[int] = []
        self.error: WorkError | None = None
        self.n_begun = 0
        self.n_dead = 0

    def begin(self, _: str, question: str) -> int:
        self.n_begun += 1
        self.actors[self.n_begun] = Actor()
        self.ask(self.n_begun, question)
        return self.n_begun

    def ask(self, worker: int, question: str) -> None:
        assert worker not in self.asked
        asked = HarvestQuestion.model_validate_json(question)
        actor = self.actors[worker]
        actor.units += asked.units
        assert len(actor.units) <= UNITS_AT_ONCE
        actor.may_write = asked.may_write or actor.may_write
        if asked.may_write:
            # One of those that live reads the corpus, and none has another's number.
            others = [one for one in self.actors.values() if one is not actor]
            assert asked.number not in [one.number for one in others]
            assert asked.number < self.room.n_workers
            actor.number = asked.number
        self.asked.append(worker)

    def replies(self, _: float) -> Iterator[Reply]:
        asked, self.asked = self.asked, []
        for worker in asked:
            yield self.reply(worker)

    def reply(self, worker: int) -> Reply:
        event = next(self.script, "works")
        if event == "dies":
            self.n_dead += 1
            del self.actors[worker]
            return Reply(worker, None, "killed")
        done = self.work(worker) if event == "works" else []
        answer = HarvestAnswer(
            stage=self.actors[worker].stage, node="n", done=done, error=self.error
        )
        return Reply(worker, answer.to_json())

    def work(self, worker: int) -> list[DoneUnit]:
        actor = self.actors[worker]
        if actor.stage == "loading":
            actor.stage = "loaded"
        elif actor.stage == "loaded" and actor.may_write:
            key = object_keys.plan_key(0)
            if actor.may_write == "begin":
                # Only one at a time may.
                others = [
                    other
                    for number, other in self.actors.items()
                    if number != worker and other.may_write == "begin"
                ]
                assert not others
                self.copy(key)
            assert (self.out / key).exists()
            actor.stage = "writing"
        elif actor.units:
            unit = actor.units.pop(0)
            self.copy(object_keys.block_key(unit))
            self.copy(object_keys.unit_key(unit, 0))
            return [DoneUnit(unit=unit, n_tokens=1, bytes=1)]
        return []

    def copy(self, key: str) -> None:
        (self.out / key).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(self.made / key, self.out / key)

    def end(self, worker: int) -> None:
        self.actors.pop(worker, None)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store, whose records the workers copy."""
    folder = tmp_path_factory.mktemp("made") / "store"
    spec = {
        "model": "builtin:mini",
        "corpus": "builtin:stdlib",
        "sites": "blocks.0.hook_mlp_out",
        "tokens": UNITS * 2 * 16,
        "context": 16,
        "unit_sequences": 2,
    }
    actstore.harvest(spec, folder)
    return folder


def committed(out: Path) -> list[int]:
    return sorted(int(path.stem) for path in out.glob("units/*.json"))


@settings(deadline=None, max_examples=150)
@given(
    n=st.integers(1, 4),
    script=st.lists(st.sampled_from(["works", "waits", "works", "dies"]), max_size=60),
)
def test_whoever_dies_every_unit_is_committed_or_it_is_said(
    made: Path, n: int, script: list[str]
) -> None:
    reports: list[Progress] = []
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        out.mkdir()
        workers = Workers(made, out, n, script)
        driver = HarvestDriver(Storage(out), "", workers, reports.append)  # type: ignore[arg-type]
        try:
            driver.run()
        except EngineError:
            # Only after deaths enough.
            assert workers.n_dead >= 3
            return
        assert committed(out) == list(range(UNITS))
        assert reports[-1].units == reports[-1].n_units == UNITS
        # Every worker that died was replaced.
        assert workers.n_begun == n + workers.n_dead


def test_what_is_committed_is_not_handed_again(made: Path, tmp_path: Path) -> None:
    workers = Workers(made, tmp_path, 1, [])
    for key in (object_keys.plan_key(0), object_keys.unit_key(4, 0)):
        workers.copy(key)
    handed: list[int] = []
    plain = workers.ask

    def ask(worker: int, question: str) -> None:
        handed.extend(HarvestQuestion.model_validate_json(question).units)
        plain(worker, question)

    workers.ask = ask  # type: ignore[method-assign]
    HarvestDriver(Storage(tmp_path), "", workers, lambda _: None).run()  # type: ignore[arg-type]
    assert handed == [unit for unit in range(UNITS) if unit != 4]


def test_a_users_mistake_is_raised_at_once(made: Path, tmp_path: Path) -> None:
    workers = Workers(made, tmp_path, 2, [])
    workers.error = WorkError(
        kind="SiteError", module="actstore.errors", text="no such site", is_users=True
    )
    with pytest.raises(SiteError, match="no such site"):
        HarvestDriver(Storage(tmp_path), "", workers, lambda _: None).run()  # type: ignore[arg-type]
    assert workers.n_begun == 2


def test_a_fault_of_a_worker_is_tried_again_a_few_times(
    made: Path, tmp_path: Path
) -> None:
    workers = Workers(made, tmp_path, 1, [])
    workers.error = WorkError(
        kind="EngineError", module="actstore.errors", text="boom", is_users=False
    )
    with pytest.raises(EngineError, match=r"5 workers were lost .*: n: boom"):
        HarvestDriver(Storage(tmp_path), "", workers, lambda _: None).run()  # type: ignore[arg-type]


def test_what_the_driver_does_not_see_is_said(made: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "here").mkdir()
    workers = Workers(made, tmp_path / "elsewhere", 1, [])
    with pytest.raises(EngineError, match="choose a place that all machines share"):
        HarvestDriver(Storage(tmp_path / "here"), "", workers, lambda _: None).run()  # type: ignore[arg-type]
    # A plan of an earlier harvest lies in both.
    shutil.copy(made / object_keys.plan_key(0), tmp_path / "here")
    workers = Workers(made, tmp_path / "elsewhere", 1, [])
    with pytest.raises(EngineError, match="does not see what n has written"):
        HarvestDriver(Storage(tmp_path / "here"), "", workers, lambda _: None).run()  # type: ignore[arg-type]
