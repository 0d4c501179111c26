"""Refuses the fields of a harvest's spec that would change nothing.

Nobody should believe that such a field had an effect.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from actstore.errors import SpecError
from actstore.model.load_model import LoadedModel
from schemas.harvest import HarvestSpec


def check_acts(spec: HarvestSpec, model: LoadedModel, given: Any = None) -> None:
    """Check that every value of a spec has an effect.

    Args:
        spec: What was asked for.
        model: The model that was loaded.
        given: The module that the user gave in memory, if any.

    Raises:
        SpecError: Names each value that has none, and says what to do.
    """
    sentences = [
        *_about_rows(spec, model),
        *_about_storing(spec),
        *_about_loading(spec, model, given),
    ]
    if sentences:
        raise SpecError("; ".join(sentences))


def _about_rows(spec: HarvestSpec, model: LoadedModel) -> Iterator[str]:
    if spec.exclude_special_tokens and not model.info.special_tokens:
        why = (
            "the model has no tokenizer"
            if model.tokenizer is None
            else "the model's tokenizer has none"
        )
        yield (
            f"exclude_special_tokens: {why}, so it is not known which tokens those are;"
            " name them as exclude_tokens"
        )


def _about_storing(spec: HarvestSpec) -> Iterator[str]:
    # A spec that gives the default cannot be told from one that does not say.
    default_memory = HarvestSpec.model_fields["memory"].default
    if spec.unit_sequences is not None and spec.memory != default_memory:
        yield (
            "memory plans the size of units, and unit_sequences gives it; leave one of"
            " them out"
        )
    if spec.autocast == "float32":
        yield (
            "autocast float32 is no autocast: it lowers precision only; leave it out,"
            " or give dtype of the model"
        )


def _about_loading(spec: HarvestSpec, model: LoadedModel, given: Any) -> Iterator[str]:
    """Yield a sentence on each loading option that a model in memory would ignore."""
    if given is None:
        return
    # A module may have parameters in several dtypes, such as float32 norms.
    dtypes = {
        str(parameter.dtype).removeprefix("torch.")
        for parameter in model.module.parameters()
    }
    dtype_asked = "dtype" in spec.model.model_fields_set
    if dtype_asked and dtypes and spec.model.dtype not in dtypes:
        yield (
            f"model.dtype {spec.model.dtype}: the module given is in"
            f" {', '.join(sorted(dtypes))}; convert it"
        )
    if spec.model.revision is not None:
        yield (
            "model.revision is of a model on the hub, and a module is given; leave"
            " it out"
        )
