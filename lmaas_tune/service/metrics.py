"""The counters of a service, for Prometheus; keys appear by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from lmaas_tune.backend import Usage

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_REQUESTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """The counters of one service. May be used from several threads.

    Args:
        inside: Gives the number of unanswered requests.
        waiting: Gives the number of those that wait for the model.
        drawing: Gives the number of subspaces that wait to be drawn.
        drawn_bytes: Gives the memory of drawn subspaces.
        registered_bytes: Gives the memory of batches and descriptions of subspaces.
    """

    def __init__(
        self,
        *,
        inside: Callable[[], float],
        waiting: Callable[[], float],
        drawing: Callable[[], float],
        drawn_bytes: Callable[[], float],
        registered_bytes: Callable[[], float],
    ) -> None:
        registry = self._registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._requests = Counter(
            "lmaas_requests",
            "Requests answered",
            ("route", "status", "key"),
            registry=registry,
        )
        self._seconds = Histogram(
            "lmaas_request_seconds",
            "From the first header read to the last byte written",
            ("route",),
            buckets=_SECONDS,
            registry=registry,
        )
        self._tokens = Counter("lmaas_tokens", "Tokens the model read", ("key",), registry=registry)
        self._sequences = Counter("lmaas_sequences", "Rows scored", ("key",), registry=registry)
        self._shared = Histogram(
            "lmaas_pass_requests",
            "Requests that went through the model together",
            buckets=_REQUESTS,
            registry=registry,
        )
        self._passing = Histogram(
            "lmaas_pass_seconds",
            "Seconds that it took",
            buckets=_SECONDS,
            registry=registry,
        )
        for name, meaning, value in (
            ("lmaas_inside", "Requests not answered yet", inside),
            ("lmaas_queue", "Requests that wait for the model", waiting),
            ("lmaas_draws", "Subspaces that wait to be drawn", drawing),
            ("lmaas_drawn_subspace_bytes", "p0 and A of the drawn subspaces", drawn_bytes),
            ("lmaas_registered_bytes", "Batches and descriptions of subspaces", registered_bytes),
        ):
            Gauge(name, meaning, registry=registry).set_function(value)

    def answered(self, route: str, status: int, key: str, seconds: float) -> None:
        """Count a request; `key` is empty if it is unknown."""
        self._requests.labels(route, str(status), key).inc()
        self._seconds.labels(route).observe(seconds)

    def scored(self, key: str, usage: Usage) -> None:
        """Count the tokens and rows of an answer."""
        self._tokens.labels(key).inc(usage.tokens)
        self._sequences.labels(key).inc(usage.sequences)

    def passed(self, requests: int, seconds: float, /) -> None:
        """Count a call of the model."""
        self._shared.observe(requests)
        self._passing.observe(seconds)

    def text(self) -> bytes:
        """All counters in the format of Prometheus."""
        return generate_latest(self._registry)
