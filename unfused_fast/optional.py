"""What only some ways to work need: optional packages, where they are imported, and a compiler."""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from unfused_fast.errors import UserError

LOAD_ERRORS = (ImportError, OSError, RuntimeError, AttributeError, TypeError, ValueError)
"""What importing an installed package raises where a library is missing, too old or built for another version."""


@contextmanager
def importing(package: str, name: str, wanted: str, install: str) -> Iterator[None]:
    """Around the import of an optional package, which distinguishes an absent package from one that fails to load.

    Args:
        package: the module's dotted name.
        name: for messages.
        wanted: what needs it, the start of a sentence.
        install: the command that installs it, and what else helps.

    Raises:
        UserError: the package is not installed, or importing it fails; then with the cause.
    """
    try:
        yield
    except LOAD_ERRORS as error:
        absent = isinstance(error, ModuleNotFoundError) and f"{package}.".startswith(f"{error.name}.")
        what = "is not installed" if absent else f"is installed but does not load ({load_failure(error)})"
        raise UserError(f"{wanted} needs {name}, which {what}; in a checkout: {install}") from error


def load_failure(error: BaseException) -> str:
    """The first line of an error and of the one that it was raised from, with the type of one that says nothing."""
    lines = str(error).strip().splitlines()
    said = lines[0] if lines else type(error).__name__
    return said if error.__cause__ is None else f"{said}: {load_failure(error.__cause__)}"


def present(package: str) -> bool:
    """Whether the package is there, without importing it; it may still not load."""
    try:
        return importlib.util.find_spec(package) is not None
    except (ModuleNotFoundError, ValueError):  # the package around it is missing, or the module was set to None
        return False


def triton_runs() -> bool:
    """Whether Triton's kernels can run on a GPU here: Triton is installed, and so is the compiler that it needs.

    Raises:
        UserError: Triton is installed and does not load.
    """
    if not present("triton") or missing_compiler("C") is not None:
        return False
    with importing("triton", "Triton", "training on a GPU", "pip install '.[cuda13]' or '.[cuda12]'"):
        importlib.import_module("triton")
    return True


def missing_compiler(language: Literal["C", "C++"]) -> str | None:
    """What is missing to compile what torch.compile (C++ on a CPU, C on a GPU) and Triton (C) write, and how to get
    it; None where all is there. Looks where they look: in CC or CXX, else for gcc and clang or g++, and for Python.h.
    """
    variable = "CC" if language == "C" else "CXX"
    named = os.environ.get(variable)
    schemes = sysconfig.get_default_scheme(), "posix_prefix"
    commands = [named] if named else ["gcc", "clang"] if language == "C" else ["g++"]
    if not any(map(shutil.which, commands)):
        what = f"a {language} compiler ({' or '.join(commands)})"
    elif not any((Path(sysconfig.get_path("include", scheme)) / "Python.h").exists() for scheme in schemes):
        what = "Python.h, the header file of Python"
    else:
        return None
    package = "gcc" if language == "C" else "g++"
    return f"{what}, which is not here; install it (on Debian and Ubuntu: apt install {package} python3-dev)"
