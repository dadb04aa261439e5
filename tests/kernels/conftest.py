"""Where a kernel's test runs: the reference on this CPU, the Triton kernel in the interpreter, either on a GPU."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import re
import subprocess
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

Run = Callable[..., Any]


@pytest.fixture(scope="session")
def interpreter() -> Iterator[ProcessPoolExecutor]:
    """A process of its own with TRITON_INTERPRET=1, which Triton reads when it is imported, by other tests here too."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed; the dev extra brings it: pip install -e '.[dev]'")
    with ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn")) as executor:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TRITON_INTERPRET", "1")
            executor.submit(os.getpid).result()  # starts the process, which inherits the variable
        yield executor


def _to_cuda(value: Any) -> Any:
    """The strides too: a non-contiguous tensor stays one."""
    if not isinstance(value, Tensor):
        return value
    copy = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="cuda")
    return copy.copy_(value)


@pytest.fixture(
    params=[
        "reference",
        "interpreter",
        pytest.param("reference on cuda", marks=pytest.mark.gpu),
        pytest.param("triton on cuda", marks=pytest.mark.gpu),
    ]
)
def run(request: pytest.FixtureRequest) -> Run:
    """`run(module, "name", *arguments)` gives what `name_reference` or `name_triton` gives, on the CPU."""
    where = request.param

    def call(module: ModuleType, name: str, *arguments: Any) -> Any:
        function = getattr(module, f"{name}_reference" if "reference" in where else f"{name}_triton")
        if where == "interpreter":
            return request.getfixturevalue("interpreter").submit(function, *arguments).result()
        if "cuda" in where:
            return tuple(result.cpu() for result in function(*map(_to_cuda, arguments)))
        return function(*arguments)

    call.where = where  # type: ignore[attr-defined]
    return call


@pytest.fixture(params=[80, 90], ids=["A100", "H100"])
def compile_for(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """`compile_for(kernel, types, constants, odd, **options)` compiles as for arguments that 16 divides, except those
    named in `odd`; needs no GPU.
    """
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed; the dev extra brings it: pip install -e '.[dev]'")
    import triton
    from triton.backends.compiler import GPUTarget

    def compile(
        kernel: Any, types: Mapping[str, str], constants: Mapping[str, Any], odd: Collection[str] = (), **options: int
    ) -> Any:
        friendly = {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in types if name not in odd}
        signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
        source = triton.compiler.ASTSource(fn=kernel, signature=signature, constexprs=dict(constants), attrs=friendly)
        return triton.compile(source, target=GPUTarget("cuda", request.param, 32), options=options)

    return compile


@pytest.fixture
def local_bytes(tmp_path: Path) -> Callable[[Any], int]:
    """`local_bytes(compiled)`: local memory that a thread takes, which is where registers are spilled to."""

    def found(compiled: Any) -> int:
        import triton

        cubin = tmp_path / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", cubin]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        (stack,), (local,) = (re.findall(rf"{name}:(\d+)", said) for name in ("STACK", "LOCAL"))
        return int(stack) + int(local)

    return found
