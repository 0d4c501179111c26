"""Everything that may be wrong with a harvest, tried before anything is written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import nn

from actstore.harvesting.block_source import first_block
from actstore.harvesting.harvest_plan import make_plan
from actstore.harvesting.inert_fields import check_acts
from actstore.harvesting.progress import Progress, Report
from actstore.harvesting.run_plan import checked_tap
from actstore.model.load_model import LoadedModel, load_or_wrap
from actstore.model.model_info import tokenizer_files
from actstore.model.tap import Tap
from actstore.text.sequences import (
    Sequencer,
    TokenBlock,
    separator_token,
    sequencer,
)
from schemas.harvest import HarvestSpec, Plan


class TriedHarvest(NamedTuple):
    """What a worker needs to harvest.

    Attributes:
        loaded: The model.
        tap: Its sites.
        source: The corpus.
        plan: What all workers have to agree on.
        first: The plan's first token block.
        tokenizer_files: The tokenizer's files that the store keeps, by name.
    """

    loaded: LoadedModel
    tap: Tap
    source: Sequencer
    plan: Plan
    first: TokenBlock
    tokenizer_files: dict[str, bytes]


@contextmanager
def tried_harvest(
    spec: HarvestSpec,
    device: str,
    report: Report,
    model: nn.Module | None = None,
    tokens: Any = None,
    tokenizer: Any = None,
) -> Iterator[TriedHarvest]:
    """Load the model, plan, and read the first tokens; remove hooks afterwards.

    Args:
        spec: What is harvested.
        device: Where the model runs.
        report: Is told what is being done.
        model: As in `harvest`.
        tokens: As in `harvest`.
        tokenizer: As in `harvest`.

    Raises:
        SpecError, SiteError, ModelError, CorpusError: See `actstore.errors`.
    """
    report(Progress("loading the model"))
    loaded = load_or_wrap(spec.model, model, tokenizer, device)
    loaded.check_context(spec.context)
    check_acts(spec, loaded, model)
    source, corpus = sequencer(spec, loaded.tokenizer, tokens, loaded.info.vocabulary)
    with checked_tap(loaded, spec) as tap:
        plan = make_plan(
            spec, tap, loaded, corpus, tokens, device, separator_token(source)
        )
        report(Progress("reading the corpus"))
        first = first_block(source, plan)
        tap.check_padding(first.tokens)
        files = tokenizer_files(loaded.tokenizer)
        yield TriedHarvest(loaded, tap, source, plan, first, files)
