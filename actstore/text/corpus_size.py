"""Estimate how many tokens a corpus holds, from what calibration had to read of it.

The rest of the corpus stays unread. If calibration read all of it, the tokens are
counted. If not, the estimate is the tokens that were read, times the size of the whole
corpus over the size of the part that was read (bytes of files, or rows), where the
corpus knows its size. Tokens are positions of whole contexts, as in a spec.
"""

from __future__ import annotations

import math

from actstore.text.corpora import Corpus
from actstore.text.sequences import (
    ArraySequencer,
    DocumentSequencer,
    Sequencer,
    TokenBlock,
)
from schemas.harvest import HarvestSpec, Layout
from schemas.records import CorpusEstimate


def corpus_estimate(
    spec: HarvestSpec, source: Sequencer, corpus: Corpus | None, sample: TokenBlock
) -> CorpusEstimate:
    """Return what is known of how many tokens a corpus holds.

    Args:
        spec: The spec of the harvest.
        source: Gives the sequences of the corpus, and counts what it read for them.
        corpus: What `source` reads; None for an array in memory.
        sample: The first block that `source` gave, from the beginning of the corpus.
    """
    if isinstance(source, ArraySequencer):
        n_sequences = source.n_sequences
        return _estimate(spec, n_sequences, "counted", n_sequences)
    if not isinstance(source, DocumentSequencer):
        return _estimate(spec, None, "unknown", 0)
    total_size = corpus.size() if corpus is not None else None
    n_taken = len(sample.tokens)
    seen = source.seen
    if sample.ended:
        return _estimate(spec, n_taken, "counted", seen.documents)
    if total_size is not None and seen.size >= total_size:
        # All of the corpus is tokenised already, and waits to be cut into contexts: to
        # count them costs nothing more. No more than `at_most` contexts can come.
        if spec.pack:
            at_most = 1 + seen.tokens // _document_tokens_per_context(spec, source)
        else:
            at_most = 1 + seen.documents
        rest = source.take(max(1, at_most - n_taken + 1))
        if rest.ended:
            n_sequences = n_taken + len(rest.tokens)
            return _estimate(spec, n_sequences, "counted", seen.documents)
    if total_size is None or not seen.size:
        return _estimate(spec, None, "unknown", seen.documents)
    # 1 MB of a corpus of 10 MB gave 250,000 tokens: the whole gives about 2,500,000,
    # which are 19,531 contexts of 128.
    ratio = total_size / seen.size
    if spec.pack:
        sequences = seen.tokens * ratio / _document_tokens_per_context(spec, source)
    else:
        sequences = seen.documents * ratio
    n_sequences = max(n_taken, math.floor(sequences))
    return _estimate(spec, n_sequences, "estimated", seen.documents)


def _document_tokens_per_context(spec: HarvestSpec, source: DocumentSequencer) -> int:
    """Return how many tokens of a context come from the corpus.

    All of them, or all but the BOS that every context begins with.
    """
    if source.boundaries.every_context:
        return max(1, spec.context - 1)
    return spec.context


def _estimate(
    spec: HarvestSpec, n_sequences: int | None, how: str, n_documents: int
) -> CorpusEstimate:
    tokens = None
    short = False
    if n_sequences is not None:
        tokens = n_sequences * spec.context
        # Rounded up: 1,000 tokens are 8 contexts of 128, the last of them in part.
        asked_sequences = -(-spec.tokens // spec.context)
        short = n_sequences < asked_sequences
    return CorpusEstimate.model_validate(
        {
            "asked": spec.tokens,
            "tokens": tokens,
            "how": how,
            "documents": n_documents,
            "short": short,
        }
    )


def layout_for_corpus(layout: Layout, corpus: CorpusEstimate) -> Layout:
    """Return the layout with only as many units as the corpus fills.

    The size of a unit stays what a harvest of the tokens asked for makes it.
    """
    if not corpus.short or corpus.tokens is None:
        return layout
    n_sequences = max(1, corpus.tokens // layout.context)
    n_units = math.ceil(n_sequences / layout.unit_sequences)
    return layout.model_copy(update={"n_sequences": n_sequences, "n_units": n_units})


def describe_estimate(estimate: CorpusEstimate, name: str) -> str:
    """Return a sentence on a corpus: what is known, how, and what follows from it."""
    plural = "" if estimate.documents == 1 else "s"
    documents = f"{estimate.documents:,} document{plural}"
    if estimate.tokens is None:
        return (
            f"the size of corpus {name} is not known; should it end before"
            f" {estimate.asked:,} tokens, all is less"
        )
    if estimate.how == "counted":
        text = (
            f"corpus {name} ends after {estimate.tokens:,} tokens in whole contexts"
            f" ({documents}; all of it was read)"
        )
    else:
        text = (
            f"corpus {name} holds about {estimate.tokens:,} tokens (from tokens per"
            f" size of the first {documents})"
        )
    if not estimate.short:
        return text
    return (
        f"{text}, fewer than the {estimate.asked:,} asked; the figures are for that"
        f" many. Give more text, or `--tokens {estimate.tokens}`, so that units are cut"
        " for what there is"
    )
