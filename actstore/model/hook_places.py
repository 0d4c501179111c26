"""Where the plain model has the values of TransformerLens' hook points: places that
may, tried on a few tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from actstore.model.bridge import Bridged
from actstore.model.forward import forward_of, probing
from actstore.model.hooks import Put, module_hook, watch
from actstore.model.padding import close
from actstore.model.value_layouts import Layout, arranged, layout_of

Pick = Callable[[Tensor], Tensor]


class Candidate(NamedTuple):
    """A place in the plain model: a module's name, its input or output, and perhaps a
    part of the values.
    """

    module: str
    where: str
    pick: Pick | None = None


class Found(NamedTuple):
    """Where the plain model has a hook name's values, and how they lie there."""

    place: Candidate
    layout: Layout


def places_of(
    module: nn.Module, bridged: Bridged, wanted: dict[str, Tensor], tokens: Tensor
) -> dict[str, Found]:
    """Where the plain model has the values of hook names; without those that it has
    nowhere.
    """
    bridge, plain = bridged.bridge, bridged.names
    with probing(f"{type(module).__name__} does not run on token ids alone"):
        found = _match(module, _candidates(bridge, plain, list(wanted)), wanted, tokens)
        missing = {
            name: _anywhere(bridge, plain, name) for name in wanted if name not in found
        }
        return found | _match(module, missing, wanted, tokens)


def _candidates(
    bridge: Any, plain: dict[int, str], names: list[str]
) -> dict[str, list[Candidate]]:
    """Where a site's values might be in the plain model."""
    places: dict[int, list[Candidate]] = {}
    for component in bridge.modules():
        for where in ("in", "out"):
            point = component._modules.get(f"hook_{where}")
            if point is not None:
                places.setdefault(id(point), []).extend(
                    _places(component, plain, where)
                )
    for component in bridge.modules():
        joint = plain.get(id(_original(getattr(component, "qkv", None))))
        if joint is not None:
            for i, part in enumerate("qkv"):
                split = getattr(component, part, None)
                if split is not None:
                    places.setdefault(id(split.hook_out), []).extend(
                        _joint_parts(joint, i, bridge.cfg)
                    )
    return {name: places.get(id(bridge.hook_dict[name]), []) for name in names}


def _anywhere(bridge: Any, plain: dict[int, str], name: str) -> list[Candidate]:
    """Every place in a site's own block, for a hook point that stands before no module
    of its own.
    """
    parts = name.split(".")
    if len(parts) < 3 or not parts[1].isdigit():
        return []
    block = plain.get(id(_original(getattr(bridge, parts[0])[int(parts[1])])))
    inside = [
        one
        for one in plain.values()
        if block and (one == block or one.startswith(block + "."))
    ]
    return [Candidate(one, where) for one in inside for where in ("in", "out")]


def _original(component: Any) -> Any:
    return getattr(component, "original_component", None)


def _places(component: Any, plain: dict[int, str], where: str) -> Iterator[Candidate]:
    name = plain.get(id(_original(component)))
    if name is not None:
        yield Candidate(name, where)


def _joint_parts(module: str, part: int, cfg: Any) -> Iterator[Candidate]:
    """Part 0, 1 or 2 of a joint query-key-value projection: one behind the other, or
    head by head.
    """
    heads, width = cfg.n_heads, cfg.d_head
    grouped = cfg.n_key_value_heads or heads
    sizes = [heads * width, grouped * width, grouped * width]
    start = sum(sizes[:part])
    yield Candidate(
        module, "out", partial(_slice, start=start, stop=start + sizes[part])
    )
    if grouped == heads:
        yield Candidate(module, "out", partial(_per_head, heads=heads, part=part))


def _slice(x: Tensor, start: int, stop: int) -> Tensor:
    return x[..., start:stop]


def _per_head(x: Tensor, heads: int, part: int) -> Tensor:
    return x.reshape(*x.shape[:-1], heads, 3, -1)[..., part, :].flatten(-2)


def _match(
    module: nn.Module,
    candidates: dict[str, list[Candidate]],
    wanted: dict[str, Tensor],
    tokens: Tensor,
) -> dict[str, Found]:
    """For each site the first candidate whose values are the bridge's, from one forward
    of the plain model.
    """
    modules = dict(module.named_modules())
    every = [
        (name, candidate)
        for name, options in candidates.items()
        for candidate in options
    ]
    seen: list[list[Layout | None]] = [[] for _ in every]
    attach = [module_hook(modules[c.module], c.where) for _, c in every]
    checks = [
        _checker(verdicts, candidate.pick, wanted[name], tokens.shape)
        for verdicts, (name, candidate) in zip(seen, every, strict=True)
    ]
    watch(attach, checks, lambda: forward_of(module, body=True)(tokens, None, None))
    found: dict[str, Found] = {}
    for (name, candidate), verdicts in zip(every, seen, strict=True):
        if len(verdicts) == 1 and verdicts[0] is not None:
            found.setdefault(name, Found(candidate, verdicts[0]))
    return found


def _checker(
    verdicts: list[Layout | None], pick: Pick | None, wanted: Tensor, shape: torch.Size
) -> Put:
    return lambda x: verdicts.append(_same(x, pick, wanted, shape))


def _same(
    x: Tensor, pick: Pick | None, wanted: Tensor, shape: torch.Size
) -> Layout | None:
    """How the values lie, if they are those wanted but for what other kernels round
    differently; else None.
    """
    if pick is not None and x.shape[-1] < wanted.shape[-1]:
        return None
    try:
        x = pick(x) if pick else x
    except RuntimeError:  # the projection does not divide in this way
        return None
    layout = layout_of(x, shape)
    values = arranged(x, layout, shape) if layout is not None else None
    return (
        layout
        if values is not None and wanted.any() and close(values, wanted)
        else None
    )
