"""Find where the plain model has the values of TransformerLens' hook points.

Candidates are inputs and outputs of modules, or parts of them. The plain model is run
on a few tokens, and a candidate counts only if its values are those of the bridge.
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
from actstore.model.padding import nearly_equal
from actstore.model.value_layouts import ValueLayout, arranged, layout_of

Pick = Callable[[Tensor], Tensor]


class Candidate(NamedTuple):
    """A place in the plain model that may have a hook point's values.

    Attributes:
        module: The name of a module.
        where: "in" for its input, "out" for its output.
        pick: Takes a part of the values; None: the whole.
    """

    module: str
    where: str
    pick: Pick | None = None


class Match(NamedTuple):
    """A candidate that has a hook point's values.

    Attributes:
        candidate: The place in the plain model.
        layout: How the values lie there.
    """

    candidate: Candidate
    layout: ValueLayout


def match_hooks(
    module: nn.Module, bridged: Bridged, wanted: dict[str, Tensor], tokens: Tensor
) -> dict[str, Match]:
    """Return where the plain model has the values of hook points.

    Args:
        module: The plain model.
        bridged: The bridge over a copy of it.
        wanted: The bridge's values by hook name, [b, t, d], from a run on `tokens`.
        tokens: The tokens of the probe, int64 [b, t].

    Returns:
        Matches by hook name, without the names whose values are nowhere.
    """
    bridge = bridged.bridge
    module_names = bridged.names
    with probing(f"{type(module).__name__} does not run on token ids alone"):
        candidates = _likely_candidates(bridge, module_names, list(wanted))
        matches = _match(module, candidates, wanted, tokens)
        # Only what is left is looked for in the whole block, which are many places.
        more_candidates = {
            name: _candidates_in_block(bridge, module_names, name)
            for name in wanted
            if name not in matches
        }
        return matches | _match(module, more_candidates, wanted, tokens)


def _likely_candidates(
    bridge: Any, module_names: dict[int, str], hook_names: list[str]
) -> dict[str, list[Candidate]]:
    """Return where each hook's values should be by the way the bridge is built.

    A component of the bridge wraps one module of the model: its `hook_in` and
    `hook_out` are that module's input and output.
    """
    candidates: dict[int, list[Candidate]] = {}  # by the `id` of a hook point
    for component in bridge.modules():
        module_name = module_names.get(id(_wrapped_module(component)))
        if module_name is None:
            continue
        for where in ("in", "out"):
            point = component._modules.get(f"hook_{where}")
            if point is not None:
                candidate = Candidate(module_name, where)
                candidates.setdefault(id(point), []).append(candidate)
    # Some models have one projection for queries, keys and values together.
    for component in bridge.modules():
        joint_module = _wrapped_module(getattr(component, "qkv", None))
        joint_name = module_names.get(id(joint_module))
        if joint_name is None:
            continue
        for part, letter in enumerate("qkv"):
            split = getattr(component, letter, None)
            if split is not None:
                candidates.setdefault(id(split.hook_out), []).extend(
                    _joint_parts(joint_name, part, bridge.cfg)
                )
    return {name: candidates.get(id(bridge.hook_dict[name]), []) for name in hook_names}


def _candidates_in_block(
    bridge: Any, module_names: dict[int, str], hook_name: str
) -> list[Candidate]:
    """Return every place in a hook's own block.

    Some hook points stand for no module: `blocks.3.hook_resid_mid` is the input of
    whichever module comes next in block 3.
    """
    steps = hook_name.split(".")
    if len(steps) < 3 or not steps[1].isdigit():
        return []
    blocks = getattr(bridge, steps[0])
    block_name = module_names.get(id(_wrapped_module(blocks[int(steps[1])])))
    if not block_name:
        return []
    candidates = []
    for name in module_names.values():
        if name == block_name or name.startswith(f"{block_name}."):
            candidates.append(Candidate(name, "in"))
            candidates.append(Candidate(name, "out"))
    return candidates


def _wrapped_module(component: Any) -> Any:
    return getattr(component, "original_component", None)


def _joint_parts(module_name: str, part: int, cfg: Any) -> Iterator[Candidate]:
    """Give where queries (part 0), keys (1) or values (2) may be in a joint projection.

    They come one after the other, or head by head.
    """
    heads = cfg.n_heads
    key_heads = cfg.n_key_value_heads or heads
    # 8 heads of 16 for queries, 2 for keys and 2 for values make sizes 128, 32, 32:
    # keys are columns 128 to 159 of 192.
    part_sizes = [
        heads * cfg.d_head,
        key_heads * cfg.d_head,
        key_heads * cfg.d_head,
    ]
    start = sum(part_sizes[:part])
    stop = start + part_sizes[part]
    yield Candidate(module_name, "out", partial(_columns, start=start, stop=stop))
    if key_heads == heads:
        head_by_head = partial(_part_of_each_head, heads=heads, part=part)
        yield Candidate(module_name, "out", head_by_head)


def _columns(x: Tensor, start: int, stop: int) -> Tensor:
    return x[..., start:stop]


def _part_of_each_head(x: Tensor, heads: int, part: int) -> Tensor:
    """Return one of q, k, v from columns that are q1 k1 v1 q2 k2 v2 ... by head."""
    by_head = x.reshape(*x.shape[:-1], heads, 3, -1)
    return by_head[..., part, :].flatten(-2)


def _match(
    module: nn.Module,
    candidates: dict[str, list[Candidate]],
    wanted: dict[str, Tensor],
    tokens: Tensor,
) -> dict[str, Match]:
    """Return for each hook the first candidate whose values are the bridge's.

    One forward of the plain model tries all candidates. Each has a list of verdicts,
    one for every time that it is passed: the layout where the values are those wanted,
    else None. In that forward, say, `blocks.0.hook_mlp_out` has the candidates

    * input of `h.0.mlp`: verdicts [None], for other values;
    * output of `h.0.mlp`: verdicts ["sequences"], which is the match;
    * output of `h.0.drop`, a module used twice: verdicts ["sequences", None], no match,
      since a hook there would pass two values for each token.
    """
    modules = dict(module.named_modules())
    pairs = [
        (name, candidate)
        for name, candidates_of_name in candidates.items()
        for candidate in candidates_of_name
    ]
    attach = []
    checkers = []
    verdicts: list[list[ValueLayout | None]] = []
    for name, candidate in pairs:
        own_verdicts: list[ValueLayout | None] = []
        verdicts.append(own_verdicts)
        attach.append(module_hook(modules[candidate.module], candidate.where))
        checkers.append(
            _checker(own_verdicts, candidate.pick, wanted[name], tokens.shape)
        )
    call = forward_of(module, body=True)
    watch(attach, checkers, lambda: call(tokens, None, None))
    matches: dict[str, Match] = {}
    for (name, candidate), own_verdicts in zip(pairs, verdicts, strict=True):
        if len(own_verdicts) == 1 and own_verdicts[0] is not None:
            matches.setdefault(name, Match(candidate, own_verdicts[0]))
    return matches


def _checker(
    verdicts: list[ValueLayout | None],
    pick: Pick | None,
    wanted: Tensor,
    shape: torch.Size,
) -> Put:
    """Return what adds a verdict on each value that passes."""
    # Verdicts rather than values are kept: those of a large model would fill memory.
    return lambda x: verdicts.append(_layout_if_same(x, pick, wanted, shape))


def _layout_if_same(
    x: Tensor, pick: Pick | None, wanted: Tensor, shape: torch.Size
) -> ValueLayout | None:
    """Return how values lie if they are those wanted, but for rounding; else None."""
    if pick is not None:
        if x.shape[-1] < wanted.shape[-1]:
            return None
        try:
            x = pick(x)
        except RuntimeError:  # the projection does not divide in this way
            return None
    layout = layout_of(x, shape)
    if layout is None:
        return None
    values = arranged(x, layout, shape)
    # Values that are zero everywhere are equal to those of any silent place.
    if values is None or not wanted.any():
        return None
    return layout if nearly_equal(values, wanted) else None
