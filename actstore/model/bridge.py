"""Build TransformerLens' bridge over a copy of a model.

The copy shares the model's weights. TransformerLens has an adapter for each class of
language model that it knows: where it knows the model's own class, the bridge is over
the model; if not, it is over a language model of the same family, with the model as its
body.
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
    """TransformerLens' bridge over a copy of a model.

    Attributes:
        bridge: Runs the copy, and has the hook points.
        names: The names of the model's modules, by the `id` of the module of the copy.
        whole: Whether the copy is of the model itself. If not, it is a language model
            with the model as its body, and a head of zeros.
    """

    bridge: Any
    names: dict[int, str]
    whole: bool


def bridge_over_copy(module: Any) -> Bridged:
    """Build the bridge over a copy that shares the model's weights.

    Raises:
        ModelError: TransformerLens has no adapter for the model's family, or cannot
            take it apart.
    """
    classes = list(_adapted_classes(module))
    if not classes:
        raise ModelError(f"TransformerLens has no adapter for {type(module).__name__}")
    # Only what the last one says of its failure is told.
    for model_class in classes[:-1]:
        with suppress(ModelError):
            return _bridged(model_class, module)
    return _bridged(classes[-1], module)


def _bridged(model_class: Any, module: Any) -> Bridged:
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    with probing(f"TransformerLens cannot take {type(module).__name__} apart"):
        # What `deepcopy` finds in its memo is not copied: the weights are shared.
        shared_tensors = [*module.parameters(), *module.buffers()]
        memo = {id(tensor): tensor for tensor in shared_tensors}
        twin = copy.deepcopy(module, memo)
        names = {id(part): name for name, part in twin.named_modules()}
        # TransformerLens takes attention apart into patterns and values, which only
        # eager attention computes.
        twin.set_attn_implementation("eager")
        if model_class is type(module):
            model = twin
        else:
            model = _language_model_around(model_class, twin)
        bridge = build_bridge_from_module(
            model, model_class.__name__, hf_config=model.config
        )
    return Bridged(bridge, names, whole=model is twin)


def _adapted_classes(module: Any) -> Iterator[Any]:
    """Give classes with an adapter: the model's own, then its family's."""
    import transformers
    from transformer_lens.factories.architecture_adapter_factory import (
        SUPPORTED_ARCHITECTURES,
    )

    own_class = type(module)
    if own_class.__name__ in SUPPORTED_ARCHITECTURES:
        yield own_class
    for name in _language_models(module.config.model_type):
        if name == own_class.__name__ or name not in SUPPORTED_ARCHITECTURES:
            continue
        if hasattr(transformers, name):
            yield getattr(transformers, name)


def _language_models(model_type: str) -> Iterator[str]:
    """Give the names of the classes that transformers has for a type of model."""
    from transformers.models.auto import modeling_auto

    for names in (
        modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
        modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
        modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    ):
        # Some types have several classes, as a tuple: which is meant is not known.
        if isinstance(names.get(model_type), str):
            yield names[model_type]


def _language_model_around(model_class: Any, twin: Any) -> Any:
    """Return a language model of a class, with the twin as its body.

    Whatever else it has (a head, a decoder) is zeros that take no memory.

    Raises:
        ModelError: A model of that class has nothing like the twin in it.
    """
    body = twin.base_model
    config = copy.deepcopy(twin.config)
    # An encoder alone has this switched off, and its family's language model needs it.
    config.is_encoder_decoder = type(config)().is_encoder_decoder
    with torch.device("meta"):
        model = model_class(config)
    model.eval()
    _put_in(model, body)
    inside = set(map(id, model.modules()))
    if not any(id(part) in inside for part in body.children()):
        raise ModelError(f"{model_class.__name__} has no place for it")
    first_parameter = next(body.parameters())
    for part in model.modules():
        _fill_with_zeros(
            part._parameters, first_parameter.device, first_parameter.dtype
        )
        _fill_with_zeros(part._buffers, first_parameter.device, None)
    model.set_attn_implementation("eager")
    return model


def _put_in(model: Any, body: Any) -> None:
    """Put a body, or the parts that it has, in the place of those of a model."""
    for name, part in model.named_modules():
        if name and type(part) is type(body):
            owner_name, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(owner_name), attribute, body)
            return
    # In some families the language model holds the parts of the body itself.
    for name, part in model.named_children():
        own_part = getattr(body, name, None)
        if own_part is not None and type(own_part) is type(part):
            setattr(model, name, own_part)


def _fill_with_zeros(
    tensors: dict[str, Any], device: torch.device, dtype: torch.dtype | None
) -> None:
    """Put zeros in the place of tensors without data; dtype None: that of each."""
    for name, tensor in tensors.items():
        if tensor is None or not tensor.is_meta:
            continue
        # One zero, seen as a tensor of any shape.
        zero = torch.zeros((), device=device, dtype=dtype or tensor.dtype)
        zeros = zero.expand(tensor.shape)
        if isinstance(tensor, nn.Parameter):
            tensors[name] = nn.Parameter(zeros, requires_grad=False)
        else:
            tensors[name] = zeros
