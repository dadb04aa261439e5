"""README.md and the pages of docs/: their blocks of code, their commands, their links."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted(page for page in (ROOT / "docs").rglob("*.md") if "_build" not in page.parts),
]
PROGRAMS = ("unfused-fast", "torchrun", "sbatch", "pip", "make", "python")
"""Those whose lines in a block are commands to check."""


class Block(NamedTuple):
    """A fenced block."""

    language: str
    text: str


def text_of(page: Path) -> str:
    """With the files that it includes."""
    text = page.read_text(encoding="utf-8")
    return re.sub(
        r"^```\{include\} (\S+)\n.*?^```$",
        lambda found: text_of(page.parent / found[1]),
        text,
        flags=re.MULTILINE | re.DOTALL,
    )


def blocks(page: Path) -> list[Block]:
    """In order. Directives of Sphinx have a language in braces."""
    found = re.findall(r"^```(\S*)[^\n]*\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [Block(language, text) for language, text in found]


def commands(text: str) -> Iterator[list[str]]:
    """The commands of a block in words, without prompt, variables, comments, redirection and what is in brackets."""
    for line in text.replace("\\\n", " ").splitlines():
        line = re.sub(r"^(\$ )?([A-Z_]+=\S* )*", "", line.strip())
        if line.split(" ")[0] in PROGRAMS:
            yield shlex.split(re.sub(r" \[[^\]]*\]| > .*", "", line), comments=True)


def mentions(page: Path) -> Iterator[list[str]]:
    """Commands within sentences, which may lack what they are about."""
    prose = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for text in re.findall(r"`(unfused-fast [^`]+)`", prose):
        yield from commands(" ".join(text.split()))


def headings(page: Path) -> set[str]:
    """The anchors that forges, and MyST, give a page's headings."""
    text = re.sub(r"^```.*?^```$", "", text_of(page), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ +(.+?) *$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def links(page: Path) -> list[str]:
    """Targets of links and pictures, outside code."""
    text = re.sub(r"^```.*?^```$|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"\]\(\s*([^)\s]+)\s*\)", text)
