"""lightly's losses, without what else its packages import (torchvision, a client of its service)."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import pytest

PACKAGES = ("lightly", "lightly.loss", "lightly.models", "lightly.models.modules", "lightly.utils")


def lightly_loss(module: str, name: str) -> Any:
    """A class of lightly.loss.MODULE. Skips the test where lightly is not installed."""
    found = importlib.util.find_spec("lightly")
    if found is None or found.origin is None:
        pytest.skip("lightly is not installed (pip install --no-deps lightly)")
    root = Path(found.origin).parent.parent
    with pytest.MonkeyPatch.context() as patch:
        for package in PACKAGES:
            bare = types.ModuleType(package)
            bare.__path__ = [str(root.joinpath(*package.split(".")))]
            patch.setitem(sys.modules, package, bare)
        # of the models' helpers the memory bank, which the losses here do not use, needs one
        patch.setitem(sys.modules, "lightly.models.utils", types.ModuleType("lightly.models.utils"))
        setattr(sys.modules["lightly.models"], "utils", sys.modules["lightly.models.utils"])  # noqa: B010
        return getattr(importlib.import_module(f"lightly.loss.{module}"), name)
