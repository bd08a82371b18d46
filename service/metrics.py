"""Prometheus metrics, in a registry of the app's own.

All series exist from the start, at zero, and those of a model while it is served; of requests that
failed, those to the routes that classify.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)

from models.card import Card
from models.compute import FLOPS_PER_MAC
from service.batcher import Answer
from service.errors import all_errors
from service.limits import BUDGET_BY

STAGES = ("decode_queue", "decode", "queue", "inference")

_SECONDS = tuple(m * 10**e for e in range(-4, 2) for m in (1, 2, 5))
_FLOPS = tuple(float(m * 10**e) for e in range(6, 11) for m in (1, 2, 5))
_FRACTIONS = (*(n / 20 for n in range(1, 21)), 1.25, 1.5, 2.0)
_SIZES = tuple(2**n for n in range(8))
# What ends a route that classifies. A counter that begins with its first error shows no increase.
_CLASSIFY = ("/classify", "/infer")
_ERRORS = sorted({error.status for error in all_errors()})

# What begins a family in the text format, and the lines of its samples with labels and without.
_HEAD = re.compile(rb"^(# HELP .*\n# TYPE .*\n)", re.MULTILINE)
_LABELLED, _PLAIN = (re.compile(rb"^(\w+)" + end, re.MULTILINE) for end in (rb"\{", b" "))

Kind = TypeVar("Kind", Counter, Gauge, Histogram)


@dataclass
class Totals:
    """What one model did since it was loaded, as the Open Inference Protocol tells it."""

    images: int = 0
    failed: int = 0
    decode_s: float = 0.0
    queue_s: float = 0.0
    inference_s: float = 0.0
    last_unix_s: float = 0.0

    def add(self, answer: Answer, decode_s: float) -> None:
        """Count one classified image."""
        self.images += 1
        self.decode_s += decode_s
        self.queue_s += answer.queue_s
        self.inference_s += answer.inference_s
        self.last_unix_s = time.time()


class ModelMetrics:
    """The series of one model, looked up once.

    Args:
        budget: tells the budget in force.
        at_rest: tells what it would be without load.
        error: tells by how much the model spends more than it was asked to, on average.
    """

    def __init__(
        self,
        metrics: Metrics,
        card: Card,
        budget: Callable[[], float],
        at_rest: Callable[[], float],
        error: Callable[[], float],
    ) -> None:
        self.totals = Totals()
        self._metrics, self._name = metrics, card.name
        name = card.name
        self._full_macs = card.table().full
        self._images = metrics.images.labels(name)
        self._flops = metrics.flops.labels(name)
        self._request_flops = metrics.request_flops.labels(name)
        self._fraction = metrics.compute_fraction.labels(name)
        self._groups = [
            metrics.layer_groups.labels(name, layer) for layer in range(card.backbone.n_layers)
        ]
        metrics.full_flops.labels(name).set(FLOPS_PER_MAC * self._full_macs)
        metrics.budget.labels(name).set_function(budget)
        metrics.budget_at_rest.labels(name).set_function(at_rest)
        metrics.budget_error.labels(name).set_function(error)
        self.abandoned = metrics.abandoned.labels(name)
        self._by = {by: metrics.budget_by.labels(name, by) for by in BUDGET_BY}
        # A network has many layers, whose counters are brought up to date when they are asked for.
        self._widths, self._counting = np.zeros(len(self._groups), np.int64), threading.Lock()
        metrics.counting_late.add(self)

    def remove(self, successor: ModelMetrics | None = None) -> None:
        """Let the series vanish, but for those that a successor of the same name goes on with."""
        # Those of requests that are still under way are counted at once.
        self._metrics.counting_late.remove(self)
        self.count_widths()
        kept = len(successor._groups) if successor else 0
        for layer in range(kept, len(self._groups)):
            self._metrics.layer_groups.remove(self._name, layer)
        if successor is None:
            metrics = self._metrics
            # A gauge and its function hold each other, and the function the engine.
            for gauge in (metrics.budget, metrics.budget_at_rest, metrics.budget_error):
                gauge.labels(self._name).set_function(float)
            metrics.remove_model(self._name)

    def observe(self, answer: Answer, decode_s: float = 0.0) -> None:
        """Count one classified image."""
        self.totals.add(answer, decode_s)
        flops = FLOPS_PER_MAC * answer.macs
        self._images.inc()
        self._flops.inc(flops)
        self._request_flops.observe(flops)
        self._by[answer.limits.by].inc()
        self._fraction.observe(answer.macs / self._full_macs)
        self._widths += answer.widths
        if self not in self._metrics.counting_late:
            self.count_widths()

    def count_widths(self) -> None:
        """Bring the layers' counters up to date; from any thread."""
        with self._counting:
            counted = self._widths.copy()
            self._widths -= counted
        for groups, widths in zip(self._groups, counted.tolist(), strict=True):
            groups.inc(widths)


class Metrics:
    """All series of one app.

    Attributes:
        counting_late: models whose layers are counted when the series are read.
    """

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self._by_model: list[Counter | Gauge | Histogram] = []
        self.counting_late: set[ModelMetrics] = set()
        self.requests = self._counter("requests", "Requests answered", "route", "code")
        self.rejected = self._counter("rejected", "Requests or parts refused", "reason")
        self.images = self._counter("images", "Images classified", "model")
        self.flops = self._counter("flops", "FLOPs computed, the agent included", "model")
        self.layer_groups = self._counter("layer_groups", "Groups computed", "model", "layer")
        self.full_flops = self._gauge("full_flops", "FLOPs of the plain backbone", "model")
        self.budget = self._gauge("budget", "Budget in force", "model")
        self.budget_at_rest = self._gauge(
            "budget_at_rest", "Budget that would be in force without load", "model"
        )
        self.budget_error = self._gauge(
            "budget_error", "Share of full_flops spent less that asked for, recent mean", "model"
        )
        self.budget_by = self._counter(
            "budget_by", "Images by what set their budget", "model", "by"
        )
        self.abandoned = self._counter(
            "abandoned", "Images whose caller hung up or whose deadline passed", "model"
        )
        self.queue_depth = self._gauge("queue_depth", "Images that hold a place in the queue")
        self.decode_queue = self._gauge("decode_queue_depth", "Jobs that wait to be decoded")
        self.inflight_bytes = self._gauge("inflight_bytes", "Bytes of bodies that are held")
        self.request_seconds = self._histogram(
            "request_seconds", "From its headers to the last byte sent", _SECONDS, "route"
        )
        self.stage_seconds = self._histogram(
            "stage_seconds", "Spent by an image, or by a batch", _SECONDS, "stage"
        )
        self.request_flops = self._histogram("request_flops", "FLOPs of an image", _FLOPS, "model")
        self.compute_fraction = self._histogram(
            "compute_fraction", "FLOPs of an image, as a share of full_flops", _FRACTIONS, "model"
        )
        self.batch_size = self._histogram("batch_size", "Images run at once", _SIZES)
        (
            self.decode_queue_seconds,
            self.decode_seconds,
            self.queue_seconds,
            self.inference_seconds,
        ) = (self.stage_seconds.labels(stage) for stage in STAGES)
        for code in sorted({error.code for error in all_errors()}):
            self.rejected.labels(code)

    def start_routes(self, routes: Iterable[str]) -> None:
        """Let the series of these routes exist."""
        for route in routes:
            for status in (200, *(_ERRORS if route.endswith(_CLASSIFY) else ())):
                self.requests.labels(route, status)
            self.request_seconds.labels(route)

    def observe_batch(self, size: int, seconds: float) -> None:
        """Count one batch."""
        self.batch_size.observe(size)
        self.inference_seconds.observe(seconds)

    def remove_model(self, name: str) -> None:
        """Let all series of a model vanish."""
        for metric in self._by_model:
            metric.remove_by_labels({"model": name})

    def text(self) -> bytes:
        """All series in Prometheus' text format."""
        for model in list(self.counting_late):
            model.count_widths()
        return generate_latest(self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return self._kept(Counter(f"rnp_{name}", text, labels, registry=self.registry), labels)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return self._kept(Gauge(f"rnp_{name}", text, labels, registry=self.registry), labels)

    def _histogram(self, name: str, text: str, buckets: Iterable[float], *labels: str) -> Histogram:
        histogram = Histogram(
            f"rnp_{name}", text, labels, registry=self.registry, buckets=tuple(buckets)
        )
        return self._kept(histogram, labels)

    def _kept(self, metric: Kind, labels: tuple[str, ...]) -> Kind:
        if "model" in labels:
            self._by_model.append(metric)
        return metric


def joined(texts: Mapping[int, bytes]) -> bytes:
    """The series of several processes, told apart by the label `process`.

    All are written by `Metrics.text`, so that nothing need be parsed, which takes far longer.

    Args:
        texts: by the process.
    """
    families: dict[bytes, bytes] = {}
    for index, text in sorted(texts.items()):
        text = _LABELLED.sub(rb'\1{process="%d",' % index, text)
        text = _PLAIN.sub(rb'\1{process="%d"} ' % index, text)
        _, *parts = _HEAD.split(text)
        for head, samples in zip(parts[::2], parts[1::2], strict=True):
            families[head] = families.get(head, b"") + samples
    return b"".join(head + samples for head, samples in families.items())
