"""The tokens around a row: those of the sequences that were looked at, in a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actstore.store.store import Store
from trainer.explorer.kept_firings import AFTER, BEFORE, WINDOW

Ints = NDArray[np.int64]
NO_TOKEN = -1


class TokenFile:
    """Tokens of sequences, int32 [n, context], in a file.

    Attributes:
        has_tokens: False for a store that was imported without them.
    """

    def __init__(self, folder: Path, store: Store) -> None:
        self.has_tokens = store.manifest.has_tokens
        self._store = store
        self._path = folder / "tokens.bin"
        self._path.touch()
        self._sequences: list[Ints] = []
        self._last = -1

    def add(self, sequences: Ints) -> None:
        """Add the tokens of sequences, which come in ascending order.

        sequences: of each row, int64 [n]; what has been added is passed over.
        """
        new = np.unique(sequences)
        new = new[new > self._last]
        if not (self.has_tokens and len(new)):
            return
        self._last = int(new[-1])
        self._sequences.append(new)
        with self._path.open("ab") as file:
            file.write(self._store.tokens(new).tobytes())

    def windows(self, sequence: Ints, position: Ints) -> NDArray[np.int32]:
        """Return the tokens around positions, int32 [n, WINDOW]; -1 where is none."""
        n = len(sequence)
        if not self.has_tokens or n == 0:
            return np.full((n, WINDOW), NO_TOKEN, np.int32)
        self._sequences = [np.concatenate(self._sequences)]
        context = self._store.layout.context
        shape = (len(self._sequences[0]), context)
        tokens: NDArray[np.int32] = np.memmap(
            self._path, dtype=np.int32, mode="r", shape=shape
        )
        number = np.searchsorted(self._sequences[0], sequence)
        place = position[:, None] + np.arange(-BEFORE, AFTER + 1)
        inside = (place >= 0) & (place < context)
        found = tokens[number[:, None], np.where(inside, place, 0)]
        return np.where(inside, found, NO_TOKEN).astype(np.int32)


def texts_of(tokens: Ints, tokenizer: Any) -> list[str]:
    """Return the text of each token, alone; its number where there is no tokenizer."""
    if tokenizer is None:
        return [str(token) for token in tokens]
    return [str(tokenizer.decode([int(token)])) for token in tokens]
