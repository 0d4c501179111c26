"""Asks the service, and asks again where no answer came, within a bound.

Nothing that changes anything is asked twice unless that is the same as asking once.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx

from actstore.errors import first_line
from trainer.client.answers import Answer, refuse
from trainer.client.service_address import Address
from trainer.errors import UnreachableError

MOST_BYTES = 256 << 20  # of an answer that is read whole
MOST_OF_PROBLEM = 1 << 16  # of one that says what is wrong
PASSING = {429, 502, 503, 504}  # statuses that may be another one soon
FIRST_WAIT_S, LONGEST_WAIT_S = 0.25, 10.0
# A service that has never answered is rather a wrong URL than one that is starting.
PATIENCE_AT_FIRST_S = 3.0


class Waits:
    """How long is waited between attempts of one thing, and when no longer."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._began = time.monotonic()
        self._next_s = FIRST_WAIT_S

    def wait(self, at_least_s: float = 0.0) -> bool:
        """Wait for the next attempt; return False at once where that is too long."""
        wait_s = max(self._next_s, at_least_s)
        if time.monotonic() + wait_s > self._began + self._connection.patience_s:
            return False
        time.sleep(wait_s)
        self._next_s = min(2 * self._next_s, LONGEST_WAIT_S)
        return True


class Connection:
    """A connection to the service, with the token."""

    def __init__(
        self, address: Address, token: str, timeout_s: float, patience_s: float
    ) -> None:
        """Prepare; nothing is asked yet.

        Args:
            address: Where the service is.
            token: What it is given.
            timeout_s: How long an answer may take.
            patience_s: How long the same is asked again.
        """
        self._address = address
        self._patience_s = patience_s
        self._has_answered = False
        self._http = httpx.Client(
            headers={"Authorization": f"Bearer {token}"},
            timeout=httpx.Timeout(timeout_s, connect=min(10.0, timeout_s)),
            # What leads elsewhere would take the token along.
            follow_redirects=False,
            # On this machine no proxy is asked, which would see the token.
            trust_env=not address.is_loopback,
        )

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    @property
    def patience_s(self) -> float:
        """How long the same is asked again, in seconds."""
        if self._has_answered:
            return self._patience_s
        return min(PATIENCE_AT_FIRST_S, self._patience_s)

    def ask(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
        may_repeat: bool = True,
    ) -> Answer:
        """Return the service's answer, of a status below 300.

        Args:
            method: GET or POST.
            path: What is asked, with the query.
            body: What is sent as JSON.
            headers: What else is sent.
            timeout_s: How long the answer may take; None: as usual.
            may_repeat: Whether asking twice is the same as asking once.

        Raises:
            ServiceError, SpecError: As the service says.
            UnreachableError: It does not answer.
        """
        waits = Waits(self)
        while True:
            try:
                with self.opened(
                    method, path, body=body, headers=headers, timeout_s=timeout_s
                ) as response:
                    answer = whole(response)
            except UnreachableError as error:
                why = error.__cause__
                # Nothing was sent where there was no connection.
                safe = may_repeat or isinstance(why, httpx.ConnectError)
                failed = isinstance(why, httpx.HTTPError)
                if not (safe and failed and waits.wait()):
                    raise
                continue
            if answer.status < 300:
                return answer
            passes = answer.status in PASSING and (may_repeat or answer.status == 429)
            if not passes or not waits.wait(retry_after_s(answer)):
                refuse(answer)

    @contextmanager
    def opened(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> Iterator[httpx.Response]:
        """Ask once; the answer is open within the block.

        Raises:
            UnreachableError: The service does not answer, or stops in the middle.
        """
        more: dict[str, Any] = {}
        if timeout_s is not None:
            more["timeout"] = timeout_s
        url = self._address.url + path
        try:
            with self._http.stream(
                method, url, json=body, headers=headers, **more
            ) as response:
                self._has_answered = True
                yield response
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise UnreachableError(
                f"{self._address.url}: the service does not answer"
                f" ({first_line(error)}); check the URL, and whether it runs"
            ) from error


def whole(response: httpx.Response) -> Answer:
    """Return an open answer, read to its end.

    Raises:
        UnreachableError: It is larger than any answer of the service.
    """
    is_problem = response.status_code >= 300
    most = MOST_OF_PROBLEM if is_problem else MOST_BYTES
    data = bytearray()
    for part in response.iter_bytes():
        data += part
        if len(data) > most and not is_problem:
            raise UnreachableError(
                f"{response.url}: the answer is larger than {most:,} bytes, which no"
                " service's is"
            )
        if len(data) > most:
            break
    return Answer(
        response.status_code, response.headers, bytes(data[:most]), str(response.url)
    )


def retry_after_s(answer: Answer) -> float:
    """Return how long the service asks to wait, in seconds; 0 where it does not say."""
    try:
        seconds = float(answer.headers.get("retry-after", "0"))
    except ValueError:  # a date, which our service does not give
        return 0.0
    return max(0.0, seconds) if math.isfinite(seconds) else 0.0
