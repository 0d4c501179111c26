"""Run by a Python that has sae-lens: ROWS MADE FOLDER...; see the test beside it.

Loads each folder, and makes SAEs of SAELens' own in MADE, saved by SAELens. Encode and
decode of the rows are written beside each one's weights as `seen.safetensors`; the
version of sae-lens is printed.
"""

from __future__ import annotations

import sys
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from sae_lens import SAE
from sae_lens.saes.gated_sae import GatedSAE, GatedSAEConfig
from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig
from sae_lens.saes.standard_sae import StandardSAE, StandardSAEConfig
from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig
from safetensors.torch import load_file, save_file

warnings.simplefilter("ignore")
VARIANTS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "standard": (StandardSAE, StandardSAEConfig, {}),
    "standard_other": (StandardSAE, StandardSAEConfig, {"apply_b_dec_to_input": False}),
    "topk": (TopKSAE, TopKSAEConfig, {"k": 4}),
    "topk_other": (
        TopKSAE,
        TopKSAEConfig,
        {"k": 4, "rescale_acts_by_decoder_norm": True},
    ),
    "jumprelu": (JumpReLUSAE, JumpReLUSAEConfig, {}),
    "jumprelu_other": (JumpReLUSAE, JumpReLUSAEConfig, {"apply_b_dec_to_input": False}),
    "gated": (GatedSAE, GatedSAEConfig, {}),
    "gated_other": (GatedSAE, GatedSAEConfig, {"apply_b_dec_to_input": False}),
}


@torch.no_grad()
def seen(sae: SAE, folder: Path, x: torch.Tensor) -> None:
    latents = sae.encode(x)
    save_file(
        {"latents": latents.contiguous(), "again": sae.decode(latents).contiguous()},
        folder / "seen.safetensors",
    )


@torch.no_grad()
def make(out: Path, x: torch.Tensor) -> None:
    torch.manual_seed(3)
    for name, (cls, config, options) in VARIANTS.items():
        sae = cls(config(d_in=x.shape[1], d_sae=24, **options))
        for parameter in sae.parameters():
            parameter.copy_(torch.randn_like(parameter) / 2)
        if hasattr(sae, "threshold"):
            sae.threshold.abs_()
        sae.cfg.metadata.hook_name = "blocks.1.hook_mlp_out"
        sae.save_model(out / name)
        seen(sae, out / name, x)


if __name__ == "__main__":
    rows, made, *folders = sys.argv[1:]
    given = load_file(rows)["x"]
    make(Path(made), given)
    for one in folders:
        loaded = SAE.load_from_disk(one)
        x = (
            given.unflatten(-1, (4, -1))
            if loaded.cfg.reshape_activations == "hook_z"
            else given
        )
        seen(loaded, Path(one), x)
        assert loaded.cfg.metadata.sae_lens_version == "6.18.0", (
            "its metadata was migrated away"
        )
        assert loaded.cfg.metadata.actstore_run_id == "r", loaded.cfg.metadata
    print(version("sae-lens"))
