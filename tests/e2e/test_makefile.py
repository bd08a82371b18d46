"""The commands that the README names."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


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
    # `make test` hands its own settings on to a make within it, and has that one say where it is.
    inherited = ("MAKEFLAGS", "MAKEOVERRIDES", "MFLAGS", "MAKELEVEL")
    for name in ("HOST", "PORT", "RNP_HOST", "RNP_PORT", *inherited):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    # What it would run, after what sets it up for the first time.
    command = ["make", "--dry-run", "serve", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    host, port = address
    assert done.stdout.splitlines()[-1].startswith(f"RNP_HOST={host} RNP_PORT={port} exec ")
