"""The engine that was asked for: `ray`, `ray:ADDRESS`, `slurm`, and its options.

Everything that cannot be used is refused here, before an engine is touched.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from actstore.errors import SpecError

WANTED = "wanted ray, ray:ADDRESS, slurm, slurm:local or slurm:debug"
# Slurm itself takes these as places: submitit's stand-ins on this machine.
SLURM_STAND_INS = ("local", "debug")
# Processes that one machine is asked to run, for each of its cores.
MOST_EACH_CORE = 8
SLURM_KEYS = ("partition", "time", "account")
# 90, 90:00, 8:00:00, 1-12, 1-12:30, 1-12:30:00: as sbatch takes them.
_TIME = re.compile(r"[0-9]+(:[0-9]+){0,2}|[0-9]+-[0-9]+(:[0-9]+){0,2}")
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.,@+-]*")
# HOST:PORT, or an IPv6 address in brackets.
_ADDRESS = re.compile(
    r"(?:[A-Za-z0-9][A-Za-z0-9._-]*|\[[0-9A-Fa-f:.]+\]):(?P<port>[0-9]{1,5})"
)


class Engine(NamedTuple):
    """An engine, and where it is.

    Attributes:
        kind: Which engine.
        address: Of Ray, the address of its head; of Slurm, a stand-in for it (`local`
            or `debug`). None: a Ray of this machine's own; Slurm itself.
    """

    kind: Literal["ray", "slurm"]
    address: str | None = None


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How work is placed by an engine.

    Attributes:
        engine: The engine.
        workers: How many pieces of work run at once; None: as many as the engine has
            room for.
        slurm: Options of Slurm, by name: partition, time, account.
    """

    engine: Engine
    workers: int | None
    slurm: Mapping[str, str]


def parse_engine(text: str) -> Engine:
    """Return the engine that a text stands for, such as `ray:10.0.0.1:6379`.

    Raises:
        SpecError: It stands for none.
    """
    kind, colon, address = text.partition(":")
    if kind == "ray" and (address or not colon):
        if address not in {"", "auto"} and not _is_address(address):
            raise SpecError(
                f"--engine {text!r}: wanted the address of a cluster that this machine"
                " is part of, HOST:PORT (port 6379 as a rule) or auto; start the"
                " command on one of its nodes"
            )
        return Engine("ray", address or None)
    if kind == "slurm" and (address in SLURM_STAND_INS or not colon):
        return Engine("slurm", address or None)
    raise SpecError(f"--engine {text!r}: {WANTED}")


def _is_address(text: str) -> bool:
    found = _ADDRESS.fullmatch(text)
    return found is not None and 0 < int(found["port"]) < 1 << 16


def engine_options(
    engine: str | None,
    workers: int | None,
    slurm: Mapping[str, Any] | None,
    *,
    device: str,
) -> EngineOptions | None:
    """Return how work is placed; None where no engine was asked for.

    Args:
        engine: Such as `ray`; None for this process alone.
        workers: How many pieces of work run at once.
        slurm: Options of Slurm, by name.
        device: Where each piece of work is done, which has to mean the same everywhere.

    Raises:
        SpecError: An option cannot be used, or would change nothing.
    """
    asked = {key: value for key, value in (slurm or {}).items() if value is not None}
    if engine is None:
        given = ["--workers"] if workers is not None else []
        given += [f"--{key}" for key in asked]
        if given:
            raise SpecError(f"{given[0]}: there is no engine; give one with --engine")
        return None
    parsed = parse_engine(engine)
    if workers is not None:
        _check_workers(parsed, workers)
    if asked and (parsed.kind != "slurm" or parsed.address is not None):
        raise SpecError(
            f"--{next(iter(asked))} is an option of Slurm, and --engine is {engine};"
            " leave it out"
        )
    if device not in {"cpu", "cuda"}:
        raise SpecError(
            f"--device {device}: with --engine, wanted cpu or cuda: each worker is"
            " given a GPU of its own"
        )
    return EngineOptions(parsed, workers, _slurm_options(asked))


def _check_workers(engine: Engine, workers: int) -> None:
    if workers < 1:
        raise SpecError(f"--workers {workers}: wanted 1 or more")
    is_here = (engine.kind, engine.address) in {("ray", None), ("slurm", "local")}
    n_cores = os.cpu_count() or 1
    if is_here and workers > MOST_EACH_CORE * n_cores:
        raise SpecError(
            f"--workers {workers}: each is a process of this machine, which has"
            f" {n_cores} cores; wanted at most {MOST_EACH_CORE * n_cores}"
        )


def _slurm_options(asked: Mapping[str, Any]) -> dict[str, str]:
    """Return options of Slurm that may go into a batch script."""
    checked = {}
    for key, value in asked.items():
        if key not in SLURM_KEYS:
            raise SpecError(
                f"slurm: {key!r} is no option here; there are {', '.join(SLURM_KEYS)}"
            )
        text = str(value)
        wanted = "minutes, H:M:S or D-H:M:S" if key == "time" else "a name"
        pattern = _TIME if key == "time" else _WORD
        if pattern.fullmatch(text) is None:
            raise SpecError(f"--{key} {text!r}: wanted {wanted}")
        checked[key] = text
    return checked
