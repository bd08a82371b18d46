"""The pages in a real browser, under the policies that the service sends."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from models.card import Card
from service.app import create_app
from service.settings import Settings
from tests.service.support import FakeEngine, add_bundle, make_card, serve

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")

# With CI in the environment, whoever sets it, they fail without it.
pytestmark = pytest.mark.skipif(
    BROWSER is None and "CI" not in os.environ, reason="no chromium on the PATH"
)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    directory = tmp_path_factory.mktemp("pages")
    card: Card = make_card()
    add_bundle(directory / "bundles", card)
    keys = directory / "keys"
    keys.write_text(f"root:{'0' * 64}")
    settings = Settings(bundles=directory / "bundles", operator_keys_file=keys)
    with serve(create_app(settings, FakeEngine(card.table(), len(card.labels)))) as client:
        yield client


def browse(url: str, profile: Path) -> tuple[str, list[str]]:
    """The page as scripts left it, and what the browser's console says."""
    assert BROWSER, "no chromium on the PATH"
    process = subprocess.Popen(
        [
            BROWSER,
            *("--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"),
            *(f"--user-data-dir={profile}", "--virtual-time-budget=8000", "--dump-dom", url),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        page, log = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return page, [line for line in log.splitlines() if "CONSOLE" in line]


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_page_works_under_its_policy(client: httpx.Client, tmp_path: Path, path: str) -> None:
    page, console = browse(f"{client.base_url}{path}", tmp_path)
    assert console == []
    # Drawn by the page's script, from the description that it asked for; with a place for a key.
    assert page.count('class="opblock ') > 10
    assert "btn authorize" in page


def test_foreign_script_is_kept_from_running(
    client: httpx.Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.csp._SCRIPT", re.compile("(never)"))
    page, console = browse(f"{client.base_url}/docs", tmp_path)
    assert any("Content Security Policy" in line for line in console)
    assert "opblock" not in page
