"""Is this machine, and a place for stores, ready? Versions, device, memory, and a round
trip with throughput.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from actstore.errors import ActstoreError
from actstore.format.storage import Storage

PACKAGES = (
    "torch",
    "transformer_lens",
    "transformers",
    "zarr",
    "numcodecs",
    "fsspec",
    "s3fs",
    "numpy",
    "pydantic",
)
MINIMUM = {"zarr": (3, 1), "torch": (2, 7), "transformer_lens": (3, 0)}
PROBE_BYTES = 32 << 20
LOW_SPACE = 10 << 30


class Check(NamedTuple):
    """One line of the doctor's: `status` "ok", "warn" or "fail"."""

    name: str
    status: Literal["ok", "warn", "fail"]
    text: str


def examine(
    url: str | None = None, options: dict[str, object] | None = None
) -> Iterator[Check]:
    """Every check, as it is done; those of a place only where a URL is given. Leaves
    nothing behind.
    """
    yield Check(
        "python",
        "ok" if sys.version_info >= (3, 11) else "fail",
        platform.python_version(),
    )
    yield from (_package(name) for name in PACKAGES)
    yield _device()
    yield _machine()
    yield _bfloat16()
    if url is not None:
        yield from _place(url, options)


def _package(name: str) -> Check:
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Check(name, "fail", "not installed; `pip install actstore` brings it")
    wanted = MINIMUM.get(name)
    numbers = tuple(
        int(part) for part in version.split("+")[0].split(".")[:2] if part.isdigit()
    )
    if wanted and numbers < wanted:
        return Check(
            name, "fail", f"{version}; wanted {'.'.join(map(str, wanted))} or newer"
        )
    return Check(name, "ok", version)


def _device() -> Check:
    import torch

    if not torch.cuda.is_available():
        return Check(
            "GPU",
            "warn",
            f"none that torch {torch.__version__} can use; harvest and train with"
            " --device cpu",
        )
    names = [
        torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())
    ]
    return Check(
        "GPU",
        "ok",
        ", ".join(f"{one.name} ({one.total_memory / 1e9:,.0f} GB)" for one in names),
    )


def _machine() -> Check:
    cores = (
        len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count()
    )
    try:
        memory = (
            f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1e9:,.1f} GB"
            " of memory"
        )
    except (ValueError, OSError, AttributeError):
        memory = "memory unknown"
    return Check("machine", "ok", f"{cores} cores, {memory}")


def _bfloat16() -> Check:
    """Of the CPU, on which a model or a training run may be told to use it."""
    from actstore.machine import half_precision

    speed = half_precision.measured("bfloat16")
    return Check(
        "bfloat16",
        "warn" if speed.slow else "ok",
        half_precision.sentence("bfloat16", speed),
    )


def _place(url: str, options: dict[str, object] | None) -> Iterator[Check]:
    """Write, read, create conditionally and delete objects of a temporary name at a
    URL.
    """
    try:
        storage = Storage(url, options)
    except ActstoreError as error:
        yield Check("storage", "fail", str(error))
        return
    made: list[Path] = []
    if storage.local is not None:
        yield _space(storage)
        made = [
            folder
            for folder in (storage.local, *storage.local.parents)
            if not folder.exists()
        ]
    key = f".doctor-{uuid.uuid4().hex}"
    data = os.urandom(PROBE_BYTES)
    steps: list[tuple[str, Callable[[], str]]] = [
        ("write", lambda: _timed(lambda: storage.put(key, data))),
        ("read", lambda: _timed(lambda: _same(storage.read(key), data))),
        ("ranged read", lambda: _ranged(storage, key, data)),
        ("conditional create", lambda: _conditional(storage, key)),
        ("delete", lambda: _deleted(storage, key)),
    ]
    try:
        for name, step in steps:
            try:
                yield Check(name, "ok", step())
            except ActstoreError as error:
                yield Check(name, "fail", str(error))
                return
            except _NotSupportedError as error:
                yield Check(name, "warn", str(error))
    finally:
        with contextlib.suppress(ActstoreError):
            storage.delete(key)
        for folder in made:
            # one that somebody has put something into meanwhile stays
            with contextlib.suppress(OSError):
                folder.rmdir()


class _NotSupportedError(Exception):
    """The place lacks something that can be done without."""


def _space(storage: Storage) -> Check:
    assert storage.local is not None
    place = storage.local
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    return Check(
        "free space",
        "ok" if free > LOW_SPACE else "warn",
        f"{free / 1e9:,.1f} GB at {place}",
    )


def _timed(work: Callable[[], None]) -> str:
    began = time.perf_counter()
    work()
    seconds = time.perf_counter() - began
    return (
        f"{PROBE_BYTES / 1e6 / seconds:,.0f} MB/s ({PROBE_BYTES / 1e6:,.0f} MB in"
        f" {seconds:.2f} s)"
    )


def _same(got: bytes, wanted: bytes) -> None:
    if got != wanted:
        raise ActstoreError("what was read is not what was written")


def _ranged(storage: Storage, key: str, data: bytes) -> str:
    ranges = [(0, 1000), (len(data) // 2, 1000), (-1000, 1000)]
    parts = storage.read_ranges(key, ranges)
    _same(b"".join(parts), data[:1000] + data[len(data) // 2 :][:1000] + data[-1000:])
    return "offsets and ends"


def _conditional(storage: Storage, key: str) -> str:
    if storage.create(key, b"twice"):
        raise _NotSupportedError(
            "an existing object was replaced: this place has no conditional create, so"
            " let one worker write at a time"
        )
    return "an existing object is kept: several workers can share a store here"


def _deleted(storage: Storage, key: str) -> str:
    storage.delete(key)
    if storage.exists(key):
        raise _NotSupportedError("the object is still there; remove it by hand")
    return "gone"
