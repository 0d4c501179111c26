"""Reads folders of dictionary_learning: `ae.pt` and `config.json`.

`ae.pt` is a state dict inside a pickle. It is read with `weights_only=True`, which
builds tensors and plain containers and calls nothing else; whatever needs more is
refused. This is the only place that reads such a file, and nothing here writes one.
`ae.safetensors` (with the same names) is preferred where it is there.

Its classes keep x as rows [B, d] and Linear weights as [out, in]. Gated and jumprelu
latents are scaled by the norm of their decoder direction, and JumpReLU's encoder does
not subtract the bias (dictionary_learning, `dictionary.py`).
"""

from __future__ import annotations

import io
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor

from actstore.format.object_sizes import SMALL_JSON
from actstore.format.storage import Storage
from trainer.errors import ExchangeError
from trainer.exports.neutral_form import (
    PlainSae,
    Tensors,
    checked,
    with_input_bias,
    with_unit_decoder,
)
from trainer.imports.foreign_folder import Foreign, parsed

PICKLE = "ae.pt"
SAFE = "ae.safetensors"
CONFIG = "config.json"

# The architecture of each of its classes.
ARCHITECTURES = {
    "AutoEncoder": "standard",
    "AutoEncoderNew": "standard",
    "AutoEncoderTopK": "topk",
    "GatedAutoEncoder": "gated",
    "JumpReluAutoEncoder": "jumprelu",
    "BatchTopKSAE": "jumprelu",
    "MatryoshkaBatchTopKSAE": "jumprelu",
}
# Classes whose encoder does not subtract the decoder's bias from its input.
NO_INPUT_BIAS = {"AutoEncoderNew", "JumpReluAutoEncoder"}
# Classes that scale latents by the norm of their decoder direction.
BY_NORM = {"GatedAutoEncoder", "JumpReluAutoEncoder"}

RENAMED = {
    "bias": "b_dec",
    "decoder_bias": "b_dec",
    "decoder.bias": "b_dec",
    "encoder.bias": "b_enc",
    "gate_bias": "b_gate",
    "mag_bias": "b_mag",
}
TRANSPOSED = {"encoder.weight": "W_enc", "decoder.weight": "W_dec"}
NOT_WEIGHTS = {"k", "group_sizes"}


def is_dictionary_learning(storage: Storage) -> bool:
    """Return whether a folder has the files of dictionary_learning."""
    has_weights = storage.exists(SAFE) or storage.exists(PICKLE)
    return has_weights and storage.exists(CONFIG)


def read_dictionary_learning(storage: Storage) -> Foreign:
    """Read the SAE of a dictionary_learning folder.

    Raises:
        ExchangeError: Its class is not known, or a file cannot be read.
    """
    where = f"{storage.url}/{CONFIG}"
    raw = parsed(storage.read(CONFIG, SMALL_JSON), where)
    trainer = raw.get("trainer")
    if not isinstance(trainer, dict) or "dict_class" not in trainer:
        raise ExchangeError(
            f"{where}: wanted dictionary_learning's, with trainer.dict_class"
        )
    class_name = str(trainer["dict_class"])
    if class_name not in ARCHITECTURES:
        raise ExchangeError(
            f"{storage.url}: its class is {class_name}; what can be read is"
            f" {', '.join(ARCHITECTURES)}"
        )
    architecture = ARCHITECTURES[class_name]
    state = _state(storage)
    tensors = _tensors(state)
    k = None
    if architecture == "topk":
        # Its threshold is there for a mode of inference that is not its default.
        tensors.pop("threshold", None)
        k = state.get("k", trainer.get("k"))
    elif "threshold" in tensors and "W_enc" in tensors:
        n_latents = tensors["W_enc"].shape[1]
        tensors["threshold"] = tensors["threshold"].expand(n_latents)
    plain = PlainSae(architecture, tensors, None if k is None else int(k))
    plain = checked(plain, storage.url)
    if class_name in NO_INPUT_BIAS:
        plain = with_input_bias(plain)
    if class_name in BY_NORM:
        plain = with_unit_decoder(plain)
    return Foreign(
        plain=plain,
        form="dictionary_learning",
        site=None,
        model=str(trainer.get("lm_name") or "unknown"),
        sqrt_d=False,
        config=raw,
    )


def _tensors(state: dict[str, Tensor]) -> Tensors:
    """Return the weights in float64, under our names and as row vectors take them."""
    exact = {}
    for name, value in state.items():
        if name in TRANSPOSED:
            exact[TRANSPOSED[name]] = value.double().T
        elif name not in NOT_WEIGHTS:
            exact[RENAMED.get(name, name)] = value.double()
    return exact


def _state(storage: Storage) -> dict[str, Tensor]:
    """Return the state dict in the folder, from safetensors if there is such a file."""
    if storage.exists(SAFE):
        try:
            return dict(load_tensors(storage.read(SAFE)))
        except SafetensorError as error:
            raise ExchangeError(
                f"{storage.url}/{SAFE}: not a safetensors file: {error}"
            ) from error
    where = f"{storage.url}/{PICKLE}"
    data = io.BytesIO(storage.read(PICKLE))
    try:
        state: Any = torch.load(data, map_location="cpu", weights_only=True)
    except Exception as error:
        # a damaged or hostile file: whatever it leads to, the file is to blame
        raise ExchangeError(
            f"{where}: wanted a state dict of tensors and nothing else, but the file is"
            " damaged or would run code when read, so it was not read; if you trust"
            f" it, save its state dict as {SAFE} yourself"
        ) from error
    if not isinstance(state, dict) or not all(
        isinstance(value, Tensor) for value in state.values()
    ):
        raise ExchangeError(
            f"{where}: wanted a state dict of tensors, got {type(state).__name__}"
        )
    return state
