"""TransformerLens' hook names on Hugging Face models: which plain module has the values of which site."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from actstore.errors import ModelError
from actstore.harvesting.models import LoadedModel
from actstore.harvesting.patterns import match_sites
from actstore.harvesting.tap import HookTap, Put, capture, device_of, module_hook, probe_tokens, vectors
from schemas.source import Site

Pick = Callable[[Tensor], Tensor]


class Candidate(NamedTuple):
    """A place in the plain model: a module's name, its input or output, and perhaps a part of the values."""

    module: str
    where: str
    pick: Pick | None = None


def model_tap(model: LoadedModel, patterns: Iterable[str]) -> HookTap:
    """A tap on the unwrapped model where every site's values are found in it, else on the bridge."""
    module = model.module
    bridge, plain_names = _bridge_over_copy(module)
    names = _names(bridge, patterns)
    tokens = probe_tokens(model.info.vocabulary, device_of(module), _sizes(bridge.cfg))
    points = [_point_hook(bridge.hook_dict[name]) for name in names]
    seen = capture(points, lambda: _bridge_call(bridge)(tokens, None))
    wanted = {name: vectors(name, x, tokens.shape) for name, x in zip(names, seen, strict=True)}
    sites = [Site(name=name, d=x.shape[2]) for name, x in wanted.items()]
    found = _match(module, _candidates(bridge, plain_names, names), wanted, tokens)
    missing = [name for name in names if name not in found]
    found |= _match(module, {name: _anywhere(bridge, plain_names, name) for name in missing}, wanted, tokens)
    if len(found) < len(names):
        return HookTap(sites, points, _bridge_call(bridge))
    modules = dict(module.named_modules())
    attach = [module_hook(modules[c.module], c.where, c.pick) for c in (found[name] for name in names)]
    return HookTap(sites, attach, _body_call(module))


def bridge_tap(bridge: Any, vocabulary: int, patterns: Iterable[str]) -> HookTap:
    """A tap on the hook points of a TransformerBridge or HookedTransformer, as it is."""
    names = _names(bridge, patterns)
    tokens = probe_tokens(vocabulary or bridge.cfg.d_vocab, device_of(bridge), _sizes(bridge.cfg))
    attach = [_point_hook(bridge.hook_dict[name]) for name in names]
    seen = capture(attach, lambda: _bridge_call(bridge)(tokens, None))
    sites = [Site(name=n, d=vectors(n, x, tokens.shape).shape[2]) for n, x in zip(names, seen, strict=True)]
    return HookTap(sites, attach, _bridge_call(bridge))


def _names(bridge: Any, patterns: Iterable[str]) -> list[str]:
    """Matching hook names; TransformerLens computes per-head results and split inputs only when told to."""
    names = match_sites(patterns, list(bridge.hook_dict))
    switches = {
        "hook_result": "set_use_attn_result",
        "hook_attn_in": "set_use_attn_in",
        "hook_mlp_in": "set_use_hook_mlp_in",
        "hook_q_input": "set_use_split_qkv_input",
        "hook_k_input": "set_use_split_qkv_input",
        "hook_v_input": "set_use_split_qkv_input",
    }
    for switch in sorted({switches[last] for last in (name.rsplit(".", 1)[-1] for name in names) if last in switches}):
        getattr(bridge, switch)(True)
    return names


def _bridge_over_copy(module: Any) -> tuple[Any, dict[int, str]]:
    """A bridge over a copy that shares the weights, and the names of the copy's modules by identity."""
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    shared = [*module.parameters(), *module.buffers()]
    twin = copy.deepcopy(module, {id(tensor): tensor for tensor in shared})
    names = {id(one): name for name, one in twin.named_modules()}
    twin.set_attn_implementation("eager")  # as TransformerLens needs it
    architecture = type(module).__name__
    try:
        bridge = build_bridge_from_module(twin, architecture, hf_config=twin.config)
    except ValueError as error:
        raise ModelError(_no_adapter(architecture, error)) from error
    return bridge, names


def _no_adapter(architecture: str, error: Exception) -> str:
    from transformer_lens.factories.architecture_adapter_factory import SUPPORTED_ARCHITECTURES

    if architecture in SUPPORTED_ARCHITECTURES:
        return f"TransformerLens cannot take {architecture} apart: {error}"
    near = difflib.get_close_matches(architecture, list(SUPPORTED_ARCHITECTURES), 4, 0.4)
    return (
        f"TransformerLens has no adapter for {architecture}; the nearest it has are {', '.join(near)}. "
        "Pass the module itself from Python to name its submodules as sites"
    )


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
) -> dict[str, Candidate]:
    """For each site the first candidate whose values are the bridge's, from one forward of the plain model."""
    modules = dict(module.named_modules())
    every = [(name, candidate) for name, options in candidates.items() for candidate in options]
    seen: list[list[bool]] = [[] for _ in every]
    attach = [module_hook(modules[c.module], c.where) for _, c in every]
    checks = [
        one(_checker(verdicts, candidate.pick, wanted[name]))
        for one, verdicts, (name, candidate) in zip(attach, seen, every, strict=True)
    ]
    try:
        with torch.inference_mode():
            _body_call(module)(tokens, None)
    finally:
        for remove in checks:
            remove()
    found: dict[str, Candidate] = {}
    for (name, candidate), verdicts in zip(every, seen, strict=True):
        if verdicts == [True]:
            found.setdefault(name, candidate)
    return found


def _checker(verdicts: list[bool], pick: Pick | None, wanted: Tensor) -> Put:
    return lambda x: verdicts.append(_same(x, pick, wanted))


def _same(x: Tensor, pick: Pick | None, wanted: Tensor) -> bool:
    """Equal but for what other kernels round differently."""
    if pick is not None and x.shape[-1] < wanted.shape[-1]:
        return False
    try:
        x = (pick(x) if pick else x).flatten(2)
    except RuntimeError:  # the projection does not divide in this way
        return False
    if x.shape != wanted.shape:
        return False
    tolerance = 1e-3 if x.dtype == torch.float32 else 0.05
    size = torch.linalg.vector_norm(wanted.float())
    return bool(size > 0 and torch.linalg.vector_norm((x - wanted).float()) <= tolerance * size)


def _body_call(module: Any) -> Callable[[Tensor, Tensor | None], Any]:
    """The transformer without its head: logits are never computed."""
    body = module.base_model
    cached = hasattr(module.config, "use_cache")

    def call(tokens: Tensor, mask: Tensor | None) -> Any:
        options: dict[str, Any] = {"use_cache": False} if cached else {}
        if mask is not None:
            options["attention_mask"] = mask
        return body(tokens, **options)

    return call


def _bridge_call(bridge: Any) -> Callable[[Tensor, Tensor | None], Any]:
    def call(tokens: Tensor, mask: Tensor | None) -> Any:
        options = {} if mask is None else {"attention_mask": mask}
        return bridge(tokens, return_type=None, prepend_bos=False, **options)

    return call


def _point_hook(point: Any) -> Any:
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
