"""SAELens folders: one SAE per site with `cfg.json` and `sae_weights.safetensors`, in
original activation units.

The scale of a layer is folded into its weights and differs by layer, so an SAE of many
layers becomes one folder per site. `SAE.load_from_disk(OUT/SITE)`, or after a push
`SAE.from_pretrained("user/name", "SITE")`, loads it.
"""

from __future__ import annotations

import json
from typing import Any

from safetensors.torch import save as save_tensors

from trainer.evaluate.metrics import NEVER
from trainer.export.export_origin import Origin, folder_name
from trainer.export.model_card import card
from trainer.export.neutral_form import PlainSae, finished, of_layer
from trainer.runs import published_names
from trainer.runs.trained_sae import TrainedSae

CONFIG, WEIGHTS, SPARSITY = (
    "cfg.json",
    "sae_weights.safetensors",
    "sparsity.safetensors",
)
# The version whose layout this is. Below 6 (or without it) SAELens migrates the file
# and drops the metadata.
VERSION = "6.18.0"
# TransformerLens' own defaults would fold and centre weights; a store holds unprocessed
# activations.
UNPROCESSED = {
    "fold_ln": False,
    "center_writing_weights": False,
    "center_unembed": False,
    "fold_value_biases": False,
}


def saelens_files(sae: TrainedSae, origin: Origin) -> dict[str, bytes]:
    """All files of an export, by path. Raises ExchangeError for a kind that SAELens
    does not have.
    """
    files: dict[str, bytes] = {}
    for i, site in enumerate(sae.sites):
        about = metadata(origin, site)
        if origin.record.targets:
            about["hook_name_out"] = origin.record.targets[i]
        made = folder(of_layer(sae, i), site, about)
        if origin.firings is not None and origin.rows is not None:
            share = origin.firings[i].double() / origin.rows[i].clamp_min(1)
            made[SPARSITY] = save_tensors({"sparsity": (share + NEVER).log10().float()})
        files |= {
            f"{folder_name(origin.record, i)}/{name}": data
            for name, data in made.items()
        }
    files["README.md"] = card(origin, "saelens").encode()
    return files


def folder(plain: PlainSae, site: str, about: dict[str, Any]) -> dict[str, bytes]:
    """The two files of one SAE."""
    return {
        CONFIG: (json.dumps(config(plain, site, about), indent=1) + "\n").encode(),
        WEIGHTS: save_tensors(finished(plain)),
    }


def config(plain: PlainSae, site: str, about: dict[str, Any]) -> dict[str, Any]:
    """`cfg.json`: keys outside `metadata` are SAELens' own, it drops others without a
    word.
    """
    made: dict[str, Any] = {
        "architecture": plain.architecture,
        "d_in": plain.d,
        "d_sae": plain.n_latents,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": plain.architecture != "transcoder",
        "normalize_activations": "none",
        # heads are flattened in a store, and separate where SAELens hooks this site
        "reshape_activations": "hook_z" if site.endswith("hook_z") else "none",
    }
    if plain.architecture == "topk":
        made |= {"k": plain.k, "rescale_acts_by_decoder_norm": False}
    if plain.architecture == "transcoder":
        made["d_out"] = plain.tensors["W_dec"].shape[1]
    return made | {"metadata": about}


def metadata(origin: Origin, site: str) -> dict[str, Any]:
    """What the SAE is for; keys that begin with `actstore_` are ours."""
    record, manifest = origin.record, origin.manifest
    about: dict[str, Any] = {
        "sae_lens_version": VERSION,
        "sae_lens_training_version": None,
        "model_name": record.model,
        "model_class_name": "HookedTransformer",
        "model_from_pretrained_kwargs": dict(UNPROCESSED),
        "hook_name": site,
        "hook_head_index": None,
        "actstore_run_id": origin.run_id,
        "actstore_content_id": record.content_id,
        "actstore_kind": record.sae.kind,
        "actstore_sites": list(record.sites),
        "actstore_rescale": record.rescale,
    }
    if manifest is not None:
        about |= {
            "dataset_path": published_names.name(manifest.spec.corpus.name),
            "context_size": manifest.spec.context,
            "prepend_bos": manifest.spec.prepend_bos is True,
        }
    return about
