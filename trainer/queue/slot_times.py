"""How much of the slots each user has had lately, by which they take turns.

A second counts half as much after a day, and a quarter after two.
"""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Mapping

HALF_LIFE_S = 86_400.0


def charge(
    connection: sqlite3.Connection, seconds_of: Mapping[str, float], now: float
) -> None:
    """Add to what users have had; now: the time of day in seconds."""
    had = of_all(connection, now)
    connection.executemany(
        "INSERT INTO slot_times (user, seconds, time) VALUES (?, ?, ?)"
        " ON CONFLICT (user) DO UPDATE SET seconds = excluded.seconds,"
        " time = excluded.time",
        [
            (user, had.get(user, 0.0) + seconds, now)
            for user, seconds in seconds_of.items()
        ],
    )


def of_all(connection: sqlite3.Connection, now: float) -> dict[str, float]:
    """Return what each user has had lately, in seconds of a slot."""
    rows = connection.execute("SELECT user, seconds, time FROM slot_times")
    return {
        # a time of day that was set back makes nobody's share larger
        row["user"]: row["seconds"] * 0.5 ** (max(now - row["time"], 0.0) / HALF_LIFE_S)
        for row in rows
    }


def holding(connection: sqlite3.Connection) -> dict[str, float]:
    """Return how many slots each user holds now, by the runs that are trained there."""
    found: dict[str, float] = defaultdict(float)
    users_of: dict[str, list[str]] = defaultdict(list)
    for row in connection.execute(
        "SELECT lease, user FROM runs WHERE lease IS NOT NULL"
    ):
        users_of[row["lease"]].append(row["user"])
    for users in users_of.values():
        for user in users:
            found[user] += 1 / len(users)
    return dict(found)
