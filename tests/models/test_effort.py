from __future__ import annotations

import pytest

from models import effort
from models.effort import BoundedFile, TooMuchEffort, check_scans

SCAN = b"\xff\xda\0\4xx" + b"data \xff\0 \xff\xd0 data"


def test_bounded_file_is_read_so_often_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(effort, "MOST_READS", 3)
    file = BoundedFile(b"abcd")
    assert [file.read(1) for _ in range(3)] == [b"a", b"b", b"c"]
    with pytest.raises(TooMuchEffort, match="more than 3 pieces"):
        file.read(1)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        SCAN * 99 + b"\xff\xd9" + SCAN * 9,
        # What a segment holds is no marker, nor is an escaped byte.
        b"\xff\xc4\0\6\xff\xda\xff\xda" * 99,
        b"\xff\0\xda" * 999,
        b"\xff" * 999 + b"\xd9",
        b"\xff",
        b"\xff\xda",
    ],
)
def test_check_scans_as_many_as_allowed_pass(content: bytes) -> None:
    check_scans(b"head" + content, 4)


@pytest.mark.parametrize(
    "content",
    [
        SCAN * 100,
        b"\xff\xff" + SCAN * 100,
        b"\xff\xfe\0\4\xff\xd9" + SCAN * 100,  # an end within a comment is none
        b"\xff\xfe\0\2" * 2001,
        b"\xff\xfe\0\0" * 2001,
    ],
)
def test_check_scans_more_refused(content: bytes) -> None:
    with pytest.raises(TooMuchEffort, match="more than 100 scans, or 2000 segments"):
        check_scans(b"head" + content, 4)
