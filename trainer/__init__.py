"""Train sparse autoencoders from activation stores, and show what they do.

sae = trainer.load("runs/mixed")
latents = sae.encode(x, "blocks.3.hook_mlp_out")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainer.runs.trained_sae import TrainedSae, load

__all__ = ["TrainedSae", "load"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from trainer.runs import trained_sae

        return getattr(trained_sae, name)
    raise AttributeError(f"module 'trainer' has no attribute {name!r}")
