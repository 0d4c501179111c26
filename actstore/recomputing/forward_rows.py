"""Runs a model over stored tokens, and gives some rows of each site."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actstore.errors import ModelError
from actstore.harvesting.model_inputs import autocast, model_inputs
from actstore.model.forward import out_of_memory
from actstore.model.load_model import LoadedModel
from actstore.model.tap import Tap
from actstore.recomputing.allowances import Floats
from actstore.recomputing.own_rounding import in_wider_precision


@dataclass(frozen=True, slots=True)
class Places:
    """Sequences that are run, and where the wanted rows are in them.

    Attributes:
        tokens: int32 [b, context], -1 where there is padding.
        sequence: The sequence of each row, counted from 0, int64 [n].
        position: Its position there, int64 [n].
    """

    tokens: NDArray[np.int32]
    sequence: NDArray[np.int64]
    position: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ForwardRows:
    """Computes rows with a model.

    Attributes:
        model: The model that is run.
        tap: Its sites.
        device: Where the tokens go.
        autocast: The dtype of torch.autocast; None: without.
    """

    model: LoadedModel
    tap: Tap
    device: torch.device
    autocast: str | None

    def rows(self, places: Places) -> dict[str, Floats]:
        """Return the rows of each site, float64 [n, d].

        Raises:
            ModelError: The device has no room for one sequence.
        """
        return self._rows(places, self.autocast)

    def wider_rows(self, places: Places) -> dict[str, Floats]:
        """Return the same in a wider precision, float64 [n, d].

        Raises:
            ModelError, RuntimeError, TypeError, ValueError: The model cannot compute in
                that precision, or there is no room for it.
        """
        if self.autocast is not None:
            return self._rows(places, None)
        with in_wider_precision(self.model.module):
            return self._rows(places, None)

    def _rows(self, places: Places, autocast_dtype: str | None) -> dict[str, Floats]:
        parts: dict[str, list[Tensor]] = {site.name: [] for site in self.tap.sites}

        def keep(i: int, x: Tensor) -> None:
            parts[self.tap.sites[i].name].append(x.detach().cpu())

        tokens = places.tokens
        size = len(tokens)
        while True:
            try:
                for start in range(0, len(tokens), size):
                    batch = tokens[start : start + size]
                    self._run(batch, autocast_dtype, keep)
                break
            except (torch.OutOfMemoryError, RuntimeError) as error:
                if not out_of_memory(error):
                    raise
                if size == 1:
                    raise ModelError(
                        f"out of memory on {self.device} with one sequence of"
                        f" {tokens.shape[1]}"
                    ) from error
                size //= 2
                for kept in parts.values():
                    kept.clear()
        sequence = torch.from_numpy(places.sequence)
        position = torch.from_numpy(places.position)
        return {
            name: torch.cat(kept)[sequence, position].double().numpy()
            for name, kept in parts.items()
        }

    def _run(
        self,
        tokens: NDArray[np.int32],
        autocast_dtype: str | None,
        keep: Callable[[int, Tensor], None],
    ) -> None:
        """Run the model on some sequences, int32 [b, context]."""
        ids, mask = model_inputs(tokens, self.model.pad, self.device)
        with autocast(autocast_dtype, self.device):
            self.tap.run(ids, mask, keep)
