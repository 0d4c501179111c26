"""Opening the tap of a model: from patterns of site names to hooks at its modules."""

from __future__ import annotations

from collections.abc import Iterable

from actstore.format.site_patterns import match_sites
from actstore.model.forward import check_context, forward_of, probing
from actstore.model.hook_names import bridge_tap, model_tap
from actstore.model.hooks import module_hook
from actstore.model.load_model import LoadedModel
from actstore.model.probe import probe_tokens
from actstore.model.tap import HookTap, points_of


def open_tap(
    model: LoadedModel,
    patterns: Iterable[str],
    *,
    compiled: bool = False,
    context: int | None = None,
) -> HookTap:
    """The tap for a model's sites.

    For a Hugging Face model whose family TransformerLens knows, a TransformerBridge or
    a HookedTransformer, sites are its hook names (values without compatibility mode or
    weight processing of ours); of any Hugging Face model, and of any other module, also
    the names of its submodules, whose values are their outputs (of a tuple, the first).
    An encoder–decoder model's decoder sees the same tokens, shifted right by one behind
    its start token.

    compiled: run the forward through torch.compile. context: the length that it will be
    run with, which is tried.

    Raises:
        SiteError: an unknown name (with the nearest that exist), or a site that has no
        single vector per token.
        SpecError: a context that the model does not run on.
        ModelError: a model that does not run on token ids.
    """
    from transformers import PreTrainedModel

    if isinstance(model.module, PreTrainedModel):
        tap = model_tap(model, patterns)
    elif hasattr(model.module, "hook_dict"):
        tap = bridge_tap(model, patterns)
    else:
        tap = _module_tap(model, patterns)
    if context is not None:
        run = lambda tokens: tap.run(tokens, None, lambda *_: None)  # noqa: E731
        check_context(model.module, run, context, model.info.vocabulary)
    if compiled:
        tap.compile()
    return tap


def _module_tap(model: LoadedModel, patterns: Iterable[str]) -> HookTap:
    """Sites are submodules' names, values their outputs."""
    module = model.module
    modules = {name: one for name, one in module.named_modules() if name}
    names = match_sites(patterns, list(modules))
    call = forward_of(module)
    with probing(f"{type(module).__name__} does not run on token ids, int64 [b, t]"):
        points = points_of(
            names,
            [module_hook(modules[name], "out") for name in names],
            call,
            probe_tokens(model),
        )
    return HookTap(module, points, call, model.info.vocabulary)
