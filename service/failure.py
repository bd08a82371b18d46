"""How the service ends that cannot start."""

from __future__ import annotations

import sys


def fail(error: Exception, code: int) -> int:
    """Say why, in one line, and return the exit code."""
    print(f"error: {error}", file=sys.stderr)
    return code
