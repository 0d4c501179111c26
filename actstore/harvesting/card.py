"""Writes a store's card: a page for people, a figure, a description for search engines.

`README.md` says where the activations come from and how to open them. Its head is that
of a data set's card on the Hugging Face hub. `norms.svg` is the figure in it, and
`croissant.json` says the same to machines (`croissant.py`).

All of it follows from the manifest, so that equal stores have equal cards. Names in a
manifest are a stranger's: each stands as code, on one line, and cannot end it.
"""

from __future__ import annotations

import re
import unicodedata
from pathlib import PurePosixPath

from actstore.console.code_version import code_version
from actstore.figures.draw_svg import draw
from actstore.format import object_keys
from actstore.format.storage import Storage
from actstore.harvesting.croissant import croissant
from actstore.store.norms_of_sites import compute_norms, plot_norms
from actstore.store.store import Store
from schemas.manifest import NormStats, StoreManifest

TAGS = (
    "activations",
    "actstore",
    "interpretability",
    "language-model",
    "sparse-autoencoder",
    "zarr",
)
_MOST_SITES = 200  # that the table names
_MOST_LETTERS = 200  # of a name
# The hub's names of sizes: by the number of rows that each ends below.
_SIZES = (
    (10**3, "n<1K"),
    (10**4, "1K<n<10K"),
    (10**5, "10K<n<100K"),
    (10**6, "100K<n<1M"),
    (10**7, "1M<n<10M"),
    (10**8, "10M<n<100M"),
    (10**9, "100M<n<1B"),
    (10**10, "1B<n<10B"),
    (10**11, "10B<n<100B"),
    (10**12, "100B<n<1T"),
)
# The beginnings of the names of local files and folders.
_LOCAL = ("/", "~", "file:", ".")

_OPEN = """\
```python
import actstore

store = actstore.open("URL or folder of this page")
x = store.read(store.sites[0], slice(0, 1000))  # float32 [1000, d]
```

On the command line: `actstore info URL` says what is here, `actstore verify URL` reads
every object, `actstore pull URL` makes a copy. With zarr-python or xarray,
`import actstore.format.zarr_bfloat16` first if the values are bfloat16: the store is a
Zarr v3 group, `acts/<site>` holds the activations, `norm/<site>` their L2 norms, `rows`
the (sequence, position) of each row, and `tokens` the token ids. `manifest.json` says
the rest."""


def card_files(storage: Storage, manifest: StoreManifest) -> dict[str, bytes]:
    """Return the card's files, by key.

    Args:
        storage: Where the store is, whose plan and statistics are described.
        manifest: What it holds; of `files` the card itself is not needed.
    """
    return {
        object_keys.README: readme(manifest).encode("utf-8", "replace"),
        object_keys.NORMS_FIGURE: norms_figure(storage, manifest),
        object_keys.CROISSANT: croissant(storage, manifest, title(manifest)),
    }


def norms_figure(storage: Storage, manifest: StoreManifest) -> bytes:
    """Return the figure of norms by layer, as SVG."""
    (figure,) = plot_norms(compute_norms(Store(storage, manifest)))
    return draw(figure).encode()


def title(manifest: StoreManifest) -> str:
    """Return what the store is called, in plain text on one line."""
    model = _one_line(_public(manifest.spec.model.name))
    if manifest.imported is not None:
        return f"Activations of {model}"
    return f"Activations of {model} on {_one_line(_public(manifest.spec.corpus.name))}"


def readme(manifest: StoreManifest) -> str:
    """Return the page for people: Markdown with the hub's front matter."""
    parts = [
        _front_matter(manifest),
        "# Activations of a language model",
        (
            f"{_code(title(manifest))}, {manifest.n_rows:,} rows at each of"
            f" {len(manifest.sites)} sites."
        ),
        _list(_provenance(manifest)),
        "## Open it",
        _OPEN,
        "## Sites",
        _site_table(manifest),
        "## Norms",
        f"![L2 norms of the activations by layer]({object_keys.NORMS_FIGURE})",
        "L2 norms over training rows; the band is from the 5 % to the 95 % quantile.",
        "## Written by",
        (
            f"actstore {code_version()}, format"
            f" {manifest.format_version}.{manifest.format_minor}; content id"
            f" `{manifest.content_id}`."
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(manifest: StoreManifest) -> str:
    """Return what the hub reads. A licence is not known, so none is named."""
    sizes = [name for end, name in _SIZES if manifest.n_rows < end]
    lines = ["---", f"pretty_name: {_yaml(title(manifest))}", "tags:"]
    lines += [f"- {tag}" for tag in TAGS]
    lines += ["size_categories:", f"- {sizes[0] if sizes else 'n>1T'}"]
    # The hub shows tables, and has no view of Zarr.
    lines += ["viewer: false", "---"]
    return "\n".join(lines)


def _provenance(manifest: StoreManifest) -> list[tuple[str, str]]:
    """Return what is known of where the rows come from: names and Markdown."""
    spec = manifest.spec
    layout = manifest.layout
    n_held_out = manifest.n_rows - manifest.n_train_rows
    facts = _import(manifest) if manifest.imported is not None else _harvest(manifest)
    if manifest.subset is not None:
        units = ", ".join(f"{first}-{end - 1}" for first, end in manifest.subset.units)
        facts.append(("part of", f"store {_code(manifest.subset.parent)}"))
        facts.append(("units copied", _code(units)))
    facts += [
        ("rows", f"{manifest.n_train_rows:,} for training, {n_held_out:,} held out"),
        (
            "order",
            (
                f"rows of a unit are permuted with seed {spec.seed}; a unit has"
                f" {layout.unit_sequences:,} sequences"
            ),
        ),
        ("stored as", f"{spec.dtype}, {spec.codec}, {manifest.n_bytes:,} bytes"),
    ]
    return facts


def _harvest(manifest: StoreManifest) -> list[tuple[str, str]]:
    """Return the origin of a harvest: the model, the corpus and what was kept of it."""
    spec = manifest.spec
    model = manifest.model
    numerics = manifest.numerics
    corpus = _named(spec.corpus.name, spec.corpus.revision)
    for word, value in (("config", spec.corpus.config), ("split", spec.corpus.split)):
        corpus += f", {word} {_code(value)}" if value else ""
    packed = "packed" if spec.pack else "one document each"
    return [
        ("model", _named(spec.model.name, spec.model.revision)),
        ("architecture", f"{_code(model.architecture)}, {model.n_layers} layers"),
        ("digest of its weights", _code(model.weights_digest)),
        ("digest of its tokenizer", _code(model.tokenizer_digest or "none")),
        ("corpus", corpus),
        ("contexts", f"{spec.context} tokens, {packed}"),
        ("rows left out", _left_out(manifest)),
        (
            "numerics",
            (
                f"{_code(numerics.device)}, torch {_code(numerics.torch)}, model in"
                f" {_code(numerics.dtype)}, {numerics.batch} sequences per forward"
            ),
        ),
    ]


def _import(manifest: StoreManifest) -> list[tuple[str, str]]:
    """Return the origin of an import: its arrays."""
    imported = manifest.imported
    assert imported is not None
    kinds = sorted({f"{array.format}, {array.dtype}" for array in imported.arrays})
    facts = [
        ("model", f"{_code(_public(manifest.spec.model.name))}, not harvested here"),
        ("imported from", "; ".join(_code(kind) for kind in kinds)),
        ("tokens", _code(_public(imported.tokens)) if imported.tokens else "not known"),
    ]
    contexts = f"{manifest.spec.context} tokens" if imported.contexts else "not known"
    return [*facts, ("contexts", contexts)]


def _left_out(manifest: StoreManifest) -> str:
    """Return which tokens' rows were not kept."""
    spec = manifest.spec
    reasons = ["padding"]
    if spec.exclude_special_tokens:
        reasons.append("special tokens")
    if spec.skip_first:
        reasons.append(f"the first {spec.skip_first} tokens of a sequence")
    if spec.exclude_tokens:
        reasons.append(f"{len(spec.exclude_tokens)} token ids")
    return ", ".join(reasons)


def _site_table(manifest: StoreManifest) -> str:
    """Return the table of sites: width and norms over training rows."""
    lines = [
        "| site | d | mean norm | median | largest | not finite |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    lines += [_site_line(norms) for norms in manifest.norms[:_MOST_SITES]]
    n_more = len(manifest.norms) - _MOST_SITES
    text = "\n".join(lines)
    return f"{text}\n\n... and {n_more} more." if n_more > 0 else text


def _site_line(norms: NormStats) -> str:
    figures = norms.all
    median = figures.quantiles[len(figures.quantiles) // 2]
    shown = [f"{value:.4g}" for value in (figures.mean_norm, median, figures.max_norm)]
    if not figures.count:
        shown = ["none"] * 3
    cells = [f"`{norms.site}`", str(norms.d), *shown, f"{figures.non_finite:,}"]
    return f"| {' | '.join(cells)} |"


def _list(facts: list[tuple[str, str]]) -> str:
    """Return facts as a list in Markdown."""
    return "\n".join(f"- {name}: {text}" for name, text in facts)


def _named(name: str, revision: str | None) -> str:
    text = _code(_public(name))
    return f"{text}, revision {_code(revision)}" if revision else text


def _public(name: str) -> str:
    """Return the last part of a local path, for a card leaves this machine."""
    return PurePosixPath(name).name or name if name.startswith(_LOCAL) else name


def _one_line(text: str) -> str:
    """Return text on one line, without what could hide or turn other text."""
    shown = [
        " " if unicodedata.category(letter)[0] in "CZ" else letter for letter in text
    ]
    plain = " ".join("".join(shown).split()) or "?"
    return plain if len(plain) <= _MOST_LETTERS else plain[: _MOST_LETTERS - 3] + "..."


def _code(text: str) -> str:
    """Return text as code in Markdown: nothing in it means anything."""
    plain = _one_line(text)
    # A fence that is longer than any run of its own sign ends nowhere else.
    longest = max((len(run) for run in re.findall("`+", plain)), default=0)
    fence = "`" * (longest + 1)
    return f"{fence} {plain} {fence}" if longest else f"{fence}{plain}{fence}"


def _yaml(text: str) -> str:
    """Return text as a double-quoted scalar of YAML, in ASCII."""
    escaped = [
        letter if letter.isascii() and letter not in '"\\' else f"\\U{ord(letter):08x}"
        for letter in text
    ]
    return f'"{"".join(escaped)}"'
