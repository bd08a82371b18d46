"""python -m service: serve the bundles over HTTP until SIGTERM."""

from __future__ import annotations

import signal
import sys
from types import FrameType

import uvicorn

from models.bundle import BundleError
from service import logs
from service.app import create_app
from service.connections import ServerConfig
from service.settings import SettingsError, load_settings
from service.state import Service


class Server(uvicorn.Server):
    """Lets requests that arrive on open connections after a stop signal know that it stops."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called on SIGTERM and SIGINT."""
        self._service.drain()
        super().handle_exit(sig, frame)


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
    service: Service = app.state.service
    server = Server(
        ServerConfig(app, settings),
        service,
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
