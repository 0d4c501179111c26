"""Reads SAELens folders: `cfg.json` and `sae_weights.safetensors`.

Configurations of version 6 and the flat ones before it are read. What SAELens does when
it runs an SAE is folded into the weights here (SAELens, `saes/*.py`):

- `apply_b_dec_to_input: false` leaves b_dec out of the encoder.
- `rescale_acts_by_decoder_norm` (topk) selects by f times the decoder's norm.
- `normalize_activations: expected_average_only_in` scales the input to a mean norm of
  sqrt(d).
"""

from __future__ import annotations

from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors

from actstore.format.object_sizes import SMALL_JSON
from actstore.format.storage import Storage
from trainer.errors import ExchangeError
from trainer.exports.neutral_form import (
    ENCODER,
    PlainSae,
    Tensors,
    checked,
    with_input_bias,
    with_unit_decoder,
)
from trainer.exports.saelens_format import CONFIG, WEIGHTS
from trainer.imports.foreign_folder import Foreign, parsed

# The one normalisation that is a factor for all rows.
TO_SQRT_D = "expected_average_only_in"
# Normalisations that are different for each row, and what they change.
PER_ROW = {
    "layer_norm": "each row by its own mean and deviation",
    "constant_norm_rescale": "each row by its own norm",
    "covariance_whitening": "rows with a matrix that lies in another file",
}
# Keys of configurations before version 6, and what they are called now.
OLD = {
    "hook_point": "hook_name",
    "hook_point_head_index": "hook_head_index",
    "activation_fn_str": "activation_fn",
}


def is_saelens(storage: Storage) -> bool:
    """Return whether a folder has SAELens' configuration."""
    return storage.exists(CONFIG)


def read_saelens(storage: Storage) -> Foreign:
    """Read the SAE of a SAELens folder.

    Raises:
        ExchangeError: It cannot be read exactly; the message says why.
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
    k = None
    if architecture == "topk":
        k = config.get("k") or (config.get("activation_fn_kwargs") or {}).get("k")
    plain = PlainSae(architecture, _tensors(storage), int(k) if k else None)
    plain = checked(plain, storage.url)
    _check_sizes(config, plain, storage.url)
    subtracts_b_dec = config.get("apply_b_dec_to_input", True)
    if architecture != "transcoder" and not subtracts_b_dec:
        plain = with_input_bias(plain)
    if config.get("rescale_acts_by_decoder_norm"):
        plain = with_unit_decoder(plain)
    return Foreign(
        plain=plain,
        form="saelens",
        site=config.get("hook_name"),
        model=str(config.get("model_name") or "unknown"),
        sqrt_d=normalisation == TO_SQRT_D,
        config=raw,
        notes=_notes(config),
        target=config["hook_name_out"] if architecture == "transcoder" else None,
    )


def _flat(raw: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration on one level, under the names of version 6."""
    flat = {**raw, **(raw.get("metadata") or {})}
    return {OLD.get(key, key): value for key, value in flat.items()}


def _check_sizes(config: dict[str, Any], plain: PlainSae, where: str) -> None:
    """Raise ExchangeError where the configuration says other sizes than the weights."""
    d = config.get("d_in", plain.d)
    n_latents = config.get("d_sae", plain.n_latents)
    if d != plain.d or n_latents != plain.n_latents:
        raise ExchangeError(
            f"{where}: {CONFIG} says d_in {config.get('d_in')} and d_sae"
            f" {config.get('d_sae')}, but W_enc is {[plain.d, plain.n_latents]}"
        )


def _architecture(config: dict[str, Any], where: str) -> str:
    architecture = config.get("architecture", "standard")
    activation = config.get("activation_fn") or "relu"
    if architecture == "standard" and activation == "topk":
        architecture = "topk"
    elif activation not in {"relu", "topk"}:
        raise ExchangeError(
            f"{where}: its activation function is {activation}; only relu and topk can"
            " be read"
        )
    if architecture not in ENCODER:
        raise ExchangeError(
            f"{where}: its architecture is {architecture}; what can be read is"
            f" {', '.join(ENCODER)}"
        )
    if architecture == "transcoder":
        subtracts_b_dec = config.get("apply_b_dec_to_input", True)
        if subtracts_b_dec or not config.get("hook_name_out"):
            raise ExchangeError(
                f"{where}: wanted a transcoder that names its output (hook_name_out)"
                " and keeps b_dec there (apply_b_dec_to_input: false)"
            )
    return str(architecture)


def _normalisation(config: dict[str, Any], where: str) -> str:
    normalisation = config.get("normalize_activations") or "none"
    if normalisation is True:  # configurations before version 5
        return TO_SQRT_D
    if normalisation in PER_ROW:
        raise ExchangeError(
            f"{where}: normalize_activations is {normalisation}, which changes"
            f" {PER_ROW[normalisation]}; only one factor for all rows can be read (fold"
            " it in SAELens first if it can be folded, and save the SAE again)"
        )
    if normalisation not in {"none", TO_SQRT_D}:
        raise ExchangeError(
            f"{where}: normalize_activations is {normalisation!r}, which is not known"
        )
    return str(normalisation)


def _tensors(storage: Storage) -> Tensors:
    """Return the weights in float64."""
    try:
        tensors = load_tensors(storage.read(WEIGHTS))
    except SafetensorError as error:
        raise ExchangeError(
            f"{storage.url}/{WEIGHTS}: not a safetensors file: {error}"
        ) from error
    exact = {name: value.double() for name, value in tensors.items()}
    # For a time SAELens wrote one factor for each latent; all of them may be 1.
    for name in ("scaling_factor", "finetuning_scaling_factor"):
        factor = exact.pop(name, None)
        if factor is not None and not torch.allclose(factor, torch.ones_like(factor)):
            raise ExchangeError(
                f"{storage.url}: it was fine-tuned with a {name}, which cannot be read"
            )
    return exact


def _notes(config: dict[str, Any]) -> tuple[str, ...]:
    options = config.get("model_from_pretrained_kwargs") or {}
    # TransformerLens centres weights unless it is told not to.
    if not options.get("center_writing_weights", True):
        return ()
    return (
        (
            "the folder does not say that its activations are unprocessed"
            " (center_writing_weights): if the model's weights were centred, inputs"
            " here differ by their mean over d"
        ),
    )
