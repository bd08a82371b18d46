"""python -m service: serve the bundles over HTTP until SIGTERM."""

from __future__ import annotations

import sys

from service.failure import fail
from service.settings import SettingsError, load_settings


def main() -> int:
    """Serve; the exit code is 0 after a stop signal, 2 for a bad setting, 1 for a bad bundle."""
    try:
        settings = load_settings()
    except SettingsError as error:
        return fail(error, 2)
    if settings.workers > 1:
        from service.processes import serve_in_processes

        return serve_in_processes(settings)
    from service.server import serve

    return serve(settings)


if __name__ == "__main__":
    sys.exit(main())
