"""Open the tap of a model: from patterns of site names to hooks at its modules."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from actstore.format.site_patterns import match_sites
from actstore.model.forward import check_context, forward_of, probing
from actstore.model.hooks import module_hook
from actstore.model.hugging_face_tap import bridge_tap, model_tap
from actstore.model.load_model import LoadedModel
from actstore.model.probe import probe_tokens
from actstore.model.tap import HookTap, TappedValues, points_of


def open_tap(
    model: LoadedModel,
    patterns: Iterable[str],
    *,
    compiled: bool = False,
    context: int | None = None,
) -> HookTap:
    """Open the tap at a model's sites.

    For a Hugging Face model whose family TransformerLens knows, a TransformerBridge or
    a HookedTransformer, sites are its hook names (values without compatibility mode or
    weight processing of ours). For any Hugging Face model, and any other module, sites
    are also the names of its submodules, whose values are their outputs (of a tuple,
    the first). An encoder–decoder model's decoder sees the same tokens, shifted right
    by one, after its start token.

    Args:
        model: The model to be run.
        patterns: Patterns of the names of sites.
        compiled: Whether to run the forward through torch.compile.
        context: The length that the model will be run with, which is tried.

    Raises:
        SiteError: An unknown name (the message has the nearest that exist), or a site
            that has no single vector per token.
        SpecError: The model does not run on such a context.
        ModelError: The model does not run on token ids.
    """
    from transformers import PreTrainedModel

    if isinstance(model.module, PreTrainedModel):
        tap = model_tap(model, patterns)
    elif hasattr(model.module, "hook_dict"):
        tap = bridge_tap(model, patterns)
    else:
        tap = _module_tap(model, patterns)
    if context is not None:

        def run(tokens: Tensor) -> None:
            tap.run(tokens, None, _ignore)

        check_context(model.module, run, context, model.info.vocabulary)
    if compiled:
        tap.compile()
    return tap


def _module_tap(model: LoadedModel, patterns: Iterable[str]) -> HookTap:
    """Return a tap at outputs of submodules, by their names."""
    module = model.module
    modules = {name: part for name, part in module.named_modules() if name}
    names = match_sites(patterns, list(modules))
    attach = [module_hook(modules[name], "out") for name in names]
    call = forward_of(module)
    with probing(f"{type(module).__name__} does not run on token ids, int64 [b, t]"):
        points = points_of(names, attach, call, probe_tokens(model))
    return HookTap(module, points, call, model.info.vocabulary)


def _ignore(_site: int, _values: TappedValues) -> None:
    """Get values, and do nothing with them."""
