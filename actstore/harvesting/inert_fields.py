"""What a harvest's spec asks for and would change nothing. It is refused, so that
nobody believes that it did.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from actstore.errors import SpecError
from actstore.model.load_model import LoadedModel
from schemas.harvest import HarvestSpec


def check_acts(spec: HarvestSpec, model: LoadedModel, given: Any = None) -> None:
    """Raises SpecError that names each value which no other value of the spec, and no
    model, lets act.

    given: the module in memory, where there is one.
    """
    found = [
        *_of_rows(spec, model),
        *_of_storing(spec),
        *_of_module(spec, model, given),
    ]
    if found:
        raise SpecError("; ".join(found))


def _of_rows(spec: HarvestSpec, model: LoadedModel) -> Iterator[str]:
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


def _of_storing(spec: HarvestSpec) -> Iterator[str]:
    if (
        spec.unit_sequences is not None
        and spec.memory != HarvestSpec.model_fields["memory"].default
    ):
        yield (
            "memory plans the size of units, and unit_sequences gives it; leave one of"
            " them out"
        )
    if spec.autocast == "float32":
        yield (
            "autocast float32 is no autocast: it lowers precision only; leave it out,"
            " or give dtype of the model"
        )


def _of_module(spec: HarvestSpec, model: LoadedModel, given: Any) -> Iterator[str]:
    """What is about loading, of a module that is loaded already."""
    if given is None:
        return
    dtypes = {
        str(one.dtype).removeprefix("torch.") for one in model.module.parameters()
    }
    if (
        "dtype" in spec.model.model_fields_set
        and dtypes
        and spec.model.dtype not in dtypes
    ):
        yield (
            f"model.dtype {spec.model.dtype}: the module given is in"
            f" {', '.join(sorted(dtypes))}; convert it"
        )
    if spec.model.revision is not None:
        yield (
            "model.revision is of a model on the hub, and a module is given; leave"
            " it out"
        )
