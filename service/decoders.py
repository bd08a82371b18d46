"""Threads that decode images, and whatever else would hold the event loop up."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from functools import partial
from queue import SimpleQueue
from typing import ParamSpec, TypeVar

logger = logging.getLogger(__name__)

T = TypeVar("T")
P = ParamSpec("P")


class Decoders(Executor):
    """An executor that can also be given work whose result nobody waits for.

    A future for each image would take longer than all else about handing it over.
    """

    def __init__(self, threads: int) -> None:
        self._jobs: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._closed = False
        self._threads = [
            threading.Thread(target=self._work, name=f"decode_{n}", daemon=True)
            for n in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def depth(self) -> int:
        """Jobs that no thread has begun."""
        return self._jobs.qsize()

    def post(self, job: Callable[[], object]) -> None:
        """Do a job some time; what it raises is logged.

        Raises:
            RuntimeError: after `shutdown`.
        """
        if self._closed:
            raise RuntimeError("the decoders were shut down")
        self._jobs.put(job)

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Do a job some time, and tell of it; see `Executor.submit`."""
        future: Future[T] = Future()
        self.post(partial(_run, future, partial(fn, *args, **kwargs)))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more; what is queued is done. Nothing is cancelled."""
        self._closed = True
        for _ in self._threads:
            self._jobs.put(None)
        if wait:
            for thread in self._threads:
                thread.join()

    def _work(self) -> None:
        while job := self._jobs.get():
            try:
                job()
            except Exception:
                logger.exception("a decoding thread's job failed")
            # Or it would keep what it decoded until the next one comes.
            del job


def _run(future: Future[T], job: Callable[[], T]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(job())
    except BaseException as error:
        future.set_exception(error)
    finally:
        # An error holds this frame by its traceback, and the future holds the error.
        del future, job
