"""Figures about the service, in the text form that Prometheus reads."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from schemas.service import ServiceState

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0)


class Metrics:
    """The figures of one service."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "actstore_requests",
            "Requests that were answered",
            ("method", "route", "status"),
            registry=self._registry,
        )
        self._seconds = Histogram(
            "actstore_request_seconds",
            "Time from a request to the end of its answer",
            ("method", "route"),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._runs = Gauge(
            "actstore_runs", "Runs in each state", ("state",), registry=self._registry
        )
        self._slots = Gauge(
            "actstore_slots",
            "Places where one pass at a time is trained",
            ("state",),
            registry=self._registry,
        )
        self._memory = Gauge(
            "actstore_slot_memory_bytes",
            "Bytes that a pass may take of a slot",
            ("slot",),
            registry=self._registry,
        )
        self.streams = Gauge(
            "actstore_event_streams", "Open streams of events", registry=self._registry
        )

    def add(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request that was answered."""
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(method, route).observe(seconds)

    def text(self, state: ServiceState) -> bytes:
        """Return all figures.

        Args:
            state: The service as it is now.
        """
        for name, number in state.counts.items():
            self._runs.labels(name).set(number)
        busy = sum(1 for slot in state.slots if slot.runs)
        self._slots.labels("busy").set(busy)
        self._slots.labels("free").set(len(state.slots) - busy)
        for slot in state.slots:
            self._memory.labels(slot.name).set(slot.memory_bytes)
        return generate_latest(self._registry)
