"""Names of a catalog: what they may be, what they lead to, and where they are taken."""

from __future__ import annotations

from pathlib import Path

import pytest

import actstore
from actstore.catalog.names import CatalogName, parsed_name
from actstore.catalog.resolve import resolve
from actstore.errors import CatalogError, SpecError, StorageError
from actstore.format.storage import Storage
from tests.cli.conftest import Cli
from tests.support import make_store


def test_the_parts_of_a_name() -> None:
    assert parsed_name("catalog:gpt2-mlp") == CatalogName("gpt2-mlp", None, None)
    assert parsed_name("gpt2:v1.2") == CatalogName("gpt2", "v1.2", None)
    assert parsed_name("gpt2:" + "a" * 12) == CatalogName("gpt2", None, "a" * 12)


@pytest.mark.parametrize(
    "name",
    [
        "", "..", ".", "a/b", "../a", "a..b", "-a", "a-", "a b", "a\n", "ä", "a:", "a:b:c", "a:../b", "a\\b", "a" * 101,
        "a:" + "b" * 101, "%2e%2e", "a\0b",
    ],
)  # fmt: skip
def test_what_cannot_be_a_name(name: str, team: str, store: str) -> None:
    with pytest.raises(CatalogError):
        parsed_name(f"catalog:{name}")
    if name:
        with pytest.raises((CatalogError, SpecError)):
            actstore.publish(store, name)
    assert not Path(team).exists()


def test_a_published_store_opens_by_its_name(team: str, store: str) -> None:
    published = actstore.publish(store, "mini")
    assert published.name == "catalog:mini:latest"
    opened = actstore.open("catalog:mini")
    assert opened.url == store
    for version in (
        "latest",
        opened.manifest.content_id,
        opened.manifest.content_id[:12],
    ):
        assert resolve(f"catalog:mini:{version}") == store
    assert resolve("s3://any/other") == "s3://any/other"
    assert actstore.open("catalog:mini", follow=True).url == store


def test_the_option_says_which_catalog(cli: Cli, tmp_path: Path, store: str) -> None:
    for name in "ab":
        code, _, err = cli(
            "actstore", "publish", store, name, "--catalog", str(tmp_path / name)
        )
        assert (code, err) == (0, "")
    code, out, _ = cli(
        "actstore", "info", "catalog:b", "--catalog", str(tmp_path / "b")
    )
    assert code == 0
    assert store in out
    code, _, err = cli(
        "actstore", "info", "catalog:b", "--catalog", str(tmp_path / "a")
    )
    assert code == 1
    assert "no store of that name is published" in err
    code, _, err = cli("actstore", "info", "catalog:b")
    assert code == 1
    assert "no catalog is known; give --catalog URL, or set ACTSTORE_CATALOG" in err


def test_a_name_is_no_place_to_write_to(team: str, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="a name in a catalog"):
        Storage("catalog:mini")


def test_another_store_at_the_place_is_told(
    team: str, tmp_path: Path, store: str
) -> None:
    actstore.publish(store, "mini")
    Path(store).rename(tmp_path / "away")
    with pytest.raises(CatalogError, match="the store that was published is gone"):
        actstore.open("catalog:mini")
    make_store(store, n_units=3)
    with pytest.raises(CatalogError, match="was replaced since it was published"):
        actstore.open("catalog:mini")
    with pytest.raises(CatalogError, match="was replaced since it was published"):
        actstore.open("catalog:mini", follow=True)
