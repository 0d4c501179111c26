"""The folder of a service's state: its queue, its tokens, what it may read."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from actstore.errors import SpecError
from actstore.format.absolute_url import absolute
from actstore.format.storage import Storage
from schemas.catalog import has_secret

IN_RUNS = ".service"


def state_folder(runs: str | None, state: str | None) -> Path:
    """Return the folder of state of a service.

    That is `RUNS/.service` where runs lie in a local folder, else one of this user's
    for that URL: SQLite needs a disk.

    Args:
        runs: URL of the folder of runs.
        state: The folder, if it was given.

    Raises:
        SpecError: Neither was given, or a URL in the place of a folder.
    """
    if state is not None:
        if "://" in state or not state.strip():
            raise SpecError(f"--state {state}: wanted a folder on a local disk")
        return Path(state).absolute()
    if runs is None:
        raise SpecError("which service? give --runs URL, or its --state DIR")
    url = runs_url(runs)
    local = Storage(url).local
    if local is not None:
        return local / IN_RUNS
    home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state"
    digest = hashlib.sha256(url.encode()).hexdigest()
    return Path(home) / "actstore" / digest[:16]


def runs_url(runs: str) -> str:
    """Return the absolute URL of the folder of runs.

    Raises:
        SpecError: It has a password, key or token in it.
    """
    if has_secret(runs):
        raise SpecError(
            "--runs: it has a password, key or token in it, which users would see; give"
            " the bare URL, and credentials by the environment or --storage-options"
        )
    return absolute(runs)
