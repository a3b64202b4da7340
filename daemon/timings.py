"""How long this daemon's own work takes: the only numbers that are kept for Prometheus alone.

Everything else that `/metrics` shows is counted for its own sake somewhere. Each daemon has one
`Timings`; who is not given one keeps its own, which nobody reads.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)

BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
STORE_CALLS = ("get", "list", "txn", "session")
ROUNDS = ("full", "change")
"""A round that compares everything, or what has changed only."""

disable_created_metrics()  # The time of creation would double the series of each counter.


class Work:
    """One kind of work: a histogram of its seconds and a counter of its failures.

    Args:
        name: `pyvxlan_<name>_seconds` and `pyvxlan_<name>_failures_total`.
        text: What is done, for `# HELP`.
        registry: Where both are shown.
        label: Of both; empty for none.
        values: All that the label can be, each shown from the start.
    """

    def __init__(
        self,
        name: str,
        text: str,
        registry: CollectorRegistry,
        label: str = "",
        values: Iterable[str] = (),
    ) -> None:
        labels = (label,) if label else ()
        self._seconds = Histogram(
            f"pyvxlan_{name}_seconds", f"Duration of {text}.", labels, buckets=BUCKETS_S,
            registry=registry,
        )  # fmt: skip
        self._failures = Counter(
            f"pyvxlan_{name}_failures", f"Failures of {text}.", labels, registry=registry
        )
        for value in values:
            self._seconds.labels(value)
            self._failures.labels(value)

    def note(self, seconds: float, *values: str, failed: bool = False) -> None:
        """Notes one piece of work; `values` is the label's, if there is one."""
        (self._seconds.labels(*values) if values else self._seconds).observe(seconds)
        if failed:
            (self._failures.labels(*values) if values else self._failures).inc()

    @contextmanager
    def timed(self, *values: str, fine: type[Exception] | tuple[()] = ()) -> Iterator[None]:
        """Times what is done inside; an exception other than `fine` counts as a failure."""
        began, failed = time.perf_counter(), False
        try:
            yield
        except Exception as error:
            failed = not isinstance(error, fine)
            raise
        finally:
            self.note(time.perf_counter() - began, *values, failed=failed)


class Timings:
    """All durations of one daemon.

    Args:
        plugin_methods: Docker's calls, each shown from the start.
    """

    def __init__(self, plugin_methods: Iterable[str] = ()) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.attach = Work("attach", "attaching a sandbox", self.registry)
        self.round = Work(
            "reconcile_round", "comparing and putting right", self.registry, "kind", ROUNDS
        )
        self.store = Work("store_call", "calls of the store", self.registry, "call", STORE_CALLS)
        self.plugin = Work(
            "plugin_call", "calls from Docker", self.registry, "method", sorted(plugin_methods)
        )
        self.convergence = Histogram(
            "pyvxlan_convergence_seconds",
            "From a change heard from the store to the forwarding tables.",
            buckets=BUCKETS_S,
            registry=self.registry,
        )
