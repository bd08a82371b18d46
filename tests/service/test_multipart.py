from __future__ import annotations

import httpx
import pytest

from service.errors import BadMultipart, MissingPart, TooManyParts
from service.multipart import file_parts

CONTENTS = [b"first", b"", b"\r\n--not-the-boundary\r\n", bytes(range(256)) * 50]


def encode(parts: list[tuple[str, bytes]]) -> tuple[bytes, str]:
    request = httpx.Request("POST", "http://x", files=[(n, ("a.png", c)) for n, c in parts])
    return request.read(), request.headers["content-type"]


def test_file_parts_contents_in_order() -> None:
    body, content_type = encode([("file", content) for content in CONTENTS])
    assert file_parts(body, content_type, 4) == CONTENTS


def test_file_parts_without_file_name_read() -> None:
    body = b'--b\r\ncontent-disposition: form-data; name="file"\r\n\r\nplain\r\n--b--\r\n'
    assert file_parts(body, "multipart/form-data; boundary=b", 1) == [b"plain"]


def test_file_parts_other_names_passed_over() -> None:
    body, content_type = encode([("note", b"x"), ("file", b"y")])
    assert file_parts(body, content_type, 4) == [b"y"]


def test_file_parts_none_named_file_refused() -> None:
    body, content_type = encode([("image", b"x")])
    with pytest.raises(MissingPart, match="found: image"):
        file_parts(body, content_type, 4)


def test_file_parts_too_many_refused() -> None:
    body, content_type = encode([("file", b"x")] * 5)
    with pytest.raises(TooManyParts, match="more than 4"):
        file_parts(body, content_type, 4)


@pytest.mark.parametrize("content_type", ["multipart/form-data", "multipart/form-data; boundary="])
def test_file_parts_no_boundary_refused(content_type: str) -> None:
    with pytest.raises(BadMultipart, match="boundary"):
        file_parts(b"", content_type, 4)


@pytest.mark.parametrize("cut", [3, 30, 200])
def test_file_parts_truncated_refused(cut: int) -> None:
    body, content_type = encode([("file", bytes(300))])
    with pytest.raises(BadMultipart):
        file_parts(body[:-cut], content_type, 4)


def test_file_parts_other_boundary_refused() -> None:
    body, _ = encode([("file", b"x")])
    with pytest.raises(BadMultipart):
        file_parts(body, "multipart/form-data; boundary=other", 4)
