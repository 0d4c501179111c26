"""Plain concurrent requests to an S3 server, by two clients: what a stream and a
harvest are held against.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

Get = tuple[str, int, int]
"""Key, offset and length."""
Run = Callable[[], float]
"""Makes all requests, and returns the seconds that they took."""


def s3_store(url: str) -> Any:
    """obstore's store of the objects under a URL."""
    from obstore.store import S3Store

    parts = urlsplit(url)
    return S3Store(
        parts.netloc,
        prefix=parts.path.strip("/"),
        client_options={"allow_http": True, "timeout": "60s"},
        virtual_hosted_style_request=False,
    )


def _together(
    n: int, requests: Sequence[Callable[[], Awaitable[object]]]
) -> Callable[[], Awaitable[float]]:
    """Make requests, n at a time."""

    async def run() -> float:
        left = iter(requests)

        async def worker() -> None:
            for request in left:
                await request()

        began = time.perf_counter()
        await asyncio.gather(*(worker() for _ in range(n)))
        return time.perf_counter() - began

    return run


def raw_gets(url: str, gets: Sequence[Get], n: int) -> dict[str, Run]:
    """Ranged GETs, n at a time, by client."""
    import obstore
    import s3fs

    store = s3_store(url)

    def by_threads() -> float:
        with ThreadPoolExecutor(n) as pool:
            began = time.perf_counter()
            list(
                pool.map(
                    lambda get: obstore.get_range(
                        store, get[0], start=get[1], length=get[2]
                    ),
                    gets,
                )
            )
            return time.perf_counter() - began

    requests = [
        lambda get=get: obstore.get_range_async(
            store, get[0], start=get[1], length=get[2]
        )
        for get in gets
    ]
    fs = s3fs.S3FileSystem(config_kwargs={"max_pool_connections": n})

    def by_s3fs() -> float:
        paths = [f"{url}/{key}" for key, _, _ in gets]
        began = time.perf_counter()
        fs.cat_ranges(
            paths,
            [first for _, first, _ in gets],
            [first + length for _, first, length in gets],
            max_gap=None,
            batch_size=n,
        )
        return time.perf_counter() - began

    return {
        "obstore": lambda: asyncio.run(_awaited(_together(n, requests))),
        "obstore, threads": by_threads,
        "s3fs": by_s3fs,
    }


def raw_puts(url: str, objects: dict[str, bytes], n: int) -> dict[str, Run]:
    """PUTs of whole objects, n at a time, by client."""
    import obstore
    import s3fs

    store = s3_store(url)
    fs = s3fs.S3FileSystem(config_kwargs={"max_pool_connections": n})

    def by_threads() -> float:
        with ThreadPoolExecutor(n) as pool:
            began = time.perf_counter()
            list(
                pool.map(
                    lambda key: obstore.put(
                        store, key, objects[key], use_multipart=False
                    ),
                    objects,
                )
            )
            return time.perf_counter() - began

    def by_s3fs() -> float:
        began = time.perf_counter()
        fs.pipe({f"{url}/{key}": data for key, data in objects.items()}, batch_size=n)
        return time.perf_counter() - began

    return {"obstore, threads": by_threads, "s3fs": by_s3fs}


async def _awaited(run: Callable[[], Awaitable[float]]) -> float:
    return await run()
