"""Where a kernel's test runs: the reference on this CPU, the Triton kernel in the interpreter, either on a GPU."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
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
    """`compile_for(kernel, types, constants, **options)` compiles as for tensors of friendly shape; needs no GPU."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed; the dev extra brings it: pip install -e '.[dev]'")
    import triton
    from triton.backends.compiler import GPUTarget

    def compile(kernel: Any, types: Mapping[str, str], constants: Mapping[str, Any], **options: int) -> Any:
        friendly = {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in types}
        signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
        source = triton.compiler.ASTSource(fn=kernel, signature=signature, constexprs=dict(constants), attrs=friendly)
        return triton.compile(source, target=GPUTarget("cuda", request.param, 32), options=options)

    return compile
