"""What the documents name is there, and what an operator or a caller meets is in the documents."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.errors import ServiceError
from service.metrics import Metrics
from service.settings import PREFIX, Settings

ROOT = Path(__file__).parents[1]
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\]\((?!https?://)([^)#\s]*)(?:#([^)\s]+))?\)")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    links = LINK.findall(document.read_text())
    assert links
    for path, anchor in links:
        target = document.parent / path if path else document
        assert target.exists(), path
        assert not anchor or anchor in anchors(target), f"{path}#{anchor}"


def test_settings_are_documented_and_no_others() -> None:
    text = (ROOT / "docs" / "operating.md").read_text()
    named = set(re.findall(rf"`({PREFIX}[A-Z0-9_]+)`", text))
    assert named == {PREFIX + name.upper() for name in Settings.model_fields}


def test_error_codes_are_documented_with_their_status() -> None:
    text = (ROOT / "docs" / "api.md").read_text()
    for error in errors(ServiceError):
        # Of a status that several rows share only the first names it.
        rows = re.findall(rf"^\| {error.status} \|.*(?:\n\|  ?\|.*)*", text, re.MULTILINE)
        assert f"`{error.code}`" in "\n".join(rows), error


def test_series_are_documented_and_no_others() -> None:
    text = (ROOT / "docs" / "operating.md").read_text()
    named = set(re.findall(r"`(rnp_[a-z_]+)`", text))
    kinds = [(family.name, family.type) for family in Metrics().registry.collect()]
    assert named == {name + "_total" * (kind == "counter") for name, kind in kinds}


def errors(base: type[ServiceError]) -> Iterator[type[ServiceError]]:
    yield base
    for error in base.__subclasses__():
        yield from errors(error)


def anchors(document: Path) -> set[str]:
    """The names that headings have on GitHub."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(), re.MULTILINE)
    plain = (re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading) for heading in headings)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in plain}
