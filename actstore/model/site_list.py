"""What a model has to harvest: every hook name and module with the shape of its values,
from a run on a few tokens.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from actstore.errors import ModelError, SiteError
from actstore.model.bridge import Bridged, bridge_over_copy
from actstore.model.forward import check_takes_tokens, forward_of, probing
from actstore.model.hook_names import (
    SWITCHES,
    bridge_call,
    point_hook,
    sizes,
    switch_on,
)
from actstore.model.hook_places import places_of
from actstore.model.hooks import Attach, Put, capture, module_hook
from actstore.model.load_model import LoadedModel
from actstore.model.probe import probe_tokens, vectors

Kind = Literal["hook", "module"]


class SiteShape(NamedTuple):
    """A name that the model has. d: the width of its vectors, None where it has no
    single one per token; shape: of what it has in a run on `tokens`.
    """

    name: str
    kind: Kind
    d: int | None
    shape: tuple[int, ...]


class ModelSites(NamedTuple):
    """sites: TransformerLens' hook names, then the model's modules; why: there are no
    hook names, "" where there are; tokens: the shape [b, t] of the run that the shapes
    are of.
    """

    sites: tuple[SiteShape, ...]
    why: str
    tokens: tuple[int, int]


def list_sites(model: LoadedModel) -> ModelSites:
    """Every site of a Hugging Face model. Raises ModelError for one that does not run
    on token ids.
    """
    module: Any = model.module
    check_takes_tokens(module)
    tokens = probe_tokens(model, sizes(module.config))
    attach = {
        name: module_hook(one, "out") for name, one in module.named_modules() if name
    }
    call = _runs(module, tokens)
    modules = _shapes("module", attach, lambda: call(tokens, None, None), tokens)
    hooks, why = [], ""
    try:
        with probing("TransformerLens' bridge over it does not run"):
            hooks = _hooks(module, bridge_over_copy(module), tokens)
    except ModelError as error:
        why = str(error)
    return ModelSites((*hooks, *modules), why, (tokens.shape[0], tokens.shape[1]))


def condensed(sites: Iterable[SiteShape]) -> list[SiteShape]:
    """The same with names of many layers as one pattern, such as
    `blocks.{0..5}.hook_mlp_out`.
    """
    groups: dict[tuple[str, str, Any, Any], list[SiteShape]] = {}
    for site in sites:
        layer = re.search(r"(?<=\.)\d+(?=\.|$)", site.name)
        head, tail = (
            (site.name[: layer.start()], site.name[layer.end() :])
            if layer
            else (site.name, "")
        )
        groups.setdefault((head, tail, site.d, len(site.shape)), []).append(site)
    return [
        found[0]._replace(name=_joint(head, tail, found))
        for (head, tail, *_), found in groups.items()
    ]


def _joint(head: str, tail: str, found: Sequence[SiteShape]) -> str:
    if len(found) == 1:
        return found[0].name
    end = -len(tail) or None
    return head + _braces([int(site.name[len(head) : end]) for site in found]) + tail


def _braces(numbers: Sequence[int]) -> str:
    if list(numbers) == list(range(numbers[0], numbers[-1] + 1)):
        return f"{{{numbers[0]}..{numbers[-1]}}}"
    return f"{{{','.join(map(str, numbers))}}}"


def _runs(module: Any, tokens: Tensor) -> Any:
    """The whole model's call, or where its head wants more than tokens, that of its
    body.
    """
    with suppress(Exception), torch.inference_mode():
        forward_of(module)(tokens, None, None)
        return forward_of(module)
    with (
        probing(f"{type(module).__name__} does not run on token ids alone"),
        torch.inference_mode(),
    ):
        forward_of(module, body=True)(tokens, None, None)
    return forward_of(module, body=True)


def _hooks(module: Any, bridged: Bridged, tokens: Tensor) -> list[SiteShape]:
    bridge = bridged.bridge
    call = bridge_call(bridge)
    attach = {name: point_hook(point) for name, point in bridge.hook_dict.items()}
    if bridged.whole:
        usual = _shapes("hook", attach, lambda: call(tokens, None, None), tokens)
        passed = {site.name for site in usual}
        more = {
            name: one
            for name, one in attach.items()
            if name.rpartition(".")[2] in SWITCHES and name not in passed
        }
        # a model without attention has no per-head results to switch on
        with suppress(Exception):
            switch_on(bridge, more)
            usual += _shapes("hook", more, lambda: call(tokens, None, None), tokens)
        return usual
    seen = capture(list(attach.values()), lambda: call(tokens, None, None))
    wanted = {}
    for name, values in zip(attach, seen, strict=True):
        with suppress(SiteError):
            wanted[name], _ = vectors(name, values, tokens.shape)
    found = places_of(module, bridged, wanted, tokens)
    return [
        SiteShape(name, "hook", x.shape[2], tuple(x.shape))
        for name, x in wanted.items()
        if name in found
    ]


def _shapes(
    kind: Kind, attach: Mapping[str, Attach], call: Callable[[], Any], tokens: Tensor
) -> list[SiteShape]:
    """Of every name that a run passes, once: what is seen twice has no single vector
    per token.
    """
    seen = dict(
        zip(attach, capture(list(attach.values()), call, _shape_keeper), strict=True)
    )
    out = []
    for name, values in seen.items():
        d = None
        with suppress(SiteError):
            d = vectors(name, values, tokens.shape)[0].shape[2]
        if values:
            out.append(SiteShape(name, kind, d, tuple(values[0].shape)))
    return out


def _shape_keeper(kept: list[Tensor]) -> Put:
    return lambda x: kept.append(torch.empty(x.shape, dtype=x.dtype, device="meta"))
