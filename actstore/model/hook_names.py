"""Sites of Hugging Face models: TransformerLens' hook names, each led to the plain
module that has its values, and names of the model's own modules.

TransformerLens' bridge wraps every module and forces eager attention, which costs more
than a quarter of the speed, so values are taken from the *unwrapped* model wherever
that gives the bridge's own: each hook point of a bridge over a copy (sharing the
weights) leads to candidates in the plain model, both run once on a few random tokens,
and a candidate counts only if its values are equal. If a site has none (per-head
results, normalised LayerNorm outputs), the bridge's forward is used for all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from actstore.errors import ModelError, SiteError
from actstore.format.site_patterns import expand, match_sites
from actstore.model.bridge import Bridged, bridge_over_copy
from actstore.model.forward import (
    Call,
    check_takes_tokens,
    decoder_inputs,
    forward_of,
    probing,
    takes,
)
from actstore.model.hook_places import Candidate, Found, places_of
from actstore.model.hooks import Attach, Put, capture, module_hook
from actstore.model.load_model import LoadedModel
from actstore.model.probe import probe_tokens, vectors
from actstore.model.tap import HookTap, Point, points_of
from schemas.source import Site

SWITCHES = {
    "hook_result": "set_use_attn_result",
    "hook_attn_in": "set_use_attn_in",
    "hook_mlp_in": "set_use_hook_mlp_in",
    "hook_q_input": "set_use_split_qkv_input",
    "hook_k_input": "set_use_split_qkv_input",
    "hook_v_input": "set_use_split_qkv_input",
}


def model_tap(model: LoadedModel, patterns: Iterable[str]) -> HookTap:
    """A tap on the unwrapped model where every site's values are found in it, else on
    the bridge.
    """
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
        bridge_points, found = _resolve(
            model, bridged, [name for name in names if name in hooks]
        )
        left = [name for name in bridge_points if name not in found]
        if left and bridged.whole and not own:
            return HookTap(
                module,
                list(bridge_points.values()),
                bridge_call(bridged.bridge),
                model.info.vocabulary,
            )
        if left:
            raise SiteError(_in_bridge_only(left[0], module, whole=bridged.whole))
    places = {
        name: found[name].place if name in found else Candidate(name, "out")
        for name in names
    }
    call = _call(module, places.values())
    attach = {
        name: module_hook(modules.get(c.module, module), c.where, c.pick)
        for name, c in places.items()
    }
    points = {
        name: bridge_points[name]._replace(attach=attach[name], layout=at.layout)
        for name, at in found.items()
    }
    if own:
        with probing(f"{type(module).__name__} does not run on token ids alone"):
            plain = points_of(
                own,
                [attach[name] for name in own],
                call,
                probe_tokens(model, sizes(module.config)),
            )
        points |= dict(zip(own, plain, strict=True))
    return HookTap(
        module, [points[name] for name in names], call, model.info.vocabulary
    )


def bridge_tap(model: LoadedModel, patterns: Iterable[str]) -> HookTap:
    """A tap on the hook points of a TransformerBridge or HookedTransformer, as it is."""
    bridge: Any = model.module
    names = match_sites(patterns, list(bridge.hook_dict))
    tokens = probe_tokens(model, sizes(bridge.cfg))
    points = _bridge_points(bridge, names, _observed(bridge, names, tokens), tokens)
    return HookTap(
        bridge, list(points.values()), bridge_call(bridge), model.info.vocabulary
    )


def _bridged(
    module: nn.Module, patterns: Iterable[str], modules: Iterable[str]
) -> tuple[Bridged | None, str]:
    """The bridge, where a pattern may mean a hook name; else None, and what to say of a
    name that is none.
    """
    own_names = (
        f"sites of {type(module).__name__} are the names of its modules; `actstore"
        " sites` lists them"
    )
    if all(one in modules for pattern in patterns for one in expand(pattern)):
        return None, own_names
    try:
        return bridge_over_copy(module), "`actstore sites` lists all"
    except ModelError as error:
        return None, f"{error}, so {own_names}"


def _named(
    patterns: Iterable[str], hooks: list[str], modules: Iterable[str], why: str
) -> list[str]:
    """Names that the patterns mean: hook names, else modules."""
    names = list(modules)
    try:
        return match_sites(patterns, hooks, names)
    except SiteError as error:
        raise SiteError(f"{error}; {why}") from error


def _resolve(
    model: LoadedModel, bridged: Bridged, names: list[str]
) -> tuple[dict[str, Point], dict[str, Found]]:
    """The bridge's hook points, and where the plain model has their values."""
    module, bridge = model.module, bridged.bridge
    tokens = probe_tokens(model, sizes(bridge.cfg))
    what = (
        f"TransformerLens' bridge over {type(module).__name__} does not run; take names"
        " of its modules as sites"
    )
    with probing(what):
        seen = _observed(bridge, names, tokens)
    points = _bridge_points(bridge, names, seen, tokens)
    wanted = {
        name: vectors(name, x, tokens.shape)[0]
        for name, x in zip(names, seen, strict=True)
    }
    return points, places_of(module, bridged, wanted, tokens)


def _observed(bridge: Any, names: Sequence[str], tokens: Tensor) -> list[list[Tensor]]:
    """What a run passes at hook names; those that it does not pass are switched on,
    where they can be.
    """
    hooks = [point_hook(bridge.hook_dict[name]) for name in names]
    seen = capture(hooks, lambda: bridge_call(bridge)(tokens, None, None))
    unseen = [name for name, values in zip(names, seen, strict=True) if not values]
    if not switch_on(bridge, unseen):
        return seen
    again = capture(hooks, lambda: bridge_call(bridge)(tokens, None, None))
    lost = next(
        (name for name, x, y in zip(names, seen, again, strict=True) if x and not y),
        None,
    )
    if lost is not None:
        raise SiteError(
            f"sites {lost!r} and {unseen[0]!r} cannot be harvested together, for"
            " TransformerLens computes one or the other; harvest them apart (`actstore"
            " extend` adds sites)"
        )
    return again


def _bridge_points(
    bridge: Any, names: Sequence[str], seen: Sequence[Sequence[Tensor]], tokens: Tensor
) -> dict[str, Point]:
    points = {}
    for name, values in zip(names, seen, strict=True):
        x, layout = vectors(name, values, tokens.shape)
        points[name] = Point(
            Site(name=name, d=x.shape[2]), point_hook(bridge.hook_dict[name]), layout
        )
    return points


def _in_bridge_only(name: str, module: nn.Module, *, whole: bool) -> str:
    if whole:
        return (
            f"site {name!r} is computed within TransformerLens' bridge only, and cannot"
            " be harvested together with names of the model's modules; harvest it by"
            " itself"
        )
    return (
        f"site {name!r}: {type(module).__name__} computes nothing of the same values;"
        " `actstore sites` lists all"
    )


def _call(module: Any, places: Iterable[Candidate]) -> Call:
    """The forward that computes these places: without the head, where none is in it."""
    body = module.base_model
    prefix = next(name for name, one in module.named_modules() if one is body)
    inside = all(
        not prefix or c.module == prefix or c.module.startswith(f"{prefix}.")
        for c in places
    )
    return forward_of(module, body=inside)


def switch_on(bridge: Any, names: Iterable[str]) -> bool:
    """TransformerLens computes per-head results and split inputs only when told to;
    whether there was one to tell.
    """
    switches = {
        SWITCHES[last]
        for last in (name.rsplit(".", 1)[-1] for name in names)
        if last in SWITCHES
    }
    for switch in sorted(switches):
        getattr(bridge, switch)(True)
    return bool(switches)


def bridge_call(bridge: Any) -> Call:
    """The bridge's forward; positions that follow a mask are its own doing."""

    model = getattr(bridge, "original_model", None)
    fixed = (
        {"use_cache": False} if model is not None and takes(model, "use_cache") else {}
    )

    def call(
        tokens: Tensor, mask: Tensor | None, _positions: Tensor | None = None
    ) -> Any:
        options = {
            "attention_mask": mask,
            **decoder_inputs(model, tokens, mask),
            **fixed,
        }
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


def sizes(cfg: Any) -> set[int]:
    """The numbers of a configuration: what a probe's length must not be."""
    return {value for value in vars(cfg).values() if isinstance(value, int)}
