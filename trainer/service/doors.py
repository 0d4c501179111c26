"""Where the service listens, and whether it may: not to the network without a lock.

On the loopback nothing is asked for. Elsewhere there must be a token, and TLS, of its
own or of a proxy.
"""

from __future__ import annotations

import ipaddress
import socket
from typing import NamedTuple

from actstore.errors import SpecError
from trainer.service.tokens import Tokens


class Door(NamedTuple):
    """Where the service listens.

    Attributes:
        host: The address or name.
        port: The port; 0 for any that is free.
        certificate: File of the TLS certificate; None: no TLS of its own.
        key: File of its key.
        proxies: Addresses of the proxies that have TLS; none: there is no proxy.
    """

    host: str
    port: int
    certificate: str | None = None
    key: str | None = None
    proxies: tuple[str, ...] = ()

    @property
    def is_of_this_machine(self) -> bool:
        """Whether only this machine's own users can reach it."""
        return is_loopback(self.host) and not self.proxies

    @property
    def has_tls(self) -> bool:
        """Whether browsers reach it by TLS."""
        return self.certificate is not None or bool(self.proxies)

    def check(self, tokens: Tokens, made_by: str) -> None:
        """Check that the service may listen there.

        Args:
            tokens: Its tokens.
            made_by: The command line that makes one.

        Raises:
            SpecError: It may not; says what to do.
        """
        if (self.certificate is None) != (self.key is None):
            raise SpecError("--tls-cert and --tls-key go together: give both")
        if self.certificate is not None and self.proxies:
            raise SpecError("--tls-cert and --behind-proxy exclude each other")
        if self.is_of_this_machine:
            return
        if not self.has_tls:
            raise SpecError(
                f"--host {self.host}: others could read the tokens on their way; give"
                " --tls-cert and --tls-key, or --behind-proxy where a proxy has TLS"
            )
        if not tokens.has_any():
            raise SpecError(
                f"no token lets anybody in yet; make one first: `{made_by}`"
            )

    def open(self) -> socket.socket:
        """Return the socket on which it listens.

        Raises:
            SpecError: The address or port cannot be used.
        """
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        try:
            listening = socket.create_server((self.host, self.port), family=family)
        except (OSError, OverflowError) as error:
            raise SpecError(
                f"--host {self.host} --port {self.port}: cannot be used ({error});"
                " choose another"
            ) from None
        # Connections have it from here; asyncio sets it for sockets of its own only.
        # Without it the second part of an answer waits 40 ms for the first one's ACK.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listening

    def hosts(self, port: int) -> tuple[str, ...] | None:
        """Return what `Host` may say; None: anything, as a proxy's name is not known.

        Args:
            port: The port.
        """
        if not self.is_of_this_machine:
            return None
        names = {"127.0.0.1", "localhost", "[::1]", shown_host(self.host)}
        return tuple(sorted(f"{name}:{port}" for name in names))

    def url(self, port: int) -> str:
        """Return the address at which the service is reached from this machine."""
        scheme = "http" if self.certificate is None else "https"
        return f"{scheme}://{shown_host(self.host)}:{port}/"


def shown_host(host: str) -> str:
    """Return a host as it stands in a URL."""
    return f"[{host}]" if ":" in host else host


def is_loopback(host: str) -> bool:
    """Return whether an address or name is of this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
