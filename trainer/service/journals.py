"""Journals of runs as the service answers with them: each line is read once.

A journal grows at its end while its run is trained. What is new of it is read from
where the last reading ended, if the line before is still the same: a run that goes on
from a checkpoint writes its journal anew.
"""

from __future__ import annotations

import bisect
import threading
import time
from collections import OrderedDict
from typing import NamedTuple

from actstore.errors import CorruptError, ObjectError
from actstore.format.storage import Storage
from actstore.validation import validated_json
from schemas.records import StepRecord
from trainer.runs.journal import KEY, MOST_BYTES

MOST_JOURNALS = 256
LOOK_AGAIN_S = 0.5  # of a local one
LOOK_AGAIN_REMOTE_S = 5.0


class _Read(NamedTuple):
    """What was read of a journal.

    Attributes:
        looked: When it was looked at, by the monotonic clock.
        end: Bytes of its whole lines.
        last: The last whole line, with its line feed.
        records: Its records.
        lines: The same as JSON.
    """

    looked: float
    end: int
    last: bytes
    records: list[StepRecord]
    lines: list[bytes]


_NOTHING = _Read(0.0, 0, b"", [], [])


class Journals:
    """The journals that were asked for last, in memory."""

    def __init__(self) -> None:
        self._read: OrderedDict[str, _Read] = OrderedDict()
        self._lock = threading.Lock()
        self._busy: dict[str, threading.Lock] = {}

    def records(self, url: str) -> list[StepRecord]:
        """Return the records of the run in a folder.

        Raises:
            SpecError: A line of its journal is no record.
            StoreError: It cannot be read.
        """
        return self._newest(url).records

    def json(self, url: str, after_step: int = -1) -> bytes:
        """Return the records behind a step, as a JSON list."""
        read = self._newest(url)
        first = bisect.bisect_right(
            read.records, after_step, key=lambda record: record.step
        )
        return b"[" + b",".join(read.lines[first:]) + b"]"

    def _newest(self, url: str) -> _Read:
        """Return the journal as it is now, or was a moment ago."""
        with self._lock:
            before = self._read.get(url, _NOTHING)
            busy = self._busy.setdefault(url, threading.Lock())
        storage = Storage(url)
        fresh_s = LOOK_AGAIN_S if storage.local is not None else LOOK_AGAIN_REMOTE_S
        if time.monotonic() - before.looked < fresh_s and before is not _NOTHING:
            return before
        with busy:
            with self._lock:
                before = self._read.get(url, _NOTHING)
            if time.monotonic() - before.looked >= fresh_s or before is _NOTHING:
                before = _grown(storage, before)
                self._keep(url, before)
        return before

    def _keep(self, url: str, read: _Read) -> None:
        with self._lock:
            self._read[url] = read
            self._read.move_to_end(url)
            while len(self._read) > MOST_JOURNALS:
                oldest, _ = self._read.popitem(last=False)
                self._busy.pop(oldest, None)


def _grown(storage: Storage, before: _Read) -> _Read:
    """Return a journal with what has been added since it was read."""
    now = time.monotonic()
    try:
        size = storage.size(KEY)
    except CorruptError:  # a kind of ObjectError, but the journal is there
        raise
    except ObjectError:
        return _NOTHING._replace(looked=now)
    if size > MOST_BYTES:
        raise CorruptError(f"{storage.url}/{KEY}: more than {MOST_BYTES:,} bytes")
    start = before.end - len(before.last)
    if size < before.end:
        before, start = _NOTHING, 0
    (part,) = storage.read_ranges(KEY, [(start, size - start)])
    data = bytes(part)
    if not data.startswith(before.last):
        before = _NOTHING
        (part,) = storage.read_ranges(KEY, [(0, size)])
        data = bytes(part)
    whole, mark, _unfinished = data[len(before.last) :].rpartition(b"\n")
    if not mark:
        return before._replace(looked=now)
    new = whole.split(b"\n")
    where = f"{storage.url}/{KEY}"
    number = len(before.lines)
    records = [
        validated_json(StepRecord, line, f"{where}, line {number + i}")
        for i, line in enumerate(new, 1)
    ]
    return _Read(
        looked=now,
        end=before.end + len(whole) + 1,
        last=new[-1] + b"\n",
        records=[*before.records, *records],
        lines=[*before.lines, *new],
    )
