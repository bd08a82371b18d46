"""What an app is made of, and its life: starting, ready, draining."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Annotated, Literal

from fastapi import Depends, Request

from models.bundle import Bundle
from service import costs
from service.budget import Auto, Budget, Fixed
from service.engines import create_engine
from service.engines.base import Engine
from service.errors import Draining, Starting, UnknownModel
from service.inflight import Inflight
from service.metrics import Metrics, ModelMetrics
from service.registry import ServedModel, read_bundles, serve_bundle
from service.settings import Settings, SettingsError

logger = logging.getLogger(__name__)


class Service:
    """Everything that the routes share.

    Args:
        settings: read once.
        engine: runs the default bundle in place of the engine that the settings choose.

    Raises:
        BundleError: a bundle cannot be served.
        SettingsError: the default model is none of the bundles.
    """

    def __init__(self, settings: Settings, engine: Engine | None = None) -> None:
        self.settings = settings
        self.bundles = read_bundles(settings.bundles)
        self.default = _default(settings.model, list(self.bundles))
        self.budget = Budget(start_mode(settings))
        self.metrics = Metrics()
        self.model_metrics = {
            name: ModelMetrics(
                self.metrics,
                bundle.card,
                partial(self.budget_in_force, name),
                partial(self._budget_error, name),
            )
            for name, bundle in self.bundles.items()
        }
        self.metrics.queue_depth.set_function(self._queue_depth)
        self.models: dict[str, ServedModel] = {}
        self.decoders = ThreadPoolExecutor(settings.decode_threads, "decode")
        self.inflight = Inflight(settings.max_inflight_bytes)
        self.metrics.inflight_bytes.set_function(lambda: self.inflight.held)
        # Python has no public count of what an executor has yet to begin.
        self.metrics.decode_queue.set_function(self.decoders._work_queue.qsize)
        self.phase: Literal["starting", "ready", "draining"] = "starting"
        self.failure: Exception | None = None
        self.on_failure: Callable[[], None] = lambda: None
        self._engine = engine
        self._loader = threading.Thread(target=self._load, name="loader")

    def start(self) -> None:
        """Load the engines in the background; `phase` tells when they are ready."""
        self._loader.start()

    def drain(self) -> None:
        """Take no more requests; those in flight are finished."""
        self.phase = "draining"

    def close(self) -> None:
        """Answer what is queued and stop all threads."""
        self.drain()
        self._loader.join()
        for model in self.models.values():
            model.batcher.close()
        self.decoders.shutdown()

    def check_ready(self) -> None:
        """Refuse work before and after the time for it.

        Raises:
            Starting, Draining: not ready yet, or no more.
        """
        if self.phase == "starting":
            raise Starting("the bundles are being loaded: try again in a moment")
        if self.phase == "draining":
            raise Draining("the service is stopping: ask another one, or again later")

    def model(self, name: str | None) -> ServedModel:
        """The model of this name, or the default one.

        Raises:
            UnknownModel: no bundle has this name.
        """
        found = self.models.get(self.default if name is None else name)
        if found is None:
            known = ", ".join(sorted(self.models))
            raise UnknownModel(f"model is {name!r}: choose one of {known}")
        return found

    def budget_in_force(self, name: str) -> float:
        """What a request to this model gets that names no budget."""
        model = self.models.get(name)
        if model is None:
            return self.budget.of(self.bundles[name].card.min_fraction)
        return model.budget_in_force

    def _budget_error(self, name: str) -> float:
        model = self.models.get(name)
        return model.planner.correction.error if model else 0.0

    def _load(self) -> None:
        started = time.perf_counter()
        try:
            for name, bundle in self.bundles.items():
                self.models[name] = self._serve(name, bundle)
        except Exception as error:
            logger.exception("the bundles cannot be loaded")
            self.failure = error
            self.on_failure()
            return
        if self.phase == "starting":
            self.phase = "ready"
        logger.info(
            "ready", extra={"models": sorted(self.models), "seconds": time.perf_counter() - started}
        )

    def _serve(self, name: str, bundle: Bundle) -> ServedModel:
        if self._engine is not None and name == self.default:
            return serve_bundle(bundle, self._engine, self.settings, self.metrics, self.budget)
        engine = create_engine(
            bundle,
            self.settings.engine,
            threads=self.settings.threads,
            cache_dir=self.settings.cache_dir,
        )
        # Before its queue takes requests, which would be measured too.
        table = costs.measure(engine, bundle.card)
        return serve_bundle(bundle, engine, self.settings, self.metrics, self.budget, table)

    def _queue_depth(self) -> float:
        return sum(model.batcher.depth for model in self.models.values())


def start_mode(settings: Settings) -> Fixed | Auto:
    """The budget's mode that the settings ask for."""
    if settings.target_p95_ms is None:
        return Fixed(settings.budget)
    return Auto(settings.target_p95_ms / 1e3, settings.floor)


def _default(name: str | None, known: list[str]) -> str:
    if name is None:
        return known[0]
    if name not in known:
        raise SettingsError(f"RNP_MODEL is {name!r}: choose one of {', '.join(known)}")
    return name


async def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


ServiceDep = Annotated[Service, Depends(_service)]
