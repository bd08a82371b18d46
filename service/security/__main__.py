"""python -m service.security NAME: make a key, and the line that lets the service know it."""

from __future__ import annotations

import sys

from service.security.keys import new_key


def main(arguments: list[str]) -> int:
    """Print a new key to standard error and its line to standard output; 2 if there is no name."""
    try:
        (name,) = arguments
        key, line = new_key(name)
    except ValueError as error:
        usage = "usage: python -m service.security NAME >> keys"
        print(f"error: {error}" if len(arguments) == 1 else usage, file=sys.stderr)
        return 2
    print(f"the key, shown only now: {key}", file=sys.stderr)
    print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
