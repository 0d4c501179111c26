"""Questions to the queue that only the API has."""

from __future__ import annotations

from trainer.queue import submissions
from trainer.queue.queue import Queue


def submitted(
    queue: Queue, user: str, key: str | None, digest: str
) -> list[str] | None:
    """Return the runs that a user has submitted with a key before; None for none.

    Raises:
        ConflictError: The key came with something else.
    """
    if key is None:
        return None
    with queue.database.writing() as connection:
        of_user = submissions.Key(user, key, digest)
        return submissions.before(connection, of_user, queue.clock)


def is_taken(queue: Queue, name: str) -> bool:
    """Return whether a run or a sweep has a name."""
    with queue.database.reading() as connection:
        found = connection.execute(
            "SELECT 1 FROM runs WHERE name = ? OR sweep = ? LIMIT 1", (name, name)
        ).fetchone()
    return found is not None


def last_event(queue: Queue) -> int:
    """Return the id of the newest event; 0 where there is none."""
    with queue.database.reading() as connection:
        newest = connection.execute("SELECT max(id) FROM events").fetchone()[0]
    return int(newest or 0)
