"""Makes an export in our own format, which `trainer.load` reads again."""

from __future__ import annotations

from trainer.exports.export_origin import Origin
from trainer.exports.model_card import card


def safetensors_files(origin: Origin) -> dict[str, bytes]:
    """Return all files of an export: the run's result, its evaluation, a model card."""
    # Under their names in a run, so that `trainer.load` reads the folder as one.
    return {**origin.files, "README.md": card(origin, "safetensors").encode()}
