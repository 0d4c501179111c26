"""TransformerLens' adapter for a model: of its class, or of its family's language model
around its body.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from torch import nn

from actstore.errors import ModelError
from actstore.model.forward import probing


class Bridged(NamedTuple):
    """bridge: over a copy that shares the model's weights; names: of the model's
    modules by identity of the copy's.

    whole: whether the copy is the model itself, or a language model with its body and a
    head of zeros.
    """

    bridge: Any
    names: dict[int, str]
    whole: bool


def bridge_over_copy(module: Any) -> Bridged:
    """Raises ModelError where TransformerLens has no adapter for the model's family, or
    cannot take it apart.
    """
    kinds = list(_adapted(module))
    if not kinds:
        raise ModelError(f"TransformerLens has no adapter for {type(module).__name__}")
    for kind in kinds[:-1]:
        with suppress(ModelError):
            return _bridged(kind, module)
    return _bridged(kinds[-1], module)


def _bridged(kind: Any, module: Any) -> Bridged:
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    with probing(f"TransformerLens cannot take {type(module).__name__} apart"):
        shared = [*module.parameters(), *module.buffers()]
        twin = copy.deepcopy(module, {id(tensor): tensor for tensor in shared})
        names = {id(one): name for name, one in twin.named_modules()}
        twin.set_attn_implementation("eager")  # as TransformerLens needs it
        model = twin if kind is type(module) else _around(kind, twin)
        bridge = build_bridge_from_module(model, kind.__name__, hf_config=model.config)
    return Bridged(bridge, names, model is twin)


def _adapted(module: Any) -> Iterator[Any]:
    """Classes with an adapter: the model's own, then its family's language models."""
    import transformers
    from transformer_lens.factories.architecture_adapter_factory import (
        SUPPORTED_ARCHITECTURES,
    )

    own = type(module)
    if own.__name__ in SUPPORTED_ARCHITECTURES:
        yield own
    for name in _language_models(module.config.model_type):
        if (
            name in SUPPORTED_ARCHITECTURES
            and name != own.__name__
            and hasattr(transformers, name)
        ):
            yield getattr(transformers, name)


def _language_models(model_type: str) -> Iterator[str]:
    from transformers.models.auto import modeling_auto as auto

    for names in (
        auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
        auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
        auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    ):
        if isinstance(names.get(model_type), str):
            yield names[model_type]


def _around(kind: Any, twin: Any) -> Any:
    """A language model of class `kind` with the twin's body; whatever else it has is
    zeros that take no memory.
    """
    body = twin.base_model
    config = copy.deepcopy(twin.config)
    # an encoder alone has it switched off
    config.is_encoder_decoder = type(config)().is_encoder_decoder
    with torch.device("meta"):
        model = kind(config)
    model.eval()
    place = next(
        (
            name
            for name, one in model.named_modules()
            if name and type(one) is type(body)
        ),
        None,
    )
    if place is not None:
        owner, _, own = place.rpartition(".")
        setattr(model.get_submodule(owner), own, body)
    else:  # a family whose language model holds the parts of the body itself
        for name, part in model.named_children():
            mine = getattr(body, name, None)
            if mine is not None and type(mine) is type(part):
                setattr(model, name, mine)
    if not any(one is part for one in model.modules() for part in body.children()):
        raise ModelError(f"{kind.__name__} has no place for it")
    first = next(body.parameters())
    for one in model.modules():
        _fill(one._parameters, first.device, first.dtype)
        _fill(one._buffers, first.device, None)
    model.set_attn_implementation("eager")
    return model


def _fill(
    tensors: dict[str, Any], device: torch.device, dtype: torch.dtype | None
) -> None:
    for name, one in tensors.items():
        if one is not None and one.is_meta:
            zero = torch.zeros((), device=device, dtype=dtype or one.dtype).expand(
                one.shape
            )
            tensors[name] = (
                nn.Parameter(zero, requires_grad=False)
                if isinstance(one, nn.Parameter)
                else zero
            )
