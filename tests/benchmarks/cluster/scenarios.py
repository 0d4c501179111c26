"""Simulated harvests of one size on clusters of several sizes."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from typing import NamedTuple

from actstore.format import s3_objects
from actstore.format.layout import plan_layout
from actstore.harvesting.block_reader import COMMITS
from actstore.harvesting.uploads import UPLOADS, UPLOADS_SHARE
from schemas.harvest import Layout
from tests.benchmarks.cluster.assumptions import PRICES, Cluster
from tests.benchmarks.cluster.harvest_model import (
    Failures,
    Harvest,
    Limits,
    Load,
    Outcome,
)
from tests.benchmarks.cluster.key_load import UnitRequests, unit_requests

GPUS = (64, 128, 256, 512, 1024)
VALUE_BYTES = 2  # bfloat16
QUESTIONS = 2  # of a look: is the block there, and which is the first that is not
RECORD_READS = 32  # under way at a time when a store is finished


class Unit(NamedTuple):
    """What a unit of a harvest is, and takes.

    Attributes:
        layout: That of the store.
        tokens: Tokens of a unit.
        shard_bytes: Bytes of a site's shard, as stored.
        make_s: Seconds in which one GPU's worker makes its rows.
        upload_s: Seconds in which the worker writes them.
        text_s: Seconds in which the reader reads and commits its token block from text.
        ids_s: The same from token ids.
        requests: What it asks of the bucket.
    """

    layout: Layout
    tokens: int
    shard_bytes: float
    make_s: float
    upload_s: float
    text_s: float
    ids_s: float
    requests: UnitRequests


class Row(NamedTuple):
    """A simulated harvest in figures.

    Attributes:
        case: Which of `CASES` it is.
        gpus: GPUs of the cluster.
        hours: From the start to the last unit's commit.
        finish_hours: What finishing the store takes then, in one process.
        efficiency: Hours that units alone would take, all GPUs busy, over `hours`.
        puts_per_s: PUTs per second, over the whole harvest.
        busiest: PUTs per second of the folder that has most.
        refused: Share of the requests that were answered with 503.
        failures: Nodes that failed.
        lost: Units that were begun and done again.
        given_up: Writers that gave a request up after 12 tries or 2 minutes.
        asked_per_s: Questions of workers that wait for a token block, per second.
        gpu_cost: Dollars for the GPUs.
        request_cost: Dollars for the requests.
    """

    case: str
    gpus: int
    hours: float
    finish_hours: float
    efficiency: float
    puts_per_s: float
    busiest: float
    refused: float
    failures: int
    lost: int
    given_up: int
    gpu_cost: float
    request_cost: float
    asked_per_s: float = 0.0


CASES = {
    "ready": "token blocks there, a bucket whose folders have partitions",
    "new": "token blocks there, a new bucket",
    "ids": "token blocks read by one worker, from token ids",
    "text": "token blocks read by one worker, from text, with one core",
}


def site_names(cluster: Cluster) -> list[str]:
    """Return the names of the sites."""
    return [f"blocks.{layer}.hook_resid_post" for layer in range(cluster.layers)]


def unit_of(cluster: Cluster) -> Unit:
    """Return what a unit of a harvest is, and takes."""
    width = cluster.d * VALUE_BYTES
    layout = plan_layout(
        int(cluster.tokens),
        cluster.context,
        width,
        cluster.layers * width,
        cluster.memory,
    )
    tokens = layout.unit_sequences * cluster.context
    shard = tokens * width * cluster.stored
    made = tokens * cluster.layers * width / cluster.gpu_bytes
    # Two requests one after the other, for as many blocks at a time.
    commit_s = max(1 / cluster.commit, 2 * cluster.latency / COMMITS)
    return Unit(
        layout,
        tokens,
        shard,
        max(made, tokens / cluster.forward),
        upload_seconds(cluster, shard),
        max(commit_s, tokens / cluster.tokenise),
        commit_s,
        unit_requests(site_names(cluster), shard),
    )


def upload_seconds(cluster: Cluster, shard: float) -> float:
    """Return the seconds in which a worker writes a unit, where nothing is refused."""
    room = cluster.memory // UPLOADS_SHARE
    at_once = min(UPLOADS, max(1, int(room // shard)))
    part = s3_objects.part_bytes(math.ceil(shard))
    rounds = math.ceil(math.ceil(shard / part) / s3_objects.PARTS_AT_ONCE)
    one = rounds * (cluster.latency + min(part, shard) / cluster.connection)
    if shard > s3_objects.PART_BYTES:
        one += 2 * cluster.latency  # begun and completed
    by_connections = math.ceil(cluster.layers / at_once) * one
    by_node = cluster.layers * shard * cluster.gpus_per_node / cluster.node
    return max(by_connections, by_node)


def drawn_unit(cluster: Cluster, mean: float, rng: random.Random) -> float:
    """Return the seconds of one unit, drawn around a mean."""
    seconds = mean * rng.lognormvariate(-(cluster.spread**2) / 2, cluster.spread)
    straggles = rng.random() < cluster.straggling
    return seconds * cluster.straggle if straggles else seconds


def simulate(cluster: Cluster, case: str, gpus: int, seed: int) -> Row:
    """Simulate one harvest."""
    unit = unit_of(cluster)
    load = Load(
        unit.layout.n_units,
        lambda rng: drawn_unit(cluster, unit.make_s, rng),
        unit.upload_s,
        unit.requests,
        {"text": unit.text_s, "ids": unit.ids_s}.get(case, 0.0),
        cluster.start,
    )
    failures = Failures(
        cluster.mtbf, cluster.repair, cluster.slow_nodes, cluster.slowdown
    )
    split_after = (cluster.split_min, cluster.split_max)
    limits = Limits(cluster.puts, cluster.gets, split_after, is_split=case != "new")
    outcome = Harvest(load, gpus, cluster.gpus_per_node, failures, limits, seed).run()
    return _row(cluster, unit, case, gpus, outcome)


def _row(cluster: Cluster, unit: Unit, case: str, gpus: int, outcome: Outcome) -> Row:
    n_units = unit.layout.n_units
    puts = sum(outcome.served.values())
    gets = outcome.tries - outcome.refused - puts
    asked = outcome.looks * QUESTIONS
    return Row(
        case=case,
        gpus=gpus,
        hours=outcome.makespan / 3600,
        finish_hours=finish_seconds(cluster, n_units) / 3600,
        efficiency=n_units * unit.make_s / gpus / outcome.makespan,
        puts_per_s=puts / outcome.makespan,
        busiest=max(outcome.served.values()) / outcome.makespan,
        refused=outcome.refused / outcome.tries,
        failures=outcome.failures,
        lost=outcome.lost,
        given_up=outcome.given_up,
        gpu_cost=outcome.makespan / 3600 * gpus * cluster.gpu_price,
        request_cost=puts / 1000 * PRICES.put + (gets + asked) / 1000 * PRICES.get,
        asked_per_s=asked / outcome.makespan,
    )


def finish_seconds(cluster: Cluster, n_units: int) -> float:
    """Return what reading and merging all units' records and statistics takes."""
    reading = 2 * cluster.latency / RECORD_READS
    return n_units * max(cluster.merge, reading)


def table(cluster: Cluster, seed: int) -> Iterator[Row]:
    """Simulate every case on every cluster."""
    for case in CASES:
        for gpus in GPUS:
            yield simulate(cluster, case, gpus, seed)
