from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from service.errors import Forbidden, Unauthorized
from service.security.access import Role
from service.security.keys import Key, Keyring, new_key
from service.settings import Settings, SettingsError


def admit(keyring: Keyring, key: str | None, role: Role, what: str) -> Key | None:
    found = keyring.identify(key)
    keyring.check(found, role, what)
    return found


def write(path: Path, *lines: str) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def test_admit_tells_whose_key_it_is(tmp_path: Path) -> None:
    (a, a_line), (b, b_line), (c, c_line) = map(new_key, "abc")
    keyring = Keyring(
        Settings(
            api_keys_file=write(tmp_path / "callers", "# a comment", a_line, "", b_line.upper()),
            operator_keys_file=write(tmp_path / "operators", c_line),
        )
    )
    names = [admit(keyring, key, Role.CALLER, "GET /x") for key in (a, b, c)]
    assert [key and key.name for key in names] == ["a", "B", "c"]
    found = admit(keyring, c, Role.OPERATOR, "PUT /x")
    assert found is not None
    assert found.operator


def test_admit_refuses_in_a_sentence_without_the_key(tmp_path: Path) -> None:
    a, line = new_key("a")
    keyring = Keyring(Settings(api_keys_file=write(tmp_path / "k", line)))
    with pytest.raises(Unauthorized, match="a key is needed: send it as"):
        admit(keyring, None, Role.CALLER, "GET /x")
    with pytest.raises(Forbidden, match="a is a caller, and PUT /budget needs an operator's key"):
        admit(keyring, a, Role.OPERATOR, "PUT /budget")
    for wrong in ("", a[:-1], a + "x", a.swapcase(), line, line.split(":")[1], "é"):
        with pytest.raises(Unauthorized, match=r"^the key is not known: ask the operator for one$"):
            admit(keyring, wrong, Role.CALLER, "GET /x")


def test_admit_only_operators_have_keys_callers_need_none(tmp_path: Path) -> None:
    _, line = new_key("root")
    keyring = Keyring(Settings(operator_keys_file=write(tmp_path / "k", line)))
    assert admit(keyring, None, Role.CALLER, "GET /x") is None
    with pytest.raises(Unauthorized):
        admit(keyring, None, Role.OPERATOR, "PUT /x")
    with pytest.raises(Unauthorized):  # a wrong key is wrong everywhere
        admit(keyring, "wrong", Role.CALLER, "GET /x")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, r"the keys in .*/k cannot be read"),
        ("", r"/k holds no key: make one by 'python -m service.security <name>'"),
        ("# nothing\n", "holds no key"),
        ("alice:secret\n", r"^line 1 of .*/k is not 'name:sha256', as 'python -m [^:]*$"),
        (f"\na b:{'0' * 64}\n", "line 2"),
        (f"a:{'0' * 64}\nb:{'0' * 63}\n", "line 2"),
        (f"a:{'0' * 64}\na:{'1' * 64}\n", "two keys are named 'a'"),
        ("é:\xff", "line 1"),
    ],
)
def test_keyring_bad_file_refused_in_a_sentence(
    tmp_path: Path, content: str | None, sentence: str
) -> None:
    path = tmp_path / "k"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SettingsError, match=sentence) as refusal:
        Keyring(Settings(api_keys_file=path))
    assert "secret" not in str(refusal.value)


def test_main_makes_a_key_that_its_line_admits(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "service.security", "alice"], capture_output=True, text=True
    )
    key = done.stderr.strip().rsplit(" ", 1)[1]
    assert done.returncode == 0
    assert key not in done.stdout
    keyring = Keyring(Settings(api_keys_file=write(tmp_path / "k", done.stdout.strip())))
    found = admit(keyring, key, Role.CALLER, "GET /x")
    assert found is not None
    assert found.name == "alice"


@pytest.mark.parametrize("arguments", [[], ["a", "b"], ["a:b"], ["é"]])
def test_main_bad_name_is_one_sentence(arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "service.security", *arguments], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
