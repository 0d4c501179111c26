"""Harvest a language model's activations once, keep them well, train every sparse autoencoder from them.

    store = actstore.harvest(spec, "s3://team/gpt2-mlp")     # or: the command line
    store = actstore.open("s3://team/gpt2-mlp")
    for batch in store.stream(StreamSpec(batch=4096)): ...

Importing this package loads nothing heavy; `harvest`, `import_activations` and `open` do when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from actstore.harvesting.harvest import harvest
    from actstore.importing.imports import import_activations
    from actstore.store import Store, open  # noqa: A004

__version__ = "0.1.0"
__all__ = ["Store", "__version__", "harvest", "import_activations", "open"]


def __getattr__(name: str) -> Any:
    if name == "harvest":
        from actstore.harvesting.harvest import harvest

        return harvest
    if name == "import_activations":
        from actstore.importing.imports import import_activations

        return import_activations
    if name in {"open", "Store"}:
        from actstore import store

        return getattr(store, name)
    raise AttributeError(f"module 'actstore' has no attribute {name!r}")
