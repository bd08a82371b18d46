"""The commands that the README names."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def outermost(monkeypatch):
    """`make test` hands its settings on to a make within it, and has that one say where it is."""
    for name in ("MAKEFLAGS", "MAKEOVERRIDES", "MFLAGS", "MAKELEVEL"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("variables", "arguments", "address"),
    [
        ({}, [], ("127.0.0.1", "8000")),
        ({"RNP_HOST": "0.0.0.0", "RNP_PORT": "9000"}, [], ("0.0.0.0", "9000")),
        ({"RNP_PORT": "9000"}, ["PORT=9001"], ("127.0.0.1", "9001")),
        # Some shells export the machine's name, on which nobody asked to listen.
        ({"HOST": "machine", "PORT": "1"}, [], ("127.0.0.1", "8000")),
    ],
)
def test_make_serve_listens_where_it_is_told(variables, arguments, address, monkeypatch):
    for name in ("HOST", "PORT", "RNP_HOST", "RNP_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    # What it would run, after what sets it up for the first time.
    command = ["make", "--dry-run", "serve", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    host, port = address
    assert done.stdout.splitlines()[-1].startswith(f"RNP_HOST={host} RNP_PORT={port} exec ")


def set_up(venv, *variables):
    """What comes of setting up an environment."""
    command = ["make", f"VENV={venv}", f"{venv}/.service", *variables]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def fake_python(path, *, new, log):
    """A Python that says how it was called, and does nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    checked = f"exit {0 if new else 1}"
    path.write_text(f'#!/bin/sh\necho "$@" >> {log}\ncase $1 in -c) {checked};; *) exit 1;; esac\n')
    path.chmod(0o755)
    return path


def test_python_that_is_too_old_is_a_sentence_and_makes_no_environment(tmp_path):
    # It is we who are too old.
    done = set_up(tmp_path / "venv", f"PYTHON={sys.executable}", "oldest=99.0")
    assert done.returncode != 0
    assert f"error: {sys.executable} is not there, or older than Python 99.0" in done.stderr
    assert "PYTHON=python99.0" in done.stderr
    assert not (tmp_path / "venv").exists()
    done = set_up(tmp_path / "venv", "PYTHON=no-such-python")
    assert "error: no-such-python is not there, or older than Python 3." in done.stderr


@pytest.mark.parametrize(("new", "flag"), [(True, ""), (False, "--clear ")])
def test_environment_is_made_anew_only_where_its_python_is_too_old(tmp_path, new, flag):
    venv, log = tmp_path / "venv", tmp_path / "log"
    fake_python(venv / "bin/python", new=new, log=tmp_path / "other")
    (venv / "pyvenv.cfg").touch()
    # It goes no further, where packages would be installed.
    set_up(venv, f"PYTHON={fake_python(tmp_path / 'python', new=True, log=log)}")
    assert log.read_text().splitlines()[-1] == f"-m venv {flag}{venv}"
