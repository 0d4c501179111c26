"""Sites of Hugging Face models: TransformerLens' hook names, each led to the plain module that has its values, and
names of the model's own modules.

TransformerLens' bridge wraps every module and forces eager attention, which costs more than a quarter of the speed, so
values are taken from the *unwrapped* model wherever that gives the bridge's own: each hook point of a bridge over a
copy (sharing the weights) leads to candidates in the plain model, both run once on a few random tokens, and a candidate
counts only if its values are equal. If a site has none (per-head results, normalised LayerNorm outputs), the bridge's
forward is used for all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from actstore.errors import ModelError, SiteError
from actstore.harvesting.adapters import Bridged, bridge_over_copy
from actstore.harvesting.forward import Call, check_takes_tokens, decoder_inputs, forward_of, probing
from actstore.harvesting.layouts import Layout, arranged, layout_of
from actstore.harvesting.models import LoadedModel
from actstore.harvesting.padding import close
from actstore.harvesting.patterns import expand, match_sites
from actstore.harvesting.tap import Attach, HookTap, Point, Put, capture, module_hook, points_of, probe_tokens, vectors
from schemas.source import Site

Pick = Callable[[Tensor], Tensor]
SWITCHES = {
    "hook_result": "set_use_attn_result",
    "hook_attn_in": "set_use_attn_in",
    "hook_mlp_in": "set_use_hook_mlp_in",
    "hook_q_input": "set_use_split_qkv_input",
    "hook_k_input": "set_use_split_qkv_input",
    "hook_v_input": "set_use_split_qkv_input",
}


class Candidate(NamedTuple):
    """A place in the plain model: a module's name, its input or output, and perhaps a part of the values."""

    module: str
    where: str
    pick: Pick | None = None


class Found(NamedTuple):
    """Where the plain model has a hook name's values, and how they lie there."""

    place: Candidate
    layout: Layout


def model_tap(model: LoadedModel, patterns: Iterable[str]) -> HookTap:
    """A tap on the unwrapped model where every site's values are found in it, else on the bridge."""
    module = model.module
    check_takes_tokens(module)
    patterns = tuple(patterns)
    modules = {name: one for name, one in module.named_modules() if name}
    bridged, why = _bridged(module, patterns, modules)
    hooks = list(bridged.bridge.hook_dict) if bridged else []
    names = _named(patterns, hooks, modules, why)
    own = [name for name in names if name not in hooks]
    found: dict[str, Found] = {}
    bridge_points: dict[str, Point] = {}
    if bridged and len(own) < len(names):
        bridge_points, found = _resolve(model, bridged, [name for name in names if name in hooks])
        left = [name for name in bridge_points if name not in found]
        if left and bridged.whole and not own:
            return HookTap(module, list(bridge_points.values()), _bridge_call(bridged.bridge), model.info.vocabulary)
        if left:
            raise SiteError(_in_bridge_only(left[0], module, whole=bridged.whole))
    places = {name: found[name].place if name in found else Candidate(name, "out") for name in names}
    call = _call(module, places.values())
    attach = {name: module_hook(modules.get(c.module, module), c.where, c.pick) for name, c in places.items()}
    points = {name: bridge_points[name]._replace(attach=attach[name], layout=at.layout) for name, at in found.items()}
    if own:
        with probing(f"{type(module).__name__} does not run on token ids alone"):
            plain = points_of(own, [attach[name] for name in own], call, probe_tokens(model, _sizes(module.config)))
        points |= dict(zip(own, plain, strict=True))
    return HookTap(module, [points[name] for name in names], call, model.info.vocabulary)


def bridge_tap(model: LoadedModel, patterns: Iterable[str]) -> HookTap:
    """A tap on the hook points of a TransformerBridge or HookedTransformer, as it is."""
    bridge: Any = model.module
    names = match_sites(patterns, list(bridge.hook_dict))
    switch_on(bridge, names)
    tokens = probe_tokens(model, _sizes(bridge.cfg))
    points = points_of(names, [point_hook(bridge.hook_dict[name]) for name in names], _bridge_call(bridge), tokens)
    return HookTap(bridge, points, _bridge_call(bridge), model.info.vocabulary)


def _bridged(module: nn.Module, patterns: Iterable[str], modules: Iterable[str]) -> tuple[Bridged | None, str]:
    """The bridge, where a pattern may mean a hook name; else None, and what to say of a name that is none."""
    own_names = f"sites of {type(module).__name__} are the names of its modules; `actstore sites` lists them"
    if all(one in modules for pattern in patterns for one in expand(pattern)):
        return None, own_names
    try:
        return bridge_over_copy(module), "`actstore sites` lists all"
    except ModelError as error:
        return None, f"{error}, so {own_names}"


def _named(patterns: Iterable[str], hooks: list[str], modules: Iterable[str], why: str) -> list[str]:
    """Names that the patterns mean: hook names, else modules."""
    names = list(modules)
    try:
        return match_sites(patterns, hooks, names)
    except SiteError as error:
        raise SiteError(f"{error}; {why}") from error


def _resolve(model: LoadedModel, bridged: Bridged, names: list[str]) -> tuple[dict[str, Point], dict[str, Found]]:
    """The bridge's hook points, and where the plain model has their values."""
    module, bridge = model.module, bridged.bridge
    switch_on(bridge, names)
    tokens = probe_tokens(model, _sizes(bridge.cfg))
    hooks = [point_hook(bridge.hook_dict[name]) for name in names]
    what = f"TransformerLens' bridge over {type(module).__name__} does not run; take names of its modules as sites"
    with probing(what):
        seen = capture(hooks, lambda: _bridge_call(bridge)(tokens, None, None))
    shaped = {name: vectors(name, x, tokens.shape) for name, x in zip(names, seen, strict=True)}
    points = {
        name: Point(Site(name=name, d=x.shape[2]), hook, layout)
        for hook, (name, (x, layout)) in zip(hooks, shaped.items(), strict=True)
    }
    wanted = {name: x for name, (x, _) in shaped.items()}
    return points, places_of(module, bridged, wanted, tokens)


def places_of(module: nn.Module, bridged: Bridged, wanted: dict[str, Tensor], tokens: Tensor) -> dict[str, Found]:
    """Where the plain model has the values of hook names; without those that it has nowhere."""
    bridge, plain = bridged.bridge, bridged.names
    with probing(f"{type(module).__name__} does not run on token ids alone"):
        found = _match(module, _candidates(bridge, plain, list(wanted)), wanted, tokens)
        missing = {name: _anywhere(bridge, plain, name) for name in wanted if name not in found}
        return found | _match(module, missing, wanted, tokens)


def _in_bridge_only(name: str, module: nn.Module, *, whole: bool) -> str:
    if whole:
        return (
            f"site {name!r} is computed within TransformerLens' bridge only, and cannot be harvested together with "
            "names of the model's modules; harvest it by itself"
        )
    return f"site {name!r}: {type(module).__name__} computes nothing of the same values; `actstore sites` lists all"


def _call(module: Any, places: Iterable[Candidate]) -> Call:
    """The forward that computes these places: without the head, where none is in it."""
    body = module.base_model
    prefix = next(name for name, one in module.named_modules() if one is body)
    inside = all(not prefix or c.module == prefix or c.module.startswith(f"{prefix}.") for c in places)
    return forward_of(module, body=inside)


def switch_on(bridge: Any, names: Iterable[str]) -> None:
    """TransformerLens computes per-head results and split inputs only when told to."""
    for switch in sorted({SWITCHES[last] for last in (name.rsplit(".", 1)[-1] for name in names) if last in SWITCHES}):
        getattr(bridge, switch)(True)


def _candidates(bridge: Any, plain: dict[int, str], names: list[str]) -> dict[str, list[Candidate]]:
    """Where a site's values might be in the plain model."""
    places: dict[int, list[Candidate]] = {}
    for component in bridge.modules():
        for where in ("in", "out"):
            point = component._modules.get(f"hook_{where}")
            if point is not None:
                places.setdefault(id(point), []).extend(_places(component, plain, where))
    for component in bridge.modules():
        joint = plain.get(id(_original(getattr(component, "qkv", None))))
        if joint is not None:
            for i, part in enumerate("qkv"):
                split = getattr(component, part, None)
                if split is not None:
                    places.setdefault(id(split.hook_out), []).extend(_joint_parts(joint, i, bridge.cfg))
    return {name: places.get(id(bridge.hook_dict[name]), []) for name in names}


def _anywhere(bridge: Any, plain: dict[int, str], name: str) -> list[Candidate]:
    """Every place in a site's own block, for a hook point that stands before no module of its own."""
    parts = name.split(".")
    if len(parts) < 3 or not parts[1].isdigit():
        return []
    block = plain.get(id(_original(getattr(bridge, parts[0])[int(parts[1])])))
    inside = [one for one in plain.values() if block and (one == block or one.startswith(block + "."))]
    return [Candidate(one, where) for one in inside for where in ("in", "out")]


def _original(component: Any) -> Any:
    return getattr(component, "original_component", None)


def _places(component: Any, plain: dict[int, str], where: str) -> Iterator[Candidate]:
    name = plain.get(id(_original(component)))
    if name is not None:
        yield Candidate(name, where)


def _joint_parts(module: str, part: int, cfg: Any) -> Iterator[Candidate]:
    """Part 0, 1 or 2 of a joint query-key-value projection: one behind the other, or head by head."""
    heads, width = cfg.n_heads, cfg.d_head
    grouped = cfg.n_key_value_heads or heads
    sizes = [heads * width, grouped * width, grouped * width]
    start = sum(sizes[:part])
    yield Candidate(module, "out", partial(_slice, start=start, stop=start + sizes[part]))
    if grouped == heads:
        yield Candidate(module, "out", partial(_per_head, heads=heads, part=part))


def _slice(x: Tensor, start: int, stop: int) -> Tensor:
    return x[..., start:stop]


def _per_head(x: Tensor, heads: int, part: int) -> Tensor:
    return x.reshape(*x.shape[:-1], heads, 3, -1)[..., part, :].flatten(-2)


def _match(
    module: nn.Module, candidates: dict[str, list[Candidate]], wanted: dict[str, Tensor], tokens: Tensor
) -> dict[str, Found]:
    """For each site the first candidate whose values are the bridge's, from one forward of the plain model."""
    modules = dict(module.named_modules())
    every = [(name, candidate) for name, options in candidates.items() for candidate in options]
    seen: list[list[Layout | None]] = [[] for _ in every]
    attach = [module_hook(modules[c.module], c.where) for _, c in every]
    checks = [
        one(_checker(verdicts, candidate.pick, wanted[name], tokens.shape))
        for one, verdicts, (name, candidate) in zip(attach, seen, every, strict=True)
    ]
    try:
        with torch.inference_mode():
            forward_of(module, body=True)(tokens, None, None)
    finally:
        for remove in checks:
            remove()
    found: dict[str, Found] = {}
    for (name, candidate), verdicts in zip(every, seen, strict=True):
        if len(verdicts) == 1 and verdicts[0] is not None:
            found.setdefault(name, Found(candidate, verdicts[0]))
    return found


def _checker(verdicts: list[Layout | None], pick: Pick | None, wanted: Tensor, shape: torch.Size) -> Put:
    return lambda x: verdicts.append(_same(x, pick, wanted, shape))


def _same(x: Tensor, pick: Pick | None, wanted: Tensor, shape: torch.Size) -> Layout | None:
    """How the values lie, if they are those wanted but for what other kernels round differently; else None."""
    if pick is not None and x.shape[-1] < wanted.shape[-1]:
        return None
    try:
        x = pick(x) if pick else x
    except RuntimeError:  # the projection does not divide in this way
        return None
    layout = layout_of(x, shape)
    values = arranged(x, layout, shape) if layout is not None else None
    return layout if values is not None and wanted.any() and close(values, wanted) else None


def _bridge_call(bridge: Any) -> Call:
    """The bridge's forward; positions that follow a mask are its own doing."""

    def call(tokens: Tensor, mask: Tensor | None, _positions: Tensor | None = None) -> Any:
        options = {"attention_mask": mask, **decoder_inputs(getattr(bridge, "original_model", None), tokens, mask)}
        given = {name: value for name, value in options.items() if value is not None}
        return bridge(tokens, return_type=None, prepend_bos=False, **given)

    return call


def point_hook(point: Any) -> Attach:
    """`attach` for a TransformerLens hook point."""

    def attach(put: Put) -> Callable[[], None]:
        before = len(point.fwd_hooks)
        point.add_hook(lambda x, hook: put(x))  # noqa: ARG005 (TransformerLens passes it by name)
        handle = point.fwd_hooks[before]

        def remove() -> None:
            handle.hook.remove()
            if handle in point.fwd_hooks:
                point.fwd_hooks.remove(handle)

        return remove

    return attach


def _sizes(cfg: Any) -> set[int]:
    return {value for value in vars(cfg).values() if isinstance(value, int)}
