"""Cut documents into sequences of a fixed length, from any point of the corpus on.

What a context holds:

* Every document begins with the model's BOS (or CLS) where its tokenizer has one, and
  documents follow each other without a gap: `BOS doc 1 BOS doc 2 ...`, cut every
  `context` tokens (`pack`). A last context that is not full is left out. Without BOS
  every document ends with EOS, or else SEP: `doc 1 EOS doc 2 EOS`, `CLS doc 1 SEP CLS
  doc 2 SEP`.
* `separator`: another token, `eos`, `sep` or an id, ends every document, and BOS begins
  contexts only; `bos` is BOS or an error; with `none` documents run together.
* `prepend_bos=None`: every context begins with BOS as well if the model's tokenizer
  itself puts BOS before a text (Llama, Gemma, BERT; not GPT-2). A document that begins
  just there does not get a second one.
* `prepend_bos=True`: every context begins with BOS, whatever the tokenizer does.
  `False`: no BOS is put in anywhere.
* Without packing a context is one document, with what it begins and ends with, cut off
  at `context` tokens or padded on the right.
* Documents without a token, and those that the tokenizer refuses, are left out and
  counted.

Padding is -1 in every array of tokens here, and stands after a row's tokens: rows of an
array that has it before them are moved to the left (`actstore/format/token_ids.py`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from actstore.errors import CorpusError, SpecError
from actstore.format.token_ids import (
    PAD,
    Tokens,
    check_range,
    check_rows,
    integers,
    moved_left,
    token_array,
)
from actstore.text.corpora import (
    Corpus,
    CorpusCursor,
    MemoryCorpus,
    Piece,
    check_options,
    open_corpus,
)
from actstore.text.separators import (
    BoundaryTokens,
    boundary_tokens,
    warn_of_separator,
)
from schemas.harvest import HarvestSpec

# The cursor after the last sequence of a corpus.
END: CorpusCursor = {"end": True}
# Values of `separator` that nobody asks for; the second is in stores of format 1.0.
UNASKED = ("auto", "bos_if_any")
# Pieces are tokenised together, for a tokenizer's threads, until one of these is there.
_BATCH_PIECES = 64
_BATCH_CHARACTERS = 1 << 20


class TokenBlock(NamedTuple):
    """The tokens of one unit, and where in the corpus the next unit goes on.

    Attributes:
        tokens: int32 [n, context], PAD where there is no token. There are fewer rows
            than asked for where the corpus ends.
        cursor: Where the next sequence begins; END after the last one.
        ended: Whether the corpus has no further sequence.
        skipped: How many documents without a token were passed over.
    """

    tokens: Tokens
    cursor: CorpusCursor
    ended: bool
    skipped: int


class Sequencer(Protocol):
    """Gives the sequences of a corpus one after the other."""

    def seek(self, cursor: CorpusCursor | None) -> None:
        """Go on from the cursor of a block that was taken; None: from the beginning."""
        ...

    def take(self, n: int) -> TokenBlock:
        """Return the next `n` sequences; fewer where the corpus ends."""
        ...


def sequencer(
    spec: HarvestSpec, tokenizer: Any, source: Any = None, vocabulary: int = 0
) -> tuple[Sequencer, Corpus | None]:
    """Open the corpus of a spec, or documents in memory, as sequences of tokens.

    Args:
        spec: The spec of the harvest.
        tokenizer: The tokenizer of the model; None where it has none.
        source: Instead of the spec's corpus: integers [n, context], taken as they are;
            integers [n], a stream to be cut; or an iterable of documents (texts or
            token ids).
        vocabulary: Token ids are below it; 0: not known.

    Returns:
        The sequencer, and the corpus that it reads (None for integers [n, context]).

    Raises:
        SpecError: An option has no use here, or `source` is none of these.
        CorpusError: Nothing can be read, or there are numbers that are not token ids.
    """
    array = None
    if source is not None:
        array = token_array(source)
        check_options(spec.corpus, "memory")
    if array is not None and array.ndim == 2:
        _check_unused_options(spec)
        return ArraySequencer(array, spec.context, vocabulary), None
    boundaries = boundary_tokens(tokenizer, spec.prepend_bos, spec.separator)
    corpus: Corpus
    if source is None:
        corpus = open_corpus(spec.corpus)
        warn_of_separator(boundaries, tokenizer, spec.separator)
    elif array is None:
        corpus = MemoryCorpus(source)
    else:
        check_range(array, "the tokens", vocabulary)
        if spec.separator not in UNASKED:
            raise SpecError(
                "separator: an array of tokens is one stream without documents; leave"
                " it out"
            )
        corpus = MemoryCorpus([array], separate=False)
    documents = DocumentSequencer(
        corpus,
        tokenizer,
        spec.context,
        pack=spec.pack,
        boundaries=boundaries,
        vocabulary=vocabulary,
        ids_only=source is None and spec.corpus.token_column is not None,
    )
    return documents, corpus


def separator_token(source: Sequencer) -> int | None:
    """Return the token that each document ends with; None where there is none."""
    if isinstance(source, DocumentSequencer):
        return source.boundaries.document_end
    return None


def _check_unused_options(spec: HarvestSpec) -> None:
    """Raise SpecError for options that whole sequences have no use for."""
    given = {
        "pack": not spec.pack,
        "prepend_bos": spec.prepend_bos is not None,
        "separator": spec.separator not in UNASKED,
    }
    names = [name for name, is_given in given.items() if is_given]
    if names:
        raise SpecError(
            f"{', '.join(names)}: the tokens are whole sequences [n, context], taken as"
            " they are; leave it out"
        )


class ArraySequencer:
    """The rows of an array [n, context], with their tokens moved to the left.

    Its cursor is `{"sequence": i}`.
    """

    def __init__(self, array: NDArray[Any], context: int, vocabulary: int = 0) -> None:
        if array.shape[1] != context:
            raise SpecError(
                f"tokens of shape {list(array.shape)} do not fit context = {context};"
                " make them equal"
            )
        check_rows(array, "the tokens", vocabulary)
        self._array = array
        self._next = 0  # the row that `take` begins with

    @property
    def n_sequences(self) -> int:
        """The number of sequences that the array has."""
        return len(self._array)

    def seek(self, cursor: CorpusCursor | None) -> None:
        """See `Sequencer.seek`."""
        self._next = cursor["sequence"] if cursor else 0

    def take(self, n: int) -> TokenBlock:
        """See `Sequencer.take`."""
        rows = np.asarray(self._array[self._next : self._next + n])
        tokens = moved_left(rows.astype(np.int32))
        self._next += len(tokens)
        return TokenBlock(
            tokens,
            cursor={"sequence": self._next},
            ended=self._next >= len(self._array),
            skipped=0,
        )


@dataclass(slots=True)
class _TokenizedPiece:
    """A piece of a document, its tokens, and how many of them are in sequences."""

    piece: Piece
    tokens: Tokens
    used: int = 0

    @property
    def is_used_up(self) -> bool:
        return self.used >= len(self.tokens)


@dataclass(slots=True)
class Seen:
    """Counts of what a sequencer has read since it was last sent to a cursor.

    It reads ahead, so this is more than what it has given.

    Attributes:
        documents: Documents with at least one token.
        tokens: Tokens, with those that documents begin and end with.
        size: The size of what was read, in the unit of `Corpus.size`.
    """

    documents: int = 0
    tokens: int = 0
    size: int = 0


class DocumentSequencer:
    """Packs documents into sequences, or takes one document for each.

    Its cursor is that of the corpus for a piece, and `token`: how many of the piece's
    tokens are in earlier sequences.

    Args:
        corpus: The corpus to read documents from.
        tokenizer: For texts; None where all documents are token ids.
        context: Tokens of a sequence.
        pack: Whether documents follow each other without a gap.
        boundaries: The tokens to put in between documents and before contexts.
        vocabulary: Token ids are below it; 0: not known.
        ids_only: Whether a text is refused, because a column of ids was named.
    """

    def __init__(
        self,
        corpus: Corpus,
        tokenizer: Any,
        context: int,
        *,
        pack: bool = True,
        boundaries: BoundaryTokens,
        vocabulary: int = 0,
        ids_only: bool = False,
    ) -> None:
        self._corpus = corpus
        self._tokenizer = tokenizer
        self._context = context
        self._pack = pack
        self._vocabulary = vocabulary
        self._ids_only = ids_only
        self.boundaries = boundaries
        self.seen = Seen()
        self._pieces: Iterator[Piece] | None = None
        # Pieces that are tokenised and not used up, the next one first.
        self._queue: deque[_TokenizedPiece] = deque()
        self._skipped = 0  # documents without a token, since the last `take`

    def seek(self, cursor: CorpusCursor | None) -> None:
        """See `Sequencer.seek`."""
        self.seen = Seen()
        self._queue.clear()
        self._skipped = 0
        if cursor == END:
            self._pieces = iter(())
            return
        if cursor is None:
            self._pieces = self._corpus.pieces(None)
            return
        corpus_cursor = {key: value for key, value in cursor.items() if key != "token"}
        self._pieces = self._corpus.pieces(corpus_cursor)
        # The piece is read again as a whole: its first tokens were used before.
        if self._bring_next_to_front():
            self._queue[0].used = cursor["token"]

    def take(self, n: int) -> TokenBlock:
        """See `Sequencer.take`."""
        if self._pieces is None:
            self.seek(None)
        self._skipped = 0
        rows = np.full((n, self._context), PAD, dtype=np.int32)
        fill_row = self._fill_packed if self._pack else self._fill_with_one_document
        n_filled = 0
        while n_filled < n and fill_row(rows[n_filled]):
            n_filled += 1
        cursor = END
        has_more = n_filled == n and self._has_another_sequence()
        if has_more:
            front = self._queue[0]
            cursor = {**front.piece.cursor, "token": front.used}
        return TokenBlock(
            rows[:n_filled], cursor, ended=not has_more, skipped=self._skipped
        )

    def _fill_packed(self, row: Tokens) -> bool:
        """Fill a row with the next tokens; False where the corpus ends before.

        With a context of 4 and BOS = 1 before each document and each context, the
        documents [5, 6] and [7, 8, 9, 10] become [1, 5, 6, 1] and [1, 7, 8, 9].
        """
        n_filled = 0
        if self._bring_next_to_front():
            bos = self._bos_before(self._queue[0])
            if bos is not None:
                row[0] = bos
                n_filled = 1
        while n_filled < len(row):
            if not self._bring_next_to_front():
                row[:] = PAD
                return False
            front = self._queue[0]
            room = len(row) - n_filled
            tokens = front.tokens[front.used : front.used + room]
            row[n_filled : n_filled + len(tokens)] = tokens
            front.used += len(tokens)
            n_filled += len(tokens)
        return True

    def _fill_with_one_document(self, row: Tokens) -> bool:
        """Put the next document into a row, cut off where it is longer.

        Later pieces of a long document are passed over.
        """
        while self._bring_next_to_front():
            front = self._queue.popleft()
            if self._begins_document(front):
                tokens = front.tokens
                bos = self._bos_before(front)
                if bos is not None:
                    tokens = np.concatenate([np.array([bos], np.int32), tokens])
                row[: len(tokens)] = tokens[: len(row)]
                return True
        return False

    def _bos_before(self, front: _TokenizedPiece) -> int | None:
        """Return the BOS that is put before a context which begins with these tokens.

        None where none is, or where a document with a BOS of its own begins there.
        """
        if not self.boundaries.every_context:
            return None
        bos = self.boundaries.bos
        begins_with_it = front.used == 0 and front.tokens[0] == bos
        return None if begins_with_it else bos

    def _has_another_sequence(self) -> bool:
        """Return whether one more sequence can be taken, without taking it.

        Where there is none, what is left of the corpus is passed over, so that its
        documents without a token are counted.
        """
        if not self._bring_next_to_front():
            return False
        tokens_needed = self._context
        if self._bos_before(self._queue[0]) is not None:
            tokens_needed -= 1
        while not self._holds_a_sequence(tokens_needed):
            if not self._read_more():
                while self._bring_next_to_front():
                    self._queue.popleft()
                return False
        return True

    def _holds_a_sequence(self, tokens_needed: int) -> bool:
        """Return whether the pieces in the queue are enough for one more sequence."""
        if self._pack:
            waiting = sum(len(one.tokens) - one.used for one in self._queue)
            return waiting >= tokens_needed
        return any(self._begins_document(one) for one in self._queue)

    def _begins_document(self, tokenized: _TokenizedPiece) -> bool:
        """Return whether a document that has tokens begins with this piece."""
        # A stream in memory neither begins nor ends, but counts as one document.
        begins = tokenized.piece.first or isinstance(self._corpus, MemoryCorpus)
        return len(tokenized.tokens) > 0 and begins

    def _bring_next_to_front(self) -> bool:
        """Make the front of the queue a piece with tokens left; False at the end.

        Documents without a token count as skipped when they are passed here, not when
        they are read ahead, so that counts do not depend on where a harvest was
        interrupted.
        """
        while True:
            while self._queue and self._queue[0].is_used_up:
                passed = self._queue.popleft()
                if len(passed.tokens) == 0:
                    self._skipped += 1
            if self._queue:
                return True
            if not self._read_more():
                return False

    def _read_more(self) -> bool:
        """Read and tokenise some more pieces; False where there are none."""
        assert self._pieces is not None
        pieces: list[Piece] = []
        n_characters = 0
        for piece in self._pieces:
            pieces.append(piece)
            if hasattr(piece.content, "__len__"):
                n_characters += len(piece.content)
            if len(pieces) == _BATCH_PIECES or n_characters > _BATCH_CHARACTERS:
                break
        for piece, tokens in zip(pieces, self._token_ids(pieces), strict=True):
            tokenized = _TokenizedPiece(piece, self._with_boundaries(piece, tokens))
            self._queue.append(tokenized)
            self.seen.documents += self._begins_document(tokenized)
            self.seen.tokens += len(tokenized.tokens)
            self.seen.size += piece.size
        return bool(pieces)

    def _with_boundaries(self, piece: Piece, tokens: Tokens) -> Tokens:
        """Return a piece's tokens with those that its document begins and ends with.

        A token that the document has there already is not put in again.
        """
        if not len(tokens) and piece.first:
            return tokens
        begin = self.boundaries.document_begin
        end = self.boundaries.document_end
        before: list[int] = []
        after: list[int] = []
        if begin is not None and piece.first and tokens[0] != begin:
            before = [begin]
        # The last piece of a document may have no tokens of its own.
        ends_with_it = len(tokens) > 0 and tokens[-1] == end
        if end is not None and piece.last and not ends_with_it:
            after = [end]
        if not before and not after:
            return tokens
        return np.concatenate(
            [np.array(before, np.int32), tokens, np.array(after, np.int32)]
        )

    def _token_ids(self, pieces: list[Piece]) -> list[Tokens]:
        """Return the tokens of each piece, int32 [n], without boundaries.

        Raises:
            CorpusError: A piece is neither a text nor a list of token ids.
        """
        texts = [piece.content for piece in pieces if isinstance(piece.content, str)]
        if texts and self._ids_only:
            raise CorpusError(
                f"the column of token ids holds texts ({texts[0][:20]!r}); name it with"
                " --text-column"
            )
        # All texts go to the tokenizer at once, and back to their own pieces.
        ids_of_texts = iter(self._tokenized(texts))
        return [
            next(ids_of_texts)
            if isinstance(piece.content, str)
            else self._given_ids(piece)
            for piece in pieces
        ]

    def _given_ids(self, piece: Piece) -> Tokens:
        """Return the ids of a piece that is tokenised already. Raises CorpusError."""
        content = piece.content
        where = f"document {piece.cursor}"
        if content is None:
            return np.zeros(0, np.int32)
        is_list = isinstance(content, (list, tuple))
        if not is_list and not hasattr(content, "__array__"):
            raise CorpusError(
                f"{where}: wanted a text or a list of token ids, got"
                f" {type(content).__name__}"
            )
        # An empty list has no dtype, and would be read as floats.
        ids = integers(content, where) if len(content) else np.zeros(0, np.int32)
        if ids.ndim != 1:
            raise CorpusError(
                f"{where}: token ids of shape {list(ids.shape)}; wanted one list for"
                " each document"
            )
        check_range(ids, where, self._vocabulary)
        return ids.astype(np.int32)

    def _tokenized(self, texts: list[str]) -> list[Tokens]:
        """Return the tokens of each text, int32 [n]; none where it is refused."""
        if not texts:
            return []
        if self._tokenizer is None:
            raise CorpusError(
                "the corpus holds text, but the model has no tokenizer; give token ids"
                " instead"
            )
        try:
            encoded = self._tokenizer(texts, add_special_tokens=False, verbose=False)
            ids_of_texts = encoded["input_ids"]
        except (TypeError, ValueError):
            # A text with half a surrogate pair, for instance. One by one, only that
            # text is left out, and not all that were given with it.
            if len(texts) == 1:
                return [np.zeros(0, np.int32)]
            return [self._tokenized([text])[0] for text in texts]
        return [np.asarray(ids, dtype=np.int32) for ids in ids_of_texts]
