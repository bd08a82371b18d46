"""Keys of callers and operators, of which the service knows no more than a digest."""

from __future__ import annotations

import hmac
import re
import secrets
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from service.errors import Forbidden, Unauthorized
from service.security.access import Role
from service.settings import Settings, SettingsError

_LINE = re.compile(r"([A-Za-z0-9._-]{1,64}):([0-9a-fA-F]{64})")


@dataclass(frozen=True)
class Key:
    """Who holds a key, and the digest that it is known by."""

    name: str
    operator: bool
    digest: bytes


class Keyring:
    """All keys; without one for callers, their routes need none.

    Raises:
        SettingsError: a file cannot be read, holds no key or something else, or a name twice.
    """

    def __init__(self, settings: Settings) -> None:
        callers = _read(settings.api_keys_file, operator=False)
        self.keys = callers + _read(settings.operator_keys_file, operator=True)
        self.guards_callers = settings.api_keys_file is not None
        names = [key.name for key in self.keys]
        for name in names:
            if names.count(name) > 1:
                raise SettingsError(f"two keys are named {name!r}: give each key its own name")

    def identify(self, presented: str | None) -> Key | None:
        """Whose key a request came with, if with any.

        Raises:
            Unauthorized: it is not known.
        """
        if presented is None:
            return None
        key = self._find(presented)
        if key is None:
            raise Unauthorized("the key is not known: ask the operator for one")
        return key

    def check(self, key: Key | None, role: Role, what: str) -> None:
        """Refuse a request for a route, `what`, whose role its key does not have.

        Raises:
            Unauthorized: a key is needed.
            Forbidden: an operator's is needed.
        """
        if key is None and (role == Role.OPERATOR or self.guards_callers):
            raise Unauthorized(
                "a key is needed: send it as 'Authorization: Bearer <key>' or 'X-API-Key: <key>'"
            )
        if key and role == Role.OPERATOR and not key.operator:
            raise Forbidden(f"{key.name} is a caller, and {what} needs an operator's key")

    def _find(self, presented: str) -> Key | None:
        """All digests are compared, each in constant time, so time tells nothing about any."""
        digest, found = sha256(presented.encode()).digest(), None
        for key in self.keys:
            if hmac.compare_digest(digest, key.digest):
                found = key
        return found


def new_key(name: str) -> tuple[str, str]:
    """A new key for `name`, and the line that lets the service know it.

    Raises:
        ValueError: the name holds more than letters, digits, dots, underscores and dashes.
    """
    key = secrets.token_urlsafe(32)
    line = f"{name}:{sha256(key.encode()).hexdigest()}"
    if not _LINE.fullmatch(line):
        raise ValueError(f"{name!r} is no name: take 1 to 64 letters, digits, '.', '_' or '-'")
    return key, line


def _read(path: Path | None, *, operator: bool) -> list[Key]:
    if path is None:
        return []
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"the keys in {path} cannot be read: {error}") from error
    keys = []
    for number, line in enumerate(lines, 1):
        content = line.strip()
        if not content or content.startswith("#"):
            continue
        match = _LINE.fullmatch(content)
        if match is None:
            # The line itself is not shown: it may hold a key by mistake.
            raise SettingsError(
                f"line {number} of {path} is not 'name:sha256', as "
                "'python -m service.security <name>' prints it"
            )
        keys.append(Key(match[1], operator, bytes.fromhex(match[2])))
    if not keys:
        raise SettingsError(f"{path} holds no key: make one by 'python -m service.security <name>'")
    return keys
