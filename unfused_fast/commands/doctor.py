"""What is installed here, what every `auto` resolves to, and what to install for more."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from typing import Any, NamedTuple

from unfused_fast.errors import UserError
from unfused_fast.optional import LOAD_ERRORS, load_failure, missing_compiler

DALI = ("nvidia-dali-cuda130", "nvidia-dali-cuda120")
OPTIONAL = {
    "faiss": ("faiss-cpu", "faiss-gpu", "faiss-gpu-cu12"),
    "cuml": ("cuml-cu13", "cuml-cu12"),
    "cupy": ("cupy-cuda13x", "cupy-cuda12x"),
    "triton": ("triton",),
}
PURPOSES = {
    "faiss": "faster clustering",
    "cuml": "cluster.backend=cuml",
    "cupy": "cluster.backend=cuml",
    "triton": "faster clustering and views",
}
MODULES = {"scikit-learn": "sklearn"}
"""Distribution -> its module, where that is not its name."""
OLDEST_CUDA, OLDEST_DRIVER = 12, 525
"""CUDA version that the extras need at least, and the driver that supports it. Source: NVIDIA, CUDA compatibility."""
NEEDED_FOR = {
    "ray": "--engine ray",
    "remote": "sources and shards behind URLs",
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
    findings.append(
        Finding("GPU", ", ".join(devices) or "none", "" if devices else f"CPU: {os.cpu_count()} cores", True)
    )
    driver = driver_cuda()
    extra = extra_for(driver or (torch.version.cuda if devices else None))
    if driver is not None:
        findings.append(_driver(driver, torch.version.cuda))
    findings.append(_compiler(bool(devices)))
    findings += _required(extra)
    findings.append(_dali(extra))
    for name, distributions in OPTIONAL.items():
        findings.append(
            _package(name, distributions, f"optional, for {PURPOSES[name]}; {_install(extra)}", True, not devices)
        )
    for name, purpose in NEEDED_FOR.items():
        for distribution in requirements(name) or []:
            findings.append(_package(distribution, (distribution,), f"optional, for {purpose}; {_install(name)}", True))
    findings += _clashes()
    findings += _resolved()
    return findings


def driver_cuda() -> str | None:
    """The CUDA version that the NVIDIA driver supports, by nvidia-smi; None where there is no working driver."""
    try:
        said = subprocess.run(["nvidia-smi"], capture_output=True, text=True, timeout=60, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r"CUDA [A-Za-z ]*Version: *(\d+\.\d+)", said)
    return found[1] if found else None


def extra_for(cuda: str | None) -> str:
    """The extra for a CUDA version, as the Makefile chooses it."""
    return "cpu" if cuda is None else "cuda13" if _major(cuda) >= 13 else "cuda12"


def _major(cuda: str) -> int:
    return int(cuda.split(".")[0])


def builds() -> dict[str, str | None]:
    """Each installed package with a build for each CUDA version, and the version: by its name, or what it requires."""
    found: dict[str, str | None] = {}
    for name in (*DALI, *OPTIONAL["faiss"], *OPTIONAL["cuml"], *OPTIONAL["cupy"]):
        if (version := installed(name)) is not None:
            texts = [name, *(importlib.metadata.requires(name) or [])]
            found[version] = next((cuda[1] for text in texts if (cuda := re.search(r"-cu(?:da)?(1\d)", text))), None)
    return found


def _driver(driver: str, torch_cuda: str | None) -> Finding:
    """Whether PyTorch uses the GPU and every build can run with the driver, in a sentence."""
    extra, found = extra_for(driver), f"CUDA {driver}"
    if _major(driver) < OLDEST_CUDA:
        return Finding("driver", found, f"too old; update the NVIDIA driver to {OLDEST_DRIVER} or newer", False)
    remedy = f"in a checkout, in a new virtual environment: pip install -c requirements/{extra}.txt '.[{extra}]'"
    if torch_cuda is None:
        return Finding("driver", found, f"not used, because torch is a CPU build; {remedy}", True)
    built_for = {"torch": torch_cuda} | builds()
    newer = [f"{name} (CUDA {cuda})" for name, cuda in built_for.items() if cuda and _major(cuda) > _major(driver)]
    if newer:
        return Finding("driver", found, f"too old for {', '.join(newer)}; {remedy}", False)
    return Finding("driver", found, "", True)


def _compiler(on_gpu: bool) -> Finding:
    missing = missing_compiler("C" if on_gpu else "C++")
    if missing is None:
        return Finding("compiler", "found", "", True)
    purpose = "training on a GPU without --no-compile needs" if on_gpu else "optional; --compile needs"
    return Finding("compiler", "missing", f"{purpose} {missing}", not on_gpu)


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
    if gpu_only and name in ("cuml", "cupy", "triton"):
        return Finding(name, found or "missing", "of use with a GPU only", True)
    if found is None:
        return Finding(name, "missing", note, works)
    version = found.split(" ", 1)[1] if len(distributions) == 1 else found
    try:
        importlib.import_module(MODULES.get(name, name.replace("-", "_")))
    except LOAD_ERRORS as error:
        return Finding(name, version, f"does not load ({load_failure(error)}); {note}", False)
    return Finding(name, version, "", True)


def _dali(extra: str) -> Finding:
    from unfused_fast.data import import_dali

    found = installed(*DALI)
    try:
        import_dali()
    except UserError as error:
        return Finding("DALI", found or "missing", f"{error}; here: {_install(extra)}", False)
    return Finding("DALI", found or "found", "", True)


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
    }
    findings = [Finding(f"auto {name}", str(value), "", True) for name, value in values.items()]
    try:
        findings.append(Finding("auto cluster.backend", resolve_backend("auto", device), "", True))
    except UserError as error:
        findings.append(Finding("auto cluster.backend", "not usable", str(error), False))
    return findings
