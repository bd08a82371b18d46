"""Logs as one JSON object per line, each with the id and the key's name of its request."""

from __future__ import annotations

import json
import logging
import sys
import warnings
from contextvars import ContextVar
from datetime import UTC, datetime

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


def configure(level: str, process: int | None = None) -> None:
    """Send all logs, and Python's warnings, to standard output as JSON lines."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonFormatter(process))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.captureWarnings(True)
    # What no line tells need not be found out for each.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None  # so that no caller is looked for; named in Python's logging guide
    # Those about a broken image name its values: each would be logged, and remembered for ever.
    warnings.filterwarnings("ignore", module=r"PIL\.")
