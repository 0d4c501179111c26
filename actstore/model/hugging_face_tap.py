"""Open a tap at sites of Hugging Face models and of TransformerLens' bridges.

Sites are TransformerLens' hook names, and names of the model's own modules.
TransformerLens' bridge wraps every module and forces eager attention, which costs more
than a quarter of the speed. So values are taken from the *plain* model wherever it has
those of the bridge: a bridge is built over a copy that shares the weights, both models
are run once on a few random tokens, and each hook point is matched to a place in the
plain model with equal values (`actstore/model/hook_places.py`). If a site has none
(results of each head, normalised LayerNorm outputs), the bridge's forward is used for
all sites.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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
from actstore.model.hook_places import Candidate, Match, match_hooks
from actstore.model.hooks import Attach, Put, Remove, capture, module_hook
from actstore.model.load_model import LoadedModel
from actstore.model.probe import probe_tokens, site_vectors
from actstore.model.tap import HookTap, TapPoint, points_of
from schemas.source import Site

# The method of the bridge that makes it compute what a hook point has, by the last step
# of the hook point's name.
SWITCHES = {
    "hook_result": "set_use_attn_result",
    "hook_attn_in": "set_use_attn_in",
    "hook_mlp_in": "set_use_hook_mlp_in",
    "hook_q_input": "set_use_split_qkv_input",
    "hook_k_input": "set_use_split_qkv_input",
    "hook_v_input": "set_use_split_qkv_input",
}


def model_tap(model: LoadedModel, patterns: Iterable[str]) -> HookTap:
    """Return a tap on a Hugging Face model.

    It is on the plain model where every site's values are found in that, else on the
    bridge.

    Raises:
        SiteError: An unknown name, a site without a single vector per token, or sites
            that cannot be had together.
        ModelError: The model does not run on token ids.
    """
    module = model.module
    check_takes_tokens(module)
    patterns = tuple(patterns)
    modules = {name: part for name, part in module.named_modules() if name}
    bridged, advice = _bridge_if_needed(module, patterns, modules)
    hook_names = list(bridged.bridge.hook_dict) if bridged else []
    names = _site_names(patterns, hook_names, modules, advice)
    hook_sites = [name for name in names if name in hook_names]
    module_sites = [name for name in names if name not in hook_names]

    matches: dict[str, Match] = {}
    bridge_points: dict[str, TapPoint] = {}
    if bridged and hook_sites:
        bridge_points, matches = _match_to_plain_model(model, bridged, hook_sites)
        unmatched = [name for name in bridge_points if name not in matches]
        if unmatched and bridged.whole and not module_sites:
            points = list(bridge_points.values())
            call = bridge_call(bridged.bridge)
            return HookTap(module, points, call, model.info.vocabulary)
        if unmatched:
            raise SiteError(_only_in_bridge(unmatched[0], module, whole=bridged.whole))

    candidates = {name: Candidate(name, "out") for name in module_sites}
    candidates |= {name: match.candidate for name, match in matches.items()}
    call = _shortest_call(module, candidates.values())
    attach = {
        name: module_hook(modules.get(place.module, module), place.where, place.pick)
        for name, place in candidates.items()
    }
    points_by_name = {
        name: bridge_points[name]._replace(attach=attach[name], layout=match.layout)
        for name, match in matches.items()
    }
    if module_sites:
        with probing(f"{type(module).__name__} does not run on token ids alone"):
            module_points = points_of(
                module_sites,
                [attach[name] for name in module_sites],
                call,
                probe_tokens(model, config_numbers(module.config)),
            )
        points_by_name |= dict(zip(module_sites, module_points, strict=True))
    points = [points_by_name[name] for name in names]
    return HookTap(module, points, call, model.info.vocabulary)


def bridge_tap(model: LoadedModel, patterns: Iterable[str]) -> HookTap:
    """Return a tap on a TransformerBridge or HookedTransformer, as it is.

    Raises:
        SiteError: An unknown name, or a site without a single vector per token.
    """
    bridge: Any = model.module
    names = match_sites(patterns, list(bridge.hook_dict))
    tokens = probe_tokens(model, config_numbers(bridge.cfg))
    seen = _observed(bridge, names, tokens)
    points = list(_bridge_points(bridge, names, seen, tokens).values())
    return HookTap(bridge, points, bridge_call(bridge), model.info.vocabulary)


def _bridge_if_needed(
    module: nn.Module, patterns: Iterable[str], modules: Iterable[str]
) -> tuple[Bridged | None, str]:
    """Return the bridge where a pattern may mean a hook name, else None.

    With it comes what to say where a name turns out to be unknown.
    """
    list_modules = (
        f"sites of {type(module).__name__} are the names of its modules; `actstore"
        " sites` lists them"
    )
    plain_names = (name for pattern in patterns for name in expand(pattern))
    if all(name in modules for name in plain_names):
        # To build a bridge takes seconds, and nothing here needs one.
        return None, list_modules
    try:
        return bridge_over_copy(module), "`actstore sites` lists all"
    except ModelError as error:
        return None, f"{error}, so {list_modules}"


def _site_names(
    patterns: Iterable[str], hook_names: list[str], modules: Iterable[str], advice: str
) -> list[str]:
    """Return the names that the patterns mean: hook names, or else modules."""
    try:
        return match_sites(patterns, hook_names, list(modules))
    except SiteError as error:
        raise SiteError(f"{error}; {advice}") from error


def _match_to_plain_model(
    model: LoadedModel, bridged: Bridged, names: list[str]
) -> tuple[dict[str, TapPoint], dict[str, Match]]:
    """Return the bridge's own points, and where the plain model has their values.

    Of `blocks.0.hook_mlp_out` and `blocks.0.attn.hook_result` the bridge has both, [2,
    11, 16] and [2, 11, 4 x 16] in a model with 4 heads. The first is the output of
    `transformer.h.0.mlp`; the second is computed nowhere in the plain model, and has no
    match.
    """
    module = model.module
    bridge = bridged.bridge
    tokens = probe_tokens(model, config_numbers(bridge.cfg))
    with probing(
        f"TransformerLens' bridge over {type(module).__name__} does not run; take"
        " names of its modules as sites"
    ):
        seen = _observed(bridge, names, tokens)
    points = _bridge_points(bridge, names, seen, tokens)
    wanted = {}
    for name, values in zip(names, seen, strict=True):
        wanted[name], _ = site_vectors(name, values, tokens.shape)
    return points, match_hooks(module, bridged, wanted, tokens)


def _observed(bridge: Any, names: Sequence[str], tokens: Tensor) -> list[list[Tensor]]:
    """Return what a run passes at each of the hook names.

    Hook points that are not passed are switched on, where they can be, and the bridge
    is run again.
    """
    hooks = [point_hook(bridge.hook_dict[name]) for name in names]
    seen = capture(hooks, lambda: bridge_call(bridge)(tokens, None, None))
    unseen = [name for name, values in zip(names, seen, strict=True) if not values]
    if not switch_on(bridge, unseen):
        return seen
    seen_again = capture(hooks, lambda: bridge_call(bridge)(tokens, None, None))
    # To switch one thing on may switch another off.
    for name, before, after in zip(names, seen, seen_again, strict=True):
        if before and not after:
            raise SiteError(
                f"sites {name!r} and {unseen[0]!r} cannot be harvested together, for"
                " TransformerLens computes one or the other; harvest them apart"
                " (`actstore extend` adds sites)"
            )
    return seen_again


def _bridge_points(
    bridge: Any, names: Sequence[str], seen: Sequence[Sequence[Tensor]], tokens: Tensor
) -> dict[str, TapPoint]:
    points = {}
    for name, values in zip(names, seen, strict=True):
        x, layout = site_vectors(name, values, tokens.shape)
        attach = point_hook(bridge.hook_dict[name])
        points[name] = TapPoint(Site(name=name, d=x.shape[2]), attach, layout)
    return points


def _only_in_bridge(name: str, module: nn.Module, *, whole: bool) -> str:
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


def _shortest_call(module: Any, places: Iterable[Candidate]) -> Call:
    """Return the forward that computes these places.

    It runs the model's body alone where all of them are in that, so that no logits are
    computed.
    """
    body = module.base_model
    body_name = next(name for name, part in module.named_modules() if part is body)
    in_body = all(
        not body_name
        or place.module == body_name
        or place.module.startswith(f"{body_name}.")
        for place in places
    )
    return forward_of(module, body=in_body)


def switch_on(bridge: Any, names: Iterable[str]) -> bool:
    """Make a bridge compute what it computes only when told to.

    That is: the results of each head, and the inputs split by head.

    Args:
        bridge: The bridge, which is changed in place.
        names: The names of the hook points that are wanted.

    Returns:
        Whether there was anything to switch on.
    """
    switches = set()
    for name in names:
        last_step = name.rsplit(".", 1)[-1]
        if last_step in SWITCHES:
            switches.add(SWITCHES[last_step])
    for switch in sorted(switches):
        getattr(bridge, switch)(True)
    return bool(switches)


def bridge_call(bridge: Any) -> Call:
    """Return the bridge's forward; it finds positions that follow a mask by itself."""
    model = getattr(bridge, "original_model", None)
    fixed_options = {}
    if model is not None and takes(model, "use_cache"):
        fixed_options = {"use_cache": False}

    def call(
        tokens: Tensor, mask: Tensor | None, _positions: Tensor | None = None
    ) -> Any:
        wanted_options = {
            "attention_mask": mask,
            **decoder_inputs(model, tokens, mask),
            **fixed_options,
        }
        options = {
            name: value for name, value in wanted_options.items() if value is not None
        }
        return bridge(tokens, return_type=None, prepend_bos=False, **options)

    return call


def point_hook(point: Any) -> Attach:
    """Return what attaches a hook to one of TransformerLens' hook points."""

    def attach(put: Put) -> Remove:
        # TransformerLens returns no handle: the new one comes after those there are.
        n_before = len(point.fwd_hooks)
        point.add_hook(lambda x, hook: put(x))  # noqa: ARG005 (TransformerLens passes it by name)
        handle = point.fwd_hooks[n_before]

        def remove() -> None:
            handle.hook.remove()
            if handle in point.fwd_hooks:
                point.fwd_hooks.remove(handle)

        return remove

    return attach


def config_numbers(config: Any) -> set[int]:
    """Return all integers in a configuration: what a probe's length must not be."""
    return {value for value in vars(config).values() if isinstance(value, int)}
