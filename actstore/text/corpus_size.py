"""How many tokens a corpus holds, from what the calibration batches had to read of it;
the rest stays unread.

All of it was read: the number is counted. Else it is what was read times the corpus'
size over that part's size, in bytes of files or in rows, where the corpus knows its
size. Tokens are positions of whole contexts, as in a spec.
"""

from __future__ import annotations

import math

from actstore.text.corpora import Corpus
from actstore.text.sequences import (
    ArraySequencer,
    DocumentSequencer,
    Sequencer,
    Sequences,
)
from schemas.harvest import HarvestSpec, Layout
from schemas.records import CorpusEstimate


def corpus_estimate(
    spec: HarvestSpec, source: Sequencer, corpus: Corpus | None, sample: Sequences
) -> CorpusEstimate:
    """What the corpus of `source` holds; `sample` is what `source.take` gave from its
    beginning on.
    """
    n = len(sample.tokens)
    if isinstance(source, ArraySequencer):
        return _found(spec, source.n_sequences, "counted", source.n_sequences)
    if not isinstance(source, DocumentSequencer):
        return _found(spec, None, "unknown", 0)
    total, seen = corpus.size() if corpus is not None else None, source.seen
    if sample.ended:
        return _found(spec, n, "counted", seen.documents)
    upper = 1 + (seen.tokens // _payload(spec, source) if spec.pack else seen.documents)
    if total is not None and seen.size >= total:  # the rest is tokenised already
        left = source.take(max(1, upper - n + 1))
        if left.ended:
            return _found(spec, n + len(left.tokens), "counted", seen.documents)
    if total is None or not seen.size:
        return _found(spec, None, "unknown", seen.documents)
    share = total / seen.size
    sequences = (
        seen.tokens * share / _payload(spec, source)
        if spec.pack
        else seen.documents * share
    )
    return _found(spec, max(n, math.floor(sequences)), "estimated", seen.documents)


def _payload(spec: HarvestSpec, source: DocumentSequencer) -> int:
    """Tokens of the corpus in a context: all, or all but the BOS that is put before
    each.
    """
    return max(1, spec.context - 1) if source.bos.every else spec.context


def _found(
    spec: HarvestSpec, sequences: int | None, how: str, documents: int
) -> CorpusEstimate:
    tokens = None if sequences is None else sequences * spec.context
    short = sequences is not None and sequences < -(-spec.tokens // spec.context)
    return CorpusEstimate.model_validate(
        {
            "asked": spec.tokens,
            "tokens": tokens,
            "how": how,
            "documents": documents,
            "short": short,
        }
    )


def filled(layout: Layout, corpus: CorpusEstimate) -> Layout:
    """The units that a corpus fills; their size is what a harvest of the tokens asked
    for makes it.
    """
    if not corpus.short or corpus.tokens is None:
        return layout
    n_sequences = max(1, corpus.tokens // layout.context)
    n_units = math.ceil(n_sequences / layout.unit_sequences)
    return layout.model_copy(update={"n_sequences": n_sequences, "n_units": n_units})


def sentence(found: CorpusEstimate, name: str) -> str:
    """For people: what is known, how, and what follows."""
    read = f"{found.documents:,} document{'s' if found.documents != 1 else ''}"
    if found.tokens is None:
        return (
            f"the size of corpus {name} is not known; should it end before"
            f" {found.asked:,} tokens, all is less"
        )
    if found.how == "counted":
        text = (
            f"corpus {name} ends after {found.tokens:,} tokens in whole contexts"
            f" ({read}; all of it was read)"
        )
    else:
        text = (
            f"corpus {name} holds about {found.tokens:,} tokens (from tokens per size"
            f" of the first {read})"
        )
    if not found.short:
        return text
    return (
        f"{text}, fewer than the {found.asked:,} asked; the figures are for that many."
        f" Give more text, or `--tokens {found.tokens}`, so that units are cut for what"
        " there is"
    )
