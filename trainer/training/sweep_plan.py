"""Plans the passes of a sweep: which runs share one, and what they take of memory."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from actstore.console.counts import parse_size
from actstore.store.open_store import open as open_store
from actstore.store.streamed_store import StreamedStore
from schemas.train import TrainSpec
from trainer.distributed.world_of_one import OneWorld
from trainer.runs.run_store import check_same
from trainer.training.memory_estimate import Group, fitting, usable_memory
from trainer.training.spread_passes import spread
from trainer.training.sweep import groups
from trainer.training.train_group import prepare

if TYPE_CHECKING:
    from trainer.distributed.processes import World


def memory_limit(memory: str | int | None, device: str, world: World | OneWorld) -> int:
    """Return how many bytes of a device one pass may take.

    Args:
        memory: What the user said, such as "20GB", or bytes; None for what the
            device has free.
        device: The device.
        world: The processes of the sweep, all of which call this; the one with the
            least room sets the limit.
    """
    if memory is not None:
        return parse_size(memory) if isinstance(memory, str) else memory
    if isinstance(world, OneWorld):
        return usable_memory(device)
    usable = usable_memory(str(world.device))
    if world.device.type == "cpu":  # which the processes of a machine share
        n_sharing = os.environ.get("LOCAL_WORLD_SIZE", world.size)
        usable //= int(n_sharing)
    return int(world.least(usable))


def plan_passes(
    specs: dict[str, TrainSpec],
    limit: int,
    device: str,
    resume: bool,
    tell: Callable[[str], None],
    at_least: int = 1,
) -> list[dict[str, TrainSpec]]:
    """Return the runs that are left in groups, each of which is one pass over the data.

    All run folders are looked at first, so that nothing is trained where one of them
    will not do.

    Args:
        specs: The runs, by URL.
        limit: Bytes of the device that one pass may take.
        device: The device.
        resume: Whether runs that are there go on.
        tell: Is given what each pass takes, in lines.
        at_least: How many passes are trained at once: there are to be as many, where
            there are as many runs.

    Raises:
        RunError: A run folder holds something else.
    """
    storages = {url: prepare(url, spec, resume) for url, spec in specs.items()}
    stores: dict[tuple[str, bool], StreamedStore] = {}
    for url, spec in specs.items():
        key = _store_key(spec)
        if key not in stores:
            stores[key] = open_store(spec.store, follow=spec.stream.follow)
        check_same(storages[url], stores[key])
    left = {}
    for url, spec in specs.items():
        has_ended = storages[url].exists("sae.json")
        if not has_ended:
            left[url] = spec

    def fitted(sharing: dict[str, TrainSpec]) -> list[Group]:
        first = next(iter(sharing.values()))
        return fitting(stores[_store_key(first)], sharing, limit, device)

    passes = [one for sharing in groups(left) for one in fitted(sharing)]
    if len(passes) < at_least:
        divided = spread([one.specs for one in passes], at_least)
        passes = [one for sharing in divided for one in fitted(sharing)]

    number = "1 pass" if len(passes) == 1 else f"{len(passes)} passes"
    n_ended = len(specs) - len(left)
    others = f", {n_ended} more have ended" if n_ended else ""
    tell(
        f"{len(left)} SAEs in {number} over the data{others};"
        f" {limit / 1e9:.2g} GB may be taken"
    )
    for i, group in enumerate(passes, 1):
        too_much = group.memory.total > limit
        more = "; more than may be taken" if too_much else ""
        tell(f"pass {i}: {len(group.specs)} SAEs, about {group.memory}{more}")
    return [group.specs for group in passes]


def _store_key(spec: TrainSpec) -> tuple[str, bool]:
    """Return which store a run opens, and whether it follows it."""
    return spec.store, spec.stream.follow
