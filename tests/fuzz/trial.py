"""One damaged store, used as a user would: every use ends with values or with an error
of ours, soon, and in bounds.

What counts as a fault:

- an exception that is none of ours, or a warning; no end within `SECONDS`; more than
`MEMORY` taken;
- anything outside of the store touched;
- a change that neither opening nor `verify` sees (of a mutation that is not sealed, or
  of the manifest), or values that differ between `read` and a stream;
- a repair that writes anything but what was there before.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import resource
import shutil
import signal
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import actstore
from actstore.errors import ActstoreError
from actstore.inspect.list_stores import stores
from actstore.inspect.store_info import norm_table
from actstore.inspect.verify import verify
from actstore.store.description import describe
from actstore.store.store import Store
from schemas.manifest import BlockRecord, StoreManifest
from tests.fuzz.mutations import OUTSIDE, Mutation, mutated
from tests.fuzz.stores import Objects, Stamp, made, stamps

SECONDS = 10
MEMORY = 256 << 20  # bytes by which a trial may raise the process' peak
# bytes of address space beyond what there is; threads alone reserve some hundred MB
ADDRESSES = 3 << 30
Used = dict[str, np.ndarray]


class Hang(BaseException):
    """Time is up. No Exception, so that nothing takes it for an error of the store."""


class Trial:
    """A store of one kind in `folder`/store, and what every mutation of it must lead
    to.
    """

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind, self.root, self.folder = kind, folder, folder / "store"
        (folder / "outside").mkdir(parents=True)
        (folder / "outside" / "secret").write_bytes(b"secret")
        self.objects = made(kind, self.folder)
        self._stamps = stamps(self.folder)
        self._around = self._outside()
        self._right = _used(actstore.open(self.folder))

    def run(self, mutation: Mutation) -> str | None:
        """What is wrong with the way in which the mutation was met; None: nothing."""
        changed = mutated(self.objects, _placed(mutation, self.root))
        if changed == self.objects:
            return None
        self._write(changed, mutation)
        try:
            with _bounded() as opened:
                fault = self._met(mutation, changed)
            return fault or self._touched(opened)
        except Hang:
            return f"no end within {SECONDS} s"
        except Exception as error:  # noqa: BLE001 (whatever comes is the finding)
            return f"{type(error).__name__}: {str(error)[:200]} ({_place(error)})"
        finally:
            self._restore()

    def _met(self, mutation: Mutation, changed: Objects) -> str | None:
        with contextlib.suppress(ActstoreError):
            stores(str(self.root))
        try:
            store = actstore.open(self.folder)
        except ActstoreError:
            return None
        with contextlib.suppress(ActstoreError):
            describe(store)
            norm_table(store)
        used = None
        with contextlib.suppress(ActstoreError):
            used = _used(store)
        if used is not None:
            self._as_streamed(store, used)
        try:
            found = verify(store, threads=2, repair=True)
        except ActstoreError:
            return None
        seen = bool(found.problems or found.repaired)
        if not seen and not self._may_pass(mutation, changed):
            return "neither opening nor verify sees it"
        if (
            not seen
            and not mutation.sealed
            and used is not None
            and not _same(used, self._right)
        ):
            return "other values, and verify sees nothing"
        wrong = [
            key
            for key in found.repaired
            if (self.folder / key).read_bytes() != self.objects.get(key)
        ]
        return f"repair wrote {wrong[0]}, which is not what it was" if wrong else None

    def _may_pass(self, mutation: Mutation, changed: Objects) -> bool:
        """Whether the change has no meaning, or is one of what nothing else in a store
        can tell.
        """
        key = mutation.key
        if mutation.sealed and key != "manifest.json":
            return True
        if mutation.change in {"no file", "gone"}:
            return False
        before, after = self.objects[key], changed[key]
        if key == "manifest.json":
            return _means(before, after)
        if key.startswith("blocks/"):
            told = {"cursor": {}, "skipped_documents": 0}
            one, other = (
                BlockRecord.model_validate_json(data).model_copy(update=told)
                for data in (before, after)
            )
            return one == other
        if key.endswith("zarr.json") and not key.startswith("columns"):
            return _text(before) == _text(after) or _text(
                _without_list(before)
            ) == _text(after)
        return before == after

    def _as_streamed(self, store: Store, used: Used) -> None:
        """A stream gives the values that `read` gives. Raises AssertionError."""
        d, every = store.manifest.sites[0].d, store.rows()
        sites = tuple(site.name for site in store.manifest.sites if site.d == d)
        with (
            contextlib.suppress(ActstoreError),
            store.stream(batch=16, sites=sites, threads=1, lanes=1) as stream,
        ):
            for batch in stream:
                x, at = batch.x.numpy(), np.searchsorted(every, np.asarray(batch.row))
                wanted = np.stack([used[site] for site in stream.sites])[
                    np.asarray(batch.layer), at
                ]
                np.testing.assert_array_equal(x, wanted, "read and stream differ")

    def _write(self, changed: Objects, mutation: Mutation) -> None:
        for key in self.objects.keys() - changed.keys():
            (self.folder / key).unlink()
        for key, data in changed.items():
            if data != self.objects.get(key):
                (self.folder / key).write_bytes(data)
        if mutation.change == "no file":
            _no_file(
                self.folder / mutation.key,
                mutation.of[0],
                self.root / "outside" / "secret",
            )

    def _restore(self) -> None:
        there = stamps(self.folder)
        for key in there.keys() - self.objects.keys():
            (self.folder / key).unlink()
        for key, stamp in self._stamps.items():
            if there.get(key) != stamp:
                self._write_back(key)

    def _write_back(self, key: str) -> None:
        path = self.folder / key
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.objects[key])
        about = path.stat()
        self._stamps[key] = Stamp(about.st_ino, about.st_mtime_ns, about.st_size)

    def _outside(self) -> dict[str, Stamp]:
        return {
            name: stamp
            for name, stamp in stamps(self.root).items()
            if not name.startswith("store/")
        }

    def _touched(self, opened: list[str]) -> str | None:
        """What was written or opened beside the store."""
        if self._outside() != self._around:
            self._around = self._outside()
            return "something outside of the store was written"
        beside = [path for path in opened if self._is_beside(path)]
        return (
            f"{beside[0]} was opened, which is outside of the store" if beside else None
        )

    def _is_beside(self, path: str) -> bool:
        # of a link the place of the link, which is in the store
        plain = os.path.normpath(path)
        return (
            plain.startswith(str(self.root))
            and not plain.startswith(str(self.folder))
            and plain != str(self.root)
        )


def _used(store: Store) -> Used:
    """Everything that a store's reading side gives. Raises what that raises."""
    found: Used = {}
    for site in store.sites:
        found[site] = store.read(site)
        found[f"{site} norm"] = store.read_norms(site)
        found[f"{site} mean"] = store.mean(site)
    found |= store.provenance()._asdict()
    if store.manifest.has_tokens:
        # what `tokens` promises for sequences of which there is nothing
        with contextlib.suppress(IndexError):
            found["tokens"] = store.tokens(np.unique(found["sequence"]))
    return found


def _same(one: Used, other: Used) -> bool:
    same = (
        np.array_equal(one[key], other[key], equal_nan=True)
        for key in one.keys() & other.keys()
    )
    return one.keys() == other.keys() and all(same)


def _placed(mutation: Mutation, root: Path) -> Mutation:
    text = json.dumps(mutation.of).replace(OUTSIDE, str(root / "outside"))
    return mutation._replace(of=json.loads(text))


def _no_file(path: Path, what: str, secret: Path) -> None:
    if what == "fifo":
        os.mkfifo(path)
    elif what == "folder":
        path.mkdir()
    else:
        path.symlink_to({"secret": secret, "itself": path}.get(what, Path(what)))


def _means(one: bytes, other: bytes) -> bool:
    """Whether two manifests mean the same: figures as near as those of another machine
    may be.
    """
    first, second = (
        json.loads(StoreManifest.model_validate_json(data).to_json())
        for data in (one, other)
    )
    return _near(first, second)


def _near(one: Any, other: Any) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(
            _near(one[key], other[key]) for key in one
        )
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_near, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-8)
    return bool(one == other)


def _without_list(data: bytes) -> bytes:
    """A group without the list of what is below it, which it need not have."""
    return json.dumps(
        {
            key: one
            for key, one in json.loads(data).items()
            if key != "consolidated_metadata"
        }
    ).encode()


def _text(data: bytes) -> str:
    try:
        return json.dumps(json.loads(data), sort_keys=True)
    except (ValueError, RecursionError):
        return repr(data)


def _place(error: BaseException) -> str:
    """Where of our code an exception comes from."""
    trace, found = error.__traceback__, ""
    while trace is not None:
        code = trace.tb_frame.f_code
        if any(f"/{part}/" in code.co_filename for part in ("actstore", "schemas")):
            found = f"{'/'.join(Path(code.co_filename).parts[-2:])}:{trace.tb_lineno} {code.co_name}"
        trace = trace.tb_next
    return found


_opened: list[str] | None = None


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if (
        _opened is not None
        and event == "open"
        and isinstance(args[0], (str, bytes, os.PathLike))
    ):
        _opened.append(os.fsdecode(args[0]))


sys.addaudithook(_audit)


@contextlib.contextmanager
def _bounded() -> Iterator[list[str]]:
    """Time, memory and warnings in bounds; gives the paths that are opened."""
    global _opened  # noqa: PLW0603 (an audit hook stays for ever)
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_status("VmSize") + ADDRESSES, before[1]))
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    resident = _status("VmHWM")
    old = signal.signal(signal.SIGALRM, _time_is_up)
    signal.setitimer(signal.ITIMER_REAL, SECONDS, 1)
    opened: list[str] = []
    _opened = opened
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("error")
            yield opened
        taken = _status("VmHWM") - resident
        assert taken < MEMORY, f"{taken / 1e6:,.0f} MB were taken"
    finally:
        _opened = None
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
        resource.setrlimit(resource.RLIMIT_AS, before)


def _time_is_up(*_: object) -> None:
    raise Hang


def _status(name: str) -> int:
    """A line of /proc/self/status that counts kB, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(
        int(line.split()[1]) << 10 for line in lines if line.startswith(f"{name}:")
    )
