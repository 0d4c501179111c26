"""A harvest on a cluster as discrete events.

A worker per GPU takes units from one queue, as they come free. While it fills a unit
the one before is written; three units have buffers. Its writer puts a unit's objects,
waits and tries again where S3 refuses, and commits. A node that fails loses what its
workers have in hand: these units go back to the queue.
"""

from __future__ import annotations

import math
import random
from collections import Counter, deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import simpy

from actstore.format.retries import FIRST_WAIT, LONGEST, LONGEST_WAIT, TRIES
from actstore.harvesting.harvest_plan import UNITS_IN_FLIGHT
from actstore.harvesting.token_blocks import FIRST_PAUSE_S, LONGEST_PAUSE_S
from tests.benchmarks.cluster.bucket import Bucket, Ints
from tests.benchmarks.cluster.key_load import UnitRequests

Events = Generator[simpy.Event, Any, Any]


class Load(NamedTuple):
    """What a simulated harvest has to do.

    Attributes:
        n_units: Its units.
        unit_s: Draws the seconds in which a worker makes a unit's rows.
        upload_s: Seconds in which it writes them, where nothing is refused.
        requests: What a unit asks of the bucket.
        block_s: Seconds between one token block and the next, where one worker reads
            them while the harvest runs; 0: they are there.
        start_s: Seconds from a worker's start to its first unit.
    """

    n_units: int
    unit_s: Callable[[random.Random], float]
    upload_s: float
    requests: UnitRequests
    block_s: float = 0.0
    start_s: float = 0.0


class Failures(NamedTuple):
    """How nodes differ and fail.

    Attributes:
        mtbf_s: Mean seconds between the failures of one GPU; 0: there are none.
        repair_s: Seconds until a node is back.
        slow_nodes: Share of the nodes that are slower.
        slowdown: How many times as long all takes on them.
    """

    mtbf_s: float = 0.0
    repair_s: float = 0.0
    slow_nodes: float = 0.0
    slowdown: float = 1.0


class Limits(NamedTuple):
    """What the bucket serves.

    Attributes:
        puts: PUTs per second and partition; 0: no limit.
        gets: GETs per second and partition; 0: no limit.
        split_after: Seconds from the first refusal to a split, least and most.
        is_split: Each folder has a partition of its own from the beginning.
    """

    puts: float = 0.0
    gets: float = 0.0
    split_after: tuple[float, float] = (math.inf, math.inf)
    is_split: bool = True


@dataclass(slots=True)
class Outcome:
    """What came of a simulated harvest.

    Attributes:
        makespan: Seconds until the last unit was committed.
        commits: How often each unit was committed.
        failures: Nodes that failed.
        lost: Units that were begun and lost with a node, or given up.
        given_up: Units whose requests were refused for too long.
        looks: Looks of workers for a token block that was not there.
        tries: Requests sent, with those that were refused.
        refused: Requests that were refused.
        served: By folder, requests that were served.
        partitions: Partitions of keys at the end.
    """

    makespan: float = 0.0
    commits: list[int] = field(default_factory=list)
    failures: int = 0
    lost: int = 0
    given_up: int = 0
    looks: int = 0
    tries: int = 0
    refused: int = 0
    served: dict[str, int] = field(default_factory=dict)
    partitions: int = 0


class _GivenUp(Exception):  # noqa: N818 (it never leaves this module)
    """A request was refused for too long."""


class Harvest:
    """One simulated harvest. The same seed gives the same outcome."""

    def __init__(
        self,
        load: Load,
        n_gpus: int,
        gpus_per_node: int,
        failures: Failures,
        limits: Limits,
        seed: int,
    ) -> None:
        self._load = load
        self._failures = failures
        self._rng = random.Random(seed)
        self._env = simpy.Environment()
        self._queue = deque(range(load.n_units))
        self._left = load.n_units
        self._all_done = self._env.event()
        self._changed = self._env.event()
        self.outcome = Outcome(commits=[0] * load.n_units)
        names = sorted({*load.requests.puts, *load.requests.gets})
        self._puts = self._bucket(names, limits.puts, limits)
        self._gets = self._bucket(names, limits.gets, limits)
        self._unit_puts = _by_folder(names, load.requests.puts)
        self._unit_gets = _by_folder(names, load.requests.gets)
        for first in range(0, n_gpus, gpus_per_node):
            self._add_node(min(gpus_per_node, n_gpus - first))

    def run(self) -> Outcome:
        """Simulate it to its end."""
        self._env.run(self._all_done)
        outcome = self.outcome
        outcome.makespan = self._env.now
        for bucket in (self._puts, self._gets):
            outcome.refused += int(bucket.refused.sum())
            outcome.tries += int((bucket.refused + bucket.served).sum())
        served = zip(self._puts.folders, self._puts.served.tolist(), strict=True)
        outcome.served = dict(served)
        outcome.partitions = self._puts.n_partitions
        return outcome

    def _bucket(self, names: Sequence[str], rate: float, limits: Limits) -> Bucket:
        return Bucket(
            names, rate, limits.split_after, self._rng, is_split=limits.is_split
        )

    def _add_node(self, n_gpus: int) -> None:
        slow = self._rng.random() < self._failures.slow_nodes
        factor = self._failures.slowdown if slow else 1.0
        workers = [self._env.process(self._worker(factor)) for _ in range(n_gpus)]
        if self._failures.mtbf_s:
            self._env.process(self._fail(workers))

    def _fail(self, workers: list[simpy.Process]) -> Events:
        """End a node's workers, again and again."""
        rate = len(workers) / self._failures.mtbf_s
        while True:
            yield self._env.timeout(self._rng.expovariate(rate))
            self.outcome.failures += 1
            for worker in workers:
                worker.interrupt()
            yield self._env.timeout(self._failures.repair_s)

    def _worker(self, factor: float) -> Events:
        """Harvest units until all are done, whatever comes between."""
        wait = 0.0
        while True:
            held: set[int] = set()
            tasks: list[simpy.Process] = []
            try:
                yield self._env.timeout(wait + self._load.start_s)
                filled = simpy.Store(self._env)
                buffers = simpy.Container(self._env, UNITS_IN_FLIGHT, UNITS_IN_FLIGHT)
                tasks = [
                    self._env.process(self._fill(held, filled, buffers, factor)),
                    self._env.process(self._write(held, filled, buffers)),
                ]
                yield simpy.AnyOf(self._env, tasks)
                wait = 0.0  # its requests were given up: it starts again
            except simpy.Interrupt:
                wait = self._failures.repair_s
            for task in tasks:
                if task.is_alive:
                    task.interrupt()
            self._give_back(held)

    def _give_back(self, held: set[int]) -> None:
        """Put the units that a worker had into the queue, first of all."""
        self.outcome.lost += len(held)
        self._queue.extendleft(sorted(held, reverse=True))
        self._changed.succeed()
        self._changed = self._env.event()

    def _fill(
        self,
        held: set[int],
        filled: simpy.Store,
        buffers: simpy.Container,
        factor: float,
    ) -> Events:
        """Make the rows of one unit after the other."""
        try:
            while True:
                yield buffers.get(1)
                while not self._queue:
                    yield self._changed
                unit = self._queue.popleft()
                held.add(unit)
                # Its tokens are there once the reader has come to them.
                there_at = (unit + 1) * self._load.block_s
                if there_at > self._env.now:
                    n_looks, waited = looks(there_at - self._env.now)
                    self.outcome.looks += n_looks
                    yield self._env.timeout(waited)
                yield self._env.timeout(factor * self._load.unit_s(self._rng))
                yield filled.put(unit)
        except simpy.Interrupt:
            return

    def _write(
        self, held: set[int], filled: simpy.Store, buffers: simpy.Container
    ) -> Events:
        """Write one unit after the other; end where a request is given up."""
        try:
            while True:
                unit: int = yield filled.get()
                yield from self._send(self._gets, self._unit_gets)
                yield from self._send(self._puts, self._unit_puts)
                yield self._env.timeout(self._load.upload_s)
                held.discard(unit)
                self._commit(unit)
                yield buffers.put(1)
        except simpy.Interrupt:
            return
        except _GivenUp:
            self.outcome.given_up += 1
            return

    def _send(self, bucket: Bucket, wanted: Ints) -> Events:
        """Send requests, and those that are refused again, as `Retries` does."""
        began = self._env.now
        tries = 0
        while True:
            refused = bucket.ask(wanted, self._env.now)
            if refused is None:
                return
            tries += 1
            if tries >= TRIES or self._env.now - began > LONGEST:
                raise _GivenUp
            longest = min(LONGEST_WAIT, FIRST_WAIT * 2 ** (tries - 1))
            yield self._env.timeout(longest * self._rng.uniform(0.5, 1))
            wanted = refused

    def _commit(self, unit: int) -> None:
        self.outcome.commits[unit] += 1
        self._left -= 1
        if self._left == 0:
            self._all_done.succeed()


def looks(seconds: float) -> tuple[int, float]:
    """Return how often a worker looks for a block that comes after some seconds, and
    after how many it sees it.
    """
    n_looks = 1
    waited = 0.0
    pause = FIRST_PAUSE_S
    while waited < seconds:
        waited += pause
        pause = min(2 * pause, LONGEST_PAUSE_S)
        n_looks += 1
        if pause == LONGEST_PAUSE_S:
            more = max(0, math.ceil((seconds - waited) / pause))
            return n_looks + more, waited + more * pause
    return n_looks, waited


def _by_folder(names: Sequence[str], wanted: Counter[str]) -> Ints:
    """Return requests by folder, [n_folders]."""
    return np.array([wanted[name] for name in names], np.int64)
