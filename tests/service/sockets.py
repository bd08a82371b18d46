"""Raw sockets as clients, and what the service answers them."""

from __future__ import annotations

import json
import socket
import time

import httpx


def connect(server: httpx.Client) -> socket.socket:
    return socket.create_connection((server.base_url.host, server.base_url.port), timeout=10)


def drip(connection: socket.socket, data: bytes = b"x", every_s: float = 0.05) -> float:
    """Send little by little until the other side hangs up, which takes the seconds returned."""
    started = time.monotonic()
    connection.setblocking(False)
    while time.monotonic() - started < 10:
        try:
            connection.send(data)
            time.sleep(every_s)
            if connection.recv(1, socket.MSG_PEEK) == b"":
                break
        except BlockingIOError:
            continue
        except OSError:
            break
        else:
            break
    connection.settimeout(10)
    return time.monotonic() - started


def read_all(connection: socket.socket) -> bytes:
    try:
        return b"".join(iter(lambda: connection.recv(65536), b""))
    except ConnectionResetError:
        return b""


def error_of(answer: bytes) -> tuple[int, str]:
    head, body = answer.split(b"\r\n\r\n")
    values = json.loads(body)
    assert set(values) == {"error", "code"}
    assert b"connection: close" in head.lower()
    return int(head.split(b" ")[1]), values["code"]
