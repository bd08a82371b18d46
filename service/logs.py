"""Logs as one JSON object per line, each with the id and the key's name of its request."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import warnings
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import TextIO

from service.notes import NOTES

REQUEST_ID: ContextVar[str | None] = ContextVar("request_id", default=None)

_encode = json.JSONEncoder(default=str).encode
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message"}


class JsonFormatter(logging.Formatter):
    """Formats a record with its `extra` fields.

    Args:
        process: index of this one, if the service has several.
    """

    def __init__(self, process: int | None = None) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        """One line of JSON."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if self._process is not None:
            line["process"] = self._process
        if request_id := REQUEST_ID.get():
            line["request_id"] = request_id
        if (notes := NOTES.get()) and notes.key:
            line["key"] = notes.key
        line.update({k: v for k, v in vars(record).items() if k not in _STANDARD})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return _encode(line)


class LineHandler(logging.Handler):
    """Writes lines to a stream; those of one turn of the event loop in one system call.

    The answers of a batch leave in one turn, and to write their lines one by one takes a tenth of
    the loop's time. A warning, or a line where no loop runs, is written at once, with all before.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream
        self._lines: list[str] = []
        self._awaited = False

    def emit(self, record: logging.LogRecord) -> None:
        """Called by `handle`, which holds the lock."""
        try:
            self._lines.append(f"{self.format(record)}\n")
            if record.levelno >= logging.WARNING or not self._later():
                self.flush()
        except Exception:
            self.handleError(record)

    def flush(self) -> None:
        """Write what waits; called at exit too."""
        self.acquire()
        try:
            lines, self._lines, self._awaited = self._lines, [], False
            if lines:
                self._stream.write("".join(lines))
                self._stream.flush()
        finally:
            self.release()

    def _later(self) -> bool:
        """Have the lines written at the end of this turn, if this is the event loop's thread."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return False
        if not self._awaited:
            self._awaited = True
            loop.call_soon(self.flush)
        return True


def configure(level: str, process: int | None = None) -> None:
    """Send all logs, and Python's warnings, to standard output as JSON lines."""
    handler = LineHandler(sys.stdout)
    handler.setFormatter(JsonFormatter(process))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.captureWarnings(True)
    # What no line tells need not be found out for each.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None  # so that no caller is looked for; named in Python's logging guide
    # It warns of every form that is broken, which is no news here: the request's line says so.
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
    # Those about a broken image name its values: each would be logged, and remembered for ever.
    warnings.filterwarnings("ignore", module=r"PIL\.")
