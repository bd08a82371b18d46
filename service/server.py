"""One process that serves: uvicorn around the app, until a stop signal."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Sequence
from types import FrameType

import uvicorn

from models.card import BundleError
from service import logs
from service.acceptor import Acceptor, PortError, bind
from service.app import create_app
from service.connections import Connection, ServerConfig
from service.failure import fail
from service.settings import Settings, SettingsError
from service.siblings import Siblings
from service.state import Service

# For the first request of a connection that was made just before a stop.
_LINGER_S = 0.1
# Connections that may wait to be taken; the system may allow fewer.
_BACKLOG = 2048
# New objects between two collections of Python's garbage, and collections between those of the
# older generations.
_COLLECT = (20_000, 20, 20)


class Server(uvicorn.Server):
    """Stops in two steps: first it is said that it leaves, then no more is taken.

    In between, whoever asks is answered, for as long as others may need to learn of it.

    Args:
        listeners: bound to the service's port.
    """

    def __init__(
        self,
        config: ServerConfig,
        service: Service,
        lame_duck_s: float,
        listeners: Sequence[socket.socket] = (),
    ) -> None:
        super().__init__(config)
        self._config, self._service = config, service
        self._listeners = listeners
        self._acceptors: list[Acceptor] = []
        self._lame_duck_s = lame_duck_s
        self._stop_at: float | None = None
        self._parent = multiprocessing.parent_process()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called on SIGTERM and SIGINT; a second one, and that of Ctrl-C, is not put off."""
        if self.should_exit:
            super().handle_exit(sig, frame)
            return
        put_off = sig == signal.SIGTERM and self._service.phase == "ready"
        self._stop_at = time.monotonic() + (self._lame_duck_s if put_off else 0)
        self._service.leave()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen where uvicorn does, and on the port where it is shared."""
        try:
            for listener in self._listeners:
                listener.listen(_BACKLOG)
        except OSError as error:  # of two that bind at once, one listens first
            self._service.failure = PortError(self.config.host, self.config.port, error)
            self.should_exit = True
            return
        await super().startup(sockets)
        if siblings := self._service.siblings:
            self._acceptors = [
                Acceptor(listener, siblings, self._create, self._count)
                for listener in self._listeners
            ]
            self.servers.extend(self._acceptors)  # type: ignore[arg-type]
        else:
            self._log_started_message(self._listeners)

    async def on_tick(self, counter: int) -> bool:
        """Called every 0.1 s; whether to stop."""
        if self._parent and not self._parent.is_alive():
            os._exit(1)  # killed, and whoever starts it anew wants the port
        for acceptor in self._acceptors:
            acceptor.tell()
        due = self._stop_at is not None and time.monotonic() >= self._stop_at
        if due or self._service.failure:
            self.should_exit = True
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no more connections, answer what comes on those there are, then finish."""
        for server in self.servers:
            server.close()
        await asyncio.sleep(_LINGER_S)
        self._service.drain()
        await super().shutdown(sockets)

    def _create(self) -> asyncio.Protocol:
        return Connection(self._config, self.server_state, self.lifespan.state)

    def _count(self) -> int:
        return len(self.server_state.connections)


def serve(
    settings: Settings,
    siblings: Siblings | None = None,
    listeners: Sequence[socket.socket] = (),
) -> int:
    """Serve until a stop signal; the exit code is 2 for a bad setting, 1 for a bundle or port.

    Args:
        siblings: the other processes of the service, if there are any.
        listeners: bound to the port that they share.
    """
    # uvicorn raises a stop signal once more when all is finished, to let it take its usual effect.
    for stop in (signal.SIGTERM, signal.SIGINT):
        signal.signal(stop, _exit)
    logs.configure(settings.log_level, None if siblings is None else siblings.index)
    try:
        app = create_app(settings, siblings=siblings)
        own = [siblings.listen()] if siblings else bind(settings.host, settings.port)
    except SettingsError as error:
        return fail(error, 2)
    except (BundleError, PortError) as error:
        return fail(error, 1)
    service: Service = app.state.service
    listeners = listeners or own
    server = Server(ServerConfig(app, settings), service, settings.lame_duck_s, listeners)
    # What there is by now stays for good: never look through it again, and less often through what
    # requests leave, of which little is in cycles.
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_COLLECT)
    server.run(own)
    return fail(service.failure, 1) if service.failure else 0


def _exit(signum: int, frame: FrameType | None) -> None:
    raise SystemExit(0)
