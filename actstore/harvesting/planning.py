"""The plan of a harvest: everything that its workers must agree on before one of them writes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from actstore.errors import SpecError
from actstore.format import layout as at
from actstore.format.dtypes import numpy_dtype
from actstore.harvesting.rows import buffer_bytes
from schemas.harvest import HarvestSpec, Layout, Numerics, Plan
from schemas.manifest import FORMAT_VERSION

if TYPE_CHECKING:
    from actstore.harvesting.corpora import Corpus
    from actstore.harvesting.models import LoadedModel
    from actstore.harvesting.tap import Tap

UNITS_IN_FLIGHT = 3  # one that fills, one that waits, one that is written


def make_plan(spec: HarvestSpec, tap: Tap, model: LoadedModel, corpus: Corpus | None, tokens: Any, device: str) -> Plan:
    """Everything that workers of one harvest must agree on."""
    return Plan(
        format_version=FORMAT_VERSION,
        spec=spec,
        sites=tap.sites,
        layout=make_layout(spec, tap),
        model=model.info,
        corpus_digest=_corpus_digest(corpus, tokens),
        numerics=Numerics(
            device=_device_name(device),
            torch=torch.__version__,
            dtype=str(next((p.dtype for p in model.module.parameters()), torch.float32)).removeprefix("torch."),
            batch=spec.batch,
            threads=torch.get_num_threads() if device == "cpu" else 0,
        ),
    )


def make_layout(spec: HarvestSpec, tap: Tap) -> Layout:
    """Unit and chunk sizes; units of many batches hold whole ones, so that no forward is smaller for their sake."""
    item = numpy_dtype(spec.dtype).itemsize

    def planned(unit_sequences: int | None) -> Layout:
        return at.plan_layout(
            spec.tokens, spec.context, max(site.d for site in tap.sites) * item, buffer_bytes(tap.sites, spec.dtype),
            spec.memory, UNITS_IN_FLIGHT, unit_sequences, spec.chunk_rows,
        )  # fmt: skip

    layout = planned(spec.unit_sequences)
    if spec.unit_sequences is None and layout.unit_sequences > spec.batch:
        return planned(layout.unit_sequences // spec.batch * spec.batch)
    return layout


def _corpus_digest(corpus: Corpus | None, tokens: Any) -> str | None:
    if corpus is not None and tokens is None:
        return corpus.digest()
    shape = getattr(tokens, "shape", None)
    if shape is None:
        return None
    from blake3 import blake3

    array = np.ascontiguousarray(tokens.cpu() if hasattr(tokens, "cpu") else tokens)
    return blake3(array.tobytes()).hexdigest()


def _device_name(device: str) -> str:
    try:
        kind = torch.device(device)
    except RuntimeError as error:
        raise SpecError(f"device {device!r}: {str(error).splitlines()[0]}") from error
    return torch.cuda.get_device_name(kind) if kind.type == "cuda" else kind.type
