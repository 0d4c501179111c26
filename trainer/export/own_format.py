"""Our own format, to hand on: `sae.json`, `sae.safetensors` and a model card;
`trainer.load` reads it again.
"""

from __future__ import annotations

from trainer.export.export_origin import Origin
from trainer.export.model_card import card


def safetensors_files(origin: Origin) -> dict[str, bytes]:
    """All files of an export: the run's result and its evaluation, and README.md."""
    return {**origin.files, "README.md": card(origin, "safetensors").encode()}
