"""A service of several processes on one port: their parent, which serves nothing itself."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Sequence
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from types import FrameType

from service.failure import fail
from service.settings import Settings
from service.siblings import ABSENT, Siblings


def serve_in_processes(settings: Settings) -> int:
    """Serve in as many processes as the settings say, until a stop signal; returns the exit code.

    They live and die together: if one ends, the others are stopped, and whoever started the
    service learns it from the exit code, as with one process.
    """
    try:
        listener = _bind(settings.host, settings.port)
    except OSError as error:
        return fail(OSError(f"port {settings.port} of {settings.host}: {error.strerror}"), 1)
    multiprocessing.allow_connection_pickling()
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="rnp-") as directory:
        n = settings.workers
        connections = spawn.RawArray("q", [ABSENT] * n)
        family = [Siblings(index, n, Path(directory), connections) for index in range(n)]
        processes = [
            spawn.Process(target=_serve, args=(settings, siblings, listener)) for siblings in family
        ]
        came = _pass_signals_on(processes)
        for process in processes:
            if came:
                break
            process.start()
            if came:  # while it had no number yet by which it could be told
                _signal(process, came[-1])
        # When the last of them stops to listen, nobody must be left waiting at this one.
        listener.close()
        return _wait([process for process in processes if process.pid is not None], came)


def _serve(settings: Settings, siblings: Siblings, listener: socket.socket) -> None:
    from service.server import serve  # not in the parent, which would hold all of it for nothing

    # A terminal's Ctrl-C reaches the parent, which passes it on: twice would mean at once.
    os.setpgid(0, 0)
    sys.exit(serve(settings, siblings, listener))


def _wait(processes: Sequence[SpawnProcess], came: list[int]) -> int:
    """The exit code, when all have ended; `came` are the stop signals so far."""
    code, running = 0, list(processes)
    while running:
        wait([process.sentinel for process in running])
        for process in [one for one in running if one.exitcode is not None]:
            running.remove(process)
            # A signal may come before a process listens to it.
            asked = process.exitcode == 0 or -(process.exitcode or 0) in came
            if not (came and asked):
                code = code or max(process.exitcode or 0, 1)
                for other in running:
                    other.terminate()
    return code


def _pass_signals_on(processes: Sequence[SpawnProcess]) -> list[int]:
    """Let the processes have the stop signals of their parent; returns those that came."""
    came: list[int] = []

    def pass_on(signum: int, frame: FrameType | None) -> None:
        came.append(signum)
        for process in processes:
            _signal(process, signum)

    for stop in (signal.SIGTERM, signal.SIGINT):
        signal.signal(stop, pass_on)
    return came


def _signal(process: SpawnProcess, signum: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        if process.pid is not None and process.exitcode is None:
            os.kill(process.pid, signum)


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, port))
    return listener
