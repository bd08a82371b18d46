"""How many bytes of requests are held at once, over all of them, and the bound on that; no HTTP."""

from __future__ import annotations

import threading

from service.errors import TooBusy


class Inflight:
    """Counts the bytes that requests hold, up to a bound.

    Attributes:
        held: bytes that are held now.
    """

    def __init__(self, max_bytes: int) -> None:
        self.held = 0
        self._max_bytes = max_bytes
        self._lock = threading.Lock()  # bodies grow on the event loop, and are inflated in threads

    def hold(self) -> Holding:
        """What one request holds, nothing yet; given back on leaving the `with`."""
        return Holding(self)

    def _take(self, size: int) -> None:
        with self._lock:
            if self.held + size > self._max_bytes:
                raise TooBusy(
                    f"the requests in flight hold {self.held} bytes and {size} more would pass the "
                    f"limit of {self._max_bytes}: try again later"
                )
            self.held += size

    def _give(self, size: int) -> None:
        with self._lock:
            self.held -= size


class Holding:
    """The bytes of one request."""

    def __init__(self, inflight: Inflight) -> None:
        self._inflight = inflight
        self._size = 0

    def add(self, size: int) -> None:
        """Hold more bytes.

        Raises:
            TooBusy: all requests together would hold too many.
        """
        self._inflight._take(size)
        self._size += size

    def __enter__(self) -> Holding:
        return self

    def __exit__(self, *error: object) -> None:
        self._inflight._give(self._size)
        self._size = 0
