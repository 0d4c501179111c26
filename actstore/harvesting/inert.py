"""What a harvest's spec asks for and would change nothing. It is refused, so that nobody believes that it did."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from actstore.errors import SpecError
from actstore.harvesting.models import LoadedModel
from schemas.harvest import HarvestSpec


def check_acts(spec: HarvestSpec, model: LoadedModel, given: Any = None, tokens: Any = None) -> None:
    """Raises SpecError that names each value which no other value of the spec, and no model, lets act.

    given, tokens: the module and the tokens in memory, where there are some.
    """
    found = [*_of_rows(spec, model), *_of_storing(spec), *_of_memory(spec, model, given, tokens)]
    if found:
        raise SpecError("; ".join(found))


def _of_rows(spec: HarvestSpec, model: LoadedModel) -> Iterator[str]:
    vocabulary = model.info.vocabulary
    if spec.exclude_special_tokens and not model.info.special_tokens:
        why = "the model has no tokenizer" if model.tokenizer is None else "the model's tokenizer has none"
        yield f"exclude_special_tokens: {why}, so it is not known which tokens those are; name them as exclude_tokens"
    outside = [token for token in spec.exclude_tokens if vocabulary and not 0 <= token < vocabulary]
    if outside:
        yield f"exclude_tokens: {outside[0]} is no token of the model, which has {vocabulary:,}"
    if spec.skip_first >= spec.context:
        yield f"skip_first ({spec.skip_first}) leaves no row of contexts of {spec.context}"


def _of_storing(spec: HarvestSpec) -> Iterator[str]:
    if spec.unit_sequences is not None and spec.memory != HarvestSpec.model_fields["memory"].default:
        yield "memory plans the size of units, and unit_sequences gives it; leave one of them out"
    if spec.autocast == "float32":
        yield "autocast float32 is no autocast: it lowers precision only; leave it out, or give dtype of the model"


def _of_memory(spec: HarvestSpec, model: LoadedModel, given: Any, tokens: Any) -> Iterator[str]:
    """What is about loading, of a module that is loaded already; what is about cutting, of sequences that are cut."""
    if given is not None:
        dtypes = {str(one.dtype).removeprefix("torch.") for one in model.module.parameters()}
        if "dtype" in spec.model.model_fields_set and dtypes and spec.model.dtype not in dtypes:
            yield f"model.dtype {spec.model.dtype}: the module given is in {', '.join(sorted(dtypes))}; convert it"
        if spec.model.revision is not None:
            yield "model.revision is of a model on the hub, and a module is given; leave it out"
    if len(getattr(tokens, "shape", ())) == 2 and (not spec.pack or spec.prepend_bos is not None):
        yield "pack and prepend_bos cut documents, and sequences [n, context] are as they are; leave them out"
