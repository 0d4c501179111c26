"""List all sites of a model: every hook name and module, with the shape of its values.

The shapes come from a run on a few tokens.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from actstore import arguments
from actstore.arguments import checked, optional
from actstore.errors import ModelError, SiteError
from actstore.model.bridge import Bridged, bridge_over_copy
from actstore.model.forward import Call, check_takes_tokens, forward_of, probing
from actstore.model.hook_places import match_hooks
from actstore.model.hooks import Attach, Put, capture, module_hook
from actstore.model.hugging_face_tap import (
    SWITCHES,
    bridge_call,
    config_numbers,
    point_hook,
    switch_on,
)
from actstore.model.load_model import LoadedModel, load_model
from actstore.model.probe import probe_tokens, site_vectors
from actstore.validation import validated
from schemas.source import ModelSource

Kind = Literal["hook", "module"]


class SiteShape(NamedTuple):
    """A name that a model has, and what it has there.

    Attributes:
        name: A hook name, or the name of a module.
        kind: Which of the two.
        d: The width of its vectors; None where it has no single one per token.
        shape: The shape of its values in a run on `ModelSites.tokens`.
    """

    name: str
    kind: Kind
    d: int | None
    shape: tuple[int, ...]


class ModelSites(NamedTuple):
    """All sites of a model.

    Attributes:
        sites: TransformerLens' hook names, then the model's modules.
        why: The reason that there are no hook names; "" where there are.
        tokens: The shape [b, t] of the tokens that the model was run on.
    """

    sites: tuple[SiteShape, ...]
    why: str
    tokens: tuple[int, int]


@checked(
    model=arguments.folder,
    revision=optional(arguments.text),
    trust_remote_code=arguments.flag,
)
def sites(
    model: str | os.PathLike[str],
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> ModelSites:
    """Return every site of a model: what a harvest can take its activations from.

    The model is run on a few tokens.

    Args:
        model: A model's name on the hub, its folder, or `builtin:mini`.
        revision: The revision of a model on the hub.
        trust_remote_code: Run code that comes with the model.

    Raises:
        ModelError: The model cannot be loaded, or does not run on token ids.
        SpecError: An argument cannot be used.

    Examples:
        >>> import actstore
        >>> found = actstore.sites("builtin:mini")
        >>> [(site.name, site.d) for site in found.sites if "mlp_out" in site.name][:2]
        [('blocks.0.hook_mlp_out', 16), ('blocks.1.hook_mlp_out', 16)]
    """
    fields = {
        "name": os.fspath(model),
        "revision": revision,
        "trust_remote_code": trust_remote_code,
    }
    return list_sites(load_model(validated(ModelSource, fields, "sites")))


def list_sites(model: LoadedModel) -> ModelSites:
    """Return every site of a Hugging Face model.

    Raises:
        ModelError: The model does not run on token ids.
    """
    module: Any = model.module
    check_takes_tokens(module)
    tokens = probe_tokens(model, config_numbers(module.config))
    attach = {
        name: module_hook(part, "out") for name, part in module.named_modules() if name
    }
    call = _working_call(module, tokens)
    module_sites = _shapes("module", attach, lambda: call(tokens, None, None), tokens)
    hook_sites: list[SiteShape] = []
    why = ""
    try:
        with probing("TransformerLens' bridge over it does not run"):
            hook_sites = _hook_sites(module, bridge_over_copy(module), tokens)
    except ModelError as error:
        why = str(error)
    shape = (tokens.shape[0], tokens.shape[1])
    return ModelSites((*hook_sites, *module_sites), why, shape)


def condensed(sites: Iterable[SiteShape]) -> list[SiteShape]:
    """Return the sites with names of many layers joined to one pattern.

    `blocks.0.hook_mlp_out` to `blocks.5.hook_mlp_out`, all of the same width, become
    `blocks.{0..5}.hook_mlp_out`.
    """
    groups: dict[tuple[str, str, Any, int], list[SiteShape]] = {}
    for site in sites:
        # The layer is the first step of the name that is a number.
        layer = re.search(r"(?<=\.)\d+(?=\.|$)", site.name)
        head = site.name
        tail = ""
        if layer:
            head = site.name[: layer.start()]
            tail = site.name[layer.end() :]
        group = (head, tail, site.d, len(site.shape))
        groups.setdefault(group, []).append(site)
    return [
        members[0]._replace(name=_joint_name(head, tail, members))
        for (head, tail, _, _), members in groups.items()
    ]


def _joint_name(head: str, tail: str, members: Sequence[SiteShape]) -> str:
    if len(members) == 1:
        return members[0].name
    end = -len(tail) or None
    layers = [int(site.name[len(head) : end]) for site in members]
    return f"{head}{_braces(layers)}{tail}"


def _braces(numbers: Sequence[int]) -> str:
    """Return numbers as a pattern: `{0..5}` without gaps, `{0,2,4}` with some."""
    if list(numbers) == list(range(numbers[0], numbers[-1] + 1)):
        return f"{{{numbers[0]}..{numbers[-1]}}}"
    return f"{{{','.join(map(str, numbers))}}}"


def _working_call(module: Any, tokens: Tensor) -> Call:
    """Return the whole model's call, or, where that fails, the call of its body.

    The heads of some models want more than tokens.
    """
    whole = forward_of(module)
    with suppress(Exception), torch.inference_mode():
        whole(tokens, None, None)
        return whole
    body = forward_of(module, body=True)
    with (
        probing(f"{type(module).__name__} does not run on token ids alone"),
        torch.inference_mode(),
    ):
        body(tokens, None, None)
    return body


def _hook_sites(module: Any, bridged: Bridged, tokens: Tensor) -> list[SiteShape]:
    """Return the hook names whose values a harvest can get."""
    bridge = bridged.bridge
    call = bridge_call(bridge)
    attach = {name: point_hook(point) for name, point in bridge.hook_dict.items()}
    if bridged.whole:
        sites = _shapes("hook", attach, lambda: call(tokens, None, None), tokens)
        passed = {site.name for site in sites}
        switchable = {
            name: attach_one
            for name, attach_one in attach.items()
            if name.rpartition(".")[2] in SWITCHES and name not in passed
        }
        # A model without attention has no results of heads to switch on.
        with suppress(Exception):
            switch_on(bridge, switchable)
            sites += _shapes(
                "hook", switchable, lambda: call(tokens, None, None), tokens
            )
        return sites
    # Of a model that is only the body of the bridged one, a harvest runs the body
    # alone: what counts is where that has the values.
    seen = capture(list(attach.values()), lambda: call(tokens, None, None))
    wanted = {}
    for name, values in zip(attach, seen, strict=True):
        with suppress(SiteError):
            wanted[name], _ = site_vectors(name, values, tokens.shape)
    matches = match_hooks(module, bridged, wanted, tokens)
    return [
        SiteShape(name, "hook", x.shape[2], tuple(x.shape))
        for name, x in wanted.items()
        if name in matches
    ]


def _shapes(
    kind: Kind, attach: Mapping[str, Attach], call: Callable[[], Any], tokens: Tensor
) -> list[SiteShape]:
    """Return the shape of every name that a run passes.

    A name that is passed twice has no single vector per token.
    """
    seen = capture(list(attach.values()), call, _keep_shapes)
    sites = []
    for name, values in zip(attach, seen, strict=True):
        if not values:
            continue
        d = None
        with suppress(SiteError):
            d = site_vectors(name, values, tokens.shape)[0].shape[2]
        sites.append(SiteShape(name, kind, d, tuple(values[0].shape)))
    return sites


def _keep_shapes(kept: list[Tensor]) -> Put:
    # Tensors without data: the values of all modules would fill memory.
    return lambda x: kept.append(torch.empty(x.shape, dtype=x.dtype, device="meta"))
