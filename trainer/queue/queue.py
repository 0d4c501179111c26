"""The durable queue: runs, what happens to them, and the leases of those in training.

A run is queued, running, completed, failed or cancelled, and only this module takes it
from one to another. All of it lies in one SQLite file, which the service and the
processes that train have open at the same time; each method is one transaction.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

from schemas.service import ENDED, EventKind, RunEvent, RunProgress, RunState
from trainer.errors import ConflictError
from trainer.queue import events, leases, run_rows, slot_times, submissions
from trainer.queue.clocks import Clock
from trainer.queue.database import Database
from trainer.queue.queue_records import (
    Beat,
    Lease,
    NewRun,
    Outcome,
    Page,
    QueuedRun,
    WaitingRun,
    run_event,
)

MOST_LOSSES = 3


class Queue:
    """The runs of a service.

    Several threads and processes may use one at the same time.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        clock: Clock | None = None,
        most_losses: int = MOST_LOSSES,
    ) -> None:
        """Open the file, or make it; its folder is made for this user alone.

        Args:
            path: The file, on a local disk.
            clock: The clocks, where they are not the machine's.
            most_losses: How often a run's process may end without a word, and without
                the run having come further, before the run counts as failed.

        Raises:
            ServiceError: It is damaged, another program's, or of a newer version.
        """
        self.clock = Clock() if clock is None else clock
        self.database = Database(path)
        self._most_losses = most_losses

    def close(self) -> None:
        """Close the file."""
        self.database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self.close()

    def submit(
        self,
        runs: Sequence[NewRun],
        user: str,
        priority: int = 0,
        sweep: str | None = None,
        idempotency_key: str | None = None,
        body_digest: str | None = None,
    ) -> list[str]:
        """Queue runs, all or none; return their ids in the same order.

        Args:
            runs: The runs.
            user: Who submits them.
            priority: Runs of a higher one come first.
            sweep: What they are called together.
            idempotency_key: The same key of the same user with the same body gives the
                same runs again.
            body_digest: Tells bodies apart.

        Raises:
            ConflictError: The key came with another body, or a folder is another run's.
        """
        key = submissions.Key(user, idempotency_key, body_digest or "")
        with self.database.writing() as connection:
            ids = submissions.before(connection, key, self.clock)
            if ids is None:
                ids = [
                    submissions.insert(
                        connection, run, user, priority, sweep, self.clock
                    )
                    for run in runs
                ]
                submissions.remember(connection, key, ids, self.clock)
            return ids

    def run(self, run_id: str) -> QueuedRun:
        """Return a run.

        Raises:
            UnknownRunError: There is none of this id.
        """
        with self.database.reading() as connection:
            return run_rows.with_passes(connection, [run_rows.row(connection, run_id)])[
                0
            ]

    def runs(
        self,
        states: Sequence[RunState] | None = None,
        user: str | None = None,
        sweep: str | None = None,
        text: str | None = None,
        after: str | None = None,
        limit: int = 50,
        before: str | None = None,
    ) -> Page:
        """Return some of the runs, newest first.

        Args:
            states: Only runs in these states.
            user: Only this user's.
            sweep: Only this sweep's.
            text: Only those that have it in their name, sweep or user.
            after: Go on after this run: `next` of the page before.
            limit: At most so many.
            before: Go back to those ahead of this run: the first of the page after.

        Raises:
            UnknownRunError: There is no run `after` or `before`.
        """
        where, values = run_rows.conditions(states, user, sweep, text)
        with self.database.reading() as connection:
            return run_rows.page(
                connection, where, values, after=after, before=before, limit=limit
            )

    def events(
        self, after: int = 0, run: str | None = None, limit: int = 1000
    ) -> list[RunEvent]:
        """Return events in order: those behind `after`, of one run or of all."""
        with self.database.reading() as connection:
            rows = events.behind(connection, after, run, limit)
        return [run_event(row) for row in rows]

    def add_event(
        self,
        run: str,
        kind: EventKind,
        text: str,
        progress: RunProgress | None = None,
    ) -> None:
        """Add an event of a run.

        Raises:
            UnknownRunError: There is no such run.
        """
        with self.database.writing() as connection:
            run_rows.row(connection, run)
            events.add(connection, run, self.clock.text(), kind, text, progress)

    def cancel(self, run_id: str, by: str) -> None:
        """Cancel a run; one that is trained is saved first, and ends soon.

        Raises:
            UnknownRunError: There is none of this id.
            ConflictError: It has completed or failed.
        """
        with self.database.writing() as connection:
            state = run_rows.row(connection, run_id)["state"]
            if state == "running":
                connection.execute(
                    "UPDATE runs SET cancelling = coalesce(cancelling, ?) WHERE id = ?",
                    (by, run_id),
                )
            elif state == "queued":
                run_rows.end(
                    connection, run_id, "cancelled", f"cancelled by {by}", self.clock
                )
            elif state != "cancelled":
                raise ConflictError(f"run {run_id} has {state}: nothing to cancel")

    def resume(self, run_id: str, by: str) -> None:
        """Queue a run that was cancelled or has failed; it goes on from its checkpoint.

        Raises:
            UnknownRunError: There is none of this id.
            ConflictError: It is not in one of these states.
        """
        with self.database.writing() as connection:
            row = run_rows.row(connection, run_id)
            if row["state"] not in {"cancelled", "failed"}:
                raise ConflictError(run_rows.why_no_resume(row))
            connection.execute(
                "UPDATE runs SET state = 'queued', ended = NULL, error = NULL,"
                " losses = 0 WHERE id = ?",
                (run_id,),
            )
            events.add(
                connection, run_id, self.clock.text(), "queued", f"resumed by {by}"
            )

    def set_published(self, run_id: str, name: str) -> None:
        """Note under which name of the catalog a run was published.

        Raises:
            UnknownRunError: There is none of this id.
            ConflictError: It has not completed.
        """
        with self.database.writing() as connection:
            state = run_rows.row(connection, run_id)["state"]
            if state != "completed":
                raise ConflictError(
                    f"run {run_id} is {state}; only one that has completed can be"
                    " published"
                )
            connection.execute(
                "UPDATE runs SET published = ? WHERE id = ?", (name, run_id)
            )

    def counts(self) -> dict[RunState, int]:
        """Return the number of runs in each state."""
        found: dict[RunState, int] = dict.fromkeys(("queued", "running", *ENDED), 0)
        with self.database.reading() as connection:
            for row in connection.execute(
                "SELECT state, count(*) AS n FROM runs GROUP BY state"
            ):
                found[row["state"]] = row["n"]
        return found

    def slots(self) -> dict[str, list[str]]:
        """Return the runs that are trained now, by the name of their slot."""
        return {lease.slot: list(lease.runs) for lease in self.leases()}

    def leases(self) -> list[Lease]:
        """Return the leases that are held, those that have expired included."""
        with self.database.reading() as connection:
            return leases.all_of(connection, self.clock)

    def waiting(self) -> list[WaitingRun]:
        """Return the queued runs in the order in which they were submitted."""
        with self.database.reading() as connection:
            rows = connection.execute(
                "SELECT number, id, user, priority, memory_bytes, state_bytes, alone"
                " FROM runs WHERE state = 'queued' ORDER BY number"
            ).fetchall()
        return [WaitingRun(*row)._replace(alone=bool(row["alone"])) for row in rows]

    def slot_times(self) -> dict[str, float]:
        """Return how many seconds of a slot each user has had lately."""
        with self.database.reading() as connection:
            return slot_times.of_all(connection, self.clock.seconds())

    def holding(self) -> dict[str, float]:
        """Return how many slots each user holds; of a shared pass, a part of one."""
        with self.database.reading() as connection:
            return slot_times.holding(connection)

    def start(self, run_ids: Sequence[str], slot: str) -> Lease:
        """Put queued runs on a free slot, together; return their lease.

        Raises:
            ConflictError: The slot is taken, or a run is not queued any more.
        """
        with self.database.writing() as connection:
            return leases.start(connection, run_ids, slot, self.clock)

    def take(self, lease_id: str, pid: int, process_start: str | None) -> bool:
        """Note the process that trains a pass; it must not begin where this is False.

        It is where the lease is gone, or another process has taken it.
        """
        with self.database.writing() as connection:
            return leases.take(connection, lease_id, pid, process_start, self.clock)

    def heartbeat(
        self, lease_id: str, progress: Mapping[str, RunProgress] | None = None
    ) -> Beat:
        """Keep a lease, and note how far its runs have come, by their ids."""
        with self.database.writing() as connection:
            return leases.heartbeat(connection, lease_id, progress or {}, self.clock)

    def end(self, lease_id: str, outcomes: Mapping[str, Outcome]) -> bool:
        """Give a slot back, and say how its runs fared; False if the lease was gone.

        Runs without an outcome are lost.
        """
        with self.database.writing() as connection:
            return leases.end(
                connection, lease_id, outcomes, self.clock, self._most_losses
            )

    def expired(self) -> list[Lease]:
        """Return the leases that nobody keeps any more."""
        with self.database.reading() as connection:
            return leases.expired(connection, self.clock)
