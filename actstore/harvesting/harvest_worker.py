"""The worker of a harvest on an engine: it loads the model once, for many units.

It is made from a HarvestSetup, and says what is new whenever it is asked. The work
itself is done by a thread, as `Worker` does it for a harvest without an engine; tokens,
model and writer are kept busy over all units that it is handed.
"""

from __future__ import annotations

import threading
import warnings
from concurrent.futures import Future
from contextlib import closing

import torch

from actstore.engines.work_error import work_error
from actstore.engines.worker_place import in_place, node
from actstore.errors import EngineError, HarvestWarning
from actstore.format import object_keys
from actstore.format.storage import Storage
from actstore.harvesting.handed_units import HandedUnits
from actstore.harvesting.progress import Progress, silent
from actstore.harvesting.store_writer import StoreWriter
from actstore.harvesting.tried_harvest import TriedHarvest, tried_harvest
from actstore.harvesting.worker import Worker
from schemas.engines import (
    DoneUnit,
    HarvestAnswer,
    HarvestQuestion,
    HarvestSetup,
    WorkError,
)
from schemas.manifest import BlockRecord, UnitRecord

# An answer comes when there is news, or after this time without any.
ANSWER_S = 0.5


class HarvestWorker:
    """Harvests the units that it is handed."""

    def __init__(self, setup: str) -> None:
        """Begin to load the model.

        setup: A HarvestSetup, as JSON.
        """
        self._setup = HarvestSetup.model_validate_json(setup)
        self._changed = threading.Condition()
        self._is_new = True
        self._stage = "loading"
        self._may_write = ""
        self._units = HandedUnits(self._note_beyond)
        self._done: list[DoneUnit] = []
        self._told_tokens = 0  # tokens of units that are committed
        self._progress = Progress("")
        self._tokenizer_keys: list[str] = []
        self._error: WorkError | None = None
        self._caught: list[warnings.WarningMessage] = []
        self._thread = threading.Thread(target=self._run, name="harvest", daemon=True)
        self._thread.start()

    def answer(self, question: str) -> str:
        """Take a HarvestQuestion, and return a HarvestAnswer, both as JSON."""
        asked = HarvestQuestion.model_validate_json(question)
        with self._changed:
            if asked.may_write:
                self._units.number = asked.number
                self._may_write = asked.may_write
                self._changed.notify_all()
            self._units.hand(asked.units)
            if not asked.units:
                self._changed.wait_for(lambda: self._is_new, ANSWER_S)
            return self._answer().to_json()

    def _answer(self) -> HarvestAnswer:
        """Return what is new; the lock is held."""
        self._is_new = False
        done = self._done
        self._done = []
        caught = self._caught[:]
        del self._caught[: len(caught)]
        notes = [
            str(one.message)
            for one in caught
            if issubclass(one.category, HarvestWarning)
        ]
        beyond = [self._units.beyond.popleft() for _ in range(len(self._units.beyond))]
        return HarvestAnswer.model_validate(
            {
                "stage": self._stage,
                "node": node(),
                "tokenizer_keys": self._tokenizer_keys,
                "done": done,
                "beyond": beyond,
                "tokens": max(0, self._progress.tokens - self._told_tokens),
                "in_flight": self._progress.in_flight,
                "notes": notes,
                "error": self._error,
            }
        )

    def _note_beyond(self) -> None:
        """Say that the corpus does not reach a unit."""
        with self._changed:
            self._tell()

    def _run(self) -> None:
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                self._caught = caught
                with in_place(self._setup.place):
                    self._harvest()
        except BaseException as error:  # noqa: BLE001 (the driver is told)
            self._fail(error)

    def _harvest(self) -> None:
        setup = self._setup
        storage = Storage(setup.out, dict(setup.options))
        with tried_harvest(setup.spec, setup.place.device, silent) as tried:
            self._wait_to_write(storage)
            with closing(
                StoreWriter.create(storage, tried.plan, tried.tokenizer_files)
            ) as writer:
                self._tokenizer_keys = [
                    f"tokenizer/{name}" for name in tried.tokenizer_files
                ]
                self._to("writing")
                self._work(writer, tried)

    def _to(self, stage: str) -> None:
        with self._changed:
            self._stage = stage
            self._tell()

    def _tell(self) -> None:
        """Let whoever waits for news have it; the lock is held."""
        self._is_new = True
        self._changed.notify_all()

    def _note_progress(self, progress: Progress) -> None:
        self._progress = progress

    def _note_unit(self, block: BlockRecord, record: Future[UnitRecord] | None) -> None:
        """Note a unit that is committed, or the error that it ended with."""
        n_bytes = 0
        if record is not None:
            if record.cancelled():
                return
            error = record.exception()
            if error is not None:
                self._fail(error)
                return
            n_bytes = sum(one.bytes for one in record.result().objects.values())
        done = DoneUnit(unit=block.unit, n_tokens=block.n_tokens, bytes=n_bytes)
        with self._changed:
            self._done.append(done)
            self._told_tokens += block.n_tokens
            self._tell()

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            self._stage = "failed"
            self._error = self._error or work_error(error)
            self._tell()

    def _wait_to_write(self, storage: Storage) -> None:
        """Wait until the driver says that the store may be begun or joined.

        One worker begins it; the others, and the driver, have to see what that wrote.
        """
        self._to("loaded")
        with self._changed:
            self._changed.wait_for(lambda: self._may_write != "")
        joins = self._may_write == "join"
        if joins and not storage.exists(object_keys.plan_key(0)):
            raise EngineError(
                f"{storage.url}: {node()} does not see what another machine has"
                " written there; choose a place that all machines share"
            )

    def _work(self, writer: StoreWriter, tried: TriedHarvest) -> None:
        worker = Worker(
            plan=writer.plan,
            writer=writer,
            source=tried.source,
            tap=tried.tap,
            device=torch.device(self._setup.place.device),
            report=self._note_progress,
            share=self._units,
            pad=tried.loaded.pad,
            told_of_units=self._note_unit,
        )
        worker.run(tried.first)
