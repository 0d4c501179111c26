"""However a stream ends, its threads end with it, what ends it is told each time it is
asked, and nothing hangs.

A watchdog prints every thread's stack and ends the process where a test takes longer
than it ever should: a hang in a lock is not something that an exception in the main
thread can be relied on to end.
"""

from __future__ import annotations

import faulthandler
import gc
import re
import shutil
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import actstore
from actstore.errors import CorruptError, ObjectError
from actstore.format.object_keys import acts_key, chunk_key
from actstore.store.store import Store
from actstore.stream.stream import Batch, Stream
from schemas.stream import StreamSpec
from tests.support import make_store

HANG_S = 60
SPEC = StreamSpec(batch=40, window_chunks=4, lanes=2, epochs=None)
SITE = "blocks.1.hook_mlp_out"


@pytest.fixture(scope="module", autouse=True)
def collections_see_these_tests_only() -> None:
    """What other tests left in this process takes seconds to look through, each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def watchdog() -> Iterator[None]:
    assert sys.__stderr__ is not None
    faulthandler.dump_traceback_later(HANG_S, exit=True, file=sys.__stderr__)
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    """Threads before are those after, by identity, whatever their names."""
    gc.collect()
    before = set(threading.enumerate())
    yield
    gc.collect()
    assert set(threading.enumerate()) <= before


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_store(
        tmp_path_factory.mktemp("closing") / "store", n_units=12, unit_sequences=2
    )


@pytest.fixture
def own(store: Store, tmp_path: Path) -> Store:
    """A copy that a test may damage."""
    return actstore.open(shutil.copytree(store.url, tmp_path / "store"))


def started(
    store: Store, taken: int, threads: int | None = None
) -> tuple[Stream, set[threading.Thread]]:
    """A stream of which some batches are taken, and its threads."""
    before = set(threading.enumerate())
    stream = store.stream(SPEC, threads=threads)
    for _ in range(taken):
        next(stream)
    return stream, set(threading.enumerate()) - before


def slowed(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Reads of shards take longer than any test does: threads are in the middle of them
    when the stream ends.
    """
    import os

    plain = os.preadv

    def slow(*arguments: Any) -> int:
        time.sleep(seconds)
        return plain(*arguments)

    monkeypatch.setattr(os, "preadv", slow)


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("taken", [1, 3, 60])
def test_closing_early_joins_every_thread(
    store: Store, taken: int, threads: int
) -> None:
    stream, its = started(store, taken, threads=threads)
    assert its, "the test would prove nothing"
    stream.close()
    assert not any(thread.is_alive() for thread in its)
    stream.close()


def test_closing_before_the_first_batch_and_after_the_last(store: Store) -> None:
    store.stream(SPEC).close()
    stream = store.stream(SPEC.model_copy(update={"epochs": 1}))
    assert len(list(stream)) == stream.batches_per_epoch
    with pytest.raises(StopIteration):
        next(stream)
    stream.close()
    with pytest.raises(StopIteration):
        next(stream)


def test_a_with_block_that_fails_joins_every_thread(store: Store) -> None:
    stream, its = started(store, 1)
    with pytest.raises(ValueError, match="stop"), stream:
        raise_in_a_loop(stream)
    assert its
    assert not any(thread.is_alive() for thread in its)


def test_closing_does_not_wait_for_the_windows_that_are_still_to_be_read(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two chunks that are being read are waited for, the ten after them are not."""
    stream, its = started(store, 0, threads=2)
    next(stream)
    slowed(monkeypatch, 0.2)
    for _ in range(8):
        next(stream)
    began = time.monotonic()
    stream.close()
    assert time.monotonic() - began < 1.5
    assert not any(thread.is_alive() for thread in its)


@pytest.mark.parametrize("how", ["for", "next", "exception"])
def test_an_abandoned_iterator_is_collected_with_its_threads(
    store: Store, how: str
) -> None:
    stream, its = started(store, 2)
    gone = weakref.ref(stream)
    if how == "for":
        for _ in stream:
            break
    elif how == "exception":
        with pytest.raises(ValueError, match="stop"):
            raise_in_a_loop(stream)
    assert its
    del stream
    gc.collect()
    assert gone() is None
    assert not any(thread.is_alive() for thread in its)


def raise_in_a_loop(stream: Stream) -> None:
    for _ in stream:
        raise ValueError("stop")


def test_an_abandoned_stream_in_a_cycle_is_collected_too(store: Store) -> None:
    stream, its = started(store, 2)
    holder: dict[str, Any] = {"stream": stream}
    holder["self"] = holder
    del stream, holder
    gc.collect()
    assert its
    assert not any(thread.is_alive() for thread in its)


def test_many_streams_one_after_the_other_leave_nothing(store: Store) -> None:
    before = threading.active_count()
    for i in range(40):
        stream = store.stream(SPEC, threads=1 + i % 4)
        for _ in range(i % 5):
            next(stream)
        if i % 2:
            stream.close()
    del stream
    gc.collect()
    assert threading.active_count() == before


def same(a: Batch, b: Batch) -> bool:
    return (
        torch.equal(a.x, b.x)
        and torch.equal(a.layer, b.layer)
        and torch.equal(a.row, b.row)
    )


def fails_again_and_again(
    stream: Stream, error: type[Exception], match: str
) -> list[Batch]:
    """Streams until the error, asks thrice more; returns the batches from before."""
    batches: list[Batch] = []
    with pytest.raises(error, match=match):
        batches.extend(stream)  # keeps those from before the error
    for _ in range(3):
        with pytest.raises(error, match=match):
            next(stream)
    return batches


def remove(store: Store) -> None:
    assert store.storage.local is not None
    for unit in range(store.manifest.n_units):
        (store.storage.local / chunk_key(acts_key(SITE), unit, 0)).unlink()


def cut(store: Store) -> None:
    assert store.storage.local is not None
    for unit in range(store.manifest.n_units):
        path = store.storage.local / chunk_key(acts_key(SITE), unit, 0)
        path.write_bytes(path.read_bytes()[:10])


@pytest.mark.parametrize(
    ("damage", "error"), [(remove, ObjectError), (cut, CorruptError)]
)
@pytest.mark.parametrize("threads", [1, 4])
def test_a_shard_that_goes_in_mid_stream_stops_it_with_its_name(
    own: Store, damage: Callable[[Store], None], error: type[Exception], threads: int
) -> None:
    with own.stream(SPEC.model_copy(update={"epochs": 2})) as stream:
        wanted = list(stream)
    stream, its = started(own, 2, threads=threads)
    damage(own)
    before = fails_again_and_again(stream, error, rf"{SITE}/c/\d+/0")
    assert len(before) < 60, "two windows at most were loaded by then"
    assert all(map(same, before, wanted[2:])), "what comes before the error is right"
    stream.close()
    assert not any(thread.is_alive() for thread in its)


def test_after_the_damage_is_undone_the_closed_stream_goes_on_where_it_stopped(
    own: Store, store: Store
) -> None:
    spec = SPEC.model_copy(update={"epochs": 1})
    with store.stream(spec) as whole:
        wanted = list(whole)
    with own.stream(spec) as stream:
        first = [next(stream), next(stream)]
        remove(own)
        first += fails_again_and_again(stream, ObjectError, SITE)
        state = stream.state()
        assert (state.epoch, state.batch) == (0, len(first)), (
            "the batch that failed is not counted as consumed"
        )
        shutil.copytree(store.url, own.url, dirs_exist_ok=True)
        stream.close()
        rest = list(stream)
    assert len(first) + len(rest) == len(wanted)
    assert all(map(same, first + rest, wanted))


def test_a_failed_stream_that_is_dropped_leaves_no_thread(own: Store) -> None:
    stream, its = started(own, 1)
    remove(own)
    fails_again_and_again(stream, ObjectError, SITE)
    del stream
    gc.collect()
    assert not any(thread.is_alive() for thread in its)


def in_a_process(store: Store, code: str) -> subprocess.CompletedProcess[str]:
    """Runs code after an open `stream`, in a process that a hang cannot keep."""
    head = f"""
import faulthandler, signal, threading, time
# a suite in the background has it ignored
signal.signal(signal.SIGINT, signal.default_int_handler)
faulthandler.dump_traceback_later({HANG_S / 3}, exit=True)
import actstore
from schemas.stream import StreamSpec
spec = StreamSpec.model_validate_json({SPEC.model_dump_json()!r})
stream = actstore.open({store.url!r}).stream(spec)
next(stream)
"""
    return subprocess.run(
        [sys.executable, "-c", head + code],
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
    )


ANOTHER_THREAD = """
import os
plain, gate, got, ended = os.preadv, threading.Event(), [], []
def held(*arguments):
    gate.wait()
    return plain(*arguments)
os.preadv = held
def consume():
    try:
        while True:
            got.append(next(stream))
    except Exception as error:
        ended.append(repr(error))
consumer = threading.Thread(target=consume, daemon=True)
consumer.start()
before = -1
while len(got) > before:
    before = len(got)
    time.sleep(0.3)  # until it has what was loaded and waits for more
threading.Timer(0.2, gate.set).start()
threading.Thread(target=stream.close).start()
consumer.join(5)
print(len(got) - before, consumer.is_alive(), ended, flush=True)
os._exit(0)
"""


def test_closing_in_another_thread_ends_the_one_that_waits_for_a_batch(
    store: Store,
) -> None:
    """A notebook's or a server's stop button does so."""
    done = in_a_process(store, ANOTHER_THREAD)
    assert re.fullmatch(r"0 False .*StoreError.*closed.*\n", done.stdout), (
        done.stdout + done.stderr
    )


@pytest.mark.parametrize(
    ("ending", "code"),
    [
        ("pass", 0),
        ("raise SystemExit(3)", 3),
        ("import os, signal; os.kill(os.getpid(), signal.SIGINT)", -2),
    ],
)
def test_a_process_ends_though_its_stream_was_never_closed(
    store: Store, ending: str, code: int
) -> None:
    done = in_a_process(store, ending)
    assert done.returncode == code, done.stderr
    assert "Fatal" not in done.stderr
    assert "Timeout" not in done.stderr


def test_a_process_whose_stream_was_never_closed_ends_without_a_word(
    store: Store,
) -> None:
    assert in_a_process(store, "pass").stderr == ""
