"""The card of a store: what it says, and that nobody's names can break out of it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
import yaml
from huggingface_hub import DatasetCard
from hypothesis import given, settings
from hypothesis import strategies as st

import actstore
from actstore.format.storage import Storage
from actstore.harvesting.card import card_files, readme, title
from actstore.inspect.verify import verify
from schemas.manifest import StoreManifest
from tests.support import SITES, grow, make_store

CARD = ("README.md", "norms.svg", "croissant.json")
HOSTILE = [
    "---\nlicense: mit\n---",
    '"\nlicense: mit\n"',
    "<script>alert(1)</script>",
    "` | <b>x</b> | `",
    "```\n# heading\n```",
    "![x](http://evil/x.svg)",
    "a\u2028b\u202egnp.exe\u200b",
    "\U0001f600 \u65e5\u672c",
    "a: b #c {d} [e] &f *g !h %i @j \\",
    "  ",
    "`" * 9,
]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> actstore.Store:
    return make_store(tmp_path_factory.mktemp("card") / "s", n_units=21)


def named(manifest: StoreManifest, model: str, corpus: str) -> StoreManifest:
    spec = manifest.spec
    return manifest.model_copy(
        update={
            "spec": spec.model_copy(
                update={
                    "model": spec.model.model_copy(
                        update={"name": model, "revision": corpus}
                    ),
                    "corpus": spec.corpus.model_copy(
                        update={"name": corpus, "config": model, "split": model}
                    ),
                }
            ),
            "model": manifest.model.model_copy(update={"architecture": model}),
            "numerics": manifest.numerics.model_copy(update={"device": corpus}),
        }
    )


def front_matter(page: str) -> dict[str, Any]:
    """What the hub's own reader finds at the head of a page."""
    data: dict[str, Any] = DatasetCard(page).data.to_dict()  # type: ignore[no-untyped-call]
    return data


def outside_of_code(page: str) -> str:
    """A page but for its front matter, code blocks and code spans (CommonMark)."""
    body = page.split("\n---\n", 1)[1]
    body = re.sub(r"(?ms)^```python$.*?^```$", "", body)
    return re.sub(r"(?<!`)(`+)(?!`)[^\n]*?(?<!`)\1(?!`)", "", body)


def test_it_is_recorded_verified_and_the_same_for_the_same_store(
    store: actstore.Store, tmp_path: Path
) -> None:
    assert set(CARD) < set(store.manifest.files)
    again = make_store(tmp_path / "s", n_units=21)
    for key in CARD:
        assert again.storage.read(key) == store.storage.read(key)
    path = tmp_path / "s/norms.svg"
    path.write_bytes(path.read_bytes().replace(b"norm", b"mean"))
    assert any("norms.svg" in line for line in verify(again).problems)


def test_it_is_a_data_set_card_of_the_hub(store: actstore.Store) -> None:
    text = store.storage.read("README.md").decode()
    data = front_matter(text)
    assert data["size_categories"] == ["1K<n<10K"]
    assert "sparse-autoencoder" in data["tags"]
    assert "license" not in data, "it is not known"
    for word in (
        *(site.name for site in store.manifest.sites),
        store.manifest.content_id,
        store.manifest.model.weights_digest,
        "2,560 for training, 128 held out",
        "](norms.svg)",
        "actstore.open(",
        "actstore info",
        "seed 0",
    ):
        assert word in text


def test_the_figure_is_an_svg_of_the_sites(store: actstore.Store) -> None:
    text = store.storage.read("norms.svg").decode()
    assert ET.fromstring(text).tag.endswith("svg")
    assert "1 mlp_out" in text


def test_an_extension_writes_it_anew(tmp_path: Path) -> None:
    first = make_store(tmp_path / "s", n_units=3)
    wider = grow(first, {"blocks.1.hook_z": 8}, 3, "bfloat16")
    assert b"`blocks.1.hook_z`" in wider.storage.read("README.md")
    assert verify(wider).problems == []
    assert verify(first).problems == [], "who opened it before goes on"
    longer = grow(wider, {**SITES, "blocks.1.hook_z": 8}, 5, "bfloat16")
    assert verify(longer).problems == []


def test_a_part_and_an_import_say_so(
    store: actstore.Store, tmp_path: Path, memory_url: str
) -> None:
    actstore.copy(store.url, memory_url, units="1:3,19")
    page = Storage(memory_url).read("README.md").decode()
    assert f"part of: store `{store.manifest.content_id}`" in page
    assert "units copied: `1-2, 19-19`" in page
    import numpy as np

    rows = np.ones((40, 4), np.float32)
    imported = actstore.import_activations({"a": rows}, tmp_path / "i")
    assert "imported from: `memory, float32`" in readme(imported.manifest)


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_names_stay_names(store: actstore.Store, text: str) -> None:
    check_hostile(store, text, text)


@settings(max_examples=200, deadline=None)
@given(
    model=st.text(st.sampled_from("`|<>!-_*#[]()\\\n\r\"':ab \u2028\u202e~$&")),
    corpus=st.text(max_size=50),
)
def test_any_name_stays_a_name(store: actstore.Store, model: str, corpus: str) -> None:
    check_hostile(store, model, corpus)


def check_hostile(store: actstore.Store, model: str, corpus: str) -> None:
    manifest = named(store.manifest, model or "m", corpus or "c")
    page = readme(manifest)
    plain = readme(named(store.manifest, "m", "c"))
    data = front_matter(page)
    assert data.keys() == front_matter(plain).keys()
    assert yaml.safe_load(page.split("---\n")[1])["pretty_name"] == title(manifest)
    # the same lines, the same Markdown: names are in code spans only
    assert outside_of_code(page) == outside_of_code(plain)
    assert page.isprintable() or not re.search(
        r"[\x00-\x09\x0b-\x1f\u2028\u202e]", page
    )
    files = card_files(store.storage, manifest)
    assert json.loads(files["croissant.json"])["name"] == title(manifest)
    assert files["croissant.json"].isascii()


def test_no_path_of_this_machine(store: actstore.Store) -> None:
    spec = store.manifest.spec
    sources = {
        "model": spec.model.model_copy(update={"name": "/home/someone/model"}),
        "corpus": spec.corpus.model_copy(update={"name": "~/someone/corpus"}),
    }
    local = spec.model_copy(update=sources)
    page = readme(store.manifest.model_copy(update={"spec": local}))
    assert "someone" not in page
    assert "model: `model`" in page


def test_what_croissant_says_of_files(store: actstore.Store) -> None:
    said = json.loads(store.storage.read("croissant.json"))
    assert said["conformsTo"] == "http://mlcommons.org/croissant/1.0"
    kinds = {one["@type"] for one in said["distribution"]}
    assert kinds == {"cr:FileObject", "cr:FileSet"}
    keys = store.storage.list()
    for one in said["distribution"]:
        if one["@type"] == "cr:FileObject":
            data = store.storage.read(one["contentUrl"])
            assert one["sha256"] == hashlib.sha256(data).hexdigest()
            assert one["contentSize"] == f"{len(data)} B"
        else:
            folder = one["includes"].removesuffix("**")
            assert any(key.startswith(folder) for key in keys)
    assert not {"license", "creator", "datePublished"} & said.keys(), "not known"


def test_mlcroissant_takes_it(store: actstore.Store) -> None:
    python = os.environ.get("ACTSTORE_CROISSANT_PYTHON")
    if python is None:
        pytest.skip("ACTSTORE_CROISSANT_PYTHON names no Python that has mlcroissant")
    script = (
        "import sys, mlcroissant\n"
        "data = mlcroissant.Dataset(sys.argv[1])\n"
        "print(sorted(data.metadata.ctx.issues.errors))\n"
    )
    path = Path(store.url) / "croissant.json"
    made = subprocess.run(
        [python, "-c", script, str(path)], capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stderr
    assert made.stdout == "[]\n"
