"""The models that are served, which come and go while requests flow.

A bundle is read, its engine built, warmed and measured on a thread of its own, while what was
served before goes on. Everything else happens on the event loop: to look a model up and to take
hold of it is one step there, and so is a swap. What was swapped out still answers all requests
that hold it, and is released after the last of them.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

from models.bundle import Bundle
from service import costs
from service.budget import Budget
from service.costs import Cost
from service.engines import create_engine
from service.engines.base import Engine
from service.errors import BadBundle, UnknownModel
from service.metrics import Metrics
from service.registry import ServedModel, find_bundle, serve_bundle
from service.settings import Settings

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Built:
    """A bundle whose engine is ready to run."""

    bundle: Bundle
    engine: Engine
    costs: Sequence[Cost] = ()


class Loader:
    """Loads, replaces and unloads models, one at a time: whoever comes second waits.

    Attributes:
        served: by name; never changed, but replaced by another mapping as a whole.
        loading: names that are being loaded and not served yet.
    """

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        budget: Budget,
        bundles: Mapping[str, Bundle],
        given: Mapping[str, Engine],
    ) -> None:
        """Keep what `start` is to serve: bundles by name, some of them on given engines."""
        self._settings, self._metrics, self._budget = settings, metrics, budget
        self._at_start, self._given = dict(bundles), given
        self.served: Mapping[str, ServedModel] = {}
        self.loading = frozenset(bundles)
        self._turn = asyncio.Lock()
        self._builder = ThreadPoolExecutor(1, "loader")
        self._leaving: dict[asyncio.Task[None], ServedModel] = {}

    @property
    def unloading(self) -> set[str]:
        """Names whose last requests are being answered and that are served no more."""
        return {model.card.name for model in list(self._leaving.values())} - self.served.keys()

    @property
    def depth(self) -> int:
        """Images that hold a place in a queue, also in those of models that leave."""
        models = [*self.served.values(), *list(self._leaving.values())]
        return sum(model.batcher.depth for model in models)

    async def start(self) -> None:
        """Serve the first bundles, which were read already.

        Raises:
            EngineError: what an engine needs is not installed; engines have errors of their own.
        """
        loop = asyncio.get_running_loop()
        async with self._turn:
            with self._marked_loading(*self._at_start):
                # Their tensors are not kept beside the engines.
                while self._at_start:
                    name, bundle = self._at_start.popitem()
                    if name in self._given:
                        built = _Built(bundle, self._given[name])
                    else:
                        built = await loop.run_in_executor(self._builder, self._build, bundle)
                    self._serve(built)

    async def load(self, name: str, directory: str | None = None) -> ServedModel:
        """Serve what lies on disk, in place of what had the name; see `find_bundle`.

        Raises:
            BadBundle: it cannot be served; what was served before still is.
        """
        async with self._turn:
            with self._marked_loading(name):
                loop = asyncio.get_running_loop()
                started = time.perf_counter()
                built = await loop.run_in_executor(self._builder, self._read, name, directory)
                model = self._serve(built)
            seconds = time.perf_counter() - started
            extra = {"model": name, "digest": model.digest, "seconds": round(seconds, 3)}
            logger.info("loaded", extra=extra)
            return model

    async def unload(self, name: str) -> None:
        """Serve a model no more; requests that hold it are answered.

        Raises:
            UnknownModel: none of this name is served.
        """
        async with self._turn:
            model = self.find(name)
            self.served = {other: kept for other, kept in self.served.items() if other != name}
            model.metrics.remove()
            self._leave(model)

    async def close(self) -> None:
        """Answer what is queued and stop all threads."""
        await asyncio.to_thread(self._builder.shutdown, cancel_futures=True)
        for model in self.served.values():
            self._leave(model)
        self.served = {}
        await asyncio.gather(*self._leaving)

    def find(self, name: str) -> ServedModel:
        """The model of this name.

        Raises:
            UnknownModel: none of this name is served.
        """
        if name not in self.served:
            raise UnknownModel(f"model is {name!r}: choose one of {', '.join(self.served)}")
        return self.served[name]

    def _read(self, name: str, directory: str | None) -> _Built:
        try:
            return self._build(find_bundle(self._settings.bundles, name, directory))
        except Exception as error:  # files and engines fail in ways of their own
            logger.warning("not loaded", extra={"model": name}, exc_info=True)
            state = "stays as it was" if name in self.served else "is not loaded"
            raise BadBundle(f"{name} {state}: {error}") from error

    def _build(self, bundle: Bundle) -> _Built:
        engine = create_engine(
            bundle,
            self._settings.engine,
            threads=self._settings.threads,
            cache_dir=self._settings.cache_dir,
        )
        # Before its queue takes requests, which would be measured too.
        return _Built(bundle, engine, costs.measure(engine, bundle.card))

    def _serve(self, built: _Built) -> ServedModel:
        """Swap a model in."""
        model = serve_bundle(
            built.bundle, built.engine, self._settings, self._metrics, self._budget, built.costs
        )
        name = model.card.name
        before = self.served.get(name)
        self.served = dict(sorted({**self.served, name: model}.items()))
        if before:
            before.metrics.remove(successor=model.metrics)
            self._leave(before)
        return model

    def _leave(self, model: ServedModel) -> None:
        task = asyncio.get_running_loop().create_task(self._release(model))
        self._leaving[task] = model
        task.add_done_callback(self._leaving.pop)

    async def _release(self, model: ServedModel) -> None:
        """Close a model after the last request that holds it.

        One whose body never ends would hold it for ever: it gets as long as at a stop.
        """
        name, limit_s = model.card.name, self._settings.drain_s
        try:
            await asyncio.wait_for(model.uses.ended(), limit_s)
        except TimeoutError:
            logger.warning("requests still hold %s after %s s: they are refused", name, limit_s)
        await asyncio.to_thread(model.batcher.close)
        logger.info("released", extra={"model": name, "digest": model.digest})

    @contextmanager
    def _marked_loading(self, *names: str) -> Iterator[None]:
        self.loading = frozenset(names) - self.served.keys()
        try:
            yield
        finally:
            self.loading = frozenset()
