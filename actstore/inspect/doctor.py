"""Checks whether this machine, and a place for stores, are ready.

The checks are of versions, device and memory; of the place, a round trip with its
throughput.
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
from typing import Any, Literal, NamedTuple

from actstore import arguments
from actstore.arguments import checked, optional
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
    "obstore",
    "numpy",
    "pydantic",
)
MINIMUM = {"zarr": (3, 1), "torch": (2, 7), "transformer_lens": (4, 0)}
# Bytes that are written and read for the throughput: so many that setting up a
# connection counts little, and few enough for a slow line.
PROBE_BYTES = 32 << 20
LOW_SPACE = 10 << 30  # free bytes below which a place gets a warning


class Check(NamedTuple):
    """One line of what the doctor says.

    Attributes:
        name: What was checked.
        status: "ok", "warn" (works, with a limit) or "fail".
        text: What was found, and what to do about it.
    """

    name: str
    status: Literal["ok", "warn", "fail"]
    text: str


@checked(url=optional(arguments.folder), options=optional(arguments.mapping))
def examine(
    url: str | os.PathLike[str] | None = None,
    options: dict[str, Any] | None = None,
) -> Iterator[Check]:
    """Yield every check as it is done; leave nothing where it was written.

    Args:
        url: A place for stores; without one, no place is checked.
        options: For its file system, such as credentials.

    Examples:
        >>> import actstore
        >>> bad = [check for check in actstore.examine() if check.status == "fail"]
        >>> bad
        []
    """
    new_enough = sys.version_info >= (3, 11)
    yield Check("python", "ok" if new_enough else "fail", platform.python_version())
    for name in PACKAGES:
        yield _package(name)
    yield _device()
    yield _machine()
    yield _bfloat16()
    if url is not None:
        yield from _place_for_stores(os.fspath(url), options)


def _package(name: str) -> Check:
    """Check that a package is installed and new enough."""
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Check(name, "fail", "not installed; `pip install actstore` brings it")
    wanted = MINIMUM.get(name)
    # "2.7.1+cu126" is (2, 7)
    first_two = version.split("+")[0].split(".")[:2]
    numbers = tuple(int(part) for part in first_two if part.isdigit())
    if wanted and numbers < wanted:
        lowest = ".".join(map(str, wanted))
        return Check(name, "fail", f"{version}; wanted {lowest} or newer")
    return Check(name, "ok", version)


def _device() -> Check:
    """Check which GPUs torch can use."""
    import torch

    if not torch.cuda.is_available():
        return Check(
            "GPU",
            "warn",
            f"none that torch {torch.__version__} can use; harvest and train with"
            " --device cpu",
        )
    gpus = []
    for i in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(i)
        gpus.append(f"{properties.name} ({properties.total_memory / 1e9:,.0f} GB)")
    return Check("GPU", "ok", ", ".join(gpus))


def _machine() -> Check:
    """Say how many cores and how much memory there are."""
    # A container may let this process use fewer cores than there are.
    if hasattr(os, "sched_getaffinity"):
        cores: int | None = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count()
    try:
        n_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        memory = f"{n_bytes / 1e9:,.1f} GB of memory"
    except (ValueError, OSError, AttributeError):
        memory = "memory unknown"
    return Check("machine", "ok", f"{cores} cores, {memory}")


def _bfloat16() -> Check:
    """Check how fast the CPU computes in bfloat16.

    A model or a training run may be told to use it.
    """
    from actstore.machine import half_precision

    speed = half_precision.measured("bfloat16")
    text = half_precision.sentence("bfloat16", speed)
    return Check("bfloat16", "warn" if speed.slow else "ok", text)


def _place_for_stores(url: str, options: dict[str, object] | None) -> Iterator[Check]:
    """Write, read, create and delete an object of a temporary name at a URL."""
    try:
        storage = Storage(url, options)
    except ActstoreError as error:
        yield Check("storage", "fail", str(error))
        return
    absent_folders: list[Path] = []
    if storage.local is not None:
        yield _space(storage.local)
        folders = (storage.local, *storage.local.parents)
        absent_folders = [folder for folder in folders if not folder.exists()]
    # A name that nothing else has: stores may lie there already.
    key = f".doctor-{uuid.uuid4().hex}"
    # Random, for a disk that compresses would look faster than it is.
    data = os.urandom(PROBE_BYTES)
    steps: list[tuple[str, Callable[[], str]]] = [
        ("write", lambda: _timed(lambda: storage.put(key, data))),
        ("read", lambda: _timed(lambda: _check_same(storage.read(key), data))),
        ("ranged read", lambda: _ranged(storage, key, data)),
        ("conditional create", lambda: _conditional(storage)),
        ("delete", lambda: _deleted(storage, key)),
    ]
    try:
        for name, step in steps:
            try:
                yield Check(name, "ok", step())
            except ActstoreError as error:
                # the steps after it need what this one could not do
                yield Check(name, "fail", str(error))
                return
            except _NotSupportedError as error:
                yield Check(name, "warn", str(error))
    finally:
        with contextlib.suppress(ActstoreError):
            storage.delete(key)
        for folder in absent_folders:
            # one that somebody has put something into meanwhile stays
            with contextlib.suppress(OSError):
                folder.rmdir()


class _NotSupportedError(Exception):
    """The place lacks something that can be done without."""


def _space(folder: Path) -> Check:
    """Check the free space of the disk that a folder is on, or will be on."""
    # The folder is made when a store is; until then the one above it tells.
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    status: Literal["ok", "warn"] = "ok" if free > LOW_SPACE else "warn"
    return Check("free space", status, f"{free / 1e9:,.1f} GB at {folder}")


def _timed(work: Callable[[], None]) -> str:
    """Do what reads or writes PROBE_BYTES, and say how fast it was."""
    began = time.perf_counter()
    work()
    seconds = time.perf_counter() - began
    megabytes = PROBE_BYTES / 1e6
    return f"{megabytes / seconds:,.0f} MB/s ({megabytes:,.0f} MB in {seconds:.2f} s)"


def _check_same(read: bytes, written: bytes) -> None:
    """Raise ActstoreError where bytes have changed on their way."""
    if read != written:
        raise ActstoreError("what was read is not what was written")


def _ranged(storage: Storage, key: str, data: bytes) -> str:
    """Read ranges of an object, by offset and from its end."""
    # Chunks are read from anywhere in a shard, its index from the end.
    middle = len(data) // 2
    parts = storage.read_ranges(key, [(0, 1000), (middle, 1000), (-1000, 1000)])
    wanted = data[:1000] + data[middle : middle + 1000] + data[-1000:]
    _check_same(b"".join(parts), wanted)
    return "offsets and ends"


def _conditional(storage: Storage) -> str:
    """Try whether creating an object that is there keeps what is there."""
    if not storage.is_exclusive():
        raise _NotSupportedError(
            "this place has no conditional create, or ignores the condition: let one"
            " worker write at a time (harvests with --worker are refused here)"
        )
    return "an existing object is kept: several workers can share a store here"


def _deleted(storage: Storage, key: str) -> str:
    """Delete an object and see that it is gone."""
    storage.delete(key)
    if storage.exists(key):
        raise _NotSupportedError("the object is still there; remove it by hand")
    return "gone"
