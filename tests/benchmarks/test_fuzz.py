from __future__ import annotations

import threading
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from benchmarks.fuzz import __main__ as fuzz
from benchmarks.fuzz.campaign import MOST_SECONDS, Outcome, Reply, Sender, attack, fault
from benchmarks.fuzz.files import image_files
from benchmarks.fuzz.requests import KINDS, shot
from benchmarks.fuzz.shots import Shot, post

SENTENCE = b'{"error": "a sentence", "code": "word"}'
PLAIN = post("image", "/classify", b"x")
PROTOCOL = post("v2", "/v2/models/a/infer", b"x")


class Watched:
    """A server's port, and what is known of its memory."""

    def __init__(self, port: int, memory: Iterator[int] | None = None) -> None:
        self.port, self._memory = port, memory

    def memory_bytes(self) -> int:
        return 0 if self._memory is None else next(self._memory)


@contextmanager
def answering(status: int, body: bytes, *, hang_up: bool = False) -> Iterator[Watched]:
    """A server that answers everything alike, or hangs up on every second request."""
    count = [0]

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            count[0] += 1
            if hang_up and count[0] % 2 == 0:
                self.close_connection = True
                return
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield Watched(server.server_address[1])
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_shot_same_seed_and_number_same_bytes_else_others() -> None:
    first = [shot(0, number, "m").wire for number in range(60)]
    assert first == [shot(0, number, "m").wire for number in range(60)]
    assert len(set(first)) > 55
    assert sum(a == shot(1, number, "m").wire for number, a in enumerate(first)) < 5


def test_shot_numbers_bring_every_kind() -> None:
    assert {shot(0, number, "m").kind for number in range(20)} == set(KINDS)


def test_image_files_are_of_all_formats() -> None:
    names = {name.partition("-")[0] for name in image_files()}
    assert {"png", "jpeg", "webp", "gif", "bmp", "tiff"} <= names


@pytest.mark.parametrize(
    ("made", "reply", "words"),
    [
        (PLAIN, Reply(200, b"", 1), None),
        (PLAIN, Reply(400, SENTENCE, 1), None),
        (PROTOCOL, Reply(400, b'{"error": "a sentence"}', 1), None),
        (PLAIN, Reply(500, SENTENCE, 1), "status 500"),
        (PLAIN, Reply(504, SENTENCE, 1), None),
        (PLAIN, Reply(504, b"", 1), "without a reason"),
        (PLAIN, Reply(200, b"", MOST_SECONDS + 1), "took"),
        (PLAIN, Reply(0, b"", 1), "no answer"),
        (PLAIN, Reply(400, b"Bad Request", 1), "without a reason"),
        (PLAIN, Reply(400, b"[]", 1), "without a reason"),
        (PLAIN, Reply(400, b'{"error": ""}', 1), "a refusal of 0"),
        (PLAIN, Reply(400, b'{"error": "a sentence"}', 1), "a refusal with"),
        (PROTOCOL, Reply(400, SENTENCE, 1), "a refusal with"),
        (Shot("http", b"x", b"", framed=False), Reply(0, b"", 1), None),
        (Shot("http", b"x", b"", framed=False), Reply(503, b"", 1), "status 503"),
    ],
)
def test_fault_names_what_is_wrong(made: Shot, reply: Reply, words: str | None) -> None:
    found = fault(made, reply)
    assert found is None if words is None else words in (found or "")


@pytest.mark.parametrize(("body", "code"), [(SENTENCE, 0), (b"Bad Request", 1)])
def test_one_request_again_fails_where_it_failed(
    body: bytes, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fuzz, "shot", lambda *_: PLAIN)
    with answering(400, body) as server:
        assert fuzz.repeat(server, Namespace(seed=0, only=1, model="m")) == code
    assert ("without a reason" in capsys.readouterr().out) == code


def test_attack_counts_statuses_and_failures() -> None:
    with answering(500, SENTENCE) as server:
        outcome = attack(server, range(10), lambda number: PLAIN, 3)
    assert outcome.statuses == {("image", 500): 10}
    assert sorted(number for number, _ in outcome.failures) == list(range(10))


def test_sender_connection_closed_while_idle_sends_again() -> None:
    with answering(200, b"fine", hang_up=True) as server:
        sender = Sender(server.port)
        replies = [sender(PLAIN) for _ in range(5)]
        sender.close()
    assert [(reply.status, reply.body) for reply in replies] == [(200, b"fine")] * 5


def test_attack_broken_maker_is_told() -> None:
    def broken(number: int) -> Shot:
        raise ZeroDivisionError

    with answering(200, b"") as server, pytest.raises(ZeroDivisionError):
        attack(server, range(3), broken, 2)


def test_growth_is_that_of_the_second_half() -> None:
    flat, rising = [100] * 20, list(range(100, 120))
    assert Outcome(memory=[0] * 10 + flat).growth_bytes == 0
    assert Outcome(memory=flat + rising).growth_bytes == 16
    assert Outcome(memory=[1, 2]).growth_bytes == 0


def test_attack_samples_memory() -> None:
    with answering(200, b"") as server:
        watched = Watched(server.port, iter(range(1, 1000)))

        def slow(number: int) -> Shot:
            time.sleep(0.3)
            return PLAIN

        assert attack(watched, range(3), slow).memory[:2] == [1, 2]
