"""Harvest a language model's activations once, keep them well, train every sparse
autoencoder from them.

    store = actstore.harvest(spec, "s3://team/gpt2-mlp")     # or: the command line
    store = actstore.open("s3://team/gpt2-mlp")
    for batch in store.stream(StreamSpec(batch=4096)): ...

Importing this package loads nothing heavy; `harvest`, `import_activations` and `open`
do when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from actstore.harvesting.harvest import harvest
    from actstore.importing.import_activations import import_activations
    from actstore.store.open_store import open  # noqa: A004
    from actstore.store.store import Store

__version__ = "0.1.0"
__all__ = ["Store", "__version__", "harvest", "import_activations", "open"]


_WHERE = {
    "harvest": "actstore.harvesting.harvest",
    "import_activations": "actstore.importing.import_activations",
    "open": "actstore.store.open_store",
    "Store": "actstore.store.store",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'actstore' has no attribute {name!r}")
    return getattr(import_module(_WHERE[name]), name)
