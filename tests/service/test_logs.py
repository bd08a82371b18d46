from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import sys
import threading

import pytest

from service.logs import REQUEST_ID, JsonFormatter, LineHandler
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


def test_broken_forms_are_no_warnings() -> None:
    # In a process of its own, as logs are configured for all of it.
    script = """if True:
        from service.errors import BadMultipart
        from service.logs import configure
        from service.multipart import file_parts
        configure("INFO")
        try:
            file_parts(b"no multipart", "multipart/form-data; boundary=x", 1)
        except BadMultipart:
            print("refused")
    """
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "refused\n"


def test_format_exception_has_its_traceback() -> None:
    try:
        raise ValueError("broken")
    except ValueError:
        line = JsonFormatter().format(make_record(exc_info=sys.exc_info()))
    assert "ValueError: broken" in json.loads(line)["traceback"]


class Writes(list[str]):
    """A stream; each item is what was written at once."""

    def write(self, text: str) -> None:
        self.append(text)

    def flush(self) -> None:
        pass


@pytest.fixture
def writes() -> Writes:
    return Writes()


@pytest.fixture
def handler(writes: Writes) -> LineHandler:
    handler = LineHandler(writes)  # type: ignore[arg-type]
    handler.setFormatter(logging.Formatter("%(msg)s"))
    return handler


def test_lines_of_one_turn_of_the_loop_are_written_at_once(
    handler: LineHandler, writes: Writes
) -> None:
    async def turns() -> None:
        for turn in ("a", "b"):
            for _ in range(3):
                handler.handle(make_record(msg=turn))
            assert "b\n" not in "".join(writes)
            await asyncio.sleep(0)

    asyncio.run(turns())
    assert writes == ["a\na\na\n", "b\nb\nb\n"]


def test_line_without_a_loop_is_written_at_once_and_in_order(
    handler: LineHandler, writes: Writes
) -> None:
    async def turn() -> None:
        handler.handle(make_record(msg="a"))
        other = threading.Thread(target=handler.handle, args=[make_record(msg="b")])
        other.start()
        other.join()
        assert writes == ["a\nb\n"]

    asyncio.run(turn())
    handler.handle(make_record(msg="c"))
    assert writes == ["a\nb\n", "c\n"]


def test_warning_does_not_wait_for_the_end_of_the_turn(
    handler: LineHandler, writes: Writes
) -> None:
    async def turn() -> None:
        handler.handle(make_record(msg="a"))
        handler.handle(make_record(msg="b", levelno=logging.WARNING))
        assert writes == ["a\nb\n"]

    asyncio.run(turn())
    assert writes == ["a\nb\n"]


def test_lines_that_no_turn_wrote_are_written_at_exit(handler: LineHandler, writes: Writes) -> None:
    loop = asyncio.new_event_loop()
    loop.call_soon(handler.handle, make_record(msg="a"))
    loop.call_soon(loop.stop)
    loop.run_forever()
    loop.close()
    assert not writes
    handler.flush()
    assert writes == ["a\n"]
