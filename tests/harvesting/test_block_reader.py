"""Workers that share the reading of a corpus: whoever of them dies, and whenever, the
token blocks are those of one worker alone, and a worker gets a block that is committed.
"""

from __future__ import annotations

import multiprocessing
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actstore.errors import CorpusError, StorageError
from actstore.format import object_keys
from actstore.format.storage import Buffers, Storage
from actstore.harvesting import block_reader, token_blocks
from actstore.harvesting.block_source import first_block
from actstore.harvesting.handed_units import HandedUnits
from actstore.harvesting.store_writer import StoreWriter
from actstore.harvesting.token_blocks import TokenBlocks
from actstore.harvesting.worker_share import Share
from actstore.text.sequences import sequencer
from schemas.harvest import Plan
from tests.harvesting import killing
from tests.support import make_plan

CONTEXT, SEQUENCES = 8, 2
HANG_S = 60.0


class KilledError(BaseException):
    """What a request of a worker that is dead ends with."""


class Bucket:
    """Objects in memory, for several workers."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.lock = threading.Lock()


class Requests(Storage):
    """A worker's way to a bucket. After `lives` requests it is dead: none of its
    threads does anything any more. Each request takes a time of its own.
    """

    def __init__(self, bucket: Bucket, seed: int = 0, lives: int | None = None) -> None:
        super().__init__("/nowhere")
        self.local = None  # as over a network
        self.bucket = bucket
        self.lives = lives
        self.n_requests = 0
        self._rng = random.Random(seed)

    def _ask(self) -> None:
        with self.bucket.lock:
            self.n_requests += 1
            if self.lives is not None and self.n_requests > self.lives:
                raise KilledError
            wait = self._rng.choice((0.0, 0.0, 0.001, 0.004))
        time.sleep(wait)

    def exists(self, key: str) -> bool:
        self._ask()
        return key in self.bucket.objects

    def read(self, key: str, limit: int | None = None) -> bytes:
        self._ask()
        return self.bucket.objects[key]

    def list(self, prefix: str = "") -> list[str]:
        self._ask()
        with self.bucket.lock:
            return sorted(k for k in self.bucket.objects if k.startswith(prefix + "/"))

    def put(self, key: str, data: Buffers) -> None:
        self._ask()
        self.bucket.objects[key] = data if isinstance(data, bytes) else b"".join(data)

    def create(self, key: str, data: Buffers) -> bool:
        self._ask()
        with self.bucket.lock:
            is_first = key not in self.bucket.objects
            if is_first:
                assert isinstance(data, bytes)
                self.bucket.objects[key] = data
        return is_first


class Life:
    """A worker without a model: it takes the blocks of its units, and commits these.

    Attributes:
        blocks: The tokens that it was given, by unit.
        error: What it ended with.
    """

    def __init__(
        self,
        plan: Plan,
        documents: Any,
        storage: Requests,
        share: Share | HandedUnits,
    ) -> None:
        self.blocks: dict[int, Any] = {}
        self.error: BaseException | None = None
        self._plan, self._documents = plan, documents
        self._storage, self._share = storage, share
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def end(self) -> None:
        self._thread.join(HANG_S)
        assert not self._thread.is_alive(), "the worker hangs"

    def _run(self) -> None:
        writer = StoreWriter(self._storage, self._plan, threads=1)
        try:
            source, _ = sequencer(self._plan.spec, None, self._documents)
            blocks = TokenBlocks(self._plan, writer, source, self._share)
            blocks.begin(first_block(source, self._plan))
            for block in blocks.read_ahead():
                unit = block.record.unit
                there = self._storage.bucket.objects
                assert object_keys.block_key(unit) in there
                assert object_keys.chunk_key("tokens", unit, 0) in there
                self._storage.create(object_keys.unit_key(unit), b"")
                self.blocks[unit] = block.tokens
        except BaseException as error:  # noqa: BLE001
            self.error = error
        finally:
            writer.close()


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patched:
        patched.setattr(token_blocks, "PATIENCE_S", 0.03)
        patched.setattr(token_blocks, "FIRST_PAUSE_S", 0.001)
        patched.setattr(token_blocks, "LONGEST_PAUSE_S", 0.01)
        yield


def plan_of(n_units: int) -> Plan:
    plan = make_plan(n_units=n_units, unit_sequences=SEQUENCES, context=CONTEXT)
    return plan.model_copy(update={"spec": plan.spec.model_copy(update={"pack": True})})


def documents_of(n_tokens: int, seed: int = 0) -> list[list[int]]:
    """Documents of so many tokens together; some have none."""
    rng = random.Random(seed)
    documents: list[list[int]] = []
    while n_tokens:
        length = min(n_tokens, rng.choice((0, 1, 5, 13, 40)))
        documents.append([rng.randrange(1, 100) for _ in range(length)])
        n_tokens -= length
    return [*documents, []]


def alone(plan: Plan, documents: Any) -> dict[str, bytes]:
    """What one worker writes."""
    bucket = Bucket()
    life = Life(plan, documents, Requests(bucket), Share())
    life.end()
    assert life.error is None
    return bucket.objects


@settings(deadline=None, max_examples=60)
@given(
    n_units=st.integers(1, 30),
    reached=st.floats(0.1, 1.3),
    n_workers=st.integers(2, 5),
    begun=st.lists(st.booleans(), min_size=5, max_size=5),
    lives=st.lists(st.none() | st.integers(1, 150), min_size=5, max_size=5),
    seed=st.integers(0, 10_000),
)
def test_whoever_dies_the_blocks_are_those_of_one_worker(
    n_units: int,
    reached: float,
    n_workers: int,
    begun: list[bool],
    lives: list[int | None],
    seed: int,
) -> None:
    """First some of the workers, of which some die; then all of them."""
    plan = plan_of(n_units)
    n_tokens = max(CONTEXT, int(n_units * SEQUENCES * CONTEXT * reached))
    documents = documents_of(n_tokens, seed)
    wanted = alone(plan, documents)
    n_there = sum(key.startswith("blocks/") for key in wanted)
    bucket = Bucket()
    given_out: dict[int, Any] = {}
    for is_last in (False, True):
        workers = [
            (
                k,
                Life(
                    plan,
                    documents,
                    Requests(bucket, seed + k, None if is_last else lives[k]),
                    Share(k, n_workers),
                ),
            )
            for k in range(n_workers)
            if is_last or begun[k]
        ]
        for number, worker in workers:
            worker.end()
            if worker.error is None:
                # Nobody ends before all of its units that the corpus reaches.
                own = set(Share(number, n_workers).units(plan))
                assert set(worker.blocks) == own & set(range(n_there))
            else:
                assert isinstance(worker.error, KilledError)
                assert not is_last
            given_out.update({u: b for u, b in worker.blocks.items() if b is not None})
    assert bucket.objects == wanted
    # A unit that was committed before is given without its tokens.
    stream = [token for document in documents for token in document]
    for unit, tokens in given_out.items():
        first = unit * SEQUENCES * CONTEXT
        of_unit = stream[first : first + tokens.size]
        np.testing.assert_array_equal(tokens.reshape(-1), of_unit)


@settings(deadline=None, max_examples=25)
@given(
    st.integers(2, 20),
    st.integers(0, 3),
    st.permutations(range(20)),
    st.none() | st.integers(1, 60),
    st.integers(0, 1000),
)
def test_units_that_are_handed_out_in_any_order(
    n_units: int, number: int, order: list[int], lives: int | None, seed: int
) -> None:
    """One worker is handed all units, whichever it is; another one may die beside."""
    plan = plan_of(n_units)
    n_there = n_units - n_units // 3
    documents = documents_of(n_there * SEQUENCES * CONTEXT, seed)
    bucket = Bucket()
    beyond: list[int] = []
    shares = [HandedUnits(lambda: beyond.append(1)) for _ in range(2)]
    shares[0].number = number
    shares[1].number = 1 - min(number, 1)
    shares[0].hand([unit for unit in order if unit < n_units])
    other = Life(plan, documents, Requests(bucket, seed, lives), shares[1])
    worker = Life(plan, documents, Requests(bucket, seed + 1), shares[0])
    began = time.monotonic()
    while len(worker.blocks) + len(beyond) < n_units:
        assert time.monotonic() - began < HANG_S, worker.error
        assert worker.error is None
        time.sleep(0.002)
    for share in shares:
        share.end()
    worker.end()
    other.end()
    assert worker.error is None
    assert set(worker.blocks) == set(range(n_there))
    wanted = alone(plan, documents)
    blocks = {key: data for key, data in wanted.items() if key.startswith("blocks/")}
    assert {key: bucket.objects[key] for key in blocks} == blocks


# How a reader ends


def test_a_worker_that_waits_ends_when_it_is_told_to() -> None:
    plan = plan_of(20)
    documents = documents_of(20 * SEQUENCES * CONTEXT)
    share = HandedUnits(lambda: None)
    share.number = 1 << 500  # of endless patience
    share.hand([15])
    worker = Life(plan, documents, Requests(Bucket()), share)
    time.sleep(0.1)
    share.end()
    worker.end()
    assert worker.error is None
    assert worker.blocks == {}


@pytest.mark.parametrize("number", [0, 1])
def test_what_is_wrong_with_the_corpus_is_said_by_every_reader(number: int) -> None:
    plan = plan_of(20)
    documents = documents_of(5 * SEQUENCES * CONTEXT)
    worker = Life(
        plan, [*documents, [5000] * 300], Requests(Bucket()), Share(number, 2)
    )
    worker.end()
    assert isinstance(worker.error, CorpusError)
    assert "token id 5000" in str(worker.error)


class Full(Requests):
    """A place that has no room for the ninth block."""

    def put(self, key: str, data: Buffers) -> None:
        if key == object_keys.chunk_key("tokens", 8, 0):
            raise StorageError("no space left")
        super().put(key, data)


@pytest.mark.parametrize("number", [0, 1])
def test_a_commit_that_fails_ends_the_worker(number: int) -> None:
    plan = plan_of(40)
    documents = documents_of(40 * SEQUENCES * CONTEXT)
    n_threads = threading.active_count()
    worker = Life(plan, documents, Full(Bucket()), Share(number, 2))
    worker.end()
    assert isinstance(worker.error, StorageError)
    assert threading.active_count() <= n_threads


def test_a_worker_that_waits_asks_less_and_less(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(token_blocks, "LONGEST_PAUSE_S", 100.0)
    plan = plan_of(2000)
    documents = documents_of(10 * SEQUENCES * CONTEXT)
    share = HandedUnits(lambda: None)
    share.number = 1 << 500
    share.hand([1999])
    storage = Requests(Bucket())
    worker = Life(plan, documents, storage, share)
    time.sleep(0.6)
    # Pauses of 1, 2, 4, ... ms: ten of them, with two questions each, and those for
    # the first block, its tokens and what is committed.
    assert storage.n_requests < 35
    share.end()
    # It sleeps for half a second more.
    worker.end()


def test_commits_are_bounded_by_memory_and_their_number(tmp_path: Path) -> None:
    plan = plan_of(4)
    writer = StoreWriter(Storage(str(tmp_path)), plan, threads=1)
    assert block_reader._commits_at_once(plan, writer) == 1
    writer.close()
    for units_in_room, wanted in ((0, 1), (5, 5), (1000, block_reader.COMMITS)):
        memory = 32 * 4 * SEQUENCES * CONTEXT * units_in_room
        spec = plan.spec.model_copy(update={"memory": memory})
        other = plan.model_copy(update={"spec": spec})
        writer = StoreWriter(Requests(Bucket()), other, threads=1)
        assert block_reader._commits_at_once(other, writer) == wanted
        writer.close()


# Processes


@pytest.mark.parametrize("kills", [3, pytest.param(40, marks=pytest.mark.slow)])
def test_the_reader_is_killed_at_random_instants(tmp_path: Path, kills: int) -> None:
    """Its commits are slow and come in any order, so that it leaves holes; the other
    worker goes on.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["tests.harvesting.killing", "actstore.harvesting.harvest"]
    )
    path = tmp_path / "ids.jsonl"
    killing.corpus(path)

    def start(work: Any, *words: Any) -> Any:
        one = context.Process(target=work, args=(str(path), *words))
        one.start()
        return one

    whole = start(killing.work, str(tmp_path / "whole"), None, 0.0)
    rng = random.Random(11)
    holes = 0
    for number in range(max(1, kills // 8)):
        out = tmp_path / f"store-{number}"
        other = start(killing.read_slowly, str(out), "2/2")
        for _ in range(min(kills, 8)):
            reader = start(killing.read_slowly, str(out), "1/2")
            began = time.monotonic()
            n_before = len(list(out.glob("blocks/0*.json")))
            while len(list(out.glob("blocks/0*.json"))) < min(40, n_before + 4):
                assert time.monotonic() - began < HANG_S, "nobody reads"
                time.sleep(0.005)
            time.sleep(rng.uniform(0, 0.05))
            reader.kill()
            reader.join()
            units = [int(one.stem) for one in out.glob("blocks/0*.json")]
            holes += max(units) + 1 - len(units)
        other.join(HANG_S)
        assert other.exitcode == 0
        assert len(list(out.glob("blocks/0*.json"))) == 40
        # The first worker may have been killed when its last unit was there.
        if not (out / object_keys.MANIFEST).exists():
            last = start(killing.read_slowly, str(out), "1/2")
            last.join(HANG_S)
            assert last.exitcode == 0
        whole.join()
        assert killing.objects(out) == killing.objects(tmp_path / "whole")
    assert holes > 0
