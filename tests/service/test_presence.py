"""What a client still owes, told by the connection as it is run."""

from __future__ import annotations

import json
import time

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from service.app import create_app
from service.presence import is_whole
from service.settings import Settings
from tests.service.sockets import connect, read_all
from tests.service.support import FakeEngine, png, serve

# What a busy machine may add to any time.
SLACK_S = 2


def test_request_is_whole_once_its_last_byte_came(settings: Settings, engine: FakeEngine) -> None:
    async def tell(request: Request) -> Response:
        first = is_whole(request.scope)
        await request.body()
        return Response(f"{first} {is_whole(request.scope)}")

    app = create_app(settings, engine)
    app.router.routes.append(Route("/whole", tell, methods=["POST"]))
    head = b"POST /whole HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\n"
    with serve(app) as server, connect(server) as connection:
        connection.sendall(head + b"\r\nx")
        assert connection.recv(65536).endswith(b"True True")
        connection.sendall(head + b"connection: close\r\n\r\n")
        time.sleep(0.2)
        connection.sendall(b"x")
        assert read_all(connection).endswith(b"False True")


def test_body_that_comes_slowly_is_no_load_to_the_auto_mode(
    settings: Settings, engine: FakeEngine
) -> None:
    body = png()
    head = f"POST /classify HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n"
    auto = settings.model_copy(update={"target_p95_ms": 1000 * SLACK_S, "floor": 0.2})
    with serve(create_app(auto, engine)) as server, connect(server) as connection:
        connection.sendall(f"{head}connection: close\r\n\r\n".encode())
        time.sleep(1.2 * SLACK_S)
        connection.sendall(body)
        answer = json.loads(read_all(connection).split(b"\r\n\r\n")[1])
        assert answer["timing_ms"]["total"] > 1000 * SLACK_S
        assert (answer["budget"], answer["budget_by"]) == (1, "load")
        assert server.get("/budget").json()["budget"] == 1
