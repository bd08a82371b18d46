from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Iterator

import pytest

from service.decoders import Decoders
from tests.service.support import wait_until


@pytest.fixture
def decoders() -> Iterator[Decoders]:
    decoders = Decoders(2)
    yield decoders
    decoders.shutdown()


def test_post_does_jobs_in_order_on_its_threads(decoders: Decoders) -> None:
    done: list[tuple[int, str]] = []
    for n in range(100):
        decoders.post(lambda n=n: done.append((n, threading.current_thread().name)))
    decoders.shutdown()
    assert sorted(n for n, _ in done) == list(range(100))
    assert {name for _, name in done} <= {"decode_0", "decode_1"}


def test_post_a_job_that_raises_is_logged_and_the_thread_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    decoders = Decoders(1)
    decoders.post(lambda: 1 / 0)
    assert decoders.submit(lambda: 7).result(10) == 7
    assert caplog.records[0].levelno == logging.ERROR
    decoders.shutdown()


def test_submit_gives_back_what_was_returned_or_raised(decoders: Decoders) -> None:
    assert decoders.submit(int, "101", base=2).result(10) == 5
    with pytest.raises(ValueError, match="invalid literal"):
        decoders.submit(int, "x").result(10)


@pytest.mark.usefixtures("no_collection")
def test_submit_that_raised_frees_what_it_was_given_with_its_future(decoders: Decoders) -> None:
    class Body:
        """Bytes can have no weak reference."""

    def refuse(body: Body) -> None:
        raise ValueError("broken")

    body = Body()
    kept, future = weakref.ref(body), decoders.submit(refuse, body)
    del body
    assert str(future.exception(10)) == "broken"
    del future
    wait_until(lambda: kept() is None)


def test_submit_cancelled_before_its_turn_is_not_done() -> None:
    decoders, gate, done = Decoders(1), threading.Event(), []
    decoders.post(gate.wait)
    future = decoders.submit(done.append, 1)
    assert decoders.depth >= 1
    assert future.cancel()
    gate.set()
    decoders.shutdown()
    assert done == []


def test_shutdown_finishes_what_is_queued_and_takes_no_more(decoders: Decoders) -> None:
    gate, done = threading.Event(), []
    for _ in range(2):
        decoders.post(gate.wait)
    decoders.post(lambda: done.append(1))
    threading.Timer(0.1, gate.set).start()
    decoders.shutdown()
    assert done == [1]
    with pytest.raises(RuntimeError, match="shut down"):
        decoders.submit(int)
