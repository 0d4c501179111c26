"""Explorers' files in object stores: put there as a whole, and copied here to be read.

They are read at random, in many small pieces, which costs a request each. A copy in the
folder for temporary files costs one request for each 8 MiB, once.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from pathlib import Path

from actstore.errors import CorruptError, ObjectError
from actstore.format.object_sizes import SMALL_JSON
from actstore.format.storage import Storage
from trainer.errors import RunError
from trainer.explorer.explorer_tables import CONTEXTS, LATENTS, META, TOKENS

PART_BYTES = 8 << 20
MOST_COPIED = 4 << 30
TABLES = (LATENTS, CONTEXTS, TOKENS)


def put_files(folder: Path, storage: Storage) -> None:
    """Put an explorer's files into an object store; whoever reads sees all, or none."""
    if storage.exists(META):
        storage.delete(META)
    for name in (*TABLES, META):
        storage.put(name, (folder / name).read_bytes())


def copied(storage: Storage, owner: object) -> Path:
    """Return a local folder with a copy of an explorer's files.

    Args:
        storage: The folder in an object store.
        owner: The copy goes when this does.

    Raises:
        RunError: There are none, or they are too large for a copy.
    """
    try:
        record = storage.read(META, SMALL_JSON)
        sizes = {name: storage.size(name) for name in TABLES}
    except CorruptError:
        raise
    except ObjectError:
        raise RunError(
            f"{storage.url}: wanted the files of an explorer ({META} and Parquet), they"
            " are not all there; `trainer explore RUN` makes them"
        ) from None
    if sum(sizes.values()) > MOST_COPIED:
        raise RunError(
            f"{storage.url}: {sum(sizes.values()):,} bytes, and at most {MOST_COPIED:,}"
            " are copied here; copy them to a folder, and give that with --out"
        )
    folder = Path(tempfile.mkdtemp(prefix="actstore-explorer-"))
    weakref.finalize(owner, shutil.rmtree, folder, ignore_errors=True)
    for name, size in sizes.items():
        with (folder / name).open("wb") as file:
            for start in range(0, size, PART_BYTES):
                length = min(PART_BYTES, size - start)
                (part,) = storage.read_ranges(name, [(start, length)])
                file.write(part)
    (folder / META).write_bytes(record)
    return folder
