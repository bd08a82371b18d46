"""python -m service: serve the bundles over HTTP until SIGTERM."""

from __future__ import annotations

import asyncio
import gc
import signal
import socket
import sys
import time
from types import FrameType

import uvicorn

from models.bundle import BundleError
from service import logs
from service.app import create_app
from service.connections import ServerConfig
from service.settings import SettingsError, load_settings
from service.state import Service

# New objects between two collections of Python's garbage, and of older generations.
_COLLECT = (20_000, 20, 20)
# For the first request of a connection that was made just before a stop.
_LINGER_S = 0.1


class Server(uvicorn.Server):
    """Stops in two steps: first it is said that it leaves, then no more is taken.

    In between, whoever asks is answered, for as long as others may need to learn of it.
    """

    def __init__(self, config: uvicorn.Config, service: Service, lame_duck_s: float) -> None:
        super().__init__(config)
        self._service = service
        self._lame_duck_s = lame_duck_s
        self._stop_at: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called on SIGTERM and SIGINT; a second one, and that of Ctrl-C, is not put off."""
        if self.should_exit:
            super().handle_exit(sig, frame)
            return
        put_off = sig == signal.SIGTERM and self._service.phase == "ready"
        self._stop_at = time.monotonic() + (self._lame_duck_s if put_off else 0)
        self._service.leave()

    async def on_tick(self, counter: int) -> bool:
        """Called every 0.1 s; whether to stop."""
        if self._stop_at is not None and time.monotonic() >= self._stop_at:
            self.should_exit = True
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no more connections, answer what comes on those there are, then finish."""
        for server in self.servers:
            server.close()
        await asyncio.sleep(_LINGER_S)
        self._service.drain()
        await super().shutdown(sockets)


def main() -> int:
    """Serve; the exit code is 0 after a stop signal, 2 for a bad setting, 1 for a bad bundle."""
    # uvicorn raises a stop signal once more when all is finished, to let it take its usual effect.
    for stop in (signal.SIGTERM, signal.SIGINT):
        signal.signal(stop, _exit)
    try:
        settings = load_settings()
        logs.configure(settings.log_level)
        app = create_app(settings)
    except SettingsError as error:
        return _fail(error, 2)
    except BundleError as error:
        return _fail(error, 1)
    # What there is by now stays for good: never look through it again, and less often through what
    # requests leave, of which little is in cycles.
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_COLLECT)
    service: Service = app.state.service
    server = Server(
        ServerConfig(app, settings),
        service,
        settings.lame_duck_s,
    )
    service.on_failure = lambda: setattr(server, "should_exit", True)
    server.run()
    return _fail(service.failure, 1) if service.failure else 0


def _fail(error: Exception, code: int) -> int:
    print(f"error: {error}", file=sys.stderr)
    return code


def _exit(signum: int, frame: FrameType | None) -> None:
    raise SystemExit(0)


if __name__ == "__main__":
    sys.exit(main())
