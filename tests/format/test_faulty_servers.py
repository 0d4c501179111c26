"""Object stores that fail, slow down, throttle, lag and refuse: what passes is tried
again and counted, what does not pass is told in seconds.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from actstore.errors import CorruptError, ObjectError, SpecError, StorageError
from actstore.format import retries, s3_objects
from actstore.format.manifest import read_manifest
from actstore.format.storage import Storage
from actstore.harvesting.store_writer import check_unfinished
from actstore.machine import tried_again
from tests.s3_server.faulty_proxy import (
    TRANSIENT,
    Proxy,
    Request,
    Rule,
    at_random,
    faulty,
)

SECRET = "abcdefgh-secret-12345"


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "FIRST_WAIT", 0.002)
    monkeypatch.setattr(retries, "LONGEST_WAIT", 0.02)


@contextmanager
def behind(s3_url: str, server: str, rule: Rule) -> Iterator[tuple[Storage, Proxy]]:
    """A storage whose requests go through a proxy."""
    with faulty(server, rule) as proxy:
        options = {
            "endpoint_url": proxy.url,
            "key": "testing",
            "secret": SECRET,
            "config_kwargs": {"read_timeout": 0.25},
        }
        yield Storage(f"{s3_url}/place", options), proxy


@pytest.mark.parametrize("fault", TRANSIENT)
def test_each_passing_fault_is_got_over(
    fault: str, s3_url: str, s3_server: str
) -> None:
    every_other = lambda request: fault if request.number % 2 == 0 else None  # noqa: E731
    before = tried_again.counts()
    with behind(s3_url, s3_server, every_other) as (storage, proxy):
        data = bytes(range(256)) * 4000
        storage.put("a/b", data)
        assert storage.create("a/c", b"x")
        assert not storage.create("a/c", b"y")
        assert storage.read("a/b") == data
        assert storage.read("a/b", len(data)) == data
        ranges = [(1, 5), (1000, 70_000), (-4, 4)]
        wanted = [data[1:6], data[1000:71_000], data[-4:]]
        assert [bytes(part) for part in storage.read_ranges("a/b", ranges)] == wanted
        assert storage.size("a/b") == len(data)
        assert (storage.exists("a/b"), storage.exists("a/no")) == (True, False)
        assert storage.list() == ["a/b", "a/c"]
        assert storage.folders() == ("a",)
        assert not storage.is_empty()
        storage.delete("a/b")
        assert storage.list() == ["a/c"]
        assert storage.read("a/c") == b"x"
    assert proxy.faults[fault] > 5
    again = (tried_again.counts() - before).total()
    # HEAD has no body that could break off, and not every answer has one
    assert 2 <= again <= proxy.faults[fault]


@pytest.mark.parametrize("seed", range(3))
def test_many_threads_and_faults_at_random(
    seed: int, s3_url: str, s3_server: str
) -> None:
    kinds = [kind for kind in TRANSIENT if kind not in {"timeout", "stalled"}]
    rng = random.Random(seed)
    objects = {f"k/{i}": rng.randbytes(rng.randrange(60_000)) for i in range(40)}
    with (
        behind(s3_url, s3_server, at_random(0.2, seed, kinds)) as (storage, proxy),
        ThreadPoolExecutor(8) as pool,
    ):
        list(pool.map(lambda one: storage.put(*one), objects.items()))
        assert (
            dict(zip(objects, pool.map(storage.read, objects), strict=True)) == objects
        )
        assert storage.list() == sorted(objects)
        key = max(objects, key=lambda one: len(objects[one]))
        ranges = [(i * 100, 100) for i in range(50)]
        parts = list(pool.map(lambda one: storage.read_ranges(key, [one])[0], ranges))
        assert b"".join(parts) == objects[key][:5000]
    assert sum(proxy.faults.values()) > 10


def test_tries_are_bounded(s3_url: str, s3_server: str) -> None:
    with behind(s3_url, s3_server, lambda _: "SlowDown") as (storage, proxy):
        with pytest.raises(StorageError, match=r"SlowDown.*again and again.*try later"):
            storage.read("k")
        assert proxy.requests == retries.TRIES
        with pytest.raises(StorageError, match="SlowDown"):
            storage.list()
        # what says "yes" or "no" does not say "no" to a failure
        with pytest.raises(StorageError, match="again and again"):
            storage.exists("k")


def test_waits_grow_and_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "LONGEST_WAIT", 15.0)
    one = retries.Retries(lambda _: None, lambda: False)
    for tries in (1, 3, 6):
        waits = {one._wait(tries) for _ in range(50)}
        longest = retries.FIRST_WAIT * 2 ** (tries - 1)
        assert len(waits) > 40
        assert longest / 2 <= min(waits) <= max(waits) <= longest
    assert one._wait(60) <= retries.LONGEST_WAIT


def test_a_create_that_was_done_unheard_is_ours(s3_url: str, s3_server: str) -> None:
    first = lambda request: "reset after" if request.number == 0 else None  # noqa: E731
    with behind(s3_url, s3_server, first) as (storage, _):
        assert storage.create("k", b"mine")
        assert storage.read("k") == b"mine"
        assert not storage.create("k", b"mine, again")


def test_a_large_object_goes_and_comes_in_parts(
    s3_url: str, s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_objects, "PART_BYTES", 5 << 20)  # the least that S3 takes
    data = random.Random(0).randbytes(12 << 20)
    third = lambda request: "500" if request.number % 3 == 2 else None  # noqa: E731
    with behind(s3_url, s3_server, third) as (storage, proxy):
        storage.put("large", data)
        assert any("partNumber" in request.path for request in proxy.seen)
        proxy.seen.clear()
        assert storage.read("large") == data
        assert sum("range" in request.headers for request in proxy.seen) >= 3


def expect_told(call: Callable[[], Any], *words: str) -> None:
    """It fails within seconds, with these words and no secret."""
    began = time.monotonic()
    with pytest.raises(StorageError) as told:
        call()
    assert time.monotonic() - began < 10
    for word in words:
        assert word in str(told.value)
    assert SECRET not in str(told.value)
    assert told.value.__cause__ is None


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("denied", ("AccessDenied", "may not do that there")),
        ("skew", ("RequestTimeTooSkewed", "clock", "timedatectl")),
        ("expired", ("ExpiredToken", "log in again")),
        ("other region", ("another region", "AWS_REGION")),
        ("redirect", ("another region", "AWS_REGION")),
    ],
)
def test_what_will_not_pass_is_told_at_once(
    fault: str, words: tuple[str, ...], s3_url: str, s3_server: str
) -> None:
    with behind(s3_url, s3_server, lambda _: fault) as (storage, proxy):
        for call in (
            lambda: storage.read("k"),
            lambda: storage.read_ranges("k", [(0, 5), (7, 5)]),
            lambda: storage.exists("k"),
            lambda: storage.size("k"),
            lambda: storage.put("k", b"x"),
            lambda: storage.create("k", b"x"),
            storage.list,
            storage.is_empty,
        ):
            proxy.requests = 0
            expect_told(call, *words)
            # botocore follows a bucket that is never where it is said to be
            most = 200 if fault == "redirect" else 3 * retries.TRIES_EXPIRED
            assert proxy.requests <= most


def test_no_bucket_no_server_no_name_no_profile(s3_server: str) -> None:
    def there(bucket: str, **options: Any) -> Storage:
        given = {"key": "testing", "secret": SECRET, **options}
        return Storage(f"s3://{bucket}/x", given)

    nobody = "http://127.0.0.1:9"
    for storage, words in (
        (there("there-is-no-such-bucket"), ("NoSuchBucket", "no such bucket")),
        (there("b", endpoint_url=nobody), (nobody, "cannot be reached")),
        (there("b", endpoint_url="http://no.invalid"), ("no.invalid", "cannot be")),
    ):
        for call in (
            lambda storage=storage: storage.read("k"),
            lambda storage=storage: storage.exists("k"),
            lambda storage=storage: storage.put("k", b"x"),
            storage.list,
        ):
            expect_told(call, *words)
    with pytest.raises(SpecError, match="without a user in it") as told:
        there("b", endpoint_url="http://me:hidden-word@no.invalid")
    assert "hidden-word" not in str(told.value)
    missing = Storage("s3://b/x", {"profile": "nobody", "endpoint_url": nobody})
    expect_told(lambda: missing.read("k"), "nobody", "AWS_PROFILE")


def test_without_credentials_it_is_told_how_to_give_some(
    s3_server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    expect_told(lambda: Storage("s3://b/x").read("k"), "AWS_ACCESS_KEY_ID", "anon")
    expect_told(lambda: Storage("s3://b/x").list(), "AWS_ACCESS_KEY_ID", "anon")


def test_an_anonymous_request_is_not_signed(s3_url: str, s3_server: str) -> None:
    Storage(f"{s3_url}/x").put("k", b"public")
    with faulty(s3_server) as proxy:
        storage = Storage(f"{s3_url}/x", {"anon": True, "endpoint_url": proxy.url})
        for call in (lambda: storage.read("k"), storage.list):
            # moto's buckets are private
            with suppress(StorageError):
                call()
    assert len(proxy.seen) >= 2
    assert not any("authorization" in request.headers for request in proxy.seen)


@pytest.mark.parametrize("how", ["profile", "process"])
def test_credentials_that_end_are_found_anew(
    how: str,
    s3_url: str,
    s3_server: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From a profile's file, which something rewrites; or from a program."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    file = tmp_path / "credentials"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    program = tmp_path / "program.py"

    def renew(token: str) -> None:
        if how == "profile":
            keys = f"aws_access_key_id = testing\naws_secret_access_key = {SECRET}\n"
            file.write_text(f"[ours]\n{keys}aws_session_token = {token}\n")
            return
        given = {"Version": 1, "AccessKeyId": "testing", "SecretAccessKey": SECRET}
        given |= {"SessionToken": token, "Expiration": "2099-01-01T00:00:00Z"}
        program.write_text(f"print({json.dumps(given)!r})")
        file.write_text(f"[ours]\ncredential_process = {sys.executable} {program}\n")

    valid = "first"

    def rule(request: Request) -> str | None:
        return None if request.token == valid else "expired"

    renew("first")
    with faulty(s3_server, rule) as proxy:
        options = {"profile": "ours", "endpoint_url": proxy.url}
        storage = Storage(f"{s3_url}/x", options)
        storage.put("k", b"1")
        assert storage.read("k") == b"1"
        for token in ("second", "third"):
            renew(token)
            valid = token
            with ThreadPoolExecutor(4) as pool:
                assert set(pool.map(storage.read, ["k"] * 8)) == {b"1"}
            assert storage.list() == ["k"]
            assert storage.exists("k")
        valid = "never given"
        expect_told(lambda: storage.read("k"), "expired", "log in again")


@pytest.mark.parametrize("fault", ["no key", "signature"])
def test_credentials_that_were_replaced_are_found_anew(
    fault: str,
    s3_url: str,
    s3_server: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A server does not say that keys have ended where someone has removed them."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    file = tmp_path / "credentials"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))

    def write(key: str) -> None:
        keys = f"aws_access_key_id = {key}\naws_secret_access_key = {SECRET}\n"
        file.write_text(f"[default]\n{keys}")

    valid = "FIRST"

    def rule(request: Request) -> str | None:
        signed = f"Credential={valid}/" in request.headers.get("authorization", "")
        return None if signed else fault

    write("FIRST")
    with faulty(s3_server, rule) as proxy:
        storage = Storage(f"{s3_url}/x", {"endpoint_url": proxy.url})
        storage.put("k", b"1")
        valid = "SECOND"
        write("SECOND")
        with ThreadPoolExecutor(4) as pool:
            assert set(pool.map(storage.read, ["k"] * 8)) == {b"1"}
        valid = "THIRD"
        write("THIRD")
        assert storage.list() == ["k"]
        # Where there are no others it is told at once.
        valid = "nobody's"
        before = proxy.requests
        expect_told(lambda: storage.read("k"), "check AWS_")
        assert proxy.requests == before + 1


@pytest.mark.parametrize("fault", ["reset", "502", "500", "page"])
def test_who_never_answers_is_given_up_on_sooner(
    fault: str, s3_url: str, s3_server: str
) -> None:
    """Who answers as no S3 server does, too: a page that asks to log in, say."""
    with behind(s3_url, s3_server, lambda _: fault) as (storage, proxy):
        # aiohttp asks once more after a reset, by itself, where s3fs lists
        call = partial(storage.read, "k") if fault == "reset" else storage.list
        with pytest.raises(StorageError, match="again and again") as told:
            call()
        answers = fault == "500"
        most = retries.TRIES if answers else retries.TRIES_UNANSWERED
        assert proxy.requests == most
        assert ("no S3 server" in str(told.value)) == (fault in {"502", "page"})


def test_a_page_in_the_place_of_a_manifest_is_no_store(
    s3_url: str, s3_server: str
) -> None:
    with behind(s3_url, s3_server, lambda _: "page") as (storage, _):
        for call in (read_manifest, check_unfinished):
            with pytest.raises(CorruptError, match="a page of HTML or XML"):
                call(storage)


def test_a_listing_that_is_not_found_is_no_empty_folder(
    s3_url: str, s3_server: str
) -> None:
    """As a web server has it, or a proxy, that is no S3 server."""
    with behind(s3_url, s3_server, lambda _: "404") as (storage, _):
        for call in (storage.list, storage.objects, storage.folders, storage.is_empty):
            expect_told(call, "status 404 for a listing", "check the endpoint")


@pytest.mark.parametrize("answer", ["no condition", "bad request", "condition ignored"])
def test_servers_without_conditional_creates(
    answer: str, s3_url: str, s3_server: str
) -> None:
    rule = lambda request: answer if request.is_create else None  # noqa: E731
    with behind(s3_url, s3_server, rule) as (storage, _):
        assert not storage.is_exclusive()
        assert storage.list() == []
        # With one writer it works all the same, where the server says what it lacks.
        assert storage.create("k", b"x")
        assert storage.create("k", b"y") is (answer == "condition ignored")
    assert Storage(s3_url).is_exclusive()


def test_options_that_obstore_does_not_know_leave_all_to_s3fs(s3_url: str) -> None:
    storage = Storage(f"{s3_url}/x", {"s3_additional_kwargs": {}})
    storage.put("a", b"hello")
    assert storage.create("b", b"x")
    assert not storage.create("b", b"y")
    assert storage.read("a", 5) == b"hello"
    assert storage.read_ranges("a", [(1, 2), (-1, 1)]) == [b"el", b"o"]
    assert (storage.size("a"), storage.exists("a"), storage.exists("c")) == (
        5,
        True,
        False,
    )
    with pytest.raises(ObjectError):
        storage.read("c")


def test_a_password_in_a_url_is_refused() -> None:
    with pytest.raises(StorageError, match="password") as told:
        Storage(f"ftp://me:{SECRET}@host/x")
    assert SECRET not in str(told.value)


def test_what_was_tried_again_is_one_line() -> None:
    before = tried_again.counts()
    assert tried_again.summary(before) is None
    tried_again.count("SlowDown")
    assert tried_again.summary(before) == "1 request was tried again: 1 SlowDown"
    for _ in range(3):
        tried_again.count("timeouts")
    assert (
        tried_again.summary(before)
        == "4 requests were tried again: 3 timeouts, 1 SlowDown"
    )
