"""What a request holds beside its path: a body, read up to a bound, and no query."""

from __future__ import annotations

from starlette.requests import Request

from service.errors import BadParameter, BodyTooLarge
from service.inflight import Holding


async def no_query(request: Request) -> None:
    """Refuse the query of what takes none, where it would be ignored, and missed.

    Who only reads may send one, as caches and proxies have their uses for it.

    Raises:
        BadParameter: there is one.
    """
    query = request.scope["query_string"]
    if query and request.method not in ("GET", "HEAD"):
        shown = query.decode("latin-1")[:80]
        raise BadParameter(
            f"{request.scope['path']} takes no query, and this one has {shown!r}: what it takes "
            "is in the body"
        )


async def read_body(request: Request, max_bytes: int, held: Holding | None = None) -> bytes:
    """The whole body; one that is too long is refused by what it announces, or as it grows.

    Args:
        held: the body is added to it as it comes, so that what is only announced takes no place;
            None for bodies of some settings, which are not counted.

    Raises:
        TooBusy: the requests in flight hold too much.
        BodyTooLarge: it has more than `max_bytes`.
    """
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > max_bytes:
        raise _too_large(f"has {announced}", max_bytes)
    body = bytearray()
    async for chunk in request.stream():
        if len(body) + len(chunk) > max_bytes:
            raise _too_large("has more", max_bytes)
        if held is not None:
            held.add(len(chunk))
        body += chunk
    return bytes(body)


def _too_large(size: str, max_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(f"the body {size} bytes, the limit is {max_bytes}: send less")
