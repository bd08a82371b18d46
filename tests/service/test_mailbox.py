from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable, Coroutine

import pytest

from service.errors import NotAnImage
from service.mailbox import Mailbox


def on_a_loop(test: Callable[..., Coroutine]) -> Callable[..., None]:
    return functools.wraps(test)(lambda **fixtures: asyncio.run(test(**fixtures)))


def put_all(mailbox: Mailbox, letters: list) -> None:
    """From another thread, while the loop stands still."""

    def put() -> None:
        for letter in letters:
            mailbox.put(*letter)

    thread = threading.Thread(target=put)
    thread.start()
    thread.join()


@on_a_loop
async def test_put_settles_futures_with_results_and_errors() -> None:
    loop, mailbox = asyncio.get_running_loop(), Mailbox[int]()
    good, bad = loop.create_future(), loop.create_future()
    put_all(mailbox, [(good, 1), (bad, ValueError("broken"))])
    assert await good == 1
    with pytest.raises(ValueError, match="broken"):
        await bad


@on_a_loop
async def test_put_a_refusal_is_a_result() -> None:
    future, refusal = asyncio.get_running_loop().create_future(), NotAnImage("broken")
    put_all(Mailbox(), [(future, refusal)])
    assert await future is refusal


@on_a_loop
async def test_put_of_many_wakes_the_loop_once(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, mailbox, woken = asyncio.get_running_loop(), Mailbox[int](), []
    wake = loop.call_soon_threadsafe
    monkeypatch.setattr(loop, "call_soon_threadsafe", lambda call: woken.append(wake(call)))
    for _ in range(2):
        futures = [loop.create_future() for _ in range(5)]
        put_all(mailbox, [(future, number) for number, future in enumerate(futures)])
        every = asyncio.gather(*futures)
        assert await asyncio.wait_for(every, 10) == [0, 1, 2, 3, 4]
    assert len(woken) == 2


@on_a_loop
async def test_put_for_a_cancelled_future_is_dropped() -> None:
    loop, mailbox = asyncio.get_running_loop(), Mailbox[int]()
    gone, kept = loop.create_future(), loop.create_future()
    gone.cancel()
    put_all(mailbox, [(gone, 1), (kept, 2)])
    assert await asyncio.wait_for(kept, 10) == 2


@on_a_loop
async def test_put_from_many_threads_loses_nothing() -> None:
    loop, mailbox = asyncio.get_running_loop(), Mailbox[int]()
    futures = [[loop.create_future() for _ in range(500)] for _ in range(4)]

    def put(own: list[asyncio.Future]) -> None:
        for future in own:
            mailbox.put(future, 1)

    threads = [threading.Thread(target=put, args=(own,)) for own in futures]
    for thread in threads:
        thread.start()
    every = asyncio.gather(*(future for own in futures for future in own))
    assert await asyncio.wait_for(every, 10) == [1] * 2000
    for thread in threads:
        thread.join()


def test_put_after_the_loop_was_closed_is_quiet() -> None:
    loop, mailbox = asyncio.new_event_loop(), Mailbox[int]()
    future = loop.create_future()
    loop.close()
    mailbox.put(future, 1)
    assert not future.done()
