"""What is installed here, what every `auto` resolves to, and what to install for more."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import sys
from typing import Any, NamedTuple

DALI = ("nvidia-dali-cuda130", "nvidia-dali-cuda120")
OPTIONAL = {
    "faiss": ("faiss-cpu", "faiss-gpu", "faiss-gpu-cu12"),
    "cuml": ("cuml-cu13", "cuml-cu12"),
    "cupy": ("cupy-cuda13x", "cupy-cuda12x"),
    "triton": ("triton",),
}


NEEDED_FOR = {
    "ray": "--engine ray",
    "remote": "sources and shards behind URLs",
    "sklearn": "UnfusedEmbedder",
    "export": "export --onnx",
}
"""Extras that bring a way to work, whatever the device."""


class Finding(NamedTuple):
    """One line of the report."""

    name: str
    found: str
    note: str
    works: bool


def requirements(extra: str | None = None) -> list[str] | None:
    """Distributions that unfused-fast needs, or those an extra adds, without torch; None where its metadata is not
    installed.
    """
    try:
        lines = importlib.metadata.requires("unfused-fast") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    found = []
    for line in lines:
        requirement, _, marker = line.partition(";")
        asked = re.search(r"""extra == ["']([^"']+)["']""", marker)
        name = re.split(r"[^A-Za-z0-9._-]", requirement.strip())[0]
        if (asked and asked[1]) == extra and name != "torch":
            found.append(name)
    return found


def installed(*distributions: str) -> str | None:
    """`name version` of the first distribution that is installed."""
    for name in distributions:
        try:
            return f"{name} {importlib.metadata.version(name)}"
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def examine() -> list[Finding]:
    """Looks at everything; a finding with works=False means that training cannot run here."""
    findings = [Finding("python", platform.python_version(), sys.platform, sys.version_info >= (3, 11))]
    try:
        import torch
    except (ImportError, OSError) as error:
        return [*findings, Finding("torch", "not usable", f"{error}; pip install torch", False)]
    cuda = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "CPU build"
    findings.append(Finding("torch", torch.__version__, cuda, True))
    devices = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    extra = "cuda13" if (torch.version.cuda or "").startswith("13") else "cuda12"
    findings.append(
        Finding("GPU", ", ".join(devices) or "none", "" if devices else f"CPU: {os.cpu_count()} cores", True)
    )
    extra = extra if devices else "cpu"
    findings += _required(extra)
    findings.append(_dali(extra))
    for name, distributions in OPTIONAL.items():
        findings.append(_package(name, distributions, f"optional; {_install(extra)}", True, gpu_only=not devices))
    for name, purpose in NEEDED_FOR.items():
        for distribution in requirements(name) or []:
            findings.append(_package(distribution, (distribution,), f"optional, for {purpose}; {_install(name)}", True))
    findings += _clashes()
    findings += _resolved()
    return findings


def _install(extra: str) -> str:
    return f"in a checkout: pip install '.[{extra}]'"


def _required(extra: str) -> list[Finding]:
    names = requirements()
    if names is None:
        return [Finding("unfused-fast", "not installed", f"what it needs is not known; {_install(extra)}", False)]
    return [_package(name, (name,), f"needed; {_install(extra)}", False) for name in names]


def _package(name: str, distributions: tuple[str, ...], note: str, works: bool, gpu_only: bool = False) -> Finding:
    """`note` and `works` are for where none of the distributions is there."""
    found = installed(*distributions)
    if found:
        return Finding(name, found.split(" ", 1)[1] if len(distributions) == 1 else found, "", True)
    needless = gpu_only and name in ("cuml", "cupy", "triton")
    return Finding(name, "missing", "of use with a GPU only" if needless else note, works)


def _dali(extra: str) -> Finding:
    found = installed(*DALI)
    remedy = _install(extra)
    if found is None or importlib.util.find_spec("nvidia.dali") is None:
        return Finding("DALI", "missing", f"needed to decode audio; {remedy}", False)
    try:
        from unfused_fast.pipeline import import_dali

        import_dali()
    except Exception as error:  # whatever a broken native library raises is the finding
        return Finding("DALI", found, f"does not load: {error}; {remedy}", False)
    return Finding("DALI", found, "", True)


def _clashes() -> list[Finding]:
    both = [name for name in OPTIONAL["faiss"] if installed(name)]
    dalis = [name for name in DALI if installed(name)]
    return [
        Finding(
            "clash",
            " and ".join(names),
            "both own one module name; uninstall all of them, then install one extra",
            False,
        )
        for names in (both, dalis)
        if len(names) > 1
    ]


def _resolved() -> list[Finding]:
    from unfused_fast.clustering import resolve_backend
    from unfused_fast.config import Config
    from unfused_fast.training import precision, resolve_device

    device = resolve_device("auto")
    values: dict[str, Any] = {
        "--device": device,
        "--compile": "on" if device.type == "cuda" else "off",
        "train.amp": precision(Config(), device),
        "cluster.backend": resolve_backend("auto", device),
    }
    return [Finding(f"auto {name}", str(value), "", True) for name, value in values.items()]
