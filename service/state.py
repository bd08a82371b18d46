"""What an app is made of, and its life: starting, ready, leaving, draining."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Annotated, Any, Literal

from fastapi import Depends, Request

from models.effort import stated_pixels
from service.batcher import Answer
from service.budget import Auto, Budget, Fixed
from service.decoders import Decoders
from service.engines.base import Engine
from service.errors import DefaultModel, Draining, Starting
from service.inflight import Inflight
from service.loader import Loader
from service.mailbox import Mailbox
from service.metrics import Metrics
from service.registry import ServedModel, read_bundles
from service.settings import Settings, SettingsError
from service.siblings import Siblings

logger = logging.getLogger(__name__)

# Bytes, pixels and scans of a file that is decoded about as fast as it is handed over, or at worst
# in some milliseconds. Bytes alone would not do: some tens of them can state any number of pixels.
# Each scan of a JPEG visits them all; progressive ones have about ten.
SMALL_FILE, SMALL_IMAGE, FEW_SCANS = 2**16, 2**17, 12
_SCAN = b"\xff\xda"


class Service:
    """Everything that the routes share.

    Attributes:
        phase: `leaving` says that others should be asked, while whoever asks is still answered.
        asking: what is being made of what the other processes are asked, by path: whoever wants
            to know the same meanwhile waits for the same, so that one thread at most does it.

    Args:
        settings: read once.
        engine: runs the default bundle, until it is replaced, in place of the engine that the
            settings choose.
        siblings: the other processes of the service, if there are any.

    Raises:
        BundleError: a bundle cannot be served.
        SettingsError: the default model is none of the bundles.
    """

    def __init__(
        self, settings: Settings, engine: Engine | None = None, siblings: Siblings | None = None
    ) -> None:
        self.settings, self.siblings = settings, siblings
        bundles = read_bundles(settings.bundles, settings.load)
        self.default = _default(settings.model, sorted(bundles))
        self.budget = Budget(start_mode(settings))
        self.metrics = Metrics()
        given = {self.default: engine} if engine else {}
        self.loader = Loader(settings, self.metrics, self.budget, bundles, given)
        self.metrics.queue_depth.set_function(lambda: self.loader.depth)
        self.decoders = Decoders(settings.decode_threads)
        self.mailbox: Mailbox[Answer] = Mailbox()
        self.inflight = Inflight(settings.max_inflight_bytes)
        self.metrics.inflight_bytes.set_function(lambda: self.inflight.held)
        self.metrics.decode_queue.set_function(lambda: self.decoders.depth)
        self.phase: Literal["starting", "ready", "leaving", "draining"] = "starting"
        self.failure: Exception | None = None
        self.asking: dict[str, asyncio.Task[Any]] = {}
        self._starting: asyncio.Task[None] | None = None

    def decodes_in_batch(self, content: bytes) -> bool:
        """Whether the engine's thread decodes a file, right before its batch.

        A process that has one core gains nothing by another thread, and saves the change to it.
        """
        if not self.settings.decode_in_batch or len(content) > SMALL_FILE:
            return False
        if content.count(_SCAN) > FEW_SCANS:
            return False
        pixels = stated_pixels(content)
        return pixels is not None and pixels <= SMALL_IMAGE

    @property
    def models(self) -> Mapping[str, ServedModel]:
        """What is served now, by name; the mapping itself never changes."""
        return self.loader.served

    @property
    def leaving(self) -> bool:
        """Whether the service is about to stop."""
        return self.phase in ("leaving", "draining")

    def start(self) -> None:
        """Load the engines in the background; `phase` tells when they are ready."""
        self._starting = asyncio.get_running_loop().create_task(self._start())

    def leave(self) -> None:
        """Say that the service is about to stop, but answer whoever asks."""
        if self.phase == "ready":
            self.phase = "leaving"

    def drain(self) -> None:
        """Take no more requests; those in flight are finished."""
        self.phase = "draining"

    async def close(self) -> None:
        """Answer what is queued and stop all threads."""
        self.drain()
        if self._starting:
            self._starting.cancel()
            with suppress(asyncio.CancelledError):
                await self._starting
        await self.loader.close()
        await asyncio.to_thread(self.decoders.shutdown)

    def check_ready(self) -> None:
        """Refuse work before and after the time for it.

        Raises:
            Starting, Draining: not ready yet, or no more.
        """
        if self.phase == "starting":
            raise Starting("the bundles are being loaded: try again in a moment")
        if self.phase == "draining":
            raise _stopping()

    def check_staying(self) -> None:
        """Refuse as `check_ready` does, and already when the service is about to stop.

        Raises:
            Starting, Draining: not ready yet, or not for long.
        """
        self.check_ready()
        if self.leaving:
            raise _stopping()

    def model(self, name: str | None) -> ServedModel:
        """The model of this name, or the default one.

        After the next `await` it may be served no more, unless it is held: `with model.uses`.

        Raises:
            UnknownModel: none of this name is served.
        """
        return self.loader.find(self.default if name is None else name)

    async def load(self, name: str, directory: str | None = None) -> ServedModel:
        """Serve a bundle that lies on disk, in place of what had the name.

        Raises:
            ServiceError: not ready, or the bundle cannot be served.
        """
        self.check_ready()
        return await self.loader.load(name, directory)

    async def unload(self, name: str) -> None:
        """Serve a model no more.

        Raises:
            ServiceError: not ready, none of this name is served, or it is the default one.
        """
        self.check_ready()
        if name == self.default:
            raise DefaultModel(
                f"{name} is the default model, which requests take that name none: "
                "it can be replaced but not unloaded"
            )
        await self.loader.unload(name)

    async def _start(self) -> None:
        started = time.perf_counter()
        try:
            await self.loader.start()
        except Exception as error:
            logger.exception("the bundles cannot be loaded")
            self.failure = error
            return
        if self.phase == "starting":
            self.phase = "ready"
        logger.info(
            "ready", extra={"models": list(self.models), "seconds": time.perf_counter() - started}
        )


def _stopping() -> Draining:
    return Draining("the service is stopping: ask another one, or again later")


def start_mode(settings: Settings) -> Fixed | Auto:
    """The budget's mode that the settings ask for."""
    if settings.target_p95_ms is None:
        return Fixed(settings.budget)
    return Auto(settings.target_p95_ms / 1e3, settings.floor, settings.ceiling)


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
