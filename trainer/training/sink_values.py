"""What all sinks need: the figures of a record, and what a run is known by.

The packages of sinks are optional, and are imported when they are asked for.
"""

from __future__ import annotations

import importlib
from typing import Any

from blake3 import blake3

from schemas.records import StepRecord
from schemas.train import TrainSpec
from trainer.errors import TrainerError


def values(record: StepRecord) -> dict[str, float]:
    """Return the figures of a record by name.

    The FVU of a site is called `fvu/SITE`, a term of the loss `loss/NAME`.
    """
    figures: dict[str, float] = record.model_dump(
        exclude={"step", "layers", "parts", "density"}
    )
    for site, fvu in record.layers.items():
        if fvu is not None:  # no row since the last record was of this site
            figures[f"fvu/{site}"] = fvu
    for name, term in record.parts.items():
        figures[f"loss/{name}"] = term
    return figures


def run_name(url: str, spec: TrainSpec) -> str:
    """Return what a run is called: as its spec says, or as its folder."""
    return spec.name or url.rstrip("/").rpartition("/")[2]


def run_identity(url: str, spec: TrainSpec) -> str:
    """Return 32 digits that are those of this run, also when it is resumed."""
    return blake3(f"{url} {spec.to_json()}".encode()).hexdigest(16)


def optional_module(name: str, extra: str, option: str) -> Any:
    """Return a package's module.

    Args:
        name: The module.
        extra: The extra of ours that installs it.
        option: The option that asks for it.

    Raises:
        TrainerError: It cannot be imported.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise TrainerError(
            f"{option} wants {extra}, which cannot be imported ({error}); install it"
            f" with `pip install 'actstore[{extra}]'`, or leave the option out"
        ) from error
