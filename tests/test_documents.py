"""What the documents name is there, and what an operator or a caller meets is in the documents."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic_core import PydanticUndefined

from service.errors import all_errors
from service.metrics import Metrics
from service.settings import PREFIX, Settings

ROOT = Path(__file__).parents[1]
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
UNITS = {"": 1, "KiB": 2**10, "MiB": 2**20, "million": 10**6}
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


def test_defaults_are_documented() -> None:
    text, told = (ROOT / "docs" / "operating.md").read_text(), {}
    for names, values in re.findall(rf"^\| (`{PREFIX}[^|]*) \| ([^|]*) \|", text, re.MULTILINE):
        several, each = re.findall(r"`(\w+)`", names), values.split(", ")
        told |= dict(zip(several, each * len(several) if len(each) == 1 else each, strict=False))
    for name, field in Settings.model_fields.items():
        # Defaults that depend on others are told in words, and so are these.
        if field.default is not PydanticUndefined and name not in ("bundles", "model"):
            default = None if field.default == () else field.default
            assert meant(told[PREFIX + name.upper()]) == default, name


def test_error_codes_are_documented_and_no_others() -> None:
    table = (ROOT / "docs" / "api.md").read_text().split("\n## Errors\n")[1].split("\n## ")[0]
    named = re.findall(r"^\| (?:\d+ )?\| (`[^|]+) \|", table, re.MULTILINE)
    assert set(re.findall(r"\w+", " ".join(named))) == {error.code for error in all_errors()}


def test_error_codes_are_documented_with_their_status() -> None:
    text = (ROOT / "docs" / "api.md").read_text()
    for error in all_errors():
        # Of a status that several rows share only the first names it.
        rows = re.findall(rf"^\| {error.status} \|.*(?:\n\|  ?\|.*)*", text, re.MULTILINE)
        assert f"`{error.code}`" in "\n".join(rows), error


def test_alerts_are_documented_and_no_others() -> None:
    text = (ROOT / "docs" / "operating.md").read_text()
    rules = (ROOT / "deploy" / "prometheus" / "alerts.yml").read_text()
    told = re.findall(r"^\| `([A-Z]\w+)` \|.*\| (\w+) \|$", text, re.MULTILINE)
    assert told == re.findall(
        r"- alert: (\w+)$.*?severity: (\w+)$", rules, re.MULTILINE | re.DOTALL
    )


def test_series_are_documented_and_no_others() -> None:
    text = (ROOT / "docs" / "operating.md").read_text()
    named = set(re.findall(r"`(rnp_[a-z_]+)`", text))
    kinds = [(family.name, family.type) for family in Metrics().registry.collect()]
    assert named == {name + "_total" * (kind == "counter") for name, kind in kinds}


def meant(told: str) -> object:
    """The value of a default that is a number, with or without a unit, or a word."""
    if number := re.fullmatch(r"(\d+(?:\.\d+)?) ?(KiB|MiB|million|)", told):
        return float(number[1]) * UNITS[number[2]]
    return {"none": None, "true": True}.get(told, told)


def anchors(document: Path) -> set[str]:
    """The names that headings have on GitHub."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(), re.MULTILINE)
    plain = (re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading) for heading in headings)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in plain}
