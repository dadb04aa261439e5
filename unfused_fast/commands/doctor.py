"""What is installed here, what every `auto` resolves to, and what to install for more."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import NamedTuple, get_args

from unfused_fast.console import counted
from unfused_fast.errors import UserError
from unfused_fast.optional import LOAD_ERRORS, load_failure, missing_compiler

DALI = ("nvidia-dali-cuda130", "nvidia-dali-cuda120")
FAISS = ("faiss-cpu", "faiss-gpu", "faiss-gpu-cu12")
ON_GPUS = {
    "cuml": ("cluster.backend=cuml", ("cuml-cu13", "cuml-cu12")),
    "cupy": ("cluster.backend=cuml", ("cupy-cuda13x", "cupy-cuda12x")),
    "triton": ("faster clustering and views", ("triton",)),
}
"""Module -> its purpose, and the distributions that bring it."""
MODULES = {"scikit-learn": "sklearn", "DALI": "nvidia.dali", "pyyaml": "yaml"}
"""Name in the report -> its module, where that is another."""
OLDEST_CUDA, OLDEST_DRIVER = 12, 525
"""CUDA version that the extras need at least, and the driver that supports it. Source: NVIDIA, CUDA compatibility."""
NEEDED_FOR = {
    "ray": "--engine ray",
    "remote": "sources and shards behind URLs",
    "export": "export --onnx",
    "explore": "the map of explore",
    "hub": "encoders and data sets of the Hugging Face Hub",
    "wandb": "--log-to wandb",
    "mlflow": "--log-to mlflow",
    "search": "benchmarks/search.py",
}
"""Extras that bring a way to work, whatever the device."""


class Finding(NamedTuple):
    """One line of the report."""

    name: str
    found: str
    note: str = ""
    works: bool = True


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
    python = Finding("python", platform.python_version(), sys.platform)
    try:
        import torch
    except (ImportError, OSError) as error:
        return [python, Finding("torch", "not usable", f"{error}; pip install torch", False)]
    cuda = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "CPU build"
    devices = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    driver = driver_cuda()
    extra = extra_for(driver or (torch.version.cuda if devices else None))
    return [
        python,
        Finding("torch", torch.__version__, cuda),
        Finding("GPU", ", ".join(devices) or "none", "" if devices else f"CPU: {counted(os.cpu_count() or 1, 'core')}"),
        *([] if driver is None else [_driver(driver, torch.version.cuda)]),
        _compiler(bool(devices)),
        *_required(extra),
        _package("DALI", DALI, extra, "--data stream, and log-mels on a GPU"),
        _package("faiss", FAISS, extra, "faster clustering"),
        *(
            _package(name, distributions, extra, purpose)
            if devices
            else Finding(name, installed(*distributions) or "missing", "of use with a GPU only")
            for name, (purpose, distributions) in ON_GPUS.items()
        ),
        *(
            _package(name, (name,), way, purpose, loads=False)
            for way, purpose in NEEDED_FOR.items()
            for name in requirements(way) or []
        ),
        *_clashes(),
        *_resolved(),
    ]


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
    for name in (*DALI, *FAISS, *ON_GPUS["cuml"][1], *ON_GPUS["cupy"][1]):
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
        return Finding("driver", found, f"not used, because torch is a CPU build; {remedy}")
    built_for = {"torch": torch_cuda} | builds()
    newer = [f"{name} (CUDA {cuda})" for name, cuda in built_for.items() if cuda and _major(cuda) > _major(driver)]
    if newer:
        return Finding("driver", found, f"too old for {', '.join(newer)}; {remedy}", False)
    return Finding("driver", found)


def _compiler(on_gpu: bool) -> Finding:
    missing = missing_compiler("C" if on_gpu else "C++")
    if missing is None:
        return Finding("compiler", "found")
    purpose = "training on a GPU without --no-compile needs" if on_gpu else "optional; --compile needs"
    return Finding("compiler", "missing", f"{purpose} {missing}", not on_gpu)


def _install(extra: str) -> str:
    return f"in a checkout: pip install '.[{extra}]'"


def _required(extra: str) -> list[Finding]:
    names = requirements()
    if names is None:
        return [Finding("unfused-fast", "not installed", f"what it needs is not known; {_install(extra)}", False)]
    return [_package(name, (name,), extra) for name in names]


def _package(
    name: str, distributions: tuple[str, ...], extra: str, purpose: str | None = None, loads: bool = True
) -> Finding:
    """`purpose` is of an optional one. With `loads` it is imported: what training uses has to load."""
    found, note = installed(*distributions), f"{f'optional, for {purpose}' if purpose else 'needed'}; {_install(extra)}"
    if found is None:
        return Finding(name, "missing", note, purpose is not None)
    version = found.split(" ", 1)[1] if len(distributions) == 1 else found
    try:
        if loads:
            importlib.import_module(MODULES.get(name, name.replace("-", "_")))
    except LOAD_ERRORS as error:
        return Finding(name, version, f"does not load ({load_failure(error)}); {note}", False)
    return Finding(name, version)


def _clashes() -> Iterator[Finding]:
    for distributions in (FAISS, DALI):
        names = [name for name in distributions if installed(name)]
        if len(names) > 1:
            note = "both own one module name; uninstall all of them, then install one extra"
            yield Finding("clash", " and ".join(names), note, False)


def _resolved() -> Iterator[Finding]:
    """What every `auto` is here, or how it follows from the set, in the words of its field."""
    from unfused_fast.clustering import resolve_backend
    from unfused_fast.config import Config, Stage, field_texts, flatten, preset
    from unfused_fast.training import precision, resolve_device

    device = resolve_device("auto")
    yield Finding("auto --device", str(device))
    yield Finding("auto --compile", "on" if device.type == "cuda" else "off")
    yield Finding("auto train.amp", precision(Config(), device))
    try:
        yield Finding("auto cluster.backend", resolve_backend("auto", device))
    except UserError as error:
        yield Finding("auto cluster.backend", "not usable", str(error), False)
    stages: tuple[Stage, ...] = get_args(Stage)
    autos = [
        name for stage in stages for name, value in flatten(preset("recommended", stage)).items() if value == "auto"
    ]
    for name in dict.fromkeys(autos):
        if name not in ("train.amp", "cluster.backend"):
            meaning = re.search(r"`auto`:? (?:is )?([^.;(]*[^.;( ])", field_texts()[name][1])
            yield Finding(f"auto {name}", "by the set", meaning[1] if meaning else "")
