"""Every public function, class and method has a docstring; those of docs/api.md give shapes where they take arrays."""

from __future__ import annotations

import importlib
import inspect
import os
import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pages import ROOT

MODULES = sorted(
    ".".join((Path(folder).relative_to(ROOT) / name).with_suffix("").parts)
    for folder, _, names in os.walk(ROOT / "unfused_fast", followlinks=True)
    for name in names
    if name.endswith(".py") and not name.startswith("__")
)


def public(module: Any) -> Iterator[tuple[str, Any]]:
    """What a module itself defines under names without an underscore, and the methods of its classes."""
    for name, value in vars(module).items():
        if name.startswith("_") or getattr(value, "__module__", None) != module.__name__:
            continue
        if inspect.isfunction(value) or inspect.isclass(value):
            yield name, value
        for method, found in vars(value).items() if inspect.isclass(value) else ():
            if not method.startswith("_") and (inspect.isfunction(found) or isinstance(found, property)):
                yield f"{name}.{method}", getattr(value, method)


@pytest.mark.parametrize("wing", sorted({name.split(".")[1] for name in MODULES}))
def test_public_names_have_docstrings(wing: str) -> None:
    """A method may inherit its own."""
    missing = []
    for name in MODULES:
        if name.split(".")[1] == wing:
            module = importlib.import_module(name)
            missing += [f"{name}: {found}" for found, value in public(module) if not inspect.getdoc(value)]
    assert missing == []


def test_the_api_page_names_what_is_there() -> None:
    page = (ROOT / "docs" / "api.md").read_text()
    named = re.findall(r"^\.\. auto(function|class|module)::\s+(\S+)$", page, re.MULTILINE)
    assert len(named) > 20
    for kind, name in named:
        if kind == "module":
            importlib.import_module(name)
            continue
        module, _, attribute = name.rpartition(".")
        value = getattr(importlib.import_module(module), attribute)
        text = inspect.getdoc(value) or ""
        assert text, name
        annotations = " ".join(map(str, getattr(value, "__annotations__", {}).values()))
        if kind == "function" and re.search("Tensor|NDArray", annotations):
            assert re.search(r"\((N|B|\.\.\.|samples)[^)]*\)", text), f"{name}: no shape"


def test_the_site_keeps_the_text_of_attributes_that_have_a_colon() -> None:
    """Sphinx's napoleon takes what is before it for a type."""
    napoleon = pytest.importorskip("sphinx.ext.napoleon")
    text = ["Repetitions: seeds of batches; None: one,", "and of labels."]
    lines = napoleon.GoogleDocstring(list(text), what="attribute", name="seeds").lines()
    assert lines[0] != text[0]
    runpy.run_path(str(ROOT / "docs" / "conf.py"))["attribute_as_written"](None, "attribute", "", None, None, lines)
    assert [line for line in lines if line] == text
