"""Packages that are not installed, packages that are and do not load, and a compiler that is not there."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from outcomes import Cli, refused

from unfused_fast.clustering import backends as kmeans_backends
from unfused_fast.data import dali as pipeline
from unfused_fast.errors import UserError
from unfused_fast.explore.layout import map_of
from unfused_fast.optional import missing_compiler
from unfused_fast.shards.packing import ray_engine
from unfused_fast.shards.sources import reader, remote

BROKEN = "libexample.so.1: cannot open shared object file: No such file or directory"

IMPORTERS: dict[str, Callable[[], object]] = {
    "nvidia.dali": pipeline.import_dali,
    "faiss": lambda: kmeans_backends.resolve_backend("faiss", torch.device("cpu")),
    "cuml": lambda: kmeans_backends.resolve_backend("cuml", torch.device("cuda")),
    "ray": ray_engine.connect,
    "fsspec": lambda: remote.file_system("memory://folder"),
    "umap": lambda: map_of(torch.eye(8), "umap", np.zeros((8, 1), np.int32), np.zeros((8, 1), np.float32)),
    "indexed_gzip": lambda: reader.InflatedGzip(None),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("module", IMPORTERS)
def test_absent_and_broken_are_told_apart(module: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in sys.modules if f"{name}.".startswith(f"{module}.")]:
        monkeypatch.delitem(sys.modules, name)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, module, None)
        with pytest.raises(UserError, match=r"which is not installed; in a checkout: pip install '\.\["):
            IMPORTERS[module]()
    package = tmp_path / module.split(".")[-1]
    package.mkdir()
    monkeypatch.setattr(sys, "meta_path", [Finder(module, package), *sys.meta_path])
    for text, cause in ((f"raise ImportError({BROKEN!r})", BROKEN), ("import no_such_module", "'no_such_module'")):
        (package / "__init__.py").write_text(text)
        with pytest.raises(UserError, match=r"is installed but does not load \(.*; in a checkout: pip") as caught:
            IMPORTERS[module]()
        assert cause in str(caught.value)


class Finder:
    """Finds one module in a folder."""

    def __init__(self, module: str, folder: Path) -> None:
        self.module, self.folder = module, folder

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        from importlib.util import spec_from_file_location

        return spec_from_file_location(name, self.folder / "__init__.py") if name == self.module else None


def test_the_package_of_a_protocol(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("s3fs", reason="needs the extra `remote`")
    registry = pytest.importorskip("fsspec.registry")
    for missing in ("s3fs", "aiobotocore"):
        with monkeypatch.context() as patch:
            for name in [name for name in sys.modules if name.split(".")[0] in ("s3fs", "aiobotocore")]:
                patch.delitem(sys.modules, name)
            patch.setitem(sys.modules, missing, None)
            patch.delitem(registry._registry, "s3", raising=False)  # of an earlier test
            with pytest.raises(
                UserError, match=rf"Install s3fs to access S3: .*{missing}.* pip install '\.\[remote\]'"
            ):
                remote.file_system("s3://bucket/folder")


def test_no_compiler(
    cli: Cli, unlabelled: Path, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    done = cli("train", "pretrain", unlabelled, "--out", tmp_path / "out", *tiny, "--compile")
    refused(done, "torch.compile needs a C++ compiler (no-such-compiler)", "apt install g++", "or use --no-compile")
    assert not (tmp_path / "out").exists()
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX")
    monkeypatch.delenv("CC", raising=False)
    assert "(g++)" in str(missing_compiler("C++")) and "(gcc or clang)" in str(missing_compiler("C"))


def test_no_header_of_python(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CC", sys.executable)
    monkeypatch.setattr("sysconfig.get_path", lambda *_: str(tmp_path))
    assert "Python.h" in str(missing_compiler("C"))
    (tmp_path / "Python.h").touch()
    assert missing_compiler("C") is None
