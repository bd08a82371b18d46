"""Who finds the queue full is refused at the door, when only the head of a request has come.

To refuse in the app costs about what it costs to answer, the network aside: a task, ten layers, an
exception on its way back. Under overload most are refused, at the expense of those that are not.
"""

from __future__ import annotations

import asyncio
import logging

from service.errors import QueueFull
from service.state import Service

_ROUTE = b"/classify"
# One line of the log tells of all that were refused in so many seconds.
_LOGGED_S = 1.0

logger = logging.getLogger(__name__)


class Door:
    """Knows without the app which requests it would refuse, and counts them as the app would.

    Only what is asked of the default model is refused here, and nothing where pages of other
    sites may ask, whose browsers need headers of their own to be told.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._off = bool(service.settings.cors_origins)
        self._requests = service.metrics.requests.labels(_ROUTE.decode(), QueueFull.status)
        self._rejected = service.metrics.rejected.labels(QueueFull.code)
        self._refused = 0

    def refusal(self, method: bytes, target: bytes) -> QueueFull | None:
        """Why a request would be refused, if it would.

        Args:
            target: path and query as they came.
        """
        if method != b"POST" or not target.startswith(_ROUTE) or self._off:
            return None
        path, _, query = target.partition(b"?")
        if path != _ROUTE or b"model" in query or b"%" in query or self._service.phase != "ready":
            return None
        return self._service.model(None).batcher.refusal()

    def count(self) -> None:
        """A request was refused."""
        self._requests.inc()
        self._rejected.inc()
        self._refused += 1
        if self._refused == 1:
            asyncio.get_running_loop().call_later(_LOGGED_S, self._report)

    def _report(self) -> None:
        extra = {"code": QueueFull.code, "requests": self._refused}
        logger.info("refused at the door", extra=extra)
        self._refused = 0
