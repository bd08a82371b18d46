from __future__ import annotations

import re

import pytest

from models import preprocess
from service import errors


def test_codes_of_all_errors_are_snake_case_and_complete() -> None:
    codes = {error.code for error in errors.all_errors()}
    assert {"not_an_image", "unknown_model", "cap_too_low", "internal_error"} <= codes
    assert all(re.fullmatch("[a-z]+(_[a-z]+)*", code) for code in codes)


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        (preprocess.NotAnImage, 400),
        (preprocess.TooManyPixels, 413),
        (preprocess.FormatNotAllowed, 415),
    ],
)
def test_from_image_error_keeps_sentence_and_gives_status(
    kind: type[preprocess.ImageError], status: int
) -> None:
    refusal = errors.from_image_error(kind("a sentence"))
    assert (str(refusal), refusal.status) == ("a sentence", status)
