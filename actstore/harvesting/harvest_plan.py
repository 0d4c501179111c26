"""The plan of a harvest: everything that its workers must agree on before one of them
writes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from actstore.errors import SiteError, SpecError, first_line
from actstore.format.dtypes import numpy_dtype
from actstore.format.layout import grown, plan_layout
from actstore.format.token_ids import token_array
from actstore.harvesting.token_filter import TokenFilter
from actstore.harvesting.unit_buffer import buffer_bytes
from actstore.text.separators import check_known
from schemas.harvest import HarvestSpec, Layout, Numerics, Plan
from schemas.manifest import FORMAT_MINOR, FORMAT_VERSION, StoreManifest
from schemas.source import Site, StorageDtype

if TYPE_CHECKING:
    from actstore.model.load_model import LoadedModel
    from actstore.model.tap import Tap
    from actstore.text.corpora import Corpus

_BLOCK = 1 << 22
UNITS_IN_FLIGHT = 3  # one that fills, one that waits, one that is written


@dataclass(frozen=True, slots=True)
class Share:
    """Worker `number` (from 0) of `of`."""

    number: int = 0
    of: int = 1

    def units(self, plan: Plan) -> range:
        """Units of a plan that are this worker's: k mod of = number."""
        first = plan.first_unit + (self.number - plan.first_unit) % self.of
        return range(first, plan.layout.n_units, self.of)


def make_plan(
    spec: HarvestSpec,
    tap: Tap,
    model: LoadedModel,
    corpus: Corpus | None,
    tokens: Any,
    device: str,
    separator_token: int | None = None,
) -> Plan:
    """Everything that workers of one harvest must agree on. Raises SpecError, also for
    a separator that is no token.
    """
    check_known(separator_token, model.info.vocabulary)
    # what it refuses is said before anything is written
    TokenFilter.of(spec, model.info)
    return Plan(
        format_version=FORMAT_VERSION,
        format_minor=FORMAT_MINOR,
        spec=spec,
        sites=tap.sites,
        layout=make_layout(spec, tap),
        model=model.info,
        corpus_digest=_corpus_digest(corpus, tokens),
        separator_token=separator_token,
        numerics=Numerics(
            device=_device_name(device),
            torch=torch.__version__,
            dtype=str(
                next((p.dtype for p in model.module.parameters()), torch.float32)
            ).removeprefix("torch."),
            batch=spec.batch,
            threads=torch.get_num_threads() if device in {"cpu", "auto"} else 0,
        ),
    )


def extension_plan(plan: Plan, parent: StoreManifest, *, adds_sites: bool) -> Plan:
    """The plan of a generation on top of a store: its layout is the store's, grown by
    units where tokens are added; its format is that of the store.

    Raises SiteError where a site is there already.
    """
    there = {site.name for site in parent.sites}
    if adds_sites and (
        twice := [site.name for site in plan.sites if site.name in there]
    ):
        raise SiteError(
            f"{', '.join(twice)}: the store has that already; name the new sites only"
        )
    layout, first = parent.layout, 0
    if not adds_sites:
        first = parent.n_units
        layout = grown(layout, first, plan.spec.tokens)
    more = {
        "layout": layout,
        "generation": len(parent.generations),
        "parent": parent.content_id,
        "first_unit": first,
    }
    return plan.model_copy(update={**more, "format_minor": parent.format_minor})


def unit_bytes(layout: Layout, sites: Sequence[Site], dtype: StorageDtype) -> int:
    """Bytes of one unit's buffers."""
    return layout.unit_sequences * layout.context * buffer_bytes(sites, dtype)


def shard_bytes(layout: Layout, sites: Sequence[Site], dtype: StorageDtype) -> int:
    """Decoded bytes of the widest site's shard: what one encoding thread holds at most."""
    return layout.capacity * max(site.d for site in sites) * numpy_dtype(dtype).itemsize


def parse_worker(text: str | None) -> Share:
    """`3/8` is the third of eight workers. Raises SpecError."""
    if text is None:
        return Share()
    found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
    index, count = map(int, found.groups()) if found else (0, 0)
    if not 1 <= index <= count:
        raise SpecError(
            f"worker {text!r}: wanted i/n with 1 <= i <= n, such as 3/8 for the third"
            " of eight"
        )
    return Share(index - 1, count)


def make_layout(spec: HarvestSpec, tap: Tap) -> Layout:
    """Unit and chunk sizes; units of many batches hold whole ones, so that no forward
    is smaller for their sake.
    """
    item = numpy_dtype(spec.dtype).itemsize

    def planned(unit_sequences: int | None) -> Layout:
        return plan_layout(
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
    array = None if tokens is None else token_array(tokens)
    if array is None:
        return None
    from blake3 import blake3

    # of the ids as int64, so that it is the same for every dtype they may come in
    state = blake3()
    step = max(1, _BLOCK // math.prod(array.shape[1:]))
    for start in range(0, len(array), step):
        state.update(np.ascontiguousarray(array[start : start + step], "<i8").tobytes())
    return state.hexdigest()


def _device_name(device: str) -> str:
    if device == "auto":
        return (
            f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}"
            if torch.cuda.is_available()
            else "cpu"
        )
    try:
        kind = torch.device(device)
    except RuntimeError as error:
        raise SpecError(f"device {device!r}: {first_line(error)}") from error
    return torch.cuda.get_device_name(kind) if kind.type == "cuda" else kind.type
