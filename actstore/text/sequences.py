"""Documents become sequences of a fixed length, from any point of the corpus.

What a context holds:

* Every document begins with the model's BOS (or CLS) where its tokenizer has one, and
  documents follow each other without a gap: `BOS doc 1 BOS doc 2 ...`, cut every
  `context` tokens (`pack`). A last context that is not full is left out. Without BOS
  every document ends with EOS, or else SEP: `doc 1 EOS doc 2 EOS`, `CLS doc 1 SEP CLS
  doc 2 SEP`.
* `separator`: another token, `eos`, `sep` or an id, ends every document, and BOS begins
  contexts only; `bos` is BOS or an error; with `none` documents run together.
* `prepend_bos=None`: besides, every context begins with BOS if the model's tokenizer
  itself puts BOS before a text (Llama, Gemma, BERT; not GPT-2). A document that begins
  just there does not get a second one.
* `prepend_bos=True`: every context begins with BOS, whatever the tokenizer does.
`False`: no BOS is put in anywhere.
* Without packing a context is one document, with what it begins and ends with, cut off
  at `context` tokens or padded on the right.
* Documents without a token, and those that the tokenizer refuses, are left out and
counted.

Padding is -1 in every array of tokens here, and stands behind a row's tokens: rows of
an array that has it before them are moved to the left (`format/token_ids.py`).
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
    Cursor,
    Memory,
    Piece,
    check_options,
    open_corpus,
)
from actstore.text.separators import Bos, bos_of, tell
from schemas.harvest import HarvestSpec

END: Cursor = {"end": True}
# separators that nobody asks for; the second in stores of format 1.0
UNASKED = ("auto", "bos_if_any")
_BATCH_PIECES, _BATCH_CHARACTERS = 64, 1 << 20


class Sequences(NamedTuple):
    """tokens: int32 [n, context], PAD where there is none; cursor: where the next
    sequence starts.
    """

    tokens: Tokens
    cursor: Cursor
    ended: bool
    skipped: int


class Sequencer(Protocol):
    """Sequences one after the other."""

    def seek(self, cursor: Cursor | None) -> None:
        """Go on from a cursor that `take` gave (None: from the beginning)."""
        ...

    def take(self, n: int) -> Sequences:
        """The next `n` sequences; fewer where the corpus ends."""
        ...


def sequencer(
    spec: HarvestSpec, tokenizer: Any, source: Any = None, vocabulary: int = 0
) -> tuple[Sequencer, Corpus | None]:
    """The sequences of a spec's corpus, or of `source`: a 2-d array (one sequence a
    row), a 1-d array (a stream to be cut) or an iterable of documents (texts or token
    ids).

    vocabulary: token ids are below it; 0: not known. Raises SpecError, CorpusError for
    tokens that are none.
    """
    array = None if source is None else token_array(source)
    if source is not None:
        check_options(spec.corpus, "memory")
    if array is not None and array.ndim == 2:
        _check_whole(spec)
        return ArraySequencer(array, spec.context, vocabulary), None
    bos = bos_of(tokenizer, spec.prepend_bos, spec.separator)
    if source is None:
        corpus = open_corpus(spec.corpus)
        tell(bos, tokenizer, spec.separator)
    elif array is None:
        corpus = Memory(source)
    else:
        check_range(array, "the tokens", vocabulary)
        if spec.separator not in UNASKED:
            raise SpecError(
                "separator: an array of tokens is one stream without documents; leave"
                " it out"
            )
        corpus = Memory([array], separate=False)
    named = source is None and spec.corpus.token_column is not None
    made = DocumentSequencer(
        corpus,
        tokenizer,
        spec.context,
        pack=spec.pack,
        bos=bos,
        vocabulary=vocabulary,
        ids_only=named,
    )
    return made, corpus


def separator_token(source: Sequencer) -> int | None:
    """What each document of a sequencer ends with."""
    return source.bos.after if isinstance(source, DocumentSequencer) else None


def _check_whole(spec: HarvestSpec) -> None:
    """Raises SpecError for options that sequences which are taken as they are have no
    use for.
    """
    given = {"pack": not spec.pack, "prepend_bos": spec.prepend_bos is not None}
    given["separator"] = spec.separator not in UNASKED
    if names := [name for name, one in given.items() if one]:
        raise SpecError(
            f"{', '.join(names)}: the tokens are whole sequences [n, context], taken as"
            " they are; leave it out"
        )


class ArraySequencer:
    """The rows of an array [n, context], their tokens from the first position on.
    Cursor: {"sequence": i}.
    """

    def __init__(self, array: NDArray[Any], context: int, vocabulary: int = 0) -> None:
        if array.shape[1] != context:
            raise SpecError(
                f"tokens of shape {list(array.shape)} do not fit context = {context};"
                " make them equal"
            )
        check_rows(array, "the tokens", vocabulary)
        self._array, self._at = array, 0

    @property
    def n_sequences(self) -> int:
        """All of them."""
        return len(self._array)

    def seek(self, cursor: Cursor | None) -> None:
        self._at = cursor["sequence"] if cursor else 0

    def take(self, n: int) -> Sequences:
        rows = moved_left(
            np.asarray(self._array[self._at : self._at + n]).astype(np.int32)
        )
        self._at += len(rows)
        return Sequences(rows, {"sequence": self._at}, self._at >= len(self._array), 0)


@dataclass(slots=True)
class _Part:
    """Tokens of one piece, and how many of them are used up."""

    piece: Piece
    ids: Tokens
    used: int = 0


@dataclass(slots=True)
class Seen:
    """What a sequencer has read and tokenised since it was last sent somewhere; it
    reads ahead of what it gives.

    documents: with a token in them; tokens: with the documents' BOS; size: in the
    measure of `Corpus.size`.
    """

    documents: int = 0
    tokens: int = 0
    size: int = 0


class DocumentSequencer:
    """Packs documents, or takes one per context. Cursor: the source's, and `token`: how
    many of the piece are used.

    ids_only: whether a text is refused, where a column of ids was named.
    """

    def __init__(
        self,
        corpus: Corpus,
        tokenizer: Any,
        context: int,
        *,
        pack: bool = True,
        bos: Bos,
        vocabulary: int = 0,
        ids_only: bool = False,
    ) -> None:
        self._corpus, self._tokenizer, self._context = corpus, tokenizer, context
        self._pack, self.bos, self.seen, self._vocabulary = (
            pack,
            bos,
            Seen(),
            vocabulary,
        )
        self._pieces: Iterator[Piece] | None = None
        self._parts: deque[_Part] = deque()
        self._skipped = 0
        self._ids_only = ids_only

    def seek(self, cursor: Cursor | None) -> None:
        self.seen = Seen()
        self._parts.clear()
        self._skipped = 0
        if cursor == END:
            self._pieces = iter(())
            return
        own = (
            None
            if cursor is None
            else {k: v for k, v in cursor.items() if k != "token"}
        )
        self._pieces = self._corpus.pieces(own)
        if cursor is not None and self._settle():
            self._parts[0].used = cursor["token"]

    def take(self, n: int) -> Sequences:
        if self._pieces is None:
            self.seek(None)
        self._skipped = 0
        rows = np.full((n, self._context), PAD, dtype=np.int32)
        filled = 0
        while filled < n and (
            self._packed(rows[filled]) if self._pack else self._single(rows[filled])
        ):
            filled += 1
        more = filled == n and self._another()
        part = self._parts[0] if more else None
        cursor = {**part.piece.cursor, "token": part.used} if part else END
        return Sequences(rows[:filled], cursor, not more, self._skipped)

    def _packed(self, row: Tokens) -> bool:
        """Fill one row from the stream; False where the corpus ends before."""
        at = 0
        if self.bos.every and self.bos.token is not None and self._settle():
            front = self._parts[0]
            if front.used > 0 or front.ids[0] != self.bos.token:
                row[0], at = self.bos.token, 1
        while at < len(row):
            if not self._settle():
                row[:] = PAD
                return False
            part = self._parts[0]
            ids = part.ids[part.used : part.used + len(row) - at]
            row[at : at + len(ids)] = ids
            part.used += len(ids)
            at += len(ids)
        return True

    def _single(self, row: Tokens) -> bool:
        """One document in one row; the later pieces of a long document are passed over."""
        while self._settle():
            part = self._parts.popleft()
            if self._begins(part):
                ids = part.ids
                if (
                    self.bos.every
                    and self.bos.token is not None
                    and ids[0] != self.bos.token
                ):
                    ids = np.concatenate([np.array([self.bos.token], np.int32), ids])
                row[: len(ids)] = ids[: len(row)]
                return True
        return False

    def _another(self) -> bool:
        """Whether one more sequence can be taken. None is; where there is none, what is
        left is passed over.
        """
        if not self._settle():
            return False
        front, missing = self._parts[0], self._context
        missing -= self.bos.every and (front.used > 0 or front.ids[0] != self.bos.token)
        while not (
            self._left() >= missing
            if self._pack
            else any(map(self._begins, self._parts))
        ):
            if not self._fill():
                while self._settle():
                    self._parts.popleft()
                return False
        return True

    def _left(self) -> int:
        """Tokens that are read and not used."""
        return sum(len(part.ids) - part.used for part in self._parts)

    def _begins(self, part: _Part) -> bool:
        """Whether a document that has tokens begins with a part."""
        return len(part.ids) > 0 and (
            part.piece.first or isinstance(self._corpus, Memory)
        )

    def _settle(self) -> bool:
        """Make the front part one with tokens left; False where the corpus has ended.

        What is skipped counts when it is passed here, not when it is read ahead, so
        that counts do not depend on where a harvest was interrupted.
        """
        while True:
            while self._parts and self._parts[0].used >= len(self._parts[0].ids):
                self._skipped += len(self._parts.popleft().ids) == 0
            if self._parts:
                return True
            if not self._fill():
                return False

    def _fill(self) -> bool:
        """Read and tokenise some more pieces."""
        assert self._pieces is not None
        batch: list[Piece] = []
        characters = 0
        for piece in self._pieces:
            batch.append(piece)
            characters += len(piece.content) if hasattr(piece.content, "__len__") else 0
            if len(batch) == _BATCH_PIECES or characters > _BATCH_CHARACTERS:
                break
        for piece, ids in zip(batch, self._encode(batch), strict=True):
            part = _Part(piece, self._framed(piece, ids))
            self._parts.append(part)
            self.seen.documents += self._begins(part)
            self.seen.tokens += len(part.ids)
            self.seen.size += piece.size
        return bool(batch)

    def _framed(self, piece: Piece, ids: Tokens) -> Tokens:
        """A piece with the tokens that its document begins and ends with, unless it has
        them already.
        """
        if not len(ids) and piece.first:
            return ids
        before, after = self.bos.before, self.bos.after
        begin = (
            [before] if before is not None and piece.first and ids[0] != before else []
        )
        end = (
            [after]
            if after is not None and piece.last and not (len(ids) and ids[-1] == after)
            else []
        )
        return (
            np.concatenate([np.array(begin, np.int32), ids, np.array(end, np.int32)])
            if begin or end
            else ids
        )

    def _encode(self, pieces: list[Piece]) -> list[Tokens]:
        texts = [p.content for p in pieces if isinstance(p.content, str)]
        if texts and self._ids_only:
            raise CorpusError(
                f"the column of token ids holds texts ({texts[0][:20]!r}); name it with"
                " --text-column"
            )
        encoded = iter(self._tokenised(texts))
        return [
            next(encoded) if isinstance(p.content, str) else self._given(p)
            for p in pieces
        ]

    def _given(self, piece: Piece) -> Tokens:
        """The ids of a piece that is tokenised already. Raises CorpusError."""
        content, where = piece.content, f"document {piece.cursor}"
        if content is None:
            return np.zeros(0, np.int32)
        if not (isinstance(content, (list, tuple)) or hasattr(content, "__array__")):
            raise CorpusError(
                f"{where}: wanted a text or a list of token ids, got"
                f" {type(content).__name__}"
            )
        array = integers(content, where) if len(content) else np.zeros(0, np.int32)
        if array.ndim != 1:
            raise CorpusError(
                f"{where}: token ids of shape {list(array.shape)}; wanted one list for"
                " each document"
            )
        check_range(array, where, self._vocabulary)
        return array.astype(np.int32)

    def _tokenised(self, texts: list[str]) -> list[Tokens]:
        if not texts:
            return []
        if self._tokenizer is None:
            raise CorpusError(
                "the corpus holds text, but the model has no tokenizer; give token ids"
                " instead"
            )
        try:
            ids = self._tokenizer(texts, add_special_tokens=False, verbose=False)[
                "input_ids"
            ]
        except (TypeError, ValueError):
            # a text with half a surrogate pair, for instance
            if len(texts) == 1:
                return [np.zeros(0, np.int32)]
            return [one for text in texts for one in self._tokenised([text])]
        return [np.asarray(one, dtype=np.int32) for one in ids]
