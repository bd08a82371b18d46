from __future__ import annotations

import json
import logging
import sys

from service.logs import REQUEST_ID, JsonFormatter
from service.notes import NOTES, Notes


def make_record(**extra: object) -> logging.LogRecord:
    record = logging.makeLogRecord({"name": "n", "levelno": 20, "levelname": "INFO", "msg": "a\nb"})
    vars(record).update(extra)
    return record


def test_format_is_one_line_of_json_with_extra_fields() -> None:
    line = JsonFormatter().format(make_record(status=200, path="/x"))
    assert "\n" not in line
    values = json.loads(line)
    assert values.pop("time").endswith("+00:00")
    assert values == {
        "level": "info",
        "logger": "n",
        "message": "a\nb",
        "status": 200,
        "path": "/x",
    }


def test_format_inside_a_request_has_its_id() -> None:
    token = REQUEST_ID.set("r1")
    try:
        assert json.loads(JsonFormatter().format(make_record()))["request_id"] == "r1"
    finally:
        REQUEST_ID.reset(token)


def test_format_inside_a_request_has_its_keys_name() -> None:
    token = NOTES.set(Notes(key="alice"))
    try:
        assert json.loads(JsonFormatter().format(make_record()))["key"] == "alice"
    finally:
        NOTES.reset(token)


def test_format_exception_has_its_traceback() -> None:
    try:
        raise ValueError("broken")
    except ValueError:
        line = JsonFormatter().format(make_record(exc_info=sys.exc_info()))
    assert "ValueError: broken" in json.loads(line)["traceback"]
