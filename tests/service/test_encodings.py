from __future__ import annotations

import gzip
import tracemalloc
import zlib

import pytest

from service.encodings import accepted_encoding, deflate, inflate
from service.errors import BadRequest, BodyTooLarge, FormatNotAllowed

CONTENT = b"some text, " * 1000
PACK = {"gzip": gzip.compress, "deflate": zlib.compress}
UNPACK = {"gzip": gzip.decompress, "deflate": zlib.decompress}


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_inflate_undoes_an_encoding(encoding: str) -> None:
    assert inflate(PACK[encoding](CONTENT), encoding, len(CONTENT)) == CONTENT
    assert inflate(PACK[encoding](CONTENT), f" {encoding.upper()} ", len(CONTENT)) == CONTENT


@pytest.mark.parametrize("encoding", ["", "identity", "Identity"])
def test_inflate_identity_is_the_body_itself(encoding: str) -> None:
    assert inflate(CONTENT, encoding, 1) is CONTENT


@pytest.mark.parametrize("encoding", ["br", "gzip, gzip", "zstd", "x"])
def test_inflate_unknown_encoding_refused(encoding: str) -> None:
    with pytest.raises(FormatNotAllowed, match="send gzip, deflate or identity"):
        inflate(CONTENT, encoding, 10**6)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_inflate_bomb_is_refused_without_its_memory(encoding: str) -> None:
    bomb = PACK[encoding](bytes(50 * 10**6))
    tracemalloc.start()
    with pytest.raises(BodyTooLarge, match="more than 10000 bytes"):
        inflate(bomb, encoding, 10_000)
    assert tracemalloc.get_traced_memory()[1] < 10**6
    tracemalloc.stop()


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
@pytest.mark.parametrize("cut", [0, 1, 10, -5])
def test_inflate_cut_body_refused(encoding: str, cut: int) -> None:
    with pytest.raises(BadRequest, match="cut off"):
        inflate(PACK[encoding](CONTENT)[:cut], encoding, 10**6)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_inflate_other_bytes_refused(encoding: str) -> None:
    with pytest.raises(BadRequest, match=f"is not {encoding}"):
        inflate(CONTENT, encoding, 10**6)


@pytest.mark.parametrize("more", [b"x", gzip.compress(b"")], ids=["text", "gzip"])
def test_inflate_bytes_after_the_end_refused(more: bytes) -> None:
    with pytest.raises(BadRequest, match=f"{len(more)} bytes follow"):
        inflate(gzip.compress(CONTENT) + more, "gzip", 10**6)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_deflate_is_what_others_inflate(encoding: str) -> None:
    assert UNPACK[encoding](deflate(CONTENT, encoding)) == CONTENT


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", None),
        ("identity", None),
        ("br", None),
        ("*", None),
        ("gzip", "gzip"),
        ("deflate", "deflate"),
        ("gzip, deflate, br", "gzip"),
        ("deflate, gzip", "gzip"),
        ("gzip;q=0.2, deflate;q=0.5", "deflate"),
        ("GZIP ; q=1", "gzip"),
        ("gzip;q=0, deflate", "deflate"),
        ("gzip;q=0", None),
        ("gzip;q=x", None),
        ("gzip;q=nan", None),
        (";;,,=", None),
        ("identity;q=1, gzip;q=0.1", None),
        ("identity;q=0.1, gzip;q=0.5", "gzip"),
    ],
)
def test_accepted_encoding_is_the_one_preferred(accept: str, expected: str | None) -> None:
    assert accepted_encoding(accept) == expected
