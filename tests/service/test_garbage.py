"""What requests leave is freed at once: a cycle would keep bodies and pixels until a collection."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import httpx
import numpy as np
import pytest
from PIL import Image

from models.card import Card
from service.app import create_app
from service.settings import Settings
from tests.service.sockets import connect, read_all
from tests.service.support import FakeEngine, encode, serve

ASKED = 20
NOISE = encode(Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)))
BROKEN = NOISE[: len(NOISE) // 2]
MULTIPART = b"content-type: multipart/form-data; boundary=x"
INFER = "POST /v2/models/tiny/infer"
ALL_BINARY = b"inference-header-content-length: 0"


def message(line: str, body: bytes = b"", *headers: bytes) -> bytes:
    first = (f"{line} HTTP/1.1".encode(), b"host: x", b"connection: close", *headers)
    return b"\r\n".join([*first, b"content-length: %d" % len(body), b"", body])


def parts(*files: bytes) -> bytes:
    head = b'--x\r\ncontent-disposition: form-data; name="file"\r\n\r\n'
    return b"".join(head + file + b"\r\n" for file in files) + b"--x--\r\n"


REQUESTS = {
    "answered": (message("POST /classify", NOISE), 200),
    "one of several broken": (message("POST /classify", parts(NOISE, BROKEN), MULTIPART), 200),
    "broken": (message("POST /classify", BROKEN), 400),
    "broken by the protocol": (message(INFER, BROKEN, ALL_BINARY), 400),
    "no multipart": (message("POST /classify", b"--y" + bytes(100_000), MULTIPART), 400),
    "no json": (message(INFER, bytes(100_000)), 400),
    "deadline": (message("POST /classify?deadline_ms=0.001", NOISE), 504),
    "refused by its query": (message("POST /classify?budget=9", NOISE), 422),
    "refused by its path": (message("PUT /nope", NOISE), 404),
    "headers too large": (message("GET /healthz", b"", *[b"a: b"] * 9000), 431),
    "no http": (b"\0\r\n\r\n", 400),
}


@pytest.fixture(scope="module", params=[False, True], ids=["decoded before", "decoded in batch"])
def server(
    request: pytest.FixtureRequest, settings: Settings, card: Card
) -> Iterator[httpx.Client]:
    changed = settings.model_copy(update={"decode_in_batch": request.param})
    with serve(create_app(changed, FakeEngine(card.table(), len(card.labels)))) as client:
        yield client


def ask(server: httpx.Client, sent: bytes) -> bytes:
    with connect(server) as connection:
        connection.sendall(sent)
        return read_all(connection)


@pytest.mark.parametrize("name", REQUESTS)
@pytest.mark.usefixtures("no_collection")
def test_request_and_its_connection_leave_no_cycle(server: httpx.Client, name: str) -> None:
    sent, status = REQUESTS[name]
    ask(server, sent)
    gc.collect()  # of what only the first one leaves
    for _ in range(ASKED):
        assert ask(server, sent).startswith(b"HTTP/1.1 %d " % status)
    assert gc.collect() < ASKED
