"""Makes a URL mean the same from every folder."""

from __future__ import annotations

from actstore.format.storage import Storage


def absolute(url: str) -> str:
    """Return a URL that means the same from every folder."""
    storage = Storage(url)
    local = storage.local
    if local is None:
        return storage.url
    if local.name in {"", ".."}:
        return str(local.resolve())
    # Links above the store are followed. The store itself may be a link that is moved
    # together with the run, so it keeps its own name.
    return str(local.parent.resolve() / local.name)
