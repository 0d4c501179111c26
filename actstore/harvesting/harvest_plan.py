"""The plan of a harvest: all that its workers agree on before one of them writes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from actstore.errors import SiteError, SpecError, first_line
from actstore.format.layout import grown, plan_layout
from actstore.format.stored_dtypes import numpy_dtype
from actstore.format.token_ids import token_array
from actstore.harvesting.token_filter import TokenFilter
from actstore.harvesting.unit_buffer import buffer_bytes
from actstore.text.separators import check_separator
from schemas.harvest import HarvestSpec, Layout, Numerics, Plan
from schemas.manifest import FORMAT_MINOR, FORMAT_VERSION, StoreManifest
from schemas.source import Site, StorageDtype

if TYPE_CHECKING:
    from actstore.model.load_model import LoadedModel
    from actstore.model.tap import Tap
    from actstore.text.corpora import Corpus

# One that fills, one that waits, one that is written.
UNITS_IN_FLIGHT = 3
# Token ids that are digested at a time.
_DIGEST_IDS = 1 << 22


def make_plan(
    spec: HarvestSpec,
    tap: Tap,
    model: LoadedModel,
    corpus: Corpus | None,
    tokens: Any,
    device: str,
    separator_token: int | None = None,
) -> Plan:
    """Return the plan of a harvest into a new store.

    Args:
        spec: What was asked for.
        tap: The sites, with their widths.
        model: The model that was loaded.
        corpus: What the tokens are read from; None for an array of sequences.
        tokens: What the user gave instead of a corpus, if anything.
        device: Where the model runs.
        separator_token: What each document ends with; None: nothing.

    Raises:
        SpecError: The spec names tokens or a device that there are not.
    """
    check_separator(separator_token, model.info.vocabulary)
    # Only for what it refuses: that has to be said before anything is written.
    TokenFilter.of(spec, model.info)
    first_parameter = next(model.module.parameters(), None)
    dtype = torch.float32 if first_parameter is None else first_parameter.dtype
    return Plan(
        format_version=FORMAT_VERSION,
        format_minor=FORMAT_MINOR,
        spec=spec,
        sites=tap.sites,
        layout=make_layout(spec, tap),
        model=model.info,
        corpus_digest=corpus_digest(corpus, tokens),
        separator_token=separator_token,
        numerics=Numerics(
            device=_device_name(device),
            torch=torch.__version__,
            dtype=str(dtype).removeprefix("torch."),
            batch=spec.batch,
            # On a GPU the results do not depend on them.
            threads=torch.get_num_threads() if device in {"cpu", "auto"} else 0,
        ),
    )


def extension_plan(plan: Plan, parent: StoreManifest, *, adds_sites: bool) -> Plan:
    """Return the plan of a generation that is added to a store.

    Its format is the store's, and so is its layout; where tokens are added, the layout
    grows by their units.

    Args:
        plan: What a harvest into a new store would be.
        parent: The store's manifest.
        adds_sites: Whether sites are added, else tokens.

    Raises:
        SiteError: The store has one of the sites already.
    """
    layout = parent.layout
    first_unit = 0
    if adds_sites:
        known = {site.name for site in parent.sites}
        twice = [site.name for site in plan.sites if site.name in known]
        if twice:
            raise SiteError(
                f"{', '.join(twice)}: the store has that already; name the new sites"
                " only"
            )
    else:
        first_unit = parent.n_units
        layout = grown(layout, first_unit, plan.spec.tokens)
    return plan.model_copy(
        update={
            "layout": layout,
            "generation": len(parent.generations),
            "parent": parent.content_id,
            "first_unit": first_unit,
            "format_minor": parent.format_minor,
        }
    )


def make_layout(spec: HarvestSpec, tap: Tap) -> Layout:
    """Return the sizes of units and chunks.

    A planned unit that holds several batches holds whole ones, so that no forward is
    smaller than asked just because its unit ends. With batches of 32, units of 100
    sequences become units of 96.
    """
    if spec.unit_sequences is not None:
        return _layout(spec, tap, spec.unit_sequences)
    layout = _layout(spec, tap, None)
    if layout.unit_sequences <= spec.batch:
        return layout
    whole_batches = layout.unit_sequences // spec.batch
    return _layout(spec, tap, whole_batches * spec.batch)


def unit_bytes(layout: Layout, sites: Sequence[Site], dtype: StorageDtype) -> int:
    """Return the bytes of one unit's buffer."""
    n_rows = layout.unit_sequences * layout.context
    return n_rows * buffer_bytes(sites, dtype)


def shard_bytes(layout: Layout, sites: Sequence[Site], dtype: StorageDtype) -> int:
    """Return the decoded bytes of the widest site's shard.

    One encoding thread holds at most that much.
    """
    widest = max(site.d for site in sites)
    return layout.capacity * widest * numpy_dtype(dtype).itemsize


def _layout(spec: HarvestSpec, tap: Tap, unit_sequences: int | None) -> Layout:
    """Return the layout with units of so many sequences (None: planned)."""
    widest = max(site.d for site in tap.sites)
    return plan_layout(
        n_tokens=spec.tokens,
        context=spec.context,
        widest_row_bytes=widest * numpy_dtype(spec.dtype).itemsize,
        all_rows_bytes=buffer_bytes(tap.sites, spec.dtype),
        memory=spec.memory,
        units_in_flight=UNITS_IN_FLIGHT,
        unit_sequences=unit_sequences,
        chunk_rows=spec.chunk_rows,
    )


def corpus_digest(corpus: Corpus | None, tokens: Any) -> str | None:
    """Return what identifies a corpus' contents.

    It is the corpus' own digest, or that of an array of token ids; None where the
    contents are not known before they are read.
    """
    if tokens is None:
        return None if corpus is None else corpus.digest()
    array = token_array(tokens)
    if array is None:
        return None
    from blake3 import blake3

    digest = blake3()
    ids_of_row = math.prod(array.shape[1:])
    step = max(1, _DIGEST_IDS // ids_of_row)
    for start in range(0, len(array), step):
        # As int64, so that the digest is the same for every dtype they may come in.
        ids = np.ascontiguousarray(array[start : start + step], "<i8")
        digest.update(ids.tobytes())
    return digest.hexdigest()


def _device_name(device: str) -> str:
    """Return a device's name as the plan keeps it: the GPU's model, or `cpu`."""
    if device == "auto":
        if not torch.cuda.is_available():
            return "cpu"
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}"
    try:
        torch_device = torch.device(device)
    except RuntimeError as error:
        raise SpecError(f"device {device!r}: {first_line(error)}") from error
    if torch_device.type == "cuda":
        return torch.cuda.get_device_name(torch_device)
    return torch_device.type
