"""Where the service is, and the token that it is given.

A token is sent to the service's own address and nowhere else, and never in the clear
over a network.
"""

from __future__ import annotations

import ipaddress
import os
import re
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from actstore.errors import SpecError
from trainer.errors import TokenError

SERVICE, TOKEN = "ACTSTORE_SERVICE", "ACTSTORE_TOKEN"
MOST_TOKEN = 200  # characters
_TOKEN = re.compile(r"[!-~]+")


class Address(NamedTuple):
    """The address of a service.

    Attributes:
        url: Without a slash at its end.
        is_loopback: Whether it is this machine.
    """

    url: str
    is_loopback: bool


def service_address(url: str | None) -> Address:
    """Return the address of a service.

    Args:
        url: Its URL; None: $ACTSTORE_SERVICE.

    Raises:
        SpecError: There is none, or one to which a token should not be sent.
    """
    given = url if url is not None else os.environ.get(SERVICE)
    if not given:
        raise SpecError(
            f"which service? give its URL (--service), or set {SERVICE}; `trainer"
            " serve` prints it"
        )
    try:
        parts = urlsplit(given)
        host = parts.hostname
        _ = parts.port  # raises where it is no number
    except ValueError as error:
        raise SpecError(f"--service: it is no URL ({error})") from None
    if parts.username is not None or parts.query or parts.fragment:
        # It is not repeated: it may hold a secret.
        raise SpecError(
            "--service: wanted the service's URL alone, without a user, `?` or `#`; the"
            f" token comes from {TOKEN} or --token-file"
        )
    if parts.scheme not in {"http", "https"} or not host:
        raise SpecError(f"--service {given}: wanted https://HOST or http://127.0.0.1")
    is_loopback = _is_loopback(host)
    if parts.scheme == "http" and not is_loopback:
        raise SpecError(
            f"--service {given}: over plain http the token could be read on the way;"
            " give an https URL, or reach the service through a tunnel on 127.0.0.1"
            " (ssh -L)"
        )
    return Address(given.rstrip("/"), is_loopback)


def read_token(token: str | None, token_file: str | os.PathLike[str] | None) -> str:
    """Return the token to send: the one that is given, a file's, or $ACTSTORE_TOKEN.

    Raises:
        TokenError: There is none, or it cannot be one. The token is not repeated.
    """
    if token is not None and token_file is not None:
        raise TokenError("--token-file: there is a token already; give one of them")
    where = "token" if token is not None else TOKEN
    if token_file is not None:
        where = f"--token-file {os.fspath(token_file)}"
        token = _of_file(token_file)
    found = token if token is not None else os.environ.get(TOKEN)
    if not found or not found.strip():
        raise TokenError(
            f"there is no token; set {TOKEN} or give --token-file (`trainer token make`"
            " makes one)"
        )
    found = found.strip()
    if len(found) > MOST_TOKEN or _TOKEN.fullmatch(found) is None:
        raise TokenError(f"{where}: that is no token of `trainer token make`")
    return found


def _of_file(path: str | os.PathLike[str]) -> str:
    try:
        with Path(path).expanduser().open("rb") as file:
            # Some more, so that a long file is not taken for a token.
            return file.read(MOST_TOKEN * 2).decode("ascii", "replace")
    except OSError as error:
        raise TokenError(
            f"--token-file {os.fspath(path)}: it cannot be read: {error.strerror}"
        ) from error


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
