"""A token bucket for each client, in a table that cannot grow without bound."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from ipaddress import IPv6Address

from service.errors import RateLimited

# Some 150 bytes each. Beyond it the client unseen for longest is forgotten, so its bucket is full.
MAX_CLIENTS = 20_000


class Buckets:
    """Lets every client have `rate_per_s` images, and `burst` of them at once.

    A bucket is kept as one number: the time at which it will be full again.

    Args:
        clock: seconds that only grow.
    """

    def __init__(
        self, rate_per_s: float, burst: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._rate, self._burst, self._clock = rate_per_s, burst, clock
        self._full_at: OrderedDict[str, float] = OrderedDict()

    @property
    def clients(self) -> int:
        """How many are in the table."""
        return len(self._full_at)

    def take(self, client: str) -> None:
        """Let one image of a client in.

        Raises:
            RateLimited: its bucket is empty; the error tells how long.
        """
        now = self._clock()
        full_at = max(self._full_at.get(client, now), now) + 1 / self._rate
        wait_s = full_at - now - self._burst / self._rate
        if wait_s > 1e-9:  # less is rounding
            raise RateLimited(
                f"{self._burst} images may come at once and {self._rate:g} a second after: "
                f"try again in {wait_s:.3f} s",
                wait_s,
            )
        self._set(client, full_at)

    def charge(self, client: str, images: int) -> None:
        """Take further images of a request that was let in, if need be from tokens to come."""
        now = self._clock()
        self._set(client, max(self._full_at.get(client, now), now) + images / self._rate)

    def _set(self, client: str, full_at: float) -> None:
        self._full_at[client] = full_at
        self._full_at.move_to_end(client)
        if len(self._full_at) > MAX_CLIENTS:
            self._full_at.popitem(last=False)


def address_group(host: str) -> str:
    """An address as a client: of IPv6 its /64, as whoever has one address there has them all."""
    if ":" not in host:
        return host
    try:
        address = IPv6Address(host)
    except ValueError:
        return host
    if address.ipv4_mapped:
        return str(address.ipv4_mapped)
    return f"{address.packed[:8].hex(':', 2)}::/64"
