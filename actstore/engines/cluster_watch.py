"""Notices that a Ray cluster is gone: its head, or this machine's part of it.

Ray itself ends the process a minute after its head is lost, without a word of ours, and
waits for ever where its process on this machine (the *raylet*) is lost.
"""

from __future__ import annotations

import contextlib
import socket
import time
from typing import Any, NamedTuple

from actstore.errors import ClusterLostError

LOOK_S = 3.0  # between two looks
# A head may be started anew in its place, which Ray's processes wait 60 s for.
LOST_S = 30.0
CONNECT_S = 2.0


class Place(NamedTuple):
    """A part of a cluster that has to be there.

    Attributes:
        name: What it is, for messages.
        host, port: Where it listens.
    """

    name: str
    host: str
    port: int


class ClusterWatch:
    """Looks whether the parts of a cluster that this process needs are there.

    Attributes:
        is_lost: Whether one has been found missing.
    """

    def __init__(self, places: list[Place]) -> None:
        """Begin; all are taken to be there."""
        self.is_lost = False
        self._places = places
        self._looked = time.monotonic()
        self._answered = dict.fromkeys(places, self._looked)

    def check(self) -> None:
        """Look, where the last look was some seconds ago.

        Raises:
            ClusterLostError: Something has been missing for long. That is said once.
        """
        if self.is_lost or time.monotonic() - self._looked < LOOK_S:
            return
        for place in self._places:
            if answers(place.host, place.port):
                self._answered[place] = time.monotonic()
        self._looked = time.monotonic()
        for place, answered in self._answered.items():
            if self._looked - answered >= LOST_S:
                self.is_lost = True
                raise ClusterLostError(
                    f"{place.name} ({place.host}:{place.port}) has given no answer for"
                    f" {LOST_S:.0f} seconds: the cluster is lost"
                )


def watch_of(ray: Any) -> ClusterWatch:
    """Return what watches the cluster that a process is connected to.

    ray: The module.
    """
    context = ray.get_runtime_context()
    host, _, port = context.gcs_address.rpartition(":")
    places = [Place("Ray's head", host.strip("[]"), int(port))]
    this = context.get_node_id()
    places += [
        Place(
            "Ray's process on this machine",
            node["NodeManagerAddress"],
            node["NodeManagerPort"],
        )
        for node in ray.nodes()
        if node["NodeID"] == this
    ]
    return ClusterWatch(places)


def answers(host: str, port: int) -> bool:
    """Return whether somebody listens at an address."""
    with contextlib.suppress(OSError):
        socket.create_connection((host, port), timeout=CONNECT_S).close()
        return True
    return False
