"""Content encodings of HTTP bodies: gzip and deflate, inflated up to a bound. No HTTP here."""

from __future__ import annotations

import zlib

from service.errors import BadRequest, BodyTooLarge, FormatNotAllowed

# "deflate" is the zlib format in HTTP; 16 asks zlib for gzip's header in place of its own.
_WINDOW = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
# Answers are small: a higher level costs time and saves few bytes.
_LEVEL = 1


def inflate(body: bytes, encoding: str, max_bytes: int) -> bytes:
    """Undo a content encoding; what has more than `max_bytes` is never inflated further.

    Raises:
        FormatNotAllowed: an encoding other than gzip, deflate and identity.
        BadRequest: the body is not of that encoding, cut off, or followed by more.
        BodyTooLarge: it inflates to more than `max_bytes`.
    """
    encoding = encoding.strip().lower()
    if encoding in ("", "identity"):
        return body
    if encoding not in _WINDOW:
        raise FormatNotAllowed(
            f"content encoding {encoding[:40]!r} is not read: send gzip, deflate or identity"
        )
    stream = zlib.decompressobj(_WINDOW[encoding])
    try:
        content = stream.decompress(body, max_bytes + 1)
    except zlib.error as error:
        raise BadRequest(f"the body is not {encoding}, as its content encoding says") from error
    if len(content) > max_bytes:
        raise BodyTooLarge(
            f"the body inflates to more than {max_bytes} bytes, which is the limit: send less"
        )
    if not stream.eof:
        raise BadRequest(f"the {encoding} body is cut off: send all of it")
    if stream.unused_data:
        raise BadRequest(f"{len(stream.unused_data)} bytes follow the {encoding} body's end")
    return content


def deflate(content: bytes, encoding: str) -> bytes:
    """Apply a content encoding: gzip or deflate."""
    stream = zlib.compressobj(_LEVEL, zlib.DEFLATED, _WINDOW[encoding])
    return stream.compress(content) + stream.flush()


def accepted_encoding(accept: str) -> str | None:
    """The encoding that an Accept-Encoding header prefers, of those known; None for identity."""
    weights = {}
    for choice in accept.lower().split(","):
        name, _, parameter = choice.partition(";")
        weights[name.strip()] = _weight(parameter)
    plain = weights.get("identity", 0.0)
    known = [name for name in _WINDOW if weights.get(name, 0) > 0 and weights[name] >= plain]
    return max(known, key=lambda name: weights[name], default=None)


def _weight(parameter: str) -> float:
    key, _, value = parameter.strip().partition("=")
    if key.strip() != "q":
        return 1.0
    try:
        return float(value)
    except ValueError:
        return 0.0
