"""A service of several processes on one port: their parent, which serves nothing itself."""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from types import FrameType

from service.acceptor import PortError, bind
from service.failure import fail
from service.settings import Settings
from service.siblings import ABSENT, Siblings

# Beyond the seconds that settings give a stop, for all else about it, as to finish a batch; less
# than docker-compose.yml's grace period leaves.
_MARGIN_S = 5.0
# How soon it is seen that a signal came.
_POLL_S = 0.5


def serve_in_processes(settings: Settings) -> int:
    """Serve in as many processes as the settings say, until a stop signal; returns the exit code.

    They live and die together: if one ends, the others are stopped, by force if they take too
    long, and whoever started the service learns it from the exit code, as with one process.
    """
    try:
        listeners = bind(settings.host, settings.port)
    except PortError as error:
        return fail(error, 1)
    multiprocessing.allow_connection_pickling()
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="rnp-") as directory:
        n = settings.workers
        connections = spawn.RawArray("q", [ABSENT] * n)
        family = [Siblings(index, n, Path(directory), connections) for index in range(n)]
        processes = [
            spawn.Process(target=_serve, args=(settings, siblings, listeners))
            for siblings in family
        ]
        came = _pass_signals_on(processes)
        for process in processes:
            if came:
                break
            process.start()
            if came:  # while it had no number yet by which it could be told
                _signal(process, came[-1])
        # When the last of them stops to listen, nobody must be left waiting at these.
        for listener in listeners:
            listener.close()
        patience_s = settings.lame_duck_s + settings.drain_s + _MARGIN_S
        return _wait(
            [process for process in processes if process.pid is not None], came, patience_s
        )


def _serve(settings: Settings, siblings: Siblings, listeners: Sequence[socket.socket]) -> None:
    from service.server import serve  # not in the parent, which would hold all of it for nothing

    # A terminal's Ctrl-C reaches the parent, which passes it on: twice would mean at once.
    os.setpgid(0, 0)
    sys.exit(serve(settings, siblings, listeners))


def _wait(processes: Sequence[SpawnProcess], came: list[int], patience_s: float) -> int:
    """The exit code, when all have ended.

    Args:
        came: the stop signals so far.
        patience_s: from when they are to stop; those that then still run are killed.
    """
    code, running, deadline = 0, list(processes), math.inf
    while running:
        wait([process.sentinel for process in running], _POLL_S)
        for process in [one for one in running if one.exitcode is not None]:
            running.remove(process)
            # A signal may come before a process listens to it.
            asked = process.exitcode == 0 or -(process.exitcode or 0) in came
            if not (came and asked):
                code = code or max(process.exitcode or 0, 1)
                for other in running:
                    other.terminate()
        if (came or code) and deadline == math.inf:
            deadline = time.monotonic() + patience_s
        if time.monotonic() > deadline:
            pids = ", ".join(str(process.pid) for process in running)
            late = f"killed what did not stop within {patience_s:g} s: process {pids}"
            code, deadline = fail(TimeoutError(late), code or 1), math.inf
            for process in running:
                process.kill()
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
