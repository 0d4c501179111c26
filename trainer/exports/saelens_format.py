"""Makes SAELens folders, one for the SAE of each site.

A folder has `cfg.json` and `sae_weights.safetensors`. The SAEs take and give
activations in their original units. The scale of a layer is folded into its weights and
differs by layer, so an SAE of many layers becomes one folder per site.
`SAE.load_from_disk(OUT/SITE)`, or after a push `SAE.from_pretrained("user/name",
"SITE")`, loads it.
"""

from __future__ import annotations

import json
from typing import Any

from safetensors.torch import save as save_tensors

from trainer.evaluation.metric_definitions import NEVER
from trainer.exports.export_origin import Origin, folder_name
from trainer.exports.model_card import card
from trainer.exports.neutral_form import PlainSae, as_float32, layer_of
from trainer.runs import published_names
from trainer.runs.trained_sae import TrainedSae

CONFIG = "cfg.json"
WEIGHTS = "sae_weights.safetensors"
SPARSITY = "sparsity.safetensors"
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
    """Return all files of an export, by path.

    Raises:
        ExchangeError: SAELens does not have that kind of SAE.
    """
    files: dict[str, bytes] = {}
    for index, site in enumerate(sae.sites):
        about = metadata(origin, site)
        if origin.record.targets:
            about["hook_name_out"] = origin.record.targets[index]
        files_of_site = folder(layer_of(sae, index), site, about)
        if origin.firings is not None and origin.rows is not None:
            density = origin.firings[index].double() / origin.rows[index].clamp_min(1)
            log_density = (density + NEVER).log10().float()
            files_of_site[SPARSITY] = save_tensors({"sparsity": log_density})
        name_of_folder = folder_name(origin.record, index)
        for name, data in files_of_site.items():
            files[f"{name_of_folder}/{name}"] = data
    files["README.md"] = card(origin, "saelens").encode()
    return files


def folder(plain: PlainSae, site: str, about: dict[str, Any]) -> dict[str, bytes]:
    """Return the two files of one SAE.

    Args:
        plain: The SAE.
        site: Its site.
        about: What goes under `metadata` in its configuration.
    """
    text = json.dumps(config(plain, site, about), indent=1) + "\n"
    return {CONFIG: text.encode(), WEIGHTS: save_tensors(as_float32(plain))}


def config(plain: PlainSae, site: str, about: dict[str, Any]) -> dict[str, Any]:
    """Return what `cfg.json` holds.

    Keys outside `metadata` are SAELens' own; it drops any other without a word.
    """
    keys: dict[str, Any] = {
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
        keys["k"] = plain.k
        keys["rescale_acts_by_decoder_norm"] = False
    if plain.architecture == "transcoder":
        keys["d_out"] = plain.tensors["W_dec"].shape[1]
    keys["metadata"] = about
    return keys


def metadata(origin: Origin, site: str) -> dict[str, Any]:
    """Return what the SAE is for; keys that begin with `actstore_` are ours."""
    record = origin.record
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
    if origin.manifest is not None:
        spec = origin.manifest.spec
        about["dataset_path"] = published_names.name(spec.corpus.name)
        about["context_size"] = spec.context
        about["prepend_bos"] = spec.prepend_bos is True
    return about
