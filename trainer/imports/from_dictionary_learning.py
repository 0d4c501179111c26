"""Folders of dictionary_learning: `ae.pt` and `config.json`.

`ae.pt` is a state dict inside a pickle. It is read with `weights_only=True`, which
builds tensors and plain containers and calls nothing else; whatever needs more is
refused. This is the only place that reads such a file, and nothing here writes one.
`ae.safetensors` (the same names) is taken first where it is there.

Its classes keep x as [B, d] rows and Linear weights [out, in]; gated and jumprelu
latents are scaled by the norm of their decoder direction, JumpReLU's encoder does not
subtract the bias (dictionary_learning, `dictionary.py`).
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
from trainer.export.neutral_form import (
    PlainSae,
    Tensors,
    checked,
    with_input_bias,
    with_unit_decoder,
)
from trainer.imports.foreign_folder import Foreign, parsed

PICKLE, SAFE, CONFIG = "ae.pt", "ae.safetensors", "config.json"
ARCHITECTURES = {
    "AutoEncoder": "standard",
    "AutoEncoderNew": "standard",
    "AutoEncoderTopK": "topk",
    "GatedAutoEncoder": "gated",
    "JumpReluAutoEncoder": "jumprelu",
    "BatchTopKSAE": "jumprelu",
    "MatryoshkaBatchTopKSAE": "jumprelu",
}
NO_INPUT_BIAS = {"AutoEncoderNew", "JumpReluAutoEncoder"}
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
    return storage.exists(CONFIG) and (storage.exists(SAFE) or storage.exists(PICKLE))


def read_dictionary_learning(storage: Storage) -> Foreign:
    """The SAE of a dictionary_learning folder. Raises ExchangeError for a class, or a
    file, that cannot be read.
    """
    raw = parsed(storage.read(CONFIG, SMALL_JSON), f"{storage.url}/{CONFIG}")
    trainer = raw.get("trainer")
    if not isinstance(trainer, dict) or "dict_class" not in trainer:
        raise ExchangeError(
            f"{storage.url}/{CONFIG}: wanted dictionary_learning's, with"
            " trainer.dict_class"
        )
    name = str(trainer["dict_class"])
    if name not in ARCHITECTURES:
        raise ExchangeError(
            f"{storage.url}: its class is {name}; what can be read is"
            f" {', '.join(ARCHITECTURES)}"
        )
    state = _state(storage)
    k = state.get("k", trainer.get("k"))
    architecture = ARCHITECTURES[name]
    tensors = _tensors(state)
    if architecture == "topk":
        # kept for a mode of inference that is not its default
        tensors.pop("threshold", None)
    elif "threshold" in tensors and "W_enc" in tensors:
        tensors["threshold"] = tensors["threshold"].expand(tensors["W_enc"].shape[1])
    plain = checked(
        PlainSae(
            architecture,
            tensors,
            int(k) if architecture == "topk" and k is not None else None,
        ),
        storage.url,
    )
    if name in NO_INPUT_BIAS:
        plain = with_input_bias(plain)
    if name in BY_NORM:
        plain = with_unit_decoder(plain)
    return Foreign(
        plain,
        "dictionary_learning",
        None,
        str(trainer.get("lm_name") or "unknown"),
        False,
        raw,
    )


def _tensors(state: dict[str, Tensor]) -> Tensors:
    exact = {}
    for name, value in state.items():
        if name in TRANSPOSED:
            exact[TRANSPOSED[name]] = value.double().T
        elif name not in NOT_WEIGHTS:
            exact[RENAMED.get(name, name)] = value.double()
    return exact


def _state(storage: Storage) -> dict[str, Tensor]:
    if storage.exists(SAFE):
        try:
            return dict(load_tensors(storage.read(SAFE)))
        except SafetensorError as error:
            raise ExchangeError(
                f"{storage.url}/{SAFE}: not a safetensors file: {error}"
            ) from error
    where, data = f"{storage.url}/{PICKLE}", storage.read(PICKLE)
    try:
        found: Any = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:
        # a damaged or hostile file: whatever it leads to, the file is to blame
        raise ExchangeError(
            f"{where}: wanted a state dict of tensors and nothing else, but the file is"
            " damaged or would run code when read, so it was not read; if you trust"
            f" it, save its state dict as {SAFE} yourself"
        ) from error
    if not isinstance(found, dict) or not all(
        isinstance(value, Tensor) for value in found.values()
    ):
        raise ExchangeError(
            f"{where}: wanted a state dict of tensors, got {type(found).__name__}"
        )
    return found
