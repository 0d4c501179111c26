"""What cannot be an option or a URL of S3 is told before anything is sent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from actstore.errors import SpecError, StorageError
from actstore.format.storage import Storage
from actstore.format.storage_errors import without_secrets

SECRET = "planted-secret-0123456789"


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("s3://", "names no bucket"),
        ("s3:///", "names no bucket"),
        ("s3:///folder", "names no bucket"),
        ("s3a://", "names no bucket"),
        ("s3://two words/x", "cannot be called so"),
        ("s3://größe/x", "cannot be called so"),
        ("s3://b//x", "is empty"),
        ("s3://b/x//y", "is empty"),
        ("s3://b/../x", r"`\.\.`"),
        ("s3://b/x/.", r"`\.`"),
        ("s3://b/x\ny", "unprintable"),
    ],
)
def test_urls_that_lead_nowhere(url: str, says: str) -> None:
    with pytest.raises(StorageError, match=says):
        Storage(url)


@pytest.mark.parametrize("key", ["ü/x y", "a%20b", "q?x=1", "h#1", "*[]{}", "...", "%"])
def test_folders_with_odd_characters(s3_url: str, key: str) -> None:
    """Both clients write, read, list and delete the same key."""
    bucket = s3_url.removeprefix("s3://").partition("/")[0]
    by_obstore = Storage(f"s3://{bucket}/{key}")
    by_s3fs = Storage(f"s3://{bucket}/{key}", {"s3_additional_kwargs": {}})
    by_obstore.put("k", b"12345")
    assert by_s3fs.read("k") == b"12345"
    by_s3fs.put("k", b"6789")
    for storage in (by_obstore, by_s3fs):
        assert storage.read_ranges("k", [(1, 2)]) == [b"78"]
        assert (storage.size("k"), storage.list()) == (4, ["k"])
    by_obstore.delete("k")
    assert by_s3fs.is_empty()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"secrets": SECRET}, "no option 'secrets'"),
        ({"key": "a\n", "secret": SECRET}, "option key: .*line ends"),
        ({"key": "a", "secret": SECRET + "\r"}, "option secret"),
        ({"token": 5}, "option token"),
        ({"anon": "false"}, "option anon: wanted true or false"),
        ({"endpoint_url": "nowhere"}, "option endpoint_url: wanted a URL"),
        ({"endpoint_url": f"ftp://me:{SECRET}@host"}, "option endpoint_url"),
        ({"endpoint_url": "http://host:99999999"}, "option endpoint_url"),
        ({"endpoint_url": "http://host/a b"}, "option endpoint_url"),
        ({"client_kwargs": 7}, "option client_kwargs: wanted an object"),
        ({"client_kwargs": {"region_name": 3}}, "client_kwargs: region_name"),
        ({"client_kwargs": {"verify": "/nowhere.pem"}}, "client_kwargs: verify"),
        ({"config_kwargs": {"read_timeout": 0}}, "read_timeout: wanted seconds"),
        ({"config_kwargs": {"read_timeout": None}}, "read_timeout: wanted seconds"),
        ({"config_kwargs": {"connect_timeout": float("nan")}}, "connect_timeout"),
        ({"config_kwargs": {"connect_timeout": True}}, "connect_timeout"),
        ({"config_kwargs": {"max_pool_connections": "9"}}, "max_pool_connections"),
        ({"config_kwargs": {"retries": 3}}, "config_kwargs: retries"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], says: str) -> None:
    with pytest.raises(SpecError, match=says) as told:
        Storage("s3://b/x", options)
    assert SECRET not in str(told.value)


@pytest.mark.parametrize(
    "options",
    [
        {"config_kwargs": {"nonsense": 1}},
        {"config_kwargs": {"s3": {"addressing_style": "round"}}},
        {"client_kwargs": {"region_name": "no region"}},
        {"client_kwargs": {"nonsense": 1}},
        {"config_kwargs": {"signature_version": "v9"}},
    ],
)
def test_what_only_the_clients_can_refuse_is_told_as_well(
    options: dict[str, Any], s3_server: str
) -> None:
    storage = Storage("s3://b/x", options)
    for call in (lambda: storage.read("k"), storage.list):
        with pytest.raises(StorageError):
            call()


@pytest.mark.parametrize("name", ["AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE"])
def test_a_certificate_that_is_not_there_is_no_missing_object(
    name: str, s3_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(name, str(tmp_path / "none.pem"))
    with pytest.raises(SpecError, match=name):
        Storage(s3_url)


def test_an_endpoint_of_the_environment_is_checked(
    s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"s3.example.org?key={SECRET}")
    with pytest.raises(SpecError, match="AWS_ENDPOINT_URL: wanted a URL") as told:
        Storage(s3_url)
    assert SECRET not in str(told.value)


def test_credentials_with_a_line_end_are_told(
    s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", f"{SECRET}\n")
    with pytest.raises(SpecError, match=r"session token .* line end") as told:
        Storage(s3_url).read("k")
    assert SECRET not in str(told.value)


def test_a_url_in_a_text_loses_its_password() -> None:
    text = f"cannot reach http://me:{SECRET}@host/x, nor s3://b/x@y"
    wanted = "cannot reach http://***@host/x, nor s3://b/x@y"
    assert without_secrets(text, {}) == wanted
