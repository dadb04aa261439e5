"""README and docs: links lead somewhere, README is short, its figures are those of the pages, all methods are there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest
from pages import PAGES, ROOT, headings, links, text_of

from unfused_fast import __version__
from unfused_fast.config import MethodName

README = ROOT / "README.md"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    for target in links(page):
        if re.match(r"https?://|mailto:", target):
            continue
        path, _, anchor = target.partition("#")
        place = (page.parent / path).resolve() if path else page
        assert place.exists(), target
        assert place.is_relative_to(ROOT), target
        assert not anchor or anchor in headings(place), target


def test_every_page_is_reached_from_readme() -> None:
    reached, waiting = set(), [README]
    while waiting:
        page = waiting.pop()
        reached.add(page)
        places = [(page.parent / target.partition("#")[0]).resolve() for target in links(page) if "://" not in target]
        waiting += [place for place in places if place.suffix == ".md" and place not in reached]
    of_the_site_alone = {
        ROOT / "docs" / name for name in ("index.md", "changelog.md", "security.md", "contributing.md")
    }
    assert set(PAGES) - reached <= of_the_site_alone


def test_readme_is_short() -> None:
    text = README.read_text()
    assert len(text.split()) <= 900
    assert [line for line in text.splitlines() if len(line) > 120] == []


def test_every_method_is_described() -> None:
    """With what it is from, and when to take it."""
    page = (ROOT / "docs" / "methods.md").read_text()
    for name in get_args(MethodName):
        (paragraph,) = re.findall(rf"^\*\*`{name}`\*\*: (.*?)\n\n", page, re.MULTILINE | re.DOTALL)
        assert re.search(r"\]\(https://|IEEE", paragraph) and "Take it" in paragraph, name


def test_readmes_figures_are_those_of_the_pages() -> None:
    results = "".join(text_of(page) for page in PAGES if "results" in page.relative_to(ROOT).as_posix())
    speed = (ROOT / "docs" / "performance.md").read_text()
    checked = 0
    for row in re.findall(r"^\| .* \|$", README.read_text(), re.MULTILINE):
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        figures = [
            figure for cell in cells[1:] for figure in re.findall(r"[\d.]+ ± [\d.]+|^[\d,.]+ \w+/s|^\d+\.\d$", cell)
        ]
        source = results if any(re.search("±|^[0-9.]+$", figure) for figure in figures) else speed
        rows = [line for line in source.splitlines() if line.startswith("|")]
        if "±" in row:
            rows = [line for line in rows if line.startswith(f"| {cells[0]} |")]
        assert not figures or any(all(figure in line for figure in figures) for line in rows), row
        checked += len(figures)
    assert checked > 30


def test_the_gain_of_base_is_that_of_its_table() -> None:
    page = (ROOT / "docs" / "results.md").read_text()
    rows = [line.split(" | ") for line in page[page.index("# base\n") :].splitlines() if line.startswith("| ")]
    base, random = (
        next(float(row[2].split(" ± ")[0]) for row in rows if row[0].startswith(f"| {name}"))
        for name in ("base", "random")
    )
    (gain,) = re.findall(r"is ([\d.]+) ± [\d.]+ points above random", (ROOT / "docs" / "start.md").read_text())
    assert abs(float(gain) - (base - random)) < 0.11  # each is rounded


def test_the_citation_names_this_version() -> None:
    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text()
