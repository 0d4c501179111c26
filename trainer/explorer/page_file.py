"""The explorer's page: one template, with its styles and scripts in files of their own.

All of it is in the page, and a content-security policy lets nothing else in: styles and
the script go by their digests, and there is no network (a page that is served may ask
its own server). Data is base64, in which no text can end a script.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from trainer.explorer.latent_json import chunk_json, index_json
from trainer.explorer.read_explorer import Explorer

# In the order in which they stand in the page.
_SCRIPTS = (
    "dom.js",
    "data.js",
    "charts.js",
    "list.js",
    "latent.js",
    "search.js",
    "bookmarks.js",
    "main.js",
)


def environment() -> Environment:
    """Return the templates of the page, which escape all that is put into them."""
    return Environment(
        loader=FunctionLoader(_text),
        autoescape=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )


def page_start(explorer: Explorer, *, index: str = "") -> str:
    """Return the page up to its chunks, which a page that is served does not have.

    Args:
        explorer: The files.
        index: The index in base64; empty for a page that is served.
    """
    record = explorer.record
    style = _style()
    script = _script()
    split = record.split.replace("_", "-")
    n_layers = len(record.layers)
    layers = record.layers[0] if n_layers == 1 else f"{n_layers} layers"
    return (
        environment()
        .get_template("page.html")
        .render(
            title=f"Latents of {record.name}",
            lead=(
                f"{record.n_latents:,} latents ({record.kind}) on {record.rows:,}"
                f" {split} rows of {layers}, {record.model}. Activations are in the"
                " SAE's own units."
            ),
            policy=policy(style, script, served=not index),
            served="no" if index else "yes",
            # Ours, and base64: nothing of it is to be escaped.
            style=Markup(style),  # noqa: S704
            script=Markup(script),  # noqa: S704
            index=Markup(index),  # noqa: S704
        )
    )


def policy(style: str, script: str, *, served: bool) -> str:
    """Return the content-security policy of the page."""
    connect = "'self'" if served else "'none'"
    return (
        "default-src 'none'; base-uri 'none'; form-action 'none'; img-src data:;"
        f" style-src {_digest(style)}; script-src {_digest(script)};"
        f" connect-src {connect}"
    )


def served_policy() -> str:
    """Return the policy of a page that is served, as its server sends it too."""
    return policy(_style(), _script(), served=True)


def page_file(
    explorer: Explorer,
    path: Path,
    progress: Callable[[str, int, int], None] | None = None,
) -> None:
    """Write one self-contained page.

    Args:
        explorer: The files that it is made from.
        path: The HTML file.
        progress: Is told "page", how many chunks are done, and how many there are.
    """
    index = base64.b64encode(index_json(explorer)).decode()
    temporary = path.with_name(f".{path.name}.part")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(page_start(explorer, index=index))
        for group in range(explorer.n_groups):
            data = base64.b64encode(chunk_json(explorer, group)).decode()
            file.write(
                f'<script type="application/octet-stream" id="chunk-{group}">'
                f"{data}</script>\n"
            )
            if progress is not None:
                progress("page", group + 1, explorer.n_groups)
        file.write("</body>\n</html>\n")
    temporary.replace(path)


def _style() -> str:
    return _text("explorer.css")


def _script() -> str:
    return '"use strict";\n' + "".join(map(_text, _SCRIPTS))


def _text(name: str) -> str:
    return (files("trainer.explorer") / "page" / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
