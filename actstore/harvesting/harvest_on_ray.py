"""A harvest on Ray: what is prepared for its workers, and the store's end."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import closing
from typing import Any

import torch

from actstore.engines.engine_option import EngineOptions
from actstore.engines.ray_engine import (
    RayWorkers,
    connected,
    room_for,
    threads_each,
)
from actstore.engines.worker_place import place_like_here
from actstore.errors import (
    SpecError,
    StorageError,
)
from actstore.format import object_keys
from actstore.format.manifest import read_plan
from actstore.format.storage import Storage
from actstore.harvesting.finish_store import finish_generation
from actstore.harvesting.harvest_driver import HarvestDriver
from actstore.harvesting.harvest_warnings import warn_of_corpus, warn_of_non_finite
from actstore.harvesting.progress import Progress, Report
from actstore.store import committed_units
from actstore.store.open_store import open as open_store
from actstore.store.store import Store
from schemas.engines import HarvestSetup
from schemas.harvest import HarvestSpec

WORK = "actstore.harvesting.harvest_worker:HarvestWorker"


def harvest_on_ray(
    spec: HarvestSpec,
    out: str,
    engine: EngineOptions,
    *,
    device: str,
    options: Mapping[str, Any] | None,
    report: Report,
) -> Store:
    """Harvest on a Ray cluster; the arguments are those of `harvest_on_engine`.

    Raises:
        EngineError: Ray is missing or cannot be reached, or its workers are lost again
            and again; what is committed is kept.
    """
    storage = Storage(out, dict(options or {}))
    if not storage.is_exclusive():
        raise StorageError(
            f"{storage.url}: this place has no conditional create, or ignores the"
            " condition, so workers could overwrite each other's records; harvest there"
            " without --engine"
        )
    threads = _threads(storage, device, engine)
    gpus = 1 if device == "cuda" else 0
    setup = HarvestSetup(
        place=place_like_here(device, threads),
        spec=spec,
        out=out,
        options=_crossing(options),
    )
    report(Progress("starting Ray"))
    cpus = threads or 1
    with (
        connected(engine, cpus) as ray,
        closing(RayWorkers(ray, room_for(ray, engine, cpus, gpus), WORK)) as workers,
    ):
        driver = HarvestDriver(storage, setup.to_json(), workers, report)
        driver.run()
    report(Progress("finishing the store"))
    return finished(storage, driver.tokenizer_keys, out, options)


def finished(
    storage: Storage,
    tokenizer_keys: list[str],
    out: str,
    options: Mapping[str, Any] | None,
) -> Store:
    """Finish a store whose units are all committed; open it, and warn of what is odd.

    tokenizer_keys: Files of the tokenizer that the workers wrote.
    """
    plan = read_plan(storage, 0)
    finish_generation(storage, plan, None, tokenizer_keys)
    store = open_store(out, dict(options or {}))
    warn_of_corpus(plan, committed_units.committed_blocks(storage))
    warn_of_non_finite(store)
    return store


def _crossing(options: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return options of a file system that go to other machines as JSON."""
    try:
        crossed: dict[str, Any] = json.loads(json.dumps(dict(options or {})))
    except (TypeError, ValueError):
        raise SpecError(
            "options: with an engine, wanted keys and values that JSON has"
        ) from None
    return crossed


def _threads(storage: Storage, device: str, engine: EngineOptions) -> int | None:
    """Return torch's threads of each worker; None on a GPU, whose results have no part
    in them.

    A harvest that was begun goes on with as many as it had: the last digits of values
    may depend on them, and so the plan has them.
    """
    if device == "cuda":
        return None
    if storage.exists(object_keys.plan_key(0)):
        return read_plan(storage, 0).numerics.threads
    return threads_each(engine, torch.get_num_threads())
