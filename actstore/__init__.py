"""Harvest activations once, keep them well, train sparse autoencoders from them.

    store = actstore.harvest(spec, "s3://team/gpt2-mlp")     # or: the command line
    store = actstore.open("s3://team/gpt2-mlp")
    for batch in store.stream(StreamSpec(batch=4096)): ...

What the commands of `actstore` do, these functions do: `harvest`, `extend`,
`import_activations`; `estimate` (the command `plan`), `sites`, `stores` (`ls`),
`verify`, `verify_deep` (`verify --deep`), `diff`, `examine` (`doctor`), `copy` (`cp`,
`push`, `pull`); `publish`, `unpublish`, `published` (`ls`, `runs`), `remove` (`rm`),
`usage` (`du`), `leftovers` (`gc`). What `info` and `norms` show, an open store has:
`store.manifest`, `store.norms`.

Importing this package loads nothing heavy: what it offers is imported when it is first
used.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from actstore.harvesting.estimate import Prices, estimate
    from actstore.harvesting.extend import extend
    from actstore.harvesting.harvest import harvest
    from actstore.importing.import_activations import import_activations
    from actstore.inspect.diff_stores import diff
    from actstore.inspect.doctor import examine
    from actstore.inspect.list_stores import stores
    from actstore.inspect.verify import verify
    from actstore.model.site_list import sites
    from actstore.publishing.leftovers import leftovers
    from actstore.publishing.list_published import published
    from actstore.publishing.publish import publish
    from actstore.publishing.remove import remove
    from actstore.publishing.unpublish import unpublish
    from actstore.publishing.usage import usage
    from actstore.recomputing.verify_deep import verify_deep
    from actstore.sharing.copy_store import copy
    from actstore.store.open_store import open  # noqa: A004
    from actstore.store.store import Store
    from schemas.harvest import HarvestSpec
    from schemas.stream import StreamSpec

__version__ = "0.1.0"
__all__ = [
    "HarvestSpec",
    "Prices",
    "Store",
    "StreamSpec",
    "__version__",
    "copy",
    "diff",
    "estimate",
    "examine",
    "extend",
    "harvest",
    "import_activations",
    "leftovers",
    "open",
    "publish",
    "published",
    "remove",
    "sites",
    "stores",
    "unpublish",
    "usage",
    "verify",
    "verify_deep",
]

_MODULES = {
    "HarvestSpec": "schemas.harvest",
    "Prices": "actstore.harvesting.estimate",
    "Store": "actstore.store.store",
    "StreamSpec": "schemas.stream",
    "copy": "actstore.sharing.copy_store",
    "diff": "actstore.inspect.diff_stores",
    "estimate": "actstore.harvesting.estimate",
    "examine": "actstore.inspect.doctor",
    "extend": "actstore.harvesting.extend",
    "harvest": "actstore.harvesting.harvest",
    "import_activations": "actstore.importing.import_activations",
    "leftovers": "actstore.publishing.leftovers",
    "open": "actstore.store.open_store",
    "publish": "actstore.publishing.publish",
    "published": "actstore.publishing.list_published",
    "remove": "actstore.publishing.remove",
    "sites": "actstore.model.site_list",
    "stores": "actstore.inspect.list_stores",
    "unpublish": "actstore.publishing.unpublish",
    "usage": "actstore.publishing.usage",
    "verify": "actstore.inspect.verify",
    "verify_deep": "actstore.recomputing.verify_deep",
}


def _check_schemas() -> None:
    """Check that `schemas` is the package that comes with this one.

    Raises:
        ImportError: A file of that name hides it, such as one beside a user's script.
    """
    ours = Path(__file__).parent.parent / "schemas" / "__init__.py"
    found = find_spec("schemas")
    if found is None or found.origin is None or not ours.exists():
        return
    if not ours.samefile(found.origin):
        raise ImportError(
            f"{found.origin} hides the package `schemas` that actstore comes with; give"
            " that file another name"
        )


_check_schemas()


def __getattr__(name: str) -> Any:
    """Import what the package offers when it is asked for (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module 'actstore' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    """Name what the package offers, so that it can be completed before it is loaded."""
    return sorted({*globals(), *__all__})
