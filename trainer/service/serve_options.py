"""Makes of the options of `trainer serve` what a service is started with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from actstore.engines.slurm_submit import check_slurm_here
from actstore.errors import SpecError
from actstore.format.storage import Storage
from actstore.machine import command_values
from trainer.passes.allowed_stores import AllowedStores
from trainer.passes.executor import checked_engine
from trainer.queue.slots import engine_slots, machine_slots
from trainer.service.doors import Door
from trainer.service.from_proxy import checked_proxies
from trainer.service.service import Places
from trainer.service.serving import Serving
from trainer.service.state_folder import runs_url, state_folder

DEVICES = ("auto", "cpu", "cuda")


def serving_from(
    *,
    runs: str,
    state: str | None,
    stores: Sequence[str],
    host: str,
    port: int,
    tls_cert: str | None,
    tls_key: str | None,
    behind_proxy: bool,
    proxies: Sequence[str],
    n_slots: int | None,
    device: str,
    executor: str,
) -> Serving:
    """Return what a service is started with.

    Raises:
        SpecError: An option cannot be used, or does nothing.
        ServiceError: There are not so many slots.
        EngineError: Slurm is to place passes, and is not here.
    """
    if device not in DEVICES:
        raise SpecError(f"--device {device}: wanted one of {', '.join(DEVICES)}")
    if proxies and not behind_proxy:
        raise SpecError("--proxy does nothing without --behind-proxy; give both")
    door = Door(
        host, port, tls_cert, tls_key, checked_proxies(proxies) if behind_proxy else ()
    )
    prefixes = tuple(stores)
    if not prefixes and not door.is_of_this_machine:
        raise SpecError(
            "which stores may be read? give --stores URL, the folder or bucket that has"
            " them"
        )
    catalog = command_values.use(command_values.CATALOG)
    allowed = AllowedStores(prefixes or (str(Path.cwd()),), catalog)
    places = Places(runs_url(runs), allowed.prefixes, catalog)
    engine = None if executor == "local" else checked_engine(executor)
    if engine is not None and engine.kind == "slurm":
        check_slurm_here()
    folder = state_folder(runs, state)
    local = Storage(places.runs).local
    if local is not None:
        local.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if engine is None:
        return Serving(places, folder, door, machine_slots(device, n_slots))
    slots = engine_slots(engine.kind, device, n_slots or 1)
    return Serving(places, folder, door, slots, executor)
