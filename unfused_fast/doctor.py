"""What is installed here, what every `auto` resolves to, and what to install for more."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import sys
from typing import Any, NamedTuple

REQUIRED = (
    "numpy",
    "webdataset",
    "zarr",
    "soundfile",
    "soxr",
    "pyarrow",
    "safetensors",
    "typer",
    "rich",
    "tensorboard",
    "matplotlib",
)
DALI = ("nvidia-dali-cuda130", "nvidia-dali-cuda120")
OPTIONAL = {
    "faiss": ("faiss-cpu", "faiss-gpu", "faiss-gpu-cu12"),
    "cuml": ("cuml-cu13", "cuml-cu12"),
    "cupy": ("cupy-cuda13x", "cupy-cuda12x"),
    "triton": ("triton",),
}


class Finding(NamedTuple):
    """One line of the report."""

    name: str
    found: str
    note: str
    works: bool


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
        return [*findings, Finding("torch", "not usable", f"{error}; install it: pip install torch", False)]
    cuda = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "CPU build"
    findings.append(Finding("torch", torch.__version__, cuda, True))
    devices = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    extra = "cuda13" if (torch.version.cuda or "").startswith("13") else "cuda12"
    findings.append(
        Finding("GPU", ", ".join(devices) or "none", "" if devices else f"CPU: {os.cpu_count()} cores", True)
    )
    findings += [_package(name, (name,), True, "pip install unfused-fast") for name in REQUIRED]
    findings.append(_dali(extra if devices else "cpu"))
    for name, distributions in OPTIONAL.items():
        findings.append(
            _package(
                name,
                distributions,
                False,
                f"pip install 'unfused-fast[{extra if devices else 'cpu'}]'",
                gpu_only=not devices,
            )
        )
    findings += _clashes()
    findings += _resolved()
    return findings


def _package(name: str, distributions: tuple[str, ...], required: bool, remedy: str, gpu_only: bool = False) -> Finding:
    found = installed(*distributions)
    if found:
        return Finding(name, found.split(" ", 1)[1] if len(distributions) == 1 else found, "", True)
    if required:
        return Finding(name, "missing", f"needed; {remedy}", False)
    needless = gpu_only and name in ("cuml", "cupy", "triton")
    return Finding(name, "missing", "of use with a GPU only" if needless else f"optional; {remedy}", True)


def _dali(extra: str) -> Finding:
    found = installed(*DALI)
    remedy = f"pip install 'unfused-fast[{extra}]'"
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
