"""The parts of a multipart/form-data body that is already in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from service.errors import BadMultipart, MissingPart, TooManyParts

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

PART_NAME = "file"


def file_parts(body: bytes, content_type: str, max_parts: int) -> list[bytes]:
    """Contents of the parts named `file`, in their order; other parts are passed over.

    Raises:
        BadMultipart: no boundary, not multipart, or cut off before its closing boundary.
        MissingPart: no part is named `file`.
        TooManyParts: more parts, of any name, than `max_parts`.
    """
    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary:
        raise BadMultipart(f"the content type {content_type!r} names no boundary")
    collector = _Collector(max_parts)
    try:
        MultipartParser(boundary, collector.callbacks()).write(body)
    except FormParserError as error:
        raise BadMultipart(f"the body is not multipart: {error}") from error
    if not collector.ended:
        raise BadMultipart("the multipart body ends before its closing boundary: it is truncated")
    contents = [content for name, content in collector.parts if name == PART_NAME]
    if not contents:
        names = ", ".join(sorted({name for name, _ in collector.parts})) or "none"
        raise MissingPart(f"no part is named '{PART_NAME}' (found: {names}): name each image so")
    return contents


class _Collector:
    """Gathers names and contents from the parser's callbacks."""

    def __init__(self, max_parts: int) -> None:
        self.parts: list[tuple[str, bytes]] = []
        self.ended = False
        self._max_parts = max_parts
        self._header, self._value, self._name = b"", b"", ""
        self._content = bytearray()

    def callbacks(self) -> MultipartCallbacks:
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._add_header,
            "on_header_value": self._add_value,
            "on_header_end": self._end_header,
            "on_part_data": self._add_content,
            "on_part_end": self._end_part,
            "on_end": self._end,
        }

    def _begin(self) -> None:
        if len(self.parts) == self._max_parts:
            raise TooManyParts(
                f"the body has more than {self._max_parts} parts: send several requests"
            )
        self._name, self._content = "", bytearray()

    def _add_header(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _add_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        if self._header.lower() == b"content-disposition":
            name = parse_options_header(self._value)[1].get(b"name", b"")
            self._name = name.decode("utf-8", "replace")
        self._header, self._value = b"", b""

    def _add_content(self, data: bytes, start: int, end: int) -> None:
        self._content += data[start:end]

    def _end_part(self) -> None:
        self.parts.append((self._name, bytes(self._content)))

    def _end(self) -> None:
        self.ended = True
