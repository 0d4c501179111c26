"""Stores are read below the prefixes that were set, and nowhere else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import actstore
from actstore.errors import ActstoreError, CorruptError, SpecError
from schemas.service import ServicePlaces
from tests.support import make_store
from trainer.passes.allowed_stores import AllowedStores
from trainer.passes.places_file import check_store_again, write_places

S3 = "s3://ours/stores"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A prefix `stores` with a store, and beside it what nobody is to read."""
    for name in ("stores/a", "stores-of-others/a", "secret"):
        (tmp_path / name).mkdir(parents=True)
    return tmp_path


def allowed(folder: Path) -> AllowedStores:
    return AllowedStores([str(folder / "stores"), S3])


@pytest.mark.parametrize("store", ["stores/a", "stores", "stores/./a", "stores/new"])
def test_what_lies_below_a_prefix_is_allowed(
    folder: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = os.path.normpath(folder / store)
    assert allowed(folder).check(str(folder / store)) == whole
    monkeypatch.chdir(folder)
    assert allowed(folder).check(store) == whole


@pytest.mark.parametrize("store", [S3, f"{S3}/", f"{S3}/a", f"{S3}/deep/er"])
def test_so_is_what_lies_below_a_url(folder: Path, store: str) -> None:
    assert allowed(folder).check(store) == store.rstrip("/")


NOT_ALLOWED = (
    # elsewhere
    "/etc/passwd", "/", ".", "..", "{}/secret", "{}", "{}/stores-of-others/a",
    "{}/stores/../secret", "{}/stores/a/../../secret", "~", "~root/x",
    # protocols, in any case
    "file://{}/stores/a", "FILE://{}/stores/a", "file:{}/stores/a", "local://{}/stores/a",
    "http://127.0.0.1/x", "https://example.org/x", "HTTP://127.0.0.1/x", "ftp://x/y",
    "memory://x", "hf://datasets/x/y", "github://a:b@/x", "reference://x", "dir://x",
    "data:text/plain,x", "sftp://x/y", "smb://x/y", "zip://x", "gs://ours/stores/a",
    "S3://ours/stores/a", "s3a://ours/stores/a", "s3:/ours/stores/a", "s3:ours/stores/a",
    # chains, whichever way round
    "simplecache::s3://ours/stores/a", "s3://ours/stores/a::http://127.0.0.1/x",
    "zip://x::{}/stores/a", "{}/stores/a::file:///etc/passwd", "filecache::file:///etc/passwd",
    # other buckets and folders
    "s3://ours/stores-of-others/a", "s3://ours/", "s3://ours", "s3://other/stores/a",
    "s3://ours/stores/../secret", "s3://ours/stores/./a", "s3://ours//stores/a",
    "s3://ours/stores/%2e%2e/secret", "s3://ours/stores/a?x=1", "s3://ours/stores/a#x",
    "s3://key:secret@ours/stores/a", "s3://x@ours/stores/a", "s3://ours\\@other/stores",
    "s3://ours/stores/a\n", " s3://ours/stores/a", "s3://ours/stores\t/a",
    "", "\0", "{}/stores/a\0", "{}/stores/\ud800", "x" * 2000, "catalog:a", "catalog:../a",
    "catalog::a", "C:\\stores\\a", "\\\\host\\share",
)  # fmt: skip


@pytest.mark.parametrize("store", NOT_ALLOWED)
def test_nothing_else_is(
    folder: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder / "secret")
    with pytest.raises(SpecError) as refused:
        allowed(folder).check(store.replace("{}", str(folder)))
    assert "key:secret" not in str(refused.value)
    assert str(refused.value).isprintable()


def test_links_that_lead_out_are_followed_and_refused(folder: Path) -> None:
    stores = folder / "stores"
    (stores / "out").symlink_to(folder / "secret")
    (stores / "up").symlink_to("..")
    (stores / "in").symlink_to(stores / "a")
    (stores / "circle").symlink_to(stores / "circle")
    for name in ("out", "out/x", "up/secret", "up", "circle/../../secret"):
        with pytest.raises(SpecError):
            allowed(folder).check(str(stores / name))
    assert allowed(folder).check(str(stores / "in")) == str(stores / "a")


def test_a_prefix_may_be_a_link_itself(folder: Path) -> None:
    (folder / "link").symlink_to(folder / "stores")
    through = AllowedStores([str(folder / "link")])
    assert through.check(str(folder / "link/a")) == str(folder / "stores/a")
    assert through.check(str(folder / "stores/a")) == str(folder / "stores/a")


def test_a_folder_here_that_is_called_like_a_url(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "secret/s3:/ours/stores/a").mkdir(parents=True)
    monkeypatch.chdir(folder / "secret")
    with pytest.raises(SpecError):
        allowed(folder).check("s3://ours/stores/a")


@pytest.mark.parametrize(
    "prefix",
    ["http://x/y", "memory://x", "file:///", "s3://", "s3://a/../b", "s3://a:b@c/d", "s3://a::b"],
)  # fmt: skip
def test_a_prefix_that_cannot_be(prefix: str) -> None:
    with pytest.raises(SpecError):
        AllowedStores([prefix])


def test_names_of_a_catalog_lead_no_further(folder: Path) -> None:
    catalog = str(folder / "catalog")
    for place in ("stores/real", "secret/real"):
        make_store(str(folder / place))
    actstore.publish(folder / "stores/real", "ours", catalog=catalog)
    actstore.publish(folder / "secret/real", "theirs", catalog=catalog)
    with_names = AllowedStores([str(folder / "stores")], catalog)
    assert with_names.check("catalog:ours") == str(folder / "stores/real")
    with pytest.raises(SpecError, match="does not read from there"):
        with_names.check("catalog:theirs")
    with pytest.raises(ActstoreError, match="no store of that name"):
        with_names.check("catalog:nobodys")


def test_a_store_that_became_a_link_is_refused_when_its_pass_begins(
    folder: Path,
) -> None:
    state = folder / "state"
    state.mkdir()
    prefixes = AllowedStores([str(folder / "stores")]).prefixes
    write_places(state, prefixes)
    store = allowed(folder).check(str(folder / "stores/a"))
    check_store_again(state, store)
    (folder / "stores/b").mkdir()
    (folder / "stores/a").rmdir()
    for target in (folder / "secret", folder / "stores/b"):
        (folder / "stores/a").symlink_to(target)
        with pytest.raises(SpecError):
            check_store_again(state, store)
        (folder / "stores/a").unlink()
    (state / "places.json").write_text(ServicePlaces(stores=()).to_json())
    with pytest.raises(SpecError):
        check_store_again(state, str(folder / "stores/b"))
    (state / "places.json").write_text("{")
    with pytest.raises(CorruptError):
        check_store_again(state, str(folder / "stores/b"))


PIECES = st.sampled_from(
    ["..", ".", "/", "//", "::", "s3:", "file:", "http:", "%2e", "~", "stores", "a", "out",
     "secret", "@", "\\", "ours", "catalog:", " ", "\0", "S3:"]
)  # fmt: skip


@given(st.lists(PIECES | st.text(max_size=3), max_size=8), st.booleans())
@settings(deadline=None, max_examples=300)
def test_whatever_is_asked_for_nothing_leads_out(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[str], from_prefix: bool
) -> None:
    folder = tmp_path_factory.getbasetemp() / "fuzzed"
    if not folder.exists():
        for name in ("stores/a", "secret"):
            (folder / name).mkdir(parents=True)
        (folder / "stores/out").symlink_to(folder / "secret")
    text = "".join(pieces)
    store = f"{folder}/stores/{text}" if from_prefix else text
    try:
        found = allowed(folder).check(store)
    except ActstoreError:
        return
    if found.startswith("s3:"):
        assert (found + "/").startswith(S3 + "/")
        assert not {"..", "."} & set(found.split("/"))
    else:
        real = Path(os.path.realpath(found))
        assert real.is_relative_to(folder / "stores")
