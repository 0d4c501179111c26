"""A Ray cluster of several nodes on 127.0.0.1, each of which can be killed."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator
from typing import Any

from actstore.machine import command_values

# Ray reads these once, when it is imported: nothing imports it before.
SETTINGS = {
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
NODE: dict[str, Any] = {
    "num_cpus": 1,
    "object_store_memory": 80 << 20,
    "node_ip_address": "127.0.0.1",
}


class Nodes:
    """A cluster whose head gives no cores away, and its other nodes one each.

    Attributes:
        engine: As `--engine` takes it.
    """

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        head = {**NODE, "num_cpus": 0, "include_dashboard": False}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self._nodes: list[Any] = []
        self.engine = f"ray:{self._cluster.address}"

    def have(self, n: int) -> None:
        """Have so many nodes besides the head."""
        while len(self._nodes) < n:
            self._nodes.append(self._cluster.add_node(**NODE))

    def kill_one(self) -> None:
        """SIGKILL a node: what manages it, and all that runs on it."""
        self._cluster.remove_node(self._nodes.pop(), allow_graceful=False)

    def end(self) -> None:
        self._cluster.shutdown()  # type: ignore[no-untyped-call]


@contextlib.contextmanager
def nodes() -> Iterator[Nodes]:
    """A cluster for as long as a `with` block."""
    with command_values.during(SETTINGS):
        cluster = Nodes()
        try:
            yield cluster
        finally:
            cluster.end()
