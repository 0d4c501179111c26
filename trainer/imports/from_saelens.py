"""SAELens folders: `cfg.json` and `sae_weights.safetensors`, of version 6 and of those
before (flat configs).

What SAELens does when it runs an SAE is folded into the weights here (SAELens,
`saes/*.py`): `apply_b_dec_to_input: false` leaves b_dec out of the encoder;
`rescale_acts_by_decoder_norm` (topk) selects by f times the decoder's norm;
`normalize_activations: expected_average_only_in` scales the input to mean norm sqrt(d).
"""

from __future__ import annotations

from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors

from actstore.format.object_sizes import SMALL_JSON
from actstore.format.storage import Storage
from trainer.errors import ExchangeError
from trainer.export.neutral_form import (
    ENCODER,
    PlainSae,
    Tensors,
    checked,
    with_input_bias,
    with_unit_decoder,
)
from trainer.export.saelens_format import CONFIG, WEIGHTS
from trainer.imports.foreign_folder import Foreign, parsed

PER_ROW = {
    "layer_norm": "each row by its own mean and deviation",
    "constant_norm_rescale": "each row by its own norm",
    "covariance_whitening": "rows with a matrix that lies in another file",
}
# Keys of configs before version 6, and what they are called now.
OLD = {
    "hook_point": "hook_name",
    "hook_point_head_index": "hook_head_index",
    "activation_fn_str": "activation_fn",
}


def is_saelens(storage: Storage) -> bool:
    return storage.exists(CONFIG)


def read_saelens(storage: Storage) -> Foreign:
    """The SAE of a SAELens folder. Raises ExchangeError, with the reason, for one that
    cannot be read exactly.
    """
    raw = parsed(storage.read(CONFIG, SMALL_JSON), f"{storage.url}/{CONFIG}")
    config = _flat(raw)
    architecture = _architecture(config, storage.url)
    normalisation = _normalisation(config, storage.url)
    if config.get("hook_head_index") is not None:
        raise ExchangeError(
            f"{storage.url}: this SAE is of head {config['hook_head_index']} alone; a"
            " store's rows hold all heads"
        )
    tensors = _tensors(storage)
    k = config.get("k") or (config.get("activation_fn_kwargs") or {}).get("k")
    plain = PlainSae(
        architecture, tensors, int(k) if architecture == "topk" and k else None
    )
    plain = checked(plain, storage.url)
    if (
        config.get("d_in", plain.d) != plain.d
        or config.get("d_sae", plain.n_latents) != plain.n_latents
    ):
        raise ExchangeError(
            f"{storage.url}: {CONFIG} says d_in {config.get('d_in')} and d_sae"
            f" {config.get('d_sae')}, but W_enc is {[plain.d, plain.n_latents]}"
        )
    if architecture != "transcoder" and not config.get("apply_b_dec_to_input", True):
        plain = with_input_bias(plain)
    if config.get("rescale_acts_by_decoder_norm"):
        plain = with_unit_decoder(plain)
    return Foreign(
        plain,
        "saelens",
        config.get("hook_name"),
        str(config.get("model_name") or "unknown"),
        normalisation == "expected_average_only_in",
        raw,
        _notes(config),
        config["hook_name_out"] if architecture == "transcoder" else None,
    )


def _flat(raw: dict[str, Any]) -> dict[str, Any]:
    """One level, names of version 6."""
    flat = {**raw, **(raw.get("metadata") or {})}
    return {OLD.get(key, key): value for key, value in flat.items()}


def _architecture(config: dict[str, Any], where: str) -> str:
    found = config.get("architecture", "standard")
    activation = config.get("activation_fn") or "relu"
    if found == "standard" and activation == "topk":
        found = "topk"
    elif activation not in {"relu", "topk"}:
        raise ExchangeError(
            f"{where}: its activation function is {activation}; only relu and topk can"
            " be read"
        )
    if found not in ENCODER:
        raise ExchangeError(
            f"{where}: its architecture is {found}; what can be read is"
            f" {', '.join(ENCODER)}"
        )
    if found == "transcoder" and (
        config.get("apply_b_dec_to_input", True) or not config.get("hook_name_out")
    ):
        raise ExchangeError(
            f"{where}: wanted a transcoder that names its output (hook_name_out) and"
            " keeps b_dec there (apply_b_dec_to_input: false)"
        )
    return str(found)


def _normalisation(config: dict[str, Any], where: str) -> str:
    found = config.get("normalize_activations") or "none"
    if found is True:  # configs before version 5
        return "expected_average_only_in"
    if found in PER_ROW:
        raise ExchangeError(
            f"{where}: normalize_activations is {found}, which changes"
            f" {PER_ROW[found]}; only one factor for all rows can be read (fold it in"
            " SAELens first if it can be folded, and save the SAE again)"
        )
    if found not in {"none", "expected_average_only_in"}:
        raise ExchangeError(
            f"{where}: normalize_activations is {found!r}, which is not known"
        )
    return str(found)


def _tensors(storage: Storage) -> Tensors:
    try:
        found = load_tensors(storage.read(WEIGHTS))
    except SafetensorError as error:
        raise ExchangeError(
            f"{storage.url}/{WEIGHTS}: not a safetensors file: {error}"
        ) from error
    exact = {name: value.double() for name, value in found.items()}
    # written for a time: one factor per latent
    for name in ("scaling_factor", "finetuning_scaling_factor"):
        factor = exact.pop(name, None)
        if factor is not None and not torch.allclose(factor, torch.ones_like(factor)):
            raise ExchangeError(
                f"{storage.url}: it was fine-tuned with a {name}, which cannot be read"
            )
    return exact


def _notes(config: dict[str, Any]) -> tuple[str, ...]:
    options = config.get("model_from_pretrained_kwargs") or {}
    notes = []
    if options.get("center_writing_weights", True):
        notes.append(
            "the folder does not say that its activations are unprocessed"
            " (center_writing_weights): if the model's weights were centred, inputs"
            " here differ by their mean over d"
        )
    return tuple(notes)
