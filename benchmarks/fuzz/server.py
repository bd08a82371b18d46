"""The service that is attacked, with all of a folder's bundles, and what it said in the end."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.load import server
from benchmarks.load.server import Server, ServerError, free_port


@contextmanager
def running(bundles: Path, **variables: str) -> Iterator[Server]:
    """Start `python -m service` on a free port, and stop it.

    Args:
        variables: settings, as RNP_ variables.

    Raises:
        ServerError: it does not get ready, or died before it was told to stop.
    """
    port = free_port()
    own = {"RNP_BUNDLES": str(bundles.resolve()), "RNP_PORT": str(port), "RNP_LOG_LEVEL": "ERROR"}
    command = [sys.executable, "-m", "service"]
    with server.running(command, port, own | variables) as it:
        it.wait_ready("/readyz")
        try:
            yield it
        finally:
            for line in it.log().splitlines()[-5:]:
                print(f"service: {line}", file=sys.stderr)
        if (code := it.process.poll()) is not None:
            raise ServerError(f"the service ended by itself, with code {code}")
