"""Follows the events of a run, over connections that break and services that restart.

The service sends them as server-sent events. Each has an id, and a new connection goes
on behind the last one that came: none is missed, and none comes twice.
"""

from __future__ import annotations

from collections.abc import Iterator

import httpx

from schemas.service import ENDED, RunEvent
from trainer.client.answers import kind_of, of_text, refuse
from trainer.client.connection import PASSING, Connection, Waits, retry_after_s, whole
from trainer.errors import UnreachableError

SILENT_S = 60.0  # without even a sign of life: the service gives one every 15 s
MOST_LINE = 1 << 20  # bytes
NOTHING_NEW = 204


class EventStream:
    """The events of a run."""

    def __init__(self, connection: Connection, path: str, after: int) -> None:
        """Prepare; nothing is asked yet.

        Args:
            connection: The connection.
            path: Where they are.
            after: The id of the last event that is known.
        """
        self._connection = connection
        self._path = path
        self._after = after
        self._has_ended = False
        self._asked_s = 0.0
        self._waits = Waits(connection)

    def events(self, *, follow: bool) -> Iterator[RunEvent]:
        """Yield events until the run has ended, or until there are no more yet.

        Args:
            follow: Whether to wait for those that are still to come.

        Raises:
            ServiceError: As the service says.
            UnreachableError: It does not come back.
        """
        while True:
            broken: UnreachableError | None = None
            try:
                yield from self._of_one_connection(follow)
            except UnreachableError as error:
                if not isinstance(error.__cause__, httpx.HTTPError):
                    raise  # something answers, but not our service
                broken = error
            if self._has_ended or (broken is None and not follow):
                return
            # The service is shut down, or busy, or the connection broke.
            if not self._waits.wait(self._asked_s):
                raise broken or UnreachableError(
                    f"{self._path}: the service ends the events again and again"
                    " although the run has not ended; try later"
                )

    def _of_one_connection(self, follow: bool) -> Iterator[RunEvent]:
        headers = {"Last-Event-ID": str(self._after)} if self._after else {}
        path = self._path if follow else f"{self._path}?follow=false"
        self._asked_s = 0.0
        with self._connection.opened(
            "GET", path, headers=headers, timeout_s=SILENT_S
        ) as response:
            if response.status_code == NOTHING_NEW:
                self._has_ended = True
                return
            if response.status_code != 200:
                answer = whole(response)
                if answer.status not in PASSING:
                    refuse(answer)
                self._asked_s = retry_after_s(answer)
                return
            _check_kind(response)
            for event in self._read(response):
                # One that is known already is no progress.
                if event.id > self._after:
                    self._waits = Waits(self._connection)
                    self._after = event.id
                    self._has_ended = event.kind in ENDED
                    yield event

    def _read(self, response: httpx.Response) -> Iterator[RunEvent]:
        data: list[str] = []
        for line in _lines(response):
            if line.startswith("data:"):
                data.append(line.removeprefix("data:").removeprefix(" "))
            elif line.startswith(":"):  # a sign of life
                self._waits = Waits(self._connection)
            elif not line and data:
                yield of_text(RunEvent, "\n".join(data), str(response.url))
                data = []


def _check_kind(response: httpx.Response) -> None:
    """Raise UnreachableError where no events are answered."""
    kind = kind_of(response.headers)
    if kind != "text/event-stream":
        raise UnreachableError(
            f"{response.url}: what answers is no training service: {kind} in the place"
            " of events; check the URL (`trainer serve` prints it)"
        )


def _lines(response: httpx.Response) -> Iterator[str]:
    """Yield whole lines; what stands behind the last line's end is no line yet."""
    rest = b""
    for part in response.iter_bytes():
        *lines, rest = (rest + part).split(b"\n")
        for line in lines:
            yield line.removesuffix(b"\r").decode("utf-8", "replace")
        if len(rest) > MOST_LINE:
            raise UnreachableError(f"{response.url}: a line of events has no end")
