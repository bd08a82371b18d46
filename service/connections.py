"""uvicorn, with what it leaves open: bounds on connections, on headers, and on slow clients."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from typing import Any

import httptools
import uvicorn
from fastapi import FastAPI
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from service.door import Door
from service.errors import (
    BadHttp,
    HeadersTooLarge,
    HeadersTooSlow,
    ServiceError,
    TooManyConnections,
)
from service.metrics import Metrics
from service.middleware import request_id
from service.presence import Presence
from service.settings import Settings
from service.siblings import is_own_socket
from service.wire import TURNED_AWAY, CorkedTransport, Timer, answer, head_without_offer

# How long a client that was answered before it had sent all is heard out, and how many such there
# may be: beyond them the one that was answered first is cut off.
_LINGER_S, _MOST_LINGERING = 5.0, 64

logger = logging.getLogger(__name__)


class ServerConfig(uvicorn.Config):
    """How the service is run.

    Attributes:
        settings: those of the app.
        metrics: those of the app.
        door: refuses what the app would refuse for a full queue.
        waiting: connections that wait for their clients, the longest first.
        lingering: connections that were answered and are about to close, the first ones first.
    """

    def __init__(self, app: FastAPI, settings: Settings) -> None:
        super().__init__(
            app,
            host=settings.host,
            port=settings.port,
            http=Connection,
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            # uvicorn would believe whoever connects from this machine.
            proxy_headers=bool(settings.trusted_proxies),
            forwarded_allow_ips=list(settings.trusted_proxies),
            timeout_keep_alive=settings.keep_alive_s,
            timeout_graceful_shutdown=settings.drain_s,
        )
        self.settings = settings
        self.metrics: Metrics = app.state.service.metrics
        self.door = Door(app.state.service)
        self.waiting: OrderedDict[Connection, None] = OrderedDict()
        self.lingering: OrderedDict[Connection, None] = OrderedDict()


class Connection(HttpToolsProtocol):
    """One connection.

    It *waits* while its client owes it something: from its start, or from an answer, to the last
    byte of the next request. If there are too many connections, the one that waits longest makes
    room, so slow clients cannot lock others out. From their first byte on, headers have
    `header_timeout_s`; before it, uvicorn's time for idle connections holds, and the first ones of
    a connection have `header_timeout_s` from its start. Bodies are timed around the app.

    It *lingers* where it closes before its client has sent all: what it still sends is read and
    dropped for a while. Bytes that come to a closed connection reset it, and the client loses the
    answer that says why (RFC 9112, section 9.6).

    An offer of another protocol (HTTP/2, by `Upgrade`) is left out of the request that makes it.
    """

    def __init__(
        self,
        config: ServerConfig,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._settings, self._metrics = config.settings, config.metrics
        self._door = config.door
        self._waiting, self._lingering = config.waiting, config.lingering
        self._timer, self._send_timer = Timer(self.loop), Timer(self.loop)
        self._in_headers = False
        self._offered = False
        # Nothing is heard any more, as what came after a request was no HTTP.
        self._deaf = False
        self.url = b""  # as far as it is known when a refusal needs it
        # Since the last headers or bytes of a body, so of headers, trailers or the sizes of chunks.
        self._overhead_bytes = 0
        self._refusal: ServiceError | None = None
        self._running: RequestResponseCycle | None = None
        self._corked: CorkedTransport | None = None
        self._presence = Presence()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Make room if need be, then wait for headers."""
        most = self._settings.max_connections
        full = len(self.connections) - len(self._lingering) >= most
        super().connection_made(transport)
        if is_own_socket(self.server):  # a sibling makes no room and needs none
            return
        if full and not self._waiting:
            self._refuse(TooManyConnections(f"{most} connections are busy: try again later"))
            return
        if full:
            longest, _ = self._waiting.popitem(last=False)
            longest.transport.abort()
        self._waiting[self] = None
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        self._waiting.pop(self, None)
        self._lingering.pop(self, None)
        self._timer.stop()
        self._send_timer.stop()
        self._give_up()
        super().connection_lost(exc)
        # Each of them holds this connection too.
        self.cycle = None  # type: ignore[assignment]
        self._running = self._corked = self._refusal = None

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._running, self._presence = cycle, Presence()
        # It may have come, whole or in part, while the one before it was answered.
        self._presence.whole = not cycle.more_body
        if cycle.more_body and self not in self._waiting:
            self._wait()
        self._presence.attach(cycle.scope)  # type: ignore[arg-type]
        self._corked = CorkedTransport(cycle.transport, self._close)
        cycle.transport = self._corked  # type: ignore[assignment]
        super()._start_asgi_task(cycle, app)

    def data_received(self, data: bytes) -> None:
        """Parse what came, and see that headers do not grow or take for ever."""
        if self in self._lingering or self._deaf:
            return
        self._overhead_bytes += len(data)
        self._unset_keepalive_if_required()
        try:
            self._parse(data)
        except httptools.HttpParserError:
            self._refuse(self._refusal or BadHttp("this is no HTTP/1.1 request"))
        if self.transport.is_closing() or self in self._lingering or self._deaf:
            return
        if self._overhead_bytes > self._settings.max_header_bytes:
            self._refuse(self._too_large())
        elif self._in_headers or self._idle:
            self._start_timer()

    def on_message_begin(self) -> None:
        """Called at the first byte of a request."""
        self._unset_keepalive_if_required()  # as a body before it may have ended just now
        self._in_headers = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Start the request, unless its headers are too large."""
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > self._settings.max_header_bytes:
            # The parser stops, and says that this is no HTTP.
            self._refusal = self._too_large()
            raise self._refusal
        if self.parser.get_method() == b"CONNECT":
            self._refusal = BadHttp("CONNECT asks for a proxy, which this is not")
            raise self._refusal
        if self.parser.should_upgrade():
            self._offered = True
            return
        self._in_headers, self._overhead_bytes = False, 0
        self._timer.stop()
        if full := self._refusal_at_door():
            self._turn_away(full)
        else:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Pass a part of a body on."""
        self._overhead_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Called at the last byte of a request, or of a head that offers another protocol."""
        if self._offered:
            return
        self._overhead_bytes = 0
        self._presence.whole = True
        if self._idle:
            self._rest()
        else:
            self._waiting.pop(self, None)
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Wait for the next request, if none came already."""
        if self._corked:
            self._corked.flush()
        super().on_response_complete()
        if self._idle and not self.transport.is_closing() and self not in self._lingering:
            self._wait()

    def pause_writing(self) -> None:
        """The client does not take its answer: give it some time."""
        super().pause_writing()
        if not self._send_timer.runs:
            self._send_timer.start(self._settings.send_timeout_s, self.transport.abort)

    def resume_writing(self) -> None:
        """The client goes on."""
        self._send_timer.stop()
        super().resume_writing()

    @property
    def _idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _wait(self) -> None:
        """From now on the client is waited for."""
        if not is_own_socket(self.server):
            self._waiting[self] = None
            self._waiting.move_to_end(self)

    def _rest(self) -> None:
        """A body has ended after its answer: as after others, the connection may be idle."""
        self._timer.stop()
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_later(
            self.timeout_keep_alive, self.timeout_keep_alive_handler
        )

    def _parse(self, data: bytes) -> None:
        while True:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as offer:
                # The parser takes what follows for another protocol; it is the request's body.
                head = head_without_offer(self.parser, self.url, self.headers)
                data = head + data[offer.args[0] :]
                self._offered = False
                self.parser = httptools.HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)

    def _refusal_at_door(self) -> ServiceError | None:
        """Why a request goes no further; one that waits or ends its connection is for the app."""
        parser = self.parser
        if not self._idle or not parser.should_keep_alive() or parser.get_http_version() != "1.1":
            return None
        if self.flow.write_paused:  # by a client that sends and does not read
            return None
        return self._door.refusal(parser.get_method(), self.url)

    def _turn_away(self, error: ServiceError) -> None:
        """Refuse a request; what is still to come of it is dropped."""
        self.cycle = TURNED_AWAY
        self._write(error, request_id(self.headers))
        self._door.count()
        super().on_response_complete()
        self._wait()

    def _headers_late(self) -> None:
        if not self._idle:  # the next request can wait for the answer to this one
            self._start_timer()
        elif self._in_headers:
            limit_s = self._settings.header_timeout_s
            sentence = f"the headers were not complete after {limit_s:g} s: send them faster"
            self._refuse(HeadersTooSlow(sentence))
        else:
            self.transport.close()

    def _give_up(self) -> None:
        """End a request that is not answered yet."""
        if self._running and not self._running.response_complete:
            # uvicorn tells only the last request, which behind it may not have begun.
            self._running.disconnected = True
            self._running.message_event.set()
            self._presence.leave()

    def _too_large(self) -> HeadersTooLarge:
        limit = self._settings.max_header_bytes
        return HeadersTooLarge(f"the headers have more bytes, the limit is {limit}: send less")

    def _refuse(self, error: ServiceError) -> None:
        """Answer, if only by this, and close; but not in place of a request before."""
        running, given = self._running, request_id(())
        if running and not running.response_complete and self._owed(running):
            self._deaf, running.keep_alive = True, False
            self.pipeline.clear()
            self._timer.stop()
        else:
            self._write(error, given, (b"connection", b"close"))
            self._linger()
        self._metrics.rejected.labels(error.code).inc()
        client = self.client[0] if self.client else None
        details = {"code": error.code, "status": error.status, "client": client}
        logger.info("connection refused", extra=details | {"request_id": given})

    def _write(self, error: ServiceError, given: str, *headers: tuple[bytes, bytes]) -> None:
        """Write a refusal of the request that has this id."""
        headers += (b"x-request-id", given.encode()), *self.server_state.default_headers
        self.transport.write(answer(error, self.url, *headers))

    def _owed(self, running: RequestResponseCycle) -> bool:
        """Whether a request must get its own answer: all of it has come, or that has begun."""
        return self._presence.whole or running.response_started

    def _close(self) -> None:
        """Close after an answer."""
        if (self._presence.whole and not self._deaf) or self.transport.is_closing():
            self.transport.close()
        else:
            self._linger()

    def _linger(self) -> None:
        """Send no more; close when the client does, or after a while."""
        if self.transport.is_closing():
            return
        self._give_up()
        self._timer.stop()
        self._waiting.pop(self, None)
        if len(self._lingering) >= _MOST_LINGERING:
            first, _ = self._lingering.popitem(last=False)
            first.transport.close()
        self._lingering[self] = None
        self.transport.write_eof()
        self.flow.resume_reading()
        self._timer.start(_LINGER_S, self.transport.close)

    def _start_timer(self) -> None:
        """Bound the time for headers, unless it or uvicorn's for idle connections runs already."""
        if not self._timer.runs and self.timeout_keep_alive_task is None:
            self._timer.start(self._settings.header_timeout_s, self._headers_late)
