"""Our own format, to hand on: `sae.json`, `sae.safetensors` and a model card; `trainer.load` reads it again."""

from __future__ import annotations

from trainer.export.card import card
from trainer.export.origin import Origin


def safetensors_files(origin: Origin) -> dict[str, bytes]:
    """All files of an export: the run's result and its evaluation, and README.md."""
    return {**origin.files, "README.md": card(origin, "safetensors").encode()}
