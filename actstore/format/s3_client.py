"""Moves bulk bytes to and from one bucket with obstore, as s3fs would sign them.

s3fs (botocore) finds the credentials, the endpoint and the region, by all the ways that
AWS's tools know; obstore is told what was found and asks again before they expire. It
takes a third of the CPU time for the same bytes, measured against a real server.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

from actstore.format.s3_options import printable

# Options of s3fs that obstore can be told as well. With any other one (encryption with
# a key of one's own, say) s3fs moves the bulk bytes, too.
_TOLD = {
    "anon",
    "client_kwargs",
    "config_kwargs",
    "endpoint_url",
    "key",
    "password",
    "profile",
    "requester_pays",
    "secret",
    "token",
    "use_listings_cache",
    "use_ssl",
    "username",
}
_TOLD_CLIENT = {
    "aws_access_key_id",
    "aws_secret_access_key",
    "aws_session_token",
    "endpoint_url",
    "region_name",
    "use_ssl",
    "verify",
}
_TOLD_CONFIG = {
    "connect_timeout",
    "max_pool_connections",
    "read_timeout",
    "region_name",
    "retries",
    "s3",
    "signature_version",
}
CONNECT_TIMEOUT = 5.0  # seconds
READ_TIMEOUT = 15.0  # seconds without a byte
REQUEST_TIMEOUT = 120.0  # seconds for one request, of at most PART_BYTES or so
# obstore asks for credentials again five minutes before it is told that they end.
_KEPT = timedelta(minutes=10)
_RETRIES_OF_A_PART = 8

# obstore's threads do not survive a fork: calls in the child would never end.
_first_pid: int | None = None


def moves_bulk(bucket: str, options: Mapping[str, Any]) -> bool:
    """Return whether obstore can do what s3fs would do with these options."""
    return (
        set(options) <= _TOLD
        and set(options.get("client_kwargs") or {}) <= _TOLD_CLIENT
        and set(options.get("config_kwargs") or {}) <= _TOLD_CONFIG
        # access points, buckets of tenants and directory buckets have other addresses
        and ":" not in bucket
        and not bucket.endswith("--x-s3")
    )


def forked() -> bool:
    """Return whether this process was forked from one that has used obstore."""
    return _first_pid is not None and _first_pid != os.getpid()


class S3Client:
    """obstore's clients of one bucket. Safe to use from several threads.

    Attributes:
        fs: The s3fs file system whose credentials, endpoint and region it uses.
        endpoint: Where requests go, without credentials that a URL may have.
    """

    def __init__(self, fs: Any, bucket: str) -> None:
        self.fs = fs
        self.bucket = bucket
        self._lock = threading.Lock()
        self._stores: dict[str, Any] = {}

    @property
    def endpoint(self) -> str:
        try:
            url = str(self.fs.s3.meta.endpoint_url)
        except Exception:  # noqa: BLE001 (without a client, whatever the reason)
            return "the server"
        parts = urlsplit(url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"

    @property
    def reader(self) -> Any:
        """obstore's client for reading: gives up on an answer that stops."""
        return self._store("reader")

    @property
    def writer(self) -> Any:
        """obstore's client for writing: the time to send counts, and not the silence
        until all is sent.
        """
        return self._store("writer")

    @property
    def part_writer(self) -> Any:
        """obstore's client for multipart uploads: it sends a part again by itself."""
        return self._store("part_writer")

    def renew(self) -> bool:
        """Find credentials anew; return whether they are others than before."""
        with self._lock:
            before = self._credentials(self.fs.s3)
            self.fs.connect(refresh=True)
            self._stores.clear()
            others: bool = self._credentials(self.fs.s3) != before
            return others

    def _store(self, name: str) -> Any:
        store = self._stores.get(name)
        if store is None:
            with self._lock:
                store = self._stores.get(name)
                if store is None:
                    store = self._stores[name] = self._made(name)
        return store

    def _made(self, name: str) -> Any:
        """Return a new client of obstore."""
        global _first_pid  # noqa: PLW0603 (obstore's threads are one per process, too)
        from obstore.store import S3Store

        _first_pid = _first_pid or os.getpid()
        client = self.fs.s3
        retry_config = {
            "max_retries": _RETRIES_OF_A_PART if name == "part_writer" else 0,
            "retry_timeout": timedelta(seconds=REQUEST_TIMEOUT),
        }
        return S3Store(
            self.bucket,
            config=self._config(client),
            client_options=cast("Any", self._client_options(client, name)),
            retry_config=cast("Any", retry_config),
            credential_provider=cast("Any", self._credential_provider(client)),
        )

    def _config(self, client: Any) -> Any:
        """Return endpoint, region and the like, as botocore has found them."""
        url = str(client.meta.endpoint_url)
        config: dict[str, Any] = {"request_payer": bool(self.fs.requester_pays)}
        region = client.meta.region_name
        # botocore's name for the region of those who name none
        config["region"] = "us-east-1" if region in {None, "aws-global"} else region
        # TLS guards what is sent; without it, its digest is signed.
        config["unsigned_payload"] = url.startswith("https://")
        # All that matters is said here: obstore would look into the environment itself.
        config["conditional_put"] = "etag"
        config["skip_signature"] = _is_anonymous(client)
        virtual = (client.meta.config.s3 or {}).get("addressing_style") == "virtual"
        config["virtual_hosted_style_request"] = virtual
        parts = urlsplit(url)
        host = parts.netloc
        of_bucket = self._region_of_bucket(client) if _is_aws(url) else None
        if of_bucket is not None and of_bucket != config["region"]:
            config["region"] = of_bucket
            end = ".cn" if host.endswith(".cn") else ""
            host = f"s3.{of_bucket}.amazonaws.com{end}"
        host = f"{self.bucket}.{host}" if virtual else host
        endpoint = f"{parts.scheme}://{host}{parts.path}".rstrip("/")
        config["endpoint"] = config["aws_endpoint_url_s3"] = endpoint
        return config

    def _client_options(self, client: Any, name: str) -> dict[str, Any]:
        """Return timeouts and the like of obstore's HTTP client."""
        given = self.fs.config_kwargs
        read = float(given.get("read_timeout", READ_TIMEOUT))
        whole = max(REQUEST_TIMEOUT, read) if "read_timeout" not in given else 8 * read
        options: dict[str, Any] = {
            "allow_http": str(client.meta.endpoint_url).startswith("http://"),
            "connect_timeout": _span(given.get("connect_timeout", CONNECT_TIMEOUT)),
            "timeout": _span(whole),
        }
        if name == "reader":
            options["read_timeout"] = _span(read)
        verify = self.fs.client_kwargs.get("verify")
        if verify is None:
            # from the environment or the profile
            verify = self.fs.session.get_config_variable("ca_bundle")
        if verify is False:
            options["allow_invalid_certificates"] = True
        elif isinstance(verify, str) and verify:
            options["root_certificate"] = Path(verify).read_bytes()
        return options

    def _credential_provider(self, client: Any) -> Any:
        """Return what gives obstore the credentials that s3fs has found."""
        if _is_anonymous(client):
            return None
        from botocore.exceptions import NoCredentialsError

        def frozen() -> dict[str, Any]:
            found = self._credentials(client)
            if found is None:
                raise NoCredentialsError
            return {
                "access_key_id": printable(found.access_key, "access key"),
                "secret_access_key": found.secret_key,
                "token": printable(found.token, "session token"),
                "expires_at": datetime.now(UTC) + _KEPT,
            }

        # Here, where an error of it is told in botocore's words.
        frozen()
        return frozen

    def _credentials(self, client: Any) -> Any:
        """Return the credentials that a client of botocore signs with, or None.

        botocore renews them here, where it can and they are about to end.
        """
        from fsspec.asyn import sync

        found = client._request_signer._credentials
        if found is None:
            return None
        return sync(self.fs.loop, found.get_frozen_credentials)

    def _region_of_bucket(self, client: Any) -> str | None:
        """Return the region that AWS says the bucket is in, if it says so."""
        from botocore.exceptions import ClientError
        from fsspec.asyn import sync

        async def asked() -> Any:
            return await client.head_bucket(Bucket=self.bucket)

        try:
            answer = sync(self.fs.loop, asked)
        except ClientError as error:
            # it says so whether or not one may look
            answer = error.response
        headers = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {})
        region = headers.get("x-amz-bucket-region")
        return str(region) if region else None


def _is_anonymous(client: Any) -> bool:
    """Return whether botocore signs nothing."""
    from botocore import UNSIGNED

    return client.meta.config.signature_version is UNSIGNED


def _is_aws(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    return host.endswith((".amazonaws.com", ".amazonaws.com.cn"))


def _span(seconds: float) -> timedelta:
    return timedelta(seconds=float(seconds))
