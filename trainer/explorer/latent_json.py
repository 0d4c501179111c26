"""Makes the JSON that the page reads: an index of all latents, and chunks of some.

Both are JSON, gzipped. Texts of tokens stand once in each chunk. Numbers have three
significant digits, NaN is null.
"""

from __future__ import annotations

import base64
import gzip
import json
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actstore.figures.layer_order import short_site
from trainer.explorer.activation_bins import bin_edges
from trainer.explorer.explorer_tables import BESIDE
from trainer.explorer.read_explorer import Explorer

# Sorting of the list is by these.
INDEX = (
    "density",
    "spread",
    "norm",
    "most",
    "max_cosine",
    "strength",
    "same_token",
    "alone",
)
_PLAIN = (
    "latent",
    "firings",
    "density",
    "spread",
    "norm",
    "most",
    "mean",
    "strength",
    "same_token",
    "alone",
    "trajectory_tokens",
    "layer_firings",
    "layer_means",
    "layer_most",
    "trajectory",
    "output_norms",
    "quantiles",
    "logit_low",
    "logit_high",
    "logit_histogram",
)
_LEVEL = 6


def index_json(explorer: Explorer) -> bytes:
    """Return the index: the record, and the columns that the list sorts and filters by.

    Numbers are float32, shares of firings by layer uint8, both in base64.
    """
    record = explorer.record
    columns = explorer.columns([*INDEX, "layer_firings", "token"])
    firings = columns["layer_firings"].astype(np.float64)
    shares = firings / np.maximum(firings.sum(axis=1, keepdims=True), 1)
    tokens, which = np.unique(columns["token"], return_inverse=True)
    texts = [_text(explorer, int(token)) for token in tokens]
    document = {
        "record": record.model_dump(mode="json"),
        "layers": [short_site(layer) for layer in record.layers],
        "outputs": [short_site(site) for site in record.outputs],
        "columns": {name: _base64(columns[name].astype("<f4")) for name in INDEX},
        # Rounded up, so that a layer where it fires at all is not 0.
        "shares": _base64(np.ceil(shares * 255).astype(np.uint8)),
        "texts": texts,
        "text": _base64(which.astype("<u4")),
        "edges": [_rounded(edge) for edge in bin_edges().tolist()],
    }
    return _packed(document)


def chunk_json(explorer: Explorer, group: int) -> bytes:
    """Return the latents of a row group with all that is shown of them."""
    latents = explorer.latents(group)
    contexts = explorer.contexts(group)
    table = _Texts(explorer)
    bounds = np.searchsorted(
        contexts["latent"], [row["latent"] for row in latents], "left"
    ).tolist()
    bounds.append(len(contexts["latent"]))
    found = []
    for number, row in enumerate(latents):
        part = slice(bounds[number], bounds[number + 1])
        found.append(_latent(explorer, row, contexts, part, table))
    return _packed({"latents": found, "texts": table.texts})


class _Texts:
    """The texts that a chunk uses, each once."""

    def __init__(self, explorer: Explorer) -> None:
        self.texts: list[str] = []
        self._explorer = explorer
        self._places: dict[int, int] = {-1: -1}

    def places(self, tokens: list[int]) -> list[int]:
        """Return where the texts of tokens stand; -1 for no token."""
        for token in tokens:
            if token not in self._places:
                self._places[token] = len(self.texts)
                self.texts.append(_text(self._explorer, token))
        return [self._places[token] for token in tokens]


def _latent(
    explorer: Explorer,
    row: dict[str, Any],
    contexts: dict[str, NDArray[Any]],
    part: slice,
    table: _Texts,
) -> dict[str, Any]:
    """Return all that is shown of a latent, for JSON."""
    found = {name: _plain(row[name]) for name in _PLAIN}
    found["histogram"] = _histogram(row["histogram"])
    found["near"] = _pairs(row["near"], row["near_cosine"])
    found["beside"] = [
        _pairs(
            row["beside"][first : first + BESIDE],
            row["beside_cosine"][first : first + BESIDE],
        )
        for first in range(0, BESIDE * len(explorer.record.beside), BESIDE)
    ]
    found["together"] = [
        [*pair, _rounded(share)]
        for pair, share in zip(
            _pairs(row["together"], row["together_cosine"]),
            row["together_share"],
            strict=False,
        )
    ]
    for name in ("boosted", "suppressed"):
        logits = map(_rounded, row[f"{name}_logits"])
        found[name] = list(zip(table.places(row[name]), logits, strict=True))
    values = contexts["values"][part]
    found["contexts"] = {
        "group": contexts["group"][part].tolist(),
        "layer": contexts["layer"][part].tolist(),
        "value": [_rounded(value) for value in contexts["value"][part].tolist()],
        "row": contexts["row"][part].tolist(),
        "sequence": contexts["sequence"][part].tolist(),
        "position": contexts["position"][part].tolist(),
        "tokens": [table.places(line) for line in contexts["tokens"][part].tolist()],
        "values": [[_rounded(value) for value in line] for line in values.tolist()],
    }
    return found


def _histogram(counts: list[int]) -> dict[str, Any]:
    """Return the bins between the first and the last that are not empty."""
    used = np.flatnonzero(counts)
    if not len(used):
        return {"first": 0, "counts": []}
    first = int(used[0])
    return {"first": first, "counts": counts[first : int(used[-1]) + 1]}


def _pairs(latents: list[int], cosines: list[float]) -> list[list[Any]]:
    return [
        [latent, _rounded(cosine)]
        for latent, cosine in zip(latents, cosines, strict=True)
        if latent >= 0
    ]


def _text(explorer: Explorer, token: int) -> str:
    return explorer.texts.get(token, "") if token >= 0 else ""


def _plain(value: Any) -> Any:
    """Return a number, or a list of them, as JSON takes it."""
    if isinstance(value, list):
        return [_rounded(one) for one in value]
    return _rounded(value)


def _rounded(value: float | None) -> float | int | None:
    """Return a number with three significant digits; None for what is not finite."""
    if value is None or isinstance(value, int):
        return value
    if not math.isfinite(value):
        return None
    short = float(f"{value:.3g}")
    # 0 and not 0.0: most values of a window are that.
    return int(short) if short.is_integer() and abs(short) < 1e15 else short


def _base64(values: NDArray[Any]) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()


def _packed(document: Any) -> bytes:
    """Return JSON, gzipped; equal documents give equal bytes."""
    text = json.dumps(
        document, ensure_ascii=False, allow_nan=False, separators=(",", ":")
    )
    # Half a pair of surrogates has no bytes in UTF-8.
    data = text.encode("utf-8", "replace")
    return gzip.compress(data, _LEVEL, mtime=0)
