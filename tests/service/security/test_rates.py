from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from service.errors import RateLimited
from service.security import rates
from service.security.rates import Buckets, address_group


class Clock:
    """Stands still until it is told to go on."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def taken(buckets: Buckets, client: str = "a", tries: int = 100) -> int:
    for count in range(tries):
        try:
            buckets.take(client)
        except RateLimited:
            return count
    return tries


def test_take_burst_then_one_per_interval() -> None:
    clock = Clock()
    buckets = Buckets(4, burst=3, clock=clock)
    assert taken(buckets) == 3
    clock.now += 0.24
    assert taken(buckets) == 0
    clock.now += 0.01
    assert taken(buckets) == 1
    clock.now += 100  # no more than a burst is saved up
    assert taken(buckets) == 3


def test_take_each_client_has_its_own_bucket() -> None:
    buckets = Buckets(1, burst=2, clock=Clock())
    assert (taken(buckets, "a"), taken(buckets, "b")) == (2, 2)


@pytest.mark.parametrize("rate", [0.1, 1 / 3, 0.7, 1, 3, 7.3, 1000])
@pytest.mark.parametrize("burst", [1, 5])
def test_take_wait_is_exact(rate: float, burst: int) -> None:
    clock = Clock()
    buckets = Buckets(rate, burst=burst, clock=clock)
    taken(buckets)
    with pytest.raises(RateLimited) as refusal:
        buckets.take("a")
    seconds = refusal.value.retry_after_s
    assert seconds is not None
    clock.now += 1 / rate - 0.001 / rate
    assert taken(buckets, tries=1) == 0  # any sooner is too soon
    clock.now += 0.001 / rate
    assert taken(buckets, tries=1) == 1
    assert seconds == max(1, math.ceil(1 / rate))


def test_charge_is_paid_back_by_waiting() -> None:
    clock = Clock()
    buckets = Buckets(2, burst=4, clock=clock)
    buckets.take("a")
    buckets.charge("a", 9)  # ten images: six more than there were tokens for
    clock.now += 3.49
    assert taken(buckets) == 0
    clock.now += 0.01
    assert taken(buckets) == 1


def resident_bytes() -> int:
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's own count")
def test_million_clients_memory_stays_flat() -> None:
    buckets = Buckets(1, burst=1)
    for number in range(2 * rates.MAX_CLIENTS):
        buckets.take(f"2001:db8::{number:x}")
    before = resident_bytes()
    for number in range(2 * rates.MAX_CLIENTS, 1_000_000):
        buckets.take(f"2001:db8::{number:x}")
    assert buckets.clients == rates.MAX_CLIENTS
    assert resident_bytes() - before < 4 * 10**6  # all of them would take some 150 MB


def test_client_seen_lately_is_not_forgotten() -> None:
    buckets = Buckets(1, burst=1, clock=Clock())
    buckets.take("old")
    buckets.take("a")
    for number in range(rates.MAX_CLIENTS - 1):
        buckets.charge("a", 1)
        buckets.take(str(number))
    assert taken(buckets, "a") == 0
    assert taken(buckets, "old") == 1


@pytest.mark.parametrize(
    ("host", "group"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:0db8:0001:0002::/64"),
        ("2001:db8:1:2::", "2001:0db8:0001:0002::/64"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("fe80::1%eth0", "fe80:0000:0000:0000::/64"),
        ("a:b", "a:b"),
        ("", ""),
    ],
)
def test_address_group(host: str, group: str) -> None:
    assert address_group(host) == group
