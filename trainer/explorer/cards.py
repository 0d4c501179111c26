"""Latents worth a card in a report, and the card: HTML that needs no script.

A latent is worth showing if it matters and if it means something. It matters by its
strength: what it writes at most, relative to the mean norm of its layer. It means
something if its strongest contexts agree: by the share of them that have the same
token, and by how far its firings stand out of the tokens around them. Latents that are
nearly silent are left out, whatever they are.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from actstore.figures.layer_order import short_site
from trainer.explorer.activation_bins import bin_edges
from trainer.explorer.explorer_tables import TOP
from trainer.explorer.page_file import environment
from trainer.explorer.read_explorer import Explorer

LEAST_FIRINGS = 10  # of a latent that is shown
LEAST_STRENGTH = 0.05  # of its layer's norm
MOST_STRENGTH = 1.0  # a few rows of enormous norm are no reason to show a latent
MOST_DENSITY = 0.05  # what fires nearly always says little
CONTEXTS = 6
_SHADES = 5  # classes of shading, s1 to s5: a page's policy may forbid inline styles
_MOST_CHARACTERS = 80
# Control characters are shown by their pictures, as the explorer's page does.
_PICTURES = {code: chr(0x2400 + code) for code in range(32)} | {10: "⏎", 9: "⇥"}


@dataclass(frozen=True, slots=True)
class Token:
    """A token of a card's context.

    Attributes:
        text: What it says.
        value: The latent's activation there; None where the token has no row.
        shade: 0 to 5, by the activation over the latent's largest.
        fires: Whether it is the one that the context was chosen for.
    """

    text: str
    value: float | None
    shade: int
    fires: bool


@dataclass(frozen=True, slots=True)
class CardContext:
    """A context: its layer, the activation, and its tokens."""

    layer: str
    value: float
    tokens: tuple[Token, ...]


@dataclass(frozen=True, slots=True)
class CardLatent:
    """A latent, as its card shows it.

    Attributes:
        latent: Its number.
        density: The share of rows on which it fires.
        spread: Its effective number of layers.
        most: Its largest activation, in the SAE's own units.
        strength: What it writes at most, over the mean norm of its layer.
        same_token: Share of its strongest contexts that have the same token.
        alone: Share of its firings in the activations of the tokens around them.
        histogram: Firings by bin, the first and last bins being used.
        ends: The activations at the ends of the histogram.
        layers: Names of the layers.
        shares: The share of its firings at each.
        contexts: Its strongest contexts.
    """

    latent: int
    density: float
    spread: float
    most: float
    strength: float
    same_token: float
    alone: float
    histogram: tuple[int, ...]
    ends: tuple[float, float]
    layers: tuple[str, ...]
    shares: tuple[float, ...]
    contexts: tuple[CardContext, ...]


def interesting_latents(
    folder: str | os.PathLike[str],
    n: int = 12,
    *,
    across_layers: bool = False,
    n_contexts: int = CONTEXTS,
) -> list[CardLatent]:
    """Return the latents of an explorer that are most worth a card, best first.

    They go by strength * coherence, coherence being the root of `same_token` * `alone`,
    and strength counting up to 1. Those that fire on more than MOST_DENSITY of the rows
    come after all others. With `across_layers` the worth is also times the share of
    all layers that their firings are spread over.

    Args:
        folder: The explorer's folder: what `explore` returns.
        n: How many are wanted; there are fewer where too few are worth it.
        across_layers: Prefer latents that fire at many layers.
        n_contexts: Contexts of each.

    Raises:
        RunError: There is no explorer in the folder.
    """
    explorer = Explorer(folder)
    names = ["firings", "density", "strength", "same_token", "alone", "spread"]
    columns = explorer.columns(names)
    worth = worth_of(columns, len(explorer.record.layers), across_layers)
    order = np.lexsort((np.arange(len(worth)), -worth))[:n]
    chosen = [int(latent) for latent in order if worth[latent] > 0]
    return [_card(explorer, latent, n_contexts) for latent in chosen]


def worth_of(
    columns: dict[str, NDArray[np.float64]], n_layers: int, across_layers: bool
) -> NDArray[np.float64]:
    """Return how much each latent is worth a card, float64 [m]; 0 for not at all."""
    strength = np.nan_to_num(columns["strength"].astype(np.float64))
    coherence = np.sqrt(columns["same_token"] * columns["alone"])
    worth = np.nan_to_num(np.minimum(strength, MOST_STRENGTH) * coherence)
    # Nothing is worth more than 1.
    worth = np.where(columns["density"] > MOST_DENSITY, 1e-3 * worth, worth)
    if across_layers:
        worth = worth * columns["spread"] / n_layers
    is_silent = columns["firings"] < LEAST_FIRINGS
    return np.where(is_silent | (strength < LEAST_STRENGTH), 0.0, worth)


def card_html(latent: CardLatent) -> str:
    """Return a card as an HTML `article`; all text is escaped.

    Its classes are `latent-card`, `context`, `layer`, `token` and `s1` to `s5`, whose
    styles `card_style` has.
    """
    template = environment().get_template("card.html")
    return template.render(latent=latent, bars=_bars(latent.histogram))


def cards_html(latents: Sequence[CardLatent]) -> Markup:
    """Return several cards, for a template."""
    return Markup("".join(map(card_html, latents)))  # noqa: S704


def card_style() -> str:
    """Return the styles of cards, for a page that defines --ink, --dim and the like."""
    return environment().get_template("card.css").render()


def _card(explorer: Explorer, latent: int, n_contexts: int) -> CardLatent:
    size = explorer.record.row_group
    row = explorer.latents(latent // size)[latent % size]
    counts = np.array(row["histogram"])
    used = np.flatnonzero(counts)
    edges = bin_edges()
    firings = np.array(row["layer_firings"], np.float64)
    return CardLatent(
        latent=latent,
        density=row["density"],
        spread=row["spread"],
        most=row["most"],
        strength=row["strength"],
        same_token=row["same_token"],
        alone=row["alone"],
        histogram=tuple(counts[used[0] : used[-1] + 1].tolist()),
        ends=(float(edges[used[0]]), float(edges[used[-1] + 1])),
        layers=tuple(short_site(layer) for layer in explorer.record.layers),
        shares=tuple((firings / firings.sum()).tolist()),
        contexts=tuple(_contexts(explorer, latent, row["most"], n_contexts)),
    )


def _contexts(
    explorer: Explorer, latent: int, most: float, n_contexts: int
) -> list[CardContext]:
    columns = explorer.contexts(latent // explorer.record.row_group)
    is_top = (columns["latent"] == latent) & (columns["group"] == TOP)
    found = []
    for i in np.flatnonzero(is_top)[:n_contexts].tolist():
        pairs = zip(
            columns["tokens"][i].tolist(), columns["values"][i].tolist(), strict=True
        )
        tokens = [
            _token(explorer, token, value, most, place == explorer.record.before)
            for place, (token, value) in enumerate(pairs)
            if token >= 0
        ]
        layer = short_site(explorer.record.layers[int(columns["layer"][i])])
        found.append(CardContext(layer, float(columns["value"][i]), tuple(tokens)))
    return found


def _token(
    explorer: Explorer, token: int, value: float, most: float, fires: bool
) -> Token:
    text = explorer.texts.get(token, "")
    if len(text) > _MOST_CHARACTERS:
        text = f"{text[:_MOST_CHARACTERS]}…"
    text = text.translate(_PICTURES) or "∅"
    if np.isnan(value):
        return Token(text, None, 0, fires)
    # Any firing is seen: the weakest have shade 1.
    shade = int(np.ceil(_SHADES * min(1.0, value / most))) if value > 0 else 0
    return Token(text, value, shade, fires)


def _bars(counts: Sequence[int]) -> list[tuple[float, float, float]]:
    """Return x, y and height of bars in a box of 100 by 30."""
    width = 100 / max(1, len(counts))
    highest = max(counts, default=1)
    heights = [30 * count / highest for count in counts]
    return [
        (round(i * width, 2), round(30 - height, 2), round(height, 2))
        for i, height in enumerate(heights)
    ]
