"""The training service, without HTTP: what the API and the pages call.

Methods may take long, and so are called from threads; `Service` may be used from
several at once.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import NamedTuple

from actstore.errors import ObjectError
from actstore.format.storage import Storage
from actstore.publishing.publish import publish
from schemas.records import EvalRecord, StepRecord
from schemas.service import (
    Artifact,
    Estimate,
    RunEvent,
    RunPage,
    RunState,
    ServiceRun,
    ServiceState,
    ServiceStore,
    SiteNorms,
    SlotState,
    Submission,
)
from trainer.errors import BusyError, ConflictError, ForbiddenError, ServiceError
from trainer.passes.allowed_stores import AllowedStores
from trainer.queue.queue import Queue
from trainer.queue.queue_lookups import is_taken, last_event, submitted
from trainer.queue.queue_records import QueuedRun
from trainer.queue.schedule import waits_for
from trainer.runs.run_files import read_json
from trainer.service import artifacts
from trainer.service.acceptance import Acceptance, Accepted
from trainer.service.artifacts import ArtifactParts
from trainer.service.journals import Journals
from trainer.service.run_reports import Reports, report_environment
from trainer.service.shown_run import shown_run
from trainer.service.store_list import StoreList
from trainer.service.tokens import User
from trainer.service.training_time import expected_seconds

MOST_QUEUED = 20_000
MOST_COMPARED = 500  # completed runs that are looked at for their speed
MOST_IN_REPORT = 50


class Places(NamedTuple):
    """Where the runs and stores of a service lie.

    Attributes:
        runs: URL of the folder of all runs.
        stores: Prefixes below which stores may be read.
        catalog: URL of the catalog; None: the service has none.
    """

    runs: str
    stores: tuple[str, ...]
    catalog: str | None = None


class Service:
    """A training service.

    Attributes:
        places: Where its runs and stores lie.
        queue: Its runs.
        slots: Where passes are trained.
    """

    def __init__(
        self,
        places: Places,
        queue: Queue,
        slots: Sequence[SlotState],
        trouble: Callable[[], str | None] = lambda: None,
    ) -> None:
        """Put a service together; it trains nothing by itself.

        Args:
            places: Where its runs and stores lie.
            queue: Its runs.
            slots: Where passes are trained, without the runs there.
            trouble: Tells why no passes can be started at the moment, if so.
        """
        self.places = places
        self.queue = queue
        self.slots = tuple(slots)
        self._trouble = trouble
        self.allowed = AllowedStores(places.stores, places.catalog)
        self._acceptance = Acceptance(places.runs, self.allowed, list(slots))
        self._stores = StoreList(self.allowed, places.catalog)
        self._journals = Journals()
        self._reports = Reports(report_environment)
        self._submitting = threading.Lock()

    def submit(
        self, submission: Submission, user: User, idempotency_key: str | None = None
    ) -> list[ServiceRun]:
        """Queue the runs that a user asks for.

        Args:
            submission: What to train.
            user: Who asks.
            idempotency_key: The same key with the same submission gives the same runs.

        Raises:
            SpecError, SaeError, StoreError: It cannot be trained; as the command line
                says it.
            ConflictError: The name is taken, or the key came with something else.
            BusyError: Too many runs wait already.
        """
        text = json.dumps(submission.model_dump(), sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()
        before = submitted(self.queue, user.name, idempotency_key, digest)
        if before is not None:
            return [self.run(run_id) for run_id in before]
        accepted = self._acceptance.accept(submission)
        # Names are looked at and taken by one at a time.
        with self._submitting:
            waiting = self.queue.counts()["queued"] + len(accepted.runs)
            if waiting > MOST_QUEUED:
                raise BusyError(f"{waiting:,} runs would wait; at most {MOST_QUEUED:,}")
            self._check_name(accepted)
            ids = self.queue.submit(
                accepted.runs,
                user.name,
                submission.priority,
                accepted.sweep,
                idempotency_key,
                digest,
            )
        return [self.run(run_id) for run_id in ids]

    def estimate(self, submission: Submission) -> Estimate:
        """Return what training would take.

        Raises:
            SpecError, SaeError, StoreError: As `submit` does.
        """
        accepted = self._acceptance.accept(submission)
        largest = max(one.memory_bytes for one in accepted.passes)
        room = max(slot.memory_bytes for slot in self.slots)
        before = self.queue.runs(states=("completed",), limit=MOST_COMPARED).runs
        return Estimate(
            runs=[run.name for run in accepted.runs],
            rows=max(run.rows for run in accepted.runs),
            passes=len(accepted.passes),
            memory_bytes=largest,
            fits=largest <= room,
            seconds=expected_seconds(accepted.runs, before, len(self.slots)),
        )

    def runs(
        self,
        states: Sequence[RunState] | None = None,
        user: str | None = None,
        sweep: str | None = None,
        text: str | None = None,
        after: str | None = None,
        limit: int = 50,
        before: str | None = None,
    ) -> RunPage:
        """Return some of the runs, newest first; the arguments are those of the queue.

        Raises:
            UnknownRunError: There is no run `after` or `before`.
        """
        page = self.queue.runs(states, user, sweep, text, after, limit, before)
        runs = [self._shown(run) for run in page.runs]
        return RunPage(runs=runs, total=page.total, next=page.next)

    def run(self, run_id: str) -> ServiceRun:
        """Return a run.

        Raises:
            UnknownRunError: There is none of this id.
        """
        return self._shown(self.queue.run(run_id))

    def events(
        self, after: int = 0, run: str | None = None, limit: int = 1000
    ) -> list[RunEvent]:
        """Return events behind `after`, of one run or of all."""
        return self.queue.events(after, run, limit)

    def last_event(self) -> int:
        """Return the id of the newest event; 0 where there is none."""
        return last_event(self.queue)

    def cancel(self, run_id: str, user: User) -> ServiceRun:
        """Cancel a run; one that is trained is saved first.

        Raises:
            UnknownRunError, ConflictError: There is none, or it has ended.
            ForbiddenError: It is another user's, and this one is no admin.
        """
        self._check_own(run_id, user)
        self.queue.cancel(run_id, user.name)
        return self.run(run_id)

    def resume(self, run_id: str, user: User) -> ServiceRun:
        """Queue a run again that was cancelled or has failed.

        Raises:
            UnknownRunError, ConflictError: There is none, or it is in another state.
            ForbiddenError: It is another user's, and this one is no admin.
        """
        self._check_own(run_id, user)
        self.queue.resume(run_id, user.name)
        return self.run(run_id)

    def publish(self, run_id: str, name: str, user: User) -> ServiceRun:
        """Publish a run that has completed in the catalog.

        Raises:
            UnknownRunError, ConflictError: There is none, it has not completed, or the
                service has no catalog.
            ForbiddenError: It is another user's, and this one is no admin.
            CatalogError: The name cannot be one.
        """
        run = self._check_own(run_id, user)
        if run.state != "completed":
            raise ConflictError(
                f"run {run_id} is {run.state}; only one that has completed can be"
                " published"
            )
        if self.places.catalog is None:
            raise ConflictError(
                "this service has no catalog; start it with --catalog URL"
            )
        published = publish(run.url, name, catalog=self.places.catalog, by=user.name)
        self.queue.set_published(run_id, published.name)
        return self.run(run_id)

    def journal(self, run_id: str) -> list[StepRecord]:
        """Return the records of a run's journal so far."""
        return self._journals.records(self.queue.run(run_id).url)

    def journal_json(self, run_id: str, after_step: int = -1) -> bytes:
        """Return those behind a step, as a JSON list."""
        return self._journals.json(self.queue.run(run_id).url, after_step)

    def evaluation(self, run_id: str) -> EvalRecord | None:
        """Return how good a run's SAE is; None where it was not evaluated yet."""
        storage = Storage(self.queue.run(run_id).url)
        try:
            return read_json(storage, "eval.json", EvalRecord)
        except ObjectError:
            return None

    def report(self, run_ids: str | Sequence[str]) -> bytes:
        """Return the report of runs that have completed, as HTML.

        Raises:
            UnknownRunError, ConflictError: One is not there, or has not completed.
            RunError, BusyError: It cannot be made, or not now.
        """
        ids = [run_ids] if isinstance(run_ids, str) else list(run_ids)
        if len(ids) > MOST_IN_REPORT:
            raise ConflictError(f"a report is of at most {MOST_IN_REPORT} runs")
        runs = [self.queue.run(run_id) for run_id in ids]
        for run in runs:
            if run.state != "completed":
                raise ConflictError(
                    f"run {run.id} is {run.state}; there is a report of runs that have"
                    " completed"
                )
            # Where it lay when it was accepted, another thing may lie now.
            self.allowed.check(run.store_url)
        return self._reports.page([run.url for run in runs])

    def artifacts(self, run_id: str) -> list[Artifact]:
        """Return the files of a run's folder."""
        return artifacts.artifacts(Storage(self.queue.run(run_id).url))

    def artifact(self, run_id: str, key: str) -> ArtifactParts:
        """Return a file of a run's folder.

        Raises:
            UnknownRunError: There is no such run, or no such file.
        """
        return artifacts.open_artifact(Storage(self.queue.run(run_id).url), key)

    def stores(self) -> list[ServiceStore]:
        """Return the stores that may be trained from."""
        return self._stores.stores()

    def store_norms(self, url: str) -> list[SiteNorms]:
        """Return the norms of a store's sites.

        Raises:
            SpecError, StoreError: The service may not read it, or cannot.
        """
        return self._stores.norms(url)

    def state(self) -> ServiceState:
        """Return the service as a whole."""
        by_slot = self.queue.slots()
        return ServiceState(
            version=version("actstore"),
            runs_url=self.places.runs,
            slots=[
                slot.model_copy(update={"runs": by_slot.get(slot.name, [])})
                for slot in self.slots
            ],
            counts=self.queue.counts(),
        )

    def check(self) -> None:
        """Raise StoreError or ServiceError where the service cannot work now."""
        self.queue.counts()
        Storage(self.places.runs).is_folder()
        trouble = self._trouble()
        if trouble is not None:
            raise ServiceError(trouble)

    def _shown(self, run: QueuedRun) -> ServiceRun:
        """Return a run as it is told."""
        why = None
        if run.state == "queued":
            why = waits_for(run.memory_bytes, self.slots, len(self.queue.slots()))
        return shown_run(run, why)

    def _check_own(self, run_id: str, user: User) -> QueuedRun:
        """Return a run that a user may change."""
        run = self.queue.run(run_id)
        if user.role != "admin" and run.user != user.name:
            raise ForbiddenError(
                f"run {run_id} is {run.user}'s; only {run.user} or an admin may change"
                " it"
            )
        return run

    def _check_name(self, accepted: Accepted) -> None:
        """Raise ConflictError where a run or sweep of the same name is there."""
        name = accepted.sweep or accepted.runs[0].name
        there = Storage(self.places.runs).child(name)
        if is_taken(self.queue, name) or not there.is_empty():
            raise ConflictError(
                f"there is a run or sweep called {name} already; choose another name"
            )
