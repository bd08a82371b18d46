"""Malformed requests, each from a seed and a number: the same two always give the same bytes."""

from __future__ import annotations

import random
from collections.abc import Callable

from benchmarks.fuzz.files import image_files
from benchmarks.fuzz.images import ANY, edge, flip_bits, mutated_image
from benchmarks.fuzz.protocol import (
    binary_shot,
    encoded_shot,
    json_shot,
    json_text,
    mutate_json,
)
from benchmarks.fuzz.shots import Shot, post


def shot(seed: int, number: int, model: str) -> Shot:
    """The malformed request of this number.

    Args:
        model: name of a bundle that is served.
    """
    kind = _ORDER[number % len(_ORDER)]
    return KINDS[kind](random.Random(f"{seed}:{number}"), model)


def _image(rng: random.Random, model: str) -> Shot:
    """A mutated image as the whole body."""
    return post("image", "/classify?budget=0.2", mutated_image(rng))


def _multipart(rng: random.Random, model: str) -> Shot:
    """A form whose boundaries, headers, names or contents are off."""
    mark = rng.choice(("b", "----WebKitFormBoundaryX", "x" * 70, "a b", "'()+_,-./:=?"))
    valid = image_files()["png"]
    parts = [
        (_disposition(rng), rng.choice((valid, valid, b"", mutated_image(rng))))
        for _ in range(rng.choice((0, 1, 1, 2, 5, 33, 40)))
    ]
    line = f"--{mark}\r\n".encode()
    body = b"".join(line + head + b"\r\n\r\n" + content + b"\r\n" for head, content in parts)
    body += f"--{mark}--\r\n".encode()
    if rng.random() < 0.5:
        body = rng.choice((*ANY, _damage_lines))(rng, body)
    told = rng.choice((f'"{mark}"', mark, mark, mark, mark, "", f"{mark}; charset=utf-8", "other"))
    media = rng.choice(("form-data", "form-data", "form-data", "mixed", "related", ""))
    return post(
        "multipart", "/classify", body, ("content-type", f"multipart/{media}; boundary={told}")
    )


def _disposition(rng: random.Random) -> bytes:
    name = rng.choice((b'"file"', b'"file"', b'"file"', b"file", b'"file', b"", b'"\xff"', b'"a"'))
    file_names = (
        b'a.png"', b"../../etc/passwd", b'"\\"; name="other"', b"x" * 5000, b"\xff\xfe",
        b'"a\0.png"', b"=?utf-8?B?YQ==?=", b"", b'"%00"',
    )  # fmt: skip
    line = b"Content-Disposition: form-data; name=" + name
    if rng.random() < 0.5:
        line += b"; filename" + rng.choice((b"", b"*")) + b"=" + rng.choice(file_names)
    more = (
        b"", b"", b"\r\nContent-Type: image/png", b"\r\nContent-Transfer-Encoding: base64",
        b"\r\nA: " + b"b" * rng.choice((10, 5000)), b"\r\nA: b" * rng.choice((2, 50)),
        b"\r\n" + line, b"\r\n folded", b"\r\n:", b"\r\nno colon", b"\r\nContent-Length: 5",
    )  # fmt: skip
    return line + rng.choice(more)


def _damage_lines(rng: random.Random, body: bytes) -> bytes:
    old, new = rng.choice(
        (
            (b"\r\n", b"\n"),
            (b"\r\n", b"\r"),
            (b"--", b"-"),
            (b"\r\n\r\n", b"\r\n"),
            (b"--\r\n", b""),
        )
    )
    return body.replace(old, new, rng.choice((1, 3, -1)))


def _query(rng: random.Random, model: str) -> Shot:
    """A valid image with a query that is off."""
    names = (
        "budget",
        "cap",
        "top_k",
        "deadline_ms",
        "model",
        "bugdet",
        "",
        "budget%00",
        "budget[]",
        "é",
    )
    values = (
        "0", "-1", "1e-400", "nan", "inf", "1e400", "0x1", "9" * 5000, "%00", "%ff", "+", "true",
        "1;drop", "1&budget=2", "../..", "%F0%9F%90%B4", "1_0", " 1", "1.0000000000000001", "٣",
    )  # fmt: skip
    pairs = [f"{rng.choice(names)}={rng.choice(values)}" for _ in range(rng.choice((1, 1, 2, 50)))]
    return post("query", "/classify?" + "&".join(pairs), image_files()["png"])


def _budget(rng: random.Random, model: str) -> Shot:
    """A budget to put in force, hardly ever a good one."""
    text = json_text(rng, mutate_json(rng, {"mode": "fixed", "budget": 0.0}))
    made = post("budget", "/budget", text, ("content-type", "application/json"))
    return Shot("budget", made.head.replace(b"POST", b"PUT", 1), made.body)


def _http(rng: random.Random, model: str) -> Shot:
    """HTTP that is off itself: lines, headers, lengths, chunks."""
    body = image_files()["png"]
    right = b"POST /classify HTTP/1.1\r\nhost: fuzz\r\ncontent-length: %d\r\n" % len(body)
    chunked = b"POST /classify HTTP/1.1\r\nhost: fuzz\r\ntransfer-encoding: chunked\r\n\r\n"
    chunks = b"%x\r\n" % len(body) + body + b"\r\n0\r\n\r\n"
    whole = (
        right + b"x-request-id: a\r\n b\r\n\r\n" + body,
        right + b"x-request-id: " + rng.randbytes(40) + b"\r\n\r\n" + body,
        right + b"a: " + b"b" * rng.choice((1000, 10**5)) + b"\r\n\r\n" + body,
        right + b"a: b\r\n" * rng.choice((50, 3000)) + b"\r\n" + body,
        right + b"expect: 100-continue\r\n\r\n" + body,
        right + b"upgrade: websocket\r\nconnection: upgrade\r\n\r\n" + body,
        chunked + chunks,
        chunked + b"".join(b"1;x=y\r\n%c\r\n" % byte for byte in body) + b"0\r\na: b\r\n\r\n",
        chunked + b"-5\r\n" + body,
        b"GET /" + b"a" * rng.choice((10, 10**5)) + b" HTTP/1.1\r\n\r\n",
        b"%s /classify HTTP/1.1\r\nhost: x\r\n\r\n" % rng.choice((b"TRACE", b"PRI", b"get", b"")),
    )
    # Of these not even the end can be told.
    broken = (
        right.replace(b"%d" % len(body), str(edge(rng)).encode()) + b"\r\n" + body,
        right + b"content-length: 5\r\n\r\n" + body,
        right + b"transfer-encoding: chunked\r\n\r\n" + body,
        right + b"transfer-encoding: gzip, chunked\r\n\r\n" + chunks,
        chunked + rng.choice(ANY)(rng, chunks),
        chunked + b"ffffffffffffffff\r\n" + body,
        flip_bits(rng, right) + b"\r\n" + body,
        rng.randbytes(300),
    )
    framed = rng.random() < 0.5
    return Shot("http", rng.choice(whole if framed else broken), b"", framed)


KINDS: dict[str, Callable[[random.Random, str], Shot]] = {
    "image": _image,
    "multipart": _multipart,
    "v2": json_shot,
    "binary": binary_shot,
    "encoded": encoded_shot,
    "query": _query,
    "budget": _budget,
    "http": _http,
}
_ORDER = ("image",) * 5 + ("multipart",) * 2 + tuple(list(KINDS)[2:]) + ("v2", "multipart")
